//! Tests which system calls a confined thread can make. They make the calls themselves.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libc::{c_int, c_long};

use super::super::possible;
use super::*;

/// A directory with files that a task is given, and other files.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["given", "outside"] {
            fs::create_dir(root.path().join(dir)).unwrap();
            fs::write(root.path().join(dir).join("file"), "content").unwrap();
        }
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

/// Runs `work` on a thread that is confined as far as this kernel can.
fn confined<T: Send>(work: impl FnOnce(Confinement) -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(|| work(confine())).join().expect("the thread's work"))
}

fn name(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

/// A system call by its number, with its result or the system's error number.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        // SAFETY: the pointers among the arguments point to memory that outlives the call. The
        // calls that the filter allows only read this memory, or write to memory that is meant for
        // them.
        let done = unsafe { libc::syscall($number $(, $argument)*) };
        if done < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(done) }
    }};
}

/// Whether this kernel supports seccomp filters. If not, the only thing that is tested is that the
/// reported confinement says so.
fn has_filters() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Seccomp_filters:"))
}

/// A field of the kernel's status of a thread of this process.
fn status(thread: c_long, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(&format!("{field}:")));
    line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default().to_owned()
}

#[test]
fn the_filter_is_put_on_wherever_the_kernel_has_filters() {
    let confinement = possible();
    assert_eq!(confinement.calls, has_filters(), "{confinement}");
    if !has_filters() {
        return;
    }
    // Reads the kernel's status of the confined thread while it lives, and of another thread.
    let (told, thread) = std::sync::mpsc::channel();
    let (looked, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            confine();
            told.send(call!(libc::SYS_gettid).unwrap()).unwrap();
            wait.recv().unwrap();
        });
        let thread = thread.recv().unwrap();
        let own = call!(libc::SYS_gettid).unwrap();
        let (modes, privileges) = (status(thread, "Seccomp"), status(thread, "NoNewPrivs"));
        let others = status(own, "Seccomp");
        looked.send(()).unwrap();
        assert_eq!((&*modes, &*privileges), ("2", "1"));
        assert_eq!(others, "0", "only the threads of guests");
    });
}

