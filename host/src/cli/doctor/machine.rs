//! Checks the machine: disks, kernel, compiler, and the limits of this process.

mod directory;
mod shortage;

use std::sync::Arc;

use bytesize::ByteSize;
use rustix::process::{Resource, getrlimit};
use task_host::cache::{self, NotOurs};
use task_host::config::{Config, TaskLimits};
use task_host::confinement::{self, Confine, InForce};
use task_host::fit::{Finding, Level};
use task_host::machine::Machine;
use task_host::sandbox::{self, Confinement, Limits, Sandbox};
use task_host::spill::SpillDir;

use super::super::open_files::{LEAST_FILES, needed};
use super::super::output;

pub(super) use directory::{Use, look_at};
pub(crate) use shortage::cure;

/// Checks the cache, the kernel and the limits of this process.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = vec![cache_dir(config), kernel(config), guests(config), files(config)];
    findings.extend(file_size(config));
    findings.extend(memory(config));
    findings
}

fn cache_dir(config: &Config) -> Finding {
    let subject = &format!("cache {}", output::path(&config.cache.dir));
    let told = |level, NotOurs { problem, cure }| Finding::new(level, subject, problem).cure(cure);
    match cache::check_owner(&config.cache.dir) {
        Ok(None) => {}
        Ok(Some(risk)) => return told(Level::Warn, risk),
        Err(not_ours) => return told(Level::Problem, not_ours),
    }
    let parts = ["", "blobs", "compiled", "work"].map(|part| config.cache.dir.join(part));
    let mut free = ByteSize(u64::MAX);
    for part in parts {
        match look_at(subject, &part, Use::Fill("name another directory with --cache-dir")) {
            Ok(there) => free = free.min(there),
            Err(finding) => return finding,
        }
    }
    let (shown, size) = (free.display().iec(), config.cache.size.display().iec());
    if free < config.cache.size && !config.cache.dir.join("blobs").is_dir() {
        return Finding::new(
            Level::Warn,
            subject,
            format!("may grow to {size}, and its disk has {shown} free"),
        )
        .cure(format!("set --cache-size below {shown}, or another --cache-dir"));
    }
    let text = format!("is writable; up to {size}, and its disk has {shown} free");
    Finding::new(Level::Ok, subject, text)
}

/// The restrictions that the kernel enforces on tasks and on the host, in one line.
pub(crate) fn kernel_line(tasks: Confinement, host: InForce, config: &Config) -> String {
    match config.confinement.confine {
        Confine::Off => format!("{tasks}; this host does not confine itself (--confine off)"),
        Confine::On | Confine::Require => format!("{tasks}; {host}"),
    }
}

/// Checks which restrictions the kernel can enforce, and whether `--confine require` is met.
pub(crate) fn kernel(config: &Config) -> Finding {
    let tasks = sandbox::possible_confinement();
    let host = match config.confinement.confine {
        Confine::Off => InForce::NOTHING,
        Confine::On | Confine::Require => confinement::possible(),
    };
    judge_kernel(tasks, host, config)
}

fn judge_kernel(tasks: Confinement, host: InForce, config: &Config) -> Finding {
    let confine = config.confinement.confine;
    let is_off = confine == Confine::Off;
    let cure = match (tasks.files && (host.files || is_off), tasks.calls && (host.calls || is_off))
    {
        (true, true) => None,
        (false, _) => Some("use Linux 6.2 or newer with landlock among its security modules"),
        (true, false) => Some(
            "use a kernel with CONFIG_SECCOMP_FILTER on x86_64 or aarch64, in a container whose \
             rules allow the call `seccomp`",
        ),
    };
    let text = kernel_line(tasks, host, config);
    let level = match confine {
        Confine::Require => Level::Problem,
        Confine::On | Confine::Off => Level::Warn,
    };
    match cure {
        None => Finding::new(Level::Ok, "kernel", text),
        Some(cure) => Finding::new(level, "kernel", text).cure(cure),
    }
}

/// Sets up the sandbox as a run would. No other check shows whether there are enough address space
/// and threads.
fn guests(config: &Config) -> Finding {
    let spill = Arc::new(SpillDir::when_needed(&config.cache.dir.join("work")));
    let tasks = output::count(config.work.parallel as u64, "task");
    let problem = match Sandbox::new(config.work.parallel, spill, config.work.mode()) {
        // Keep the tasks' threads while checking for the others.
        Ok(_sandbox) => match super::super::ask_for_threads(super::super::base_threads()) {
            Ok(()) => {
                return Finding::new(Level::Ok, "sandbox", format!("{tasks} can run at a time"));
            }
            Err(error) => error.to_string(),
        },
        Err(error) => format!("{error:#}"),
    };
    Finding::new(Level::Problem, "sandbox", format!("{tasks} can't run at a time: {problem}"))
        .cure(cure(&problem))
}

