//! The resources that this process may use: cores, memory and address space.
//!
//! Limits come from the machine, from its control groups (such as a container's), from a Slurm job,
//! and from the process itself. The smallest limit applies.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use bytesize::ByteSize;
use rustix::process::{Resource, getrlimit};

use crate::environment::Environment;
use crate::system;

/// The memory that a host needs besides its tasks: for itself, and for the compilation of a small
/// component.
const OF_THE_HOST: ByteSize = ByteSize::mib(200);
/// The minimum memory for a compilation.
const LEAST_TO_COMPILE: ByteSize = ByteSize::mib(64);
/// The address space of a task: four memories that can grow to 4 GiB, and guard pages. Most of it
/// never uses physical memory.
pub const TASK_ADDRESSES: ByteSize = ByteSize(17 << 30);
/// The address space of a host besides its tasks: this program and the stacks of its threads.
const HOST_ADDRESSES: ByteSize = ByteSize::gib(1);

/// The resources that this process may use.
#[derive(Debug)]
pub struct Machine {
    /// The number of cores, at least one.
    cores: usize,
    memory: Option<Memory>,
    /// The limit of the address space, if any.
    addresses: Option<ByteSize>,
}

/// The memory that a process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The size.
    pub size: ByteSize,
    /// The source of the limit.
    pub source: Source,
}

/// The source of a memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The memory of the machine.
    Machine,
    /// A control group, such as that of a container or a job.
    ControlGroup,
    /// A variable of Slurm, with its name.
    Slurm(&'static str),
}

impl fmt::Display for Memory {
    /// Writes a sentence without a full stop: `the machine has 8.0 GiB of memory`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.size.display().iec();
        match self.source {
            Source::Machine => write!(f, "the machine has {size} of memory"),
            Source::ControlGroup => {
                write!(f, "the container or control group has {size} of memory")
            }
            Source::Slurm(variable) => write!(f, "the job has {size} of memory ({variable})"),
        }
    }
}

impl Machine {
    /// The resources that this process may use, determined at the first call.
    pub fn of_process() -> &'static Self {
        static OF_PROCESS: LazyLock<Machine> = LazyLock::new(|| Machine {
            addresses: getrlimit(Resource::As).current.map(ByteSize),
            ..Machine::look(&Environment::of_process(), Path::new("/"))
        });
        &OF_PROCESS
    }

    /// The resources according to these variables and this root directory.
    fn look(environment: &Environment, root: &Path) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let slurm = number(environment, &["SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"]);
        let cores = match slurm.and_then(|(_, cores)| usize::try_from(cores).ok()) {
            // Slurm binds a job to its cores only if it is configured to do so.
            Some(of_the_job) => cores.min(of_the_job),
            None => cores,
        };
        Self { cores, memory: memory(environment, root), addresses: None }
    }

    /// The number of cores that this process may use, at least one.
    pub fn cores(&self) -> usize {
        self.cores
    }

    /// The memory that this process may use, if known.
    pub fn memory(&self) -> Option<Memory> {
        self.memory
    }

    /// The number of tasks to run at the same time: one for each core, but not more than memory and
    /// address space allow, and at least one. `each` is the memory of one task, including the
    /// host's part.
    pub fn places(&self, each: ByteSize) -> usize {
        let in_memory = self.memory.map(|memory| for_tasks(memory).as_u64() / each.as_u64().max(1));
        let addresses = self.addresses.map(|most| {
            most.as_u64().saturating_sub(HOST_ADDRESSES.as_u64()) / TASK_ADDRESSES.as_u64()
        });
        let fit = in_memory.into_iter().chain(addresses).min();
        let fit = fit.map_or(usize::MAX, |fit| usize::try_from(fit).unwrap_or(usize::MAX));
        self.cores.min(fit).max(1)
    }

    /// The memory that makes [`places`](Self::places) return `parallel`, if there are enough cores.
    pub fn needed(parallel: usize, each: ByteSize) -> ByteSize {
        let tasks = each.as_u64().saturating_mul(parallel as u64);
        // With little memory, the host leaves half of it to tasks.
        ByteSize(tasks.saturating_add(OF_THE_HOST.as_u64().min(tasks)))
    }

    /// The memory limit of all guests together, if the memory of this process is known. `parallel`
    /// tasks run at a time, and the host may need `beside` for each of them.
    pub fn for_guests(&self, parallel: usize, beside: ByteSize) -> Option<ByteSize> {
        let all = for_tasks(self.memory?).as_u64();
        let beside = beside.as_u64().saturating_mul(parallel as u64);
        // At least half goes to guests, because few tasks use the host's whole part.
        Some(ByteSize(all.saturating_sub(beside).max(all / 2)))
    }

    /// The memory for compiling a component: `usual`, or less if there is less.
    pub fn to_compile(&self, usual: ByteSize) -> ByteSize {
        let most = self.memory.map_or(usual, |memory| usual.min(for_tasks(memory)));
        most.max(LEAST_TO_COMPILE)
    }
}