#[test]
fn what_guests_do_not_need_is_refused() {
    if !has_filters() {
        return;
    }
    let place = Place::new();
    let outside = name(&place.path("outside/file"));
    let mine = File::options().read(true).write(true).open(place.path("given/file")).unwrap();
    let _unix = UnixListener::bind(place.path("outside/socket")).unwrap();
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    receiver.set_nonblocking(true).unwrap();
    let program = File::open("/bin/true").unwrap();
    let (file, udp, program) = (mine.as_raw_fd(), sender.as_raw_fd(), program.as_raw_fd());
    let other = call!(libc::SYS_gettid).unwrap();

    let refused = confined(move |confinement| {
        // Without the filter, the calls below would take effect.
        assert!(confinement.calls, "there is no filter");
        let none = std::ptr::null::<u8>();
        let (path, at) = (outside.as_ptr(), libc::AT_FDCWD);
        let this = call!(libc::SYS_getpid).unwrap();
        let thread = call!(libc::SYS_gettid).unwrap();
        let bytes = [0_u8; 256];
        let room = bytes.as_ptr();
        let argv = [none, none];
        vec![
            // Files: modes, owners, times, attributes, special files.
            ("fchmodat", call!(libc::SYS_fchmodat, at, path, 0o777)),
            ("fchmodat2", call!(452, at, path, 0o777, 0)),
            ("fchmod", call!(libc::SYS_fchmod, file, 0o777)),
            ("fchownat", call!(libc::SYS_fchownat, at, path, 1, 1, 0)),
            ("fchown", call!(libc::SYS_fchown, file, 1, 1)),
            ("utimensat", call!(libc::SYS_utimensat, at, path, none, 0)),
            (
                "utimensat of an open file by name",
                call!(libc::SYS_utimensat, file, c"".as_ptr(), none, libc::AT_EMPTY_PATH),
            ),
            ("setxattr", call!(libc::SYS_setxattr, path, c"user.a".as_ptr(), room, 1, 0)),
            ("fsetxattr", call!(libc::SYS_fsetxattr, file, c"user.a".as_ptr(), room, 1, 0)),
            ("mknodat", call!(libc::SYS_mknodat, at, path, libc::S_IFIFO | 0o600, 0)),
            ("truncate", call!(libc::SYS_truncate, path, 0)),
            ("chdir", call!(libc::SYS_chdir, c"/".as_ptr())),
            ("chroot", call!(libc::SYS_chroot, c"/".as_ptr())),
            ("umask", call!(libc::SYS_umask, 0)),
            ("flock", call!(libc::SYS_flock, file, libc::LOCK_EX)),
            ("fcntl(F_SETLK)", call!(libc::SYS_fcntl, file, libc::F_SETLK, room)),
            ("fcntl(F_SETOWN)", call!(libc::SYS_fcntl, file, libc::F_SETOWN, this)),
            ("fcntl(F_SETLEASE)", call!(libc::SYS_fcntl, file, libc::F_SETLEASE, libc::F_RDLCK)),
            ("ioctl(FICLONE)", call!(libc::SYS_ioctl, file, 0x4004_9409_u64, file)),
            ("ioctl(TIOCSTI)", call!(libc::SYS_ioctl, file, libc::TIOCSTI, room)),
            ("name_to_handle_at", call!(libc::SYS_name_to_handle_at, at, path, room, room, 0)),
            ("open_by_handle_at", call!(libc::SYS_open_by_handle_at, at, room, 0)),
            ("inotify_init1", call!(libc::SYS_inotify_init1, 0)),
            ("fanotify_init", call!(libc::SYS_fanotify_init, 0, 0)),
            // Networks and other ways to talk to processes.
            ("socket(AF_UNIX)", call!(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0)),
            ("socket(AF_INET)", call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0)),
            ("socket(AF_NETLINK)", call!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0)),
            ("socketpair", call!(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, room)),
            ("connect", call!(libc::SYS_connect, udp, room, 16)),
            ("bind", call!(libc::SYS_bind, udp, room, 16)),
            ("sendto", call!(libc::SYS_sendto, udp, room, 1, 0, none, 0)),
            ("sendmsg", call!(libc::SYS_sendmsg, udp, room, 0)),
            ("recvfrom", call!(libc::SYS_recvfrom, udp, room, 1, libc::MSG_DONTWAIT, none, none)),
            ("setsockopt", call!(libc::SYS_setsockopt, udp, 0, 0, none, 0)),
            ("pidfd_open", call!(libc::SYS_pidfd_open, this, 0)),
            ("shmget", call!(libc::SYS_shmget, 0, 4096, 0o1600)),
            ("mq_open", call!(libc::SYS_mq_open, c"/a".as_ptr(), libc::O_CREAT, 0o600, none)),
            ("add_key", call!(libc::SYS_add_key, c"user".as_ptr(), c"a".as_ptr(), room, 1, -2)),
            // Signals and other processes.
            ("kill(0)", call!(libc::SYS_kill, this, 0)),
            ("kill", call!(libc::SYS_kill, this, libc::SIGURG)),
            ("tgkill", call!(libc::SYS_tgkill, this, thread, libc::SIGURG)),
            ("tgkill another", call!(libc::SYS_tgkill, this, other, libc::SIGABRT)),
            ("tkill another", call!(libc::SYS_tkill, other, libc::SIGABRT)),
            ("rt_sigqueueinfo", call!(libc::SYS_rt_sigqueueinfo, this, libc::SIGURG, room)),
            ("ptrace", call!(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)),
            ("process_vm_readv", call!(libc::SYS_process_vm_readv, this, room, 0, room, 0, 0)),
            ("process_vm_writev", call!(libc::SYS_process_vm_writev, this, room, 0, room, 0, 0)),
            ("setpriority", call!(libc::SYS_setpriority, 0, 0, 0)),
            ("prlimit64", call!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, none, none)),
            ("prctl", call!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 0, 0, 0, 0)),
            // Programs, threads and code.
            (
                "execve",
                call!(libc::SYS_execve, c"/bin/true".as_ptr(), argv.as_ptr(), argv.as_ptr()),
            ),
            (
                "execveat",
                call!(
                    libc::SYS_execveat,
                    program,
                    c"".as_ptr(),
                    argv.as_ptr(),
                    argv.as_ptr(),
                    libc::AT_EMPTY_PATH
                ),
            ),
            (
                "execveat of an anonymous file",
                memory().and_then(|memory| {
                    call!(
                        libc::SYS_execveat,
                        memory,
                        c"".as_ptr(),
                        argv.as_ptr(),
                        argv.as_ptr(),
                        libc::AT_EMPTY_PATH
                    )
                }),
            ),
            ("clone3", call!(libc::SYS_clone3, room, 88)),
            ("clone", call!(libc::SYS_clone, 0, 0, 0, 0, 0)),
            (
                "mmap(PROT_EXEC)",
                call!(
                    libc::SYS_mmap,
                    0,
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0
                ),
            ),
            (
                "mprotect(PROT_EXEC)",
                call!(
                    libc::SYS_mprotect,
                    (room as usize) & !0xfff,
                    4096,
                    libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC
                ),
            ),
            // The kernel's own machinery.
            ("io_uring_setup", call!(libc::SYS_io_uring_setup, 1, room)),
            ("bpf", call!(libc::SYS_bpf, 0, room, 48)),
            ("perf_event_open", call!(libc::SYS_perf_event_open, room, 0, -1, -1, 0)),
            ("userfaultfd", call!(libc::SYS_userfaultfd, 1)),
            ("mount", call!(libc::SYS_mount, none, path, none, 0, none)),
            ("umount2", call!(libc::SYS_umount2, path, 0)),
            ("unshare", call!(libc::SYS_unshare, libc::CLONE_FILES)),
            ("unshare a user namespace", call!(libc::SYS_unshare, libc::CLONE_NEWUSER)),
            ("setns", call!(libc::SYS_setns, file, 0)),
            ("setuid", call!(libc::SYS_setuid, 1)),
            ("seccomp", call!(libc::SYS_seccomp, 0, 0, none)),
            ("a call that does not exist", call!(100_000)),
        ]
    });
    let done: Vec<_> = refused.into_iter().filter(|(_, done)| *done != Err(libc::EPERM)).collect();
    assert!(done.is_empty(), "not refused with EPERM: {done:?}");

    // None of the calls had an effect.
    assert_eq!(fs::read(place.path("outside/file")).unwrap(), b"content");
    assert!(receiver.recv(&mut [0; 8]).is_err(), "a datagram was sent");
}

