//! What to do when the system refuses threads or address space.

use bytesize::ByteSize;
use rustix::process::{Resource, getrlimit};
use task_host::machine::TASK_ADDRESSES;

/// The limits of this process, if it has any.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    /// Address space.
    addresses: Option<ByteSize>,
    /// Processes and threads of this user.
    threads: Option<u64>,
}

/// What to do if the sandbox or a runtime could not be set up. `problem` is the text of the error.
pub(crate) fn cure(problem: &str) -> String {
    let limits = Limits {
        addresses: getrlimit(Resource::As).current.map(ByteSize),
        threads: getrlimit(Resource::Nproc).current,
    };
    cure_within(problem, limits)
}

fn cure_within(problem: &str, limits: Limits) -> String {
    let is = |code: i32| problem.contains(&format!("os error {code})"));
    let (is_memory, is_threads, is_files) = (is(12), is(11), is(24) || is(23));
    // Too many threads and a stack without address space cause the same error.
    if let (true, Some(addresses)) = (is_memory || is_threads, limits.addresses) {
        let or_fewer = match addresses > TASK_ADDRESSES {
            true => ", or a lower --parallel",
            false => "",
        };
        return format!(
            "this process may have {} of address space (`ulimit -v`), and each task that may run \
             takes about {}, though little of it is ever used: `ulimit -v unlimited`, LimitAS=infinity \
             in a systemd unit{or_fewer}",
            addresses.display().iec(),
            TASK_ADDRESSES.display().iec()
        );
    }
    if is_threads {
        let limit = match limits.threads {
            Some(limit) => format!("this user may have {limit} processes and threads"),
            None => "this user or container may have no more threads".to_owned(),
        };
        return format!(
            "{limit} (`ulimit -u`, TasksMax in a systemd unit, pids.max of a container): raise that \
             limit, or lower --parallel"
        );
    }
    if is_files {
        return "raise the number of files that may be open (`ulimit -n`), or lower --parallel"
            .to_owned();
    }
    format!(
        "each task that may run takes about {} of address space, though little of it is ever used: \
         try a lower --parallel, and look at vm.overcommit_memory and vm.max_map_count",
        TASK_ADDRESSES.display().iec()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_by_its_cause() {
        let memory = "failed to mmap: Cannot allocate memory (os error 12)";
        let threads = "Resource temporarily unavailable (os error 11)";
        let files = "Too many open files (os error 24)";
        let none = Limits::default();
        let addresses = Limits { addresses: Some(ByteSize::gib(20)), ..none };
        let too_few = Limits { addresses: Some(ByteSize::gib(16)), ..none };
        let users = Limits { threads: Some(40), ..none };
        let check = |problem: &str, limits: Limits, want: &str| {
            let told = cure_within(problem, limits);
            assert!(told.contains(want), "{problem}: {told}");
        };
        check(memory, none, "vm.overcommit_memory");
        check(memory, addresses, "20.0 GiB of address space (`ulimit -v`)");
        check(memory, addresses, "LimitAS=infinity in a systemd unit, or a lower --parallel");
        // Fewer tasks would not help.
        assert!(cure_within(memory, too_few).ends_with("in a systemd unit"));
        check(memory, users, "vm.overcommit_memory");
        check(threads, none, "pids.max");
        check(threads, users, "40 processes and threads (`ulimit -u`");
        check(threads, addresses, "`ulimit -v`");
        check(files, users, "`ulimit -n`");
    }
}
