//! The kernel's rules for a thread that executes guests: Landlock for files, seccomp for system
//! calls.
//!
//! The rules can't be taken off. They hold for one thread, and the process has others: memory and
//! open descriptors are shared by all of them, and no rule of the kernel keeps a thread from either.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod calls;
#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests;

use std::fmt;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset,
    RulesetAttr, RulesetError, RulesetStatus, Scope,
};

/// What the kernel keeps guests from, in addition to the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confinement {
    /// Landlock keeps their threads from opening, making, moving and removing any file.
    pub files: bool,
    /// Landlock keeps their threads from signalling other processes, and from connecting to
    /// abstract sockets of other processes.
    pub scopes: bool,
    /// A seccomp filter refuses their threads all system calls that guests don't need.
    pub calls: bool,
}

impl Confinement {
    /// What holds for each of several threads.
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

/// What the kernel can enforce here: tried on a thread that is then gone.
pub(super) fn possible() -> Confinement {
    let tried = std::thread::spawn(confine).join();
    tried.unwrap_or(Confinement { files: false, scopes: false, calls: false })
}

/// Asks the kernel to keep this thread, for good, from all files that it does not have as open
/// descriptors, and from the system calls that executing a guest does not take. What the kernel
/// refuses is logged and left out.
pub(super) fn confine() -> Confinement {
    let (files, scopes) = match restrict_files() {
        Ok(done) => done,
        Err(error) => {
            tracing::debug!("the kernel does not keep guests from files: {error}");
            (false, false)
        }
    };
    // Last, since it refuses the calls that set up the other rules.
    let calls = match restrict_calls() {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!("the kernel does not filter the system calls of guests: {error}");
            false
        }
    };
    Confinement { files, scopes, calls }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn restrict_calls() -> Result<(), seccompiler::Error> {
    calls::restrict()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn restrict_calls() -> Result<(), &'static str> {
    Err("there is no list of system calls for this kind of processor")
}

/// Whether all files are out of the thread's reach, and whether the scopes hold.
fn restrict_files() -> Result<(bool, bool), RulesetError> {
    // Version 3 is the first that covers truncation, and so all ways to change a file's content.
    let needed = AccessFs::from_all(ABI::V3);
    // No rule is added: nothing of what is handled is allowed anywhere.
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(needed)?
        // The seccomp filter covers what later versions add; an older kernel may lack them.
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V9))?
        .handle_access(AccessNet::from_all(ABI::V9))?
        .scope(Scope::from_all(ABI::V9))?
        .create()?
        .restrict_self()?;
    let files = status.ruleset != RulesetStatus::NotEnforced;
    let scopes = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => files && effective_abi >= ABI::V6,
        _ => false,
    };
    Ok((files, scopes))
}