/// An anonymous file with a program.
fn memory() -> Result<c_long, c_int> {
    let memory = call!(libc::SYS_memfd_create, c"program".as_ptr(), 0)?;
    call!(libc::SYS_write, memory, c"#!/bin/true\n".as_ptr(), 12)?;
    Ok(memory)
}

/// Tests Landlock and seccomp together, and each of them alone.
#[test]
fn no_file_is_opened_or_changed_by_its_name() {
    let place = Place::new();
    let try_all = || {
        let write = |path: &str| File::options().append(true).open(place.path(path)).map(drop);
        let mut done = Vec::new();
        for dir in ["given", "outside"] {
            let (file, new) = (place.path(dir).join("file"), place.path(dir).join("new"));
            done.extend([
                File::open(&file).map(drop),
                write(&format!("{dir}/file")),
                File::create(&new).map(drop),
                fs::create_dir(&new),
                fs::read_dir(place.path(dir)).map(drop),
                fs::remove_file(&file),
                fs::hard_link(&file, &new),
                std::os::unix::fs::symlink(&file, &new),
                fs::rename(&file, &new),
            ]);
        }
        done.extend(["/proc/self/mem", "/etc/passwd"].map(|path| File::open(path).map(drop)));
        done
    };
    let none = |done: Vec<io::Result<()>>| {
        for (n, done) in done.iter().enumerate() {
            assert!(done.is_err(), "number {n} was done");
        }
        for dir in ["given", "outside"] {
            assert_eq!(fs::read(place.path(dir).join("file")).unwrap(), b"content");
            assert_eq!(fs::read_dir(place.path(dir)).unwrap().count(), 1);
        }
    };
    let (confinement, done) = confined(|confinement| (confinement, try_all()));
    if confinement.files || confinement.calls {
        none(done);
    }
    let on_a_thread = |rule: &(dyn Fn() -> bool + Sync)| {
        std::thread::scope(|scope| {
            scope.spawn(|| rule().then(&try_all)).join().expect("the thread's work")
        })
    };
    for rule in [&|| restrict_files().is_ok_and(|(files, _)| files), &|| restrict_calls().is_ok()]
        as [&(dyn Fn() -> bool + Sync); 2]
    {
        if let Some(done) = on_a_thread(rule) {
            none(done);
        }
    }
}

