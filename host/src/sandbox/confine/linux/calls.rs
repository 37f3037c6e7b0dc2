//! The system calls that executing a guest needs. On the threads with this filter, every other call
//! fails with EPERM.
//!
//! None of the allowed calls takes a file name: a guest's thread receives its files open. The
//! filter can check numeric arguments. It uses them to deny executable memory, and to let a thread
//! signal only itself, with SIGABRT.

use std::collections::BTreeMap;

use libc::c_long;
use rustix::ioctl::opcode;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Calls that are allowed with any arguments.
const FREE: &[c_long] = &[
    // Open files. Libraries choose among these by what the kernel supports.
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_fstat,
    // Memory. An instance's first memory comes from an anonymous file.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    // Waiting, time and random numbers.
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    // Traps of guests are signals. A fault that is not a guest's trap must end the process as
    // usual.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    // The end of a thread and of the process.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The `fcntl` commands that are allowed. They affect only the open file itself.
const FCNTL: [i32; 8] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// The request with which wasmtime finds the pages of a memory that were written: `PAGEMAP_SCAN`,
/// with a `struct pm_scan_arg` of twelve 64-bit numbers.
const PAGEMAP_SCAN: u64 = opcode::read_write::<[u64; 12]>(b'f', 16) as u64;
/// The requests that a progress bar sends to its terminal when a log line is written beside it:
/// `TIOCGWINSZ` and `TCGETS` of asm-generic/ioctls.h. The type of libc's constants differs between
/// C libraries.
const TERMINAL: [u64; 2] = [0x5413, 0x5401];

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// Applies the filter to this thread. It can't be removed.
///
/// # Errors
/// When the kernel does not support filters, or this process may not use them.
pub(super) fn restrict() -> Result<(), Error> {
    seccompiler::apply_filter(&filter()?)
}

/// The filter for the thread that calls this.
fn filter() -> Result<BpfProgram, Error> {
    let process = u64::from(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs());
    let thread = u64::from(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
    let abort = libc::SIGABRT as u64;
    let not_code = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);

    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        FREE.iter().map(|call| (*call, Vec::new())).collect();
    let mut allow = |call, conditions| -> Result<(), Error> {
        rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
        Ok(())
    };
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allow(call, vec![int(2, not_code.clone(), 0)?])?;
    }
    for command in FCNTL {
        allow(libc::SYS_fcntl, vec![int(1, SeccompCmpOp::Eq, command as u64)?])?;
    }
    for request in TERMINAL.into_iter().chain([PAGEMAP_SCAN]) {
        allow(libc::SYS_ioctl, vec![int(1, SeccompCmpOp::Eq, request)?])?;
    }
    let eq = SeccompCmpOp::Eq;
    let of_thread = |n| int(n, eq.clone(), thread);
    allow(
        libc::SYS_tgkill,
        vec![int(0, eq.clone(), process)?, of_thread(1)?, int(2, eq.clone(), abort)?],
    )?;
    allow(libc::SYS_tkill, vec![of_thread(0)?, int(1, eq.clone(), abort)?])?;

    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, ARCH)?;
    Ok(filter.try_into()?)
}

/// A condition on an argument of 32 bits.
fn int(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?)
}