/// The memory that remains for tasks.
fn for_tasks(memory: Memory) -> ByteSize {
    let all = memory.size.as_u64();
    ByteSize(all.saturating_sub(OF_THE_HOST.as_u64()).max(all / 2))
}

fn memory(environment: &Environment, root: &Path) -> Option<Memory> {
    let machine = (system::memory(root)?, Source::Machine);
    let groups = control_groups(root).into_iter().map(|bytes| (bytes, Source::ControlGroup));
    let all = std::iter::once(machine).chain(groups).chain(slurm(environment));
    let (size, source) = all.min_by_key(|(bytes, _)| *bytes)?;
    Some(Memory { size: ByteSize(size), source })
}

/// The memory that Slurm allocates to a job on this machine. Slurm counts in MiB; 0 means all
/// memory.
fn slurm(environment: &Environment) -> Option<(u64, Source)> {
    let (variable, mib) = number(environment, &["SLURM_MEM_PER_NODE"]).or_else(|| {
        let (variable, each) = number(environment, &["SLURM_MEM_PER_CPU"])?;
        let (_, cores) = number(environment, &["SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK"])?;
        Some((variable, each.saturating_mul(cores)))
    })?;
    Some((mib.saturating_mul(1 << 20), Source::Slurm(variable)))
}