#[test]
fn what_guests_do_need_still_works() {
    let place = Place::new();
    let mut given = File::options().read(true).write(true).open(place.path("given/file")).unwrap();
    let text = confined(|_| {
        let mut text = String::new();
        given.read_to_string(&mut text).unwrap();
        given.write_all(b" and more").unwrap();
        std::os::unix::fs::FileExt::write_all_at(&given, b"C", 0).unwrap();
        given.set_len(12).unwrap();
        // Memory, waiting, and a panic of the host's own code.
        drop(vec![1_u8; 64 << 20]);
        std::thread::sleep(Duration::from_millis(1));
        let panic = std::panic::catch_unwind(|| std::panic::resume_unwind(Box::new("a panic")));
        assert!(panic.is_err());
        text
    });
    assert_eq!(text, "content");
    assert_eq!(fs::read(place.path("given/file")).unwrap(), b"Content and ");
}

#[test]
fn a_confined_thread_can_still_end_the_process() {
    const HOW: &str = "TASK_HOST_TEST_ENDS_BY";
    let own = "sandbox::confine::linux::tests::a_confined_thread_can_still_end_the_process";
    if let Ok(how) = std::env::var(HOW) {
        confined(|_| match &*how {
            "abort" => std::process::abort(),
            "exit" => std::process::exit(7),
            // A bad memory access in the host's own code: wasmtime's handler for traps must pass
            // the signal on to the system.
            _ => call_nowhere(),
        });
    }
    let end = |how: &str| {
        let mut program = std::process::Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", own]).env(HOW, how);
        program.output().unwrap().status
    };
    assert_eq!(end("abort").signal(), Some(libc::SIGABRT));
    assert_eq!(end("exit").code(), Some(7));
    assert_eq!(end("crash").signal(), Some(libc::SIGSEGV));
}

fn call_nowhere() {
    let engine = wasmtime::Engine::default();
    // This installs the same signal handlers as in a host.
    let module = wasmtime::component::Component::new(&engine, "(component)");
    drop(module);
    // SAFETY: this write is invalid on purpose. It ends the process.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
}

#[test]
fn it_is_said_what_is_in_force() {
    let check = |files, scopes, calls, want: &str| {
        assert_eq!(Confinement { files, scopes, calls }.to_string(), want);
    };
    check(
        true,
        true,
        true,
        "keeps tasks from all files (Landlock and its scopes) and to the system calls they need \
         (seccomp)",
    );
    check(
        true,
        false,
        false,
        "keeps tasks from all files (Landlock); does not filter their system calls (no seccomp)",
    );
    check(
        false,
        false,
        true,
        "keeps tasks to the system calls they need, none of which opens a file (seccomp; no \
         Landlock)",
    );
    check(false, false, false, "does not confine tasks (no Landlock, no seccomp)");
    let full = Confinement { files: true, scopes: true, calls: true };
    let half = Confinement { scopes: false, ..full };
    assert_eq!(Confinement::of_all([full, half]), half, "the weakest thread counts");
}
