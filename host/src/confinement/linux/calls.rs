//! The system calls that neither a host nor the programs that it starts need. They fail with EPERM.
//!
//! Most of them lead to parts of the kernel that are less well guarded than files and sockets. A
//! list of allowed calls would be safer, but can't be known: a host runs the programs that its user
//! names for credentials, and the system's libraries.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Calls that are refused with any arguments.
const REFUSED: &[c_long] = &[
    // File systems and roots. Opening a file by its handle bypasses the rules for its path.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // The kernel's own machinery.
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// `kexec_file_load`. The crate `libc` lacks it for arm64 with musl, so this is the number in
/// asm-generic/unistd.h.
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: c_long = 294;
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = libc::SYS_kexec_file_load;

/// The flags of `clone` that make namespaces.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// The kinds of sockets that are allowed: local sockets, internet sockets, and netlink, with which
/// libraries find the machine's addresses.
const SOCKETS: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// The requests that could type into the terminal that the host was started from: `TIOCSTI` and
/// `TIOCLINUX` of asm-generic/ioctls.h.
const TYPING: [u64; 2] = [0x5412, 0x541c];

/// With this bit, every call of x86-64 has a second number (x32). Some calls have other numbers in
/// x32.
#[cfg(target_arch = "x86_64")]
const X32: c_long = 0x4000_0000;
/// The x32 numbers of `ptrace`, `kexec_load`, `process_vm_readv` and `process_vm_writev`.
#[cfg(target_arch = "x86_64")]
const OF_X32: [c_long; 4] = [521, 528, 539, 540];

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// Applies the filters to this thread, or to all threads of the process. They can't be removed.
///
/// # Errors
/// When the kernel does not support filters, or this process may not use them.
pub(super) fn restrict(all_threads: bool) -> Result<(), Error> {
    let apply = match all_threads {
        true => seccompiler::apply_filter_all_threads,
        false => seccompiler::apply_filter,
    };
    apply(&without_clone3()?)?;
    apply(&filter()?)
}

/// A filter that reports `clone3` as missing. Its flags are in memory, which a filter can't read.
/// Libraries then use `clone`.
fn without_clone3() -> Result<BpfProgram, Error> {
    compile([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS)
}

fn filter() -> Result<BpfProgram, Error> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let mut refuse = |call, conditions| -> Result<(), Error> {
        rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
        Ok(())
    };
    for bit in (0..64).map(|n| 1_u64 << n).filter(|bit| NAMESPACES & bit != 0) {
        refuse(libc::SYS_clone, vec![int(0, SeccompCmpOp::MaskedEq(bit), bit)?])?;
    }
    for request in TYPING {
        refuse(libc::SYS_ioctl, vec![int(1, SeccompCmpOp::Eq, request)?])?;
    }
    let other = |kind: &i32| int(0, SeccompCmpOp::Ne, kind.unsigned_abs().into());
    let others: Result<Vec<_>, Error> = SOCKETS.iter().map(other).collect();
    refuse(libc::SYS_socket, others?)?;
    compile(rules, libc::EPERM)
}

/// A filter that refuses these calls with an error.
fn compile(rules: BTreeMap<c_long, Vec<SeccompRule>>, error: i32) -> Result<BpfProgram, Error> {
    #[cfg(target_arch = "x86_64")]
    let rules = {
        let again = rules.iter().map(|(call, rules)| (call | X32, rules.clone()));
        let of_x32 = OF_X32.map(|call| (call | X32, Vec::new()));
        again.chain(of_x32).chain(rules.clone()).collect()
    };
    let refused = SeccompAction::Errno(error.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, ARCH)?;
    Ok(filter.try_into()?)
}

/// A condition on an argument of 32 bits.
fn int(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::process::Command;

    use super::*;

    /// A system call by its number, with its result or the system's error number.
    macro_rules! call {
        ($number:expr $(, $argument:expr)*) => {{
            // SAFETY: the pointers among the arguments are null or point to memory that outlives
            // the call.
            let done = unsafe { libc::syscall($number $(, $argument)*) };
            if done < 0 { io::Error::last_os_error().raw_os_error() } else { None }
        }};
    }

    /// Runs `work` on a thread with the filters.
    fn filtered<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                restrict(false).expect("the kernel has filters");
                work()
            });
            thread.join().expect("the thread's work")
        })
    }

    #[test]
    fn what_no_host_needs_is_refused() {
        let refused = filtered(|| {
            let none = std::ptr::null::<u8>();
            let path = c"/".as_ptr();
            let this = std::process::id();
            let mut done: Vec<(String, _)> = REFUSED
                .iter()
                .map(|number| (format!("call {number}"), call!(*number, none, none, none, none)))
                .collect();
            let mut also = |what: &str, result| done.push((what.to_owned(), result));
            also("mount", call!(libc::SYS_mount, none, path, c"tmpfs".as_ptr(), 0, none));
            also("ptrace", call!(libc::SYS_ptrace, libc::PTRACE_ATTACH, this, 0, 0));
            also("unshare", call!(libc::SYS_unshare, libc::CLONE_NEWUSER));
            also("clone", call!(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0));
            also("clone", call!(libc::SYS_clone, libc::CLONE_NEWNET | libc::SIGCHLD, 0, 0, 0, 0));
            also("TIOCSTI", call!(libc::SYS_ioctl, 0, libc::TIOCSTI, none));
            also("AF_PACKET", call!(libc::SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0));
            also("AF_ALG", call!(libc::SYS_socket, libc::AF_ALG, libc::SOCK_SEQPACKET, 0));
            also("AF_VSOCK", call!(libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0));
            done
        });
        let done: Vec<_> = refused.iter().filter(|(_, e)| *e != Some(libc::EPERM)).collect();
        assert!(done.is_empty(), "not refused with EPERM: {done:?}");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_second_numbers_of_calls_are_refused_too() {
        let tried = filtered(|| {
            let other = |call: c_long| call!(call | X32, 0, 0, 0, 0);
            [other(libc::SYS_bpf), other(libc::SYS_unshare), other(521), other(540)]
        });
        assert_eq!(tried, [Some(libc::EPERM); 4]);
    }

    #[test]
    fn what_hosts_need_still_works() {
        filtered(|| {
            assert_eq!(call!(libc::SYS_clone3, std::ptr::null::<u8>(), 0), Some(libc::ENOSYS));
            let thread = std::thread::spawn(|| 7);
            assert_eq!(thread.join().expect("a thread"), 7);
            assert!(Command::new("true").status().expect("a program").success());
            for kind in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
                assert_eq!(call!(libc::SYS_socket, kind, libc::SOCK_STREAM, 0), None);
            }
            // Threads that execute guests get more filters.
            assert!(restrict(false).is_ok());
        });
    }
}