/// The first of these variables whose value is a number above zero.
fn number(environment: &Environment, names: &[&'static str]) -> Option<(&'static str, u64)> {
    names.iter().find_map(|name| {
        let number = environment.get(name)?.parse().ok()?;
        (number > 0).then_some((*name, number))
    })
}

/// The memory limits of this process's control groups and their ancestors, in bytes.
fn control_groups(root: &Path) -> Vec<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (mounts, file): (&[&str], _) = match controllers {
            "" => (&["sys/fs/cgroup", "sys/fs/cgroup/unified"], "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (&["sys/fs/cgroup/memory"], "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // In a container, this path may be the one on the machine. Then only the container's own
        // group exists, which is the mounted directory itself.
        let parts = Path::new(group).components();
        let group: PathBuf = parts.filter(|part| matches!(part, Component::Normal(_))).collect();
        for mount in mounts {
            let files = group.ancestors().map(|group| root.join(mount).join(group).join(file));
            let texts = files.filter_map(|file| std::fs::read_to_string(file).ok());
            // `max` does not parse as a number. In cgroup v1, a limit that is not set is a huge
            // number.
            limits.extend(texts.filter_map(|text| text.trim().parse::<u64>().ok()));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of 8 GiB with these files and variables.
    fn machine(files: &[(&str, &str)], variables: &[(&str, &str)]) -> Machine {
        let root = tempfile::tempdir().unwrap();
        let meminfo = ("proc/meminfo", "MemTotal:       8388608 kB\nMemFree: 1 kB\n");
        for (path, text) in [meminfo].iter().chain(files) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Machine::look(&variables.collect(), root.path())
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], variables: &[(&str, &str)], size: ByteSize, source: Source) {
        let memory = machine(files, variables).memory().unwrap();
        assert_eq!(memory, Memory { size, source });
    }

    #[test]
    fn without_limits_the_machine_is_the_limit() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(memory(&Environment::default(), empty.path()), None);
        check(&[], &[], ByteSize::gib(8), Source::Machine);
        let unlimited = [
            ("proc/self/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/a/memory.max", "max\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        check(&unlimited, &[], ByteSize::gib(8), Source::Machine);
    }

    #[test]
    fn the_least_limit_of_a_control_group_and_those_above_it_holds() {
        let nested = [
            ("proc/self/cgroup", "0::/jobs/one\n"),
            ("sys/fs/cgroup/jobs/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/jobs/one/memory.max", "4294967296\n"),
        ];
        check(&nested, &[], ByteSize::gib(1), Source::ControlGroup);
        let first = [
            ("proc/self/cgroup", "5:cpu:/x\n4:memory,hugetlb:/process\n0::/\n"),
            ("sys/fs/cgroup/memory/process/memory.limit_in_bytes", "536870912\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        check(&first, &[], ByteSize::mib(512), Source::ControlGroup);
        // In a container without its own cgroup namespace, the path does not exist.
        let docker = [
            ("proc/self/cgroup", "0::/docker/4711\n"),
            ("sys/fs/cgroup/memory.max", "268435456\n"),
        ];
        check(&docker, &[], ByteSize::mib(256), Source::ControlGroup);
        let outside =
            [("proc/self/cgroup", "0::/../..\n"), ("sys/fs/cgroup/memory.max", "268435456\n")];
        check(&outside, &[], ByteSize::mib(256), Source::ControlGroup);
    }

    #[test]
    fn a_slurm_job_has_the_memory_that_it_asked_for() {
        let node = Source::Slurm("SLURM_MEM_PER_NODE");
        check(&[], &[("SLURM_MEM_PER_NODE", "4096")], ByteSize::gib(4), node);
        check(&[], &[("SLURM_MEM_PER_NODE", "0")], ByteSize::gib(8), Source::Machine);
        check(&[], &[("SLURM_MEM_PER_NODE", "9999999")], ByteSize::gib(8), Source::Machine);
        let each = ("SLURM_MEM_PER_CPU", "512");
        check(
            &[],
            &[each, ("SLURM_CPUS_ON_NODE", "4")],
            ByteSize::gib(2),
            Source::Slurm("SLURM_MEM_PER_CPU"),
        );
        check(&[], &[each], ByteSize::gib(8), Source::Machine);
    }

    #[test]
    fn a_slurm_job_uses_no_more_cores_than_it_asked_for() {
        assert_eq!(machine(&[], &[("SLURM_CPUS_PER_TASK", "1")]).cores(), 1);
        assert_eq!(machine(&[], &[("SLURM_CPUS_ON_NODE", "1")]).cores(), 1);
        let all = machine(&[], &[]).cores();
        assert_eq!(machine(&[], &[("SLURM_CPUS_PER_TASK", "100000")]).cores(), all);
        assert_eq!(machine(&[], &[("SLURM_CPUS_PER_TASK", "1(x2)")]).cores(), all);
    }

    #[test]
    fn no_more_tasks_run_at_a_time_than_fit() {
        let places = |memory: Option<ByteSize>, addresses, each| {
            let memory = memory.map(|size| Memory { size, source: Source::ControlGroup });
            Machine { cores: 4, memory, addresses }.places(each)
        };
        let gib = ByteSize::gib;
        for parallel in 1..=4 {
            for each in [ByteSize::mib(10), ByteSize::mib(300), gib(1)] {
                let needed = Machine::needed(parallel, each);
                assert_eq!(places(Some(needed), None, each), parallel, "{each}");
                let less = ByteSize(needed.as_u64() - 2);
                assert!(places(Some(less), None, each) < parallel.max(2), "{each}");
            }
        }
        assert_eq!(places(None, None, gib(1)), 4);
        assert_eq!(places(Some(gib(8)), None, gib(1)), 4);
        assert_eq!(places(Some(gib(3)), None, gib(1)), 2);
        assert_eq!(places(Some(ByteSize::mib(512)), None, gib(1)), 1);
        assert_eq!(places(None, Some(gib(64)), gib(1)), 3);
        assert_eq!(places(None, Some(gib(8)), gib(1)), 1);
    }

    #[test]
    fn what_guests_may_have_leaves_room_for_the_host() {
        let for_guests = |size, parallel| {
            let memory = Some(Memory { size, source: Source::ControlGroup });
            let machine = Machine { cores: 4, memory, addresses: None };
            machine.for_guests(parallel, ByteSize::mib(69)).unwrap()
        };
        let mib = ByteSize::mib;
        assert_eq!(for_guests(mib(512), 1), mib(243));
        assert_eq!(for_guests(mib(2248), 2), mib(1910));
        // With little memory or many tasks, guests get half of the memory.
        assert_eq!(for_guests(mib(512), 64), mib(156));
        assert_eq!(for_guests(mib(128), 1), mib(32));
    }

    #[test]
    fn a_compilation_fits_too() {
        let to_compile = |size| {
            let memory = Some(Memory { size, source: Source::Machine });
            Machine { cores: 4, memory, addresses: None }.to_compile(ByteSize::gib(2))
        };
        assert_eq!(to_compile(ByteSize::gib(8)), ByteSize::gib(2));
        assert_eq!(to_compile(ByteSize::mib(512)), ByteSize::mib(312));
        assert_eq!(to_compile(ByteSize::mib(100)), ByteSize::mib(64));
    }
}