/// Compiles a small module in a separate process, as a run would.
pub(super) async fn compiler(config: &Config) -> Finding {
    let limits = config.compile.limits();
    match task_host::config::compiler(limits).try_out().await {
        Ok(()) => {
            let text = format!(
                "works; a component may use {} and {} of processor time",
                limits.memory.display().iec(),
                humantime::format_duration(limits.time)
            );
            Finding::new(Level::Ok, "compiler", text)
        }
        Err(error) => {
            let problem = format!("components can't be compiled: {error}");
            Finding::new(Level::Problem, "compiler", problem).cure(
                "this program starts itself to compile: allow one more process \
                 (`ulimit -u`, TasksMax, pids.max), and mount /proc",
            )
        }
    }
}

fn files(config: &Config) -> Finding {
    let tasks = (config.work.parallel + config.usual_prefetch()) as u64;
    let files = needed(config.work.parallel, config.usual_prefetch());
    // A host raises its soft limit to the hard limit.
    let limits = getrlimit(Resource::Nofile);
    let Some(limit) = limits.maximum.or(limits.current) else {
        return Finding::new(Level::Ok, "files", "this process may open any number");
    };
    if limit >= files {
        let tasks = output::count(tasks, "task");
        let text = format!("this process may open {limit}, enough for {tasks}");
        return Finding::new(Level::Ok, "files", text);
    }
    let level = match limit < LEAST_FILES {
        true => Level::Problem,
        false => Level::Warn,
    };
    let text = format!(
        "this process may open {limit}, and {tasks} running and prefetched tasks may need {files}"
    );
    Finding::new(level, "files", text).cure(format!(
        "`ulimit -n {files}`, LimitNOFILE={files} in a systemd unit, or a lower --parallel"
    ))
}

/// Checks the maximum size of a file, if there is a limit.
fn file_size(config: &Config) -> Option<Finding> {
    let limit = ByteSize(getrlimit(Resource::Fsize).current?);
    let limits = config.limits();
    let most = limits.most(|limits| limits.output_bytes);
    let needed = most.output_bytes;
    let setting = match &most.table {
        Some(table) => format!("`max-output` in {table}"),
        None => "--max-output".to_owned(),
    };
    let shown = limit.display().iec();
    if limit >= needed {
        return Some(Finding::new(Level::Ok, "file size", format!("up to {shown}")));
    }
    let text = format!(
        "this process may write files of up to {shown}, and an output may have {} ({setting}); \
         larger inputs, outputs and components fail",
        needed.display().iec()
    );
    let cure = format!(
        "`ulimit -f unlimited`, LimitFSIZE=infinity in a systemd unit, or {setting} {}",
        limit.as_u64()
    );
    Some(Finding::new(Level::Warn, "file size", text).cure(cure))
}

/// Checks whether the memory of this process is enough for the tasks and the compiler.
pub(crate) fn memory(config: &Config) -> Option<Finding> {
    let machine = Machine::of_process();
    judge_memory(config, &config.limits(), machine)
}

fn judge_memory(config: &Config, limits: &TaskLimits, machine: &Machine) -> Option<Finding> {
    let there = machine.memory()?;
    let most = limits.most(|limits| limits.memory);
    let (memory, setting) = match &most.table {
        Some(table) => (most.memory, format!("`memory` in {table}")),
        None => (most.memory, "--memory".to_owned()),
    };
    let each = memory.display().iec();
    let alone = limits.for_guests(machine, 1)?;
    if memory > alone {
        let text = format!(
            "a task may use {each} ({setting}), and {there}, {} of it for tasks: a task that needs \
             more fails",
            alone.display().iec()
        );
        let cure = format!("more memory, or {setting} {}MiB", alone.as_u64() >> 20);
        return Some(Finding::new(Level::Problem, "memory", text).cure(cure));
    }
    let parallel = config.work.parallel;
    let together = limits.for_guests(machine, parallel)?;
    let needed = ByteSize(memory.as_u64().saturating_mul(parallel as u64));
    if needed > together {
        let text = format!(
            "{} of {each} ({setting}) may use {}, and {there}, {} of it for tasks: when that is \
             used up, tasks wait for others to end",
            output::count(parallel as u64, "task"),
            needed.display().iec(),
            together.display().iec()
        );
        let cure = format!(
            "--parallel {}, a lower {setting}, or more memory",
            limits.places(machine).min(parallel)
        );
        return Some(Finding::new(Level::Warn, "memory", text).cure(cure));
    }
    // Warn if the memory that the host needs for each task lowers the default of `--parallel`.
    let beside = limits.most(Limits::beside_the_guest).beside_the_guest();
    if beside > memory && parallel < machine.cores() && parallel == limits.places(machine) {
        let text = format!(
            "a task may use {} of the host beside its own {each} (--output-memory and --host-memory, \
             which follows from --max-output-files), and {there}: so only {} may run at a time",
            beside.display().iec(),
            output::count(parallel as u64, "task"),
        );
        let cure = "a lower limit, or --parallel N if tasks use less";
        return Some(Finding::new(Level::Warn, "memory", text).cure(cure));
    }
    let compiling = config.compile.memory;
    (machine.to_compile(compiling) < compiling).then(|| {
        let text = format!(
            "compiling a component may use {}, and {there}; the kernel may kill a compiler that \
             uses more",
            compiling.display().iec(),
        );
        Finding::new(Level::Note, "memory", text).cure("a lower --compile-memory")
    })
}
