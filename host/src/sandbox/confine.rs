//! The kernel's rules for a thread that executes guests: Landlock for files, seccomp for system
//! calls.
//!
//! A thread can't remove the rules. They hold for one thread only. All threads of the process share
//! its memory and open descriptors, and no rule of the kernel keeps a thread from either.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

use std::fmt;

#[cfg(target_os = "linux")]
pub(super) use linux::confine;
#[cfg(target_os = "macos")]
pub(super) use macos::confine;

/// The rules that the kernel enforces on guests' threads, in addition to the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confinement {
    /// Landlock denies opening, creating, moving and removing any file.
    pub files: bool,
    /// Landlock denies signals to other processes, and connections to abstract sockets of other
    /// processes.
    pub scopes: bool,
    /// A seccomp filter refuses all system calls that guests don't need.
    pub calls: bool,
}

impl Confinement {
    /// The rules that hold for every one of these threads.
    pub(super) fn of_all(threads: impl IntoIterator<Item = Self>) -> Self {
        let all = Self { files: true, scopes: true, calls: true };
        threads.into_iter().fold(all, |all, one| Self {
            files: all.files && one.files,
            scopes: all.scopes && one.scopes,
            calls: all.calls && one.calls,
        })
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let landlock = if self.scopes { "Landlock and its scopes" } else { "Landlock" };
        match (self.files, self.calls) {
            (true, true) => write!(
                f,
                "keeps tasks from all files ({landlock}) and to the system calls they need \
                 (seccomp)"
            ),
            (true, false) => write!(
                f,
                "keeps tasks from all files ({landlock}); does not filter their system calls \
                 (no seccomp)"
            ),
            (false, true) => f.write_str(
                "keeps tasks to the system calls they need, none of which opens a file (seccomp; \
                 no Landlock)",
            ),
            (false, false) => f.write_str("does not confine tasks (no Landlock, no seccomp)"),
        }
    }
}

/// What the kernel can enforce here. Tries the rules on a thread that ends afterwards.
pub(super) fn possible() -> Confinement {
    let tried = std::thread::spawn(confine).join();
    tried.unwrap_or(Confinement { files: false, scopes: false, calls: false })
}
