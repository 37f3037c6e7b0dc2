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
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// What the kernel keeps guests from, in addition to the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confinement {
    /// Landlock keeps their threads to reading below one directory and working below another.
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
                "keeps tasks to their directories ({landlock}) and to the system calls they need \
                 (seccomp)"
            ),
            (true, false) => write!(
                f,
                "keeps tasks to their directories ({landlock}); does not filter their system calls \
                 (no seccomp)"
            ),
            (false, true) => f.write_str(
                "keeps tasks to the system calls they need (seccomp), not to their directories (no \
                 Landlock): inputs are copied for each",
            ),
            (false, false) => f.write_str(
                "does not confine tasks (no Landlock, no seccomp): inputs are copied for each",
            ),
        }
    }
}

/// What the kernel can enforce here: tried on a thread that is then gone.
pub(super) fn possible() -> Confinement {
    let root = Path::new("/");
    let tried = std::thread::spawn(|| confine(root, root)).join();
    tried.unwrap_or(Confinement { files: false, scopes: false, calls: false })
}

/// Asks the kernel to keep this thread, for good, from everything but reading below `inputs`,
/// working below `outputs`, and the system calls that this takes. What the kernel refuses is
/// logged and left out.
pub(super) fn confine(inputs: &Path, outputs: &Path) -> Confinement {
    let (files, scopes) = match restrict_files(inputs, outputs) {
        Ok(done) => done,
        Err(error) => {
            tracing::debug!("the kernel does not keep guests to their directories: {error}");
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

/// Whether the two directories are all that the thread can reach, and whether the scopes hold.
fn restrict_files(inputs: &Path, outputs: &Path) -> Result<(bool, bool), RulesetError> {
    // Version 3 is the first that covers truncation, and so all ways to change a file's content.
    let needed = AccessFs::from_all(ABI::V3);
    let beneath = |path: &Path, access| -> Result<_, RulesetError> {
        match PathFd::new(path) {
            Ok(fd) => Ok(Some(PathBeneath::new(fd, access))),
            Err(error) => {
                tracing::debug!("{error}");
                Ok(None)
            }
        }
    };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(needed)?
        // The seccomp filter covers what later versions add; an older kernel may lack them.
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V9))?
        .handle_access(AccessNet::from_all(ABI::V9))?
        .scope(Scope::from_all(ABI::V9))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let work = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSym
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    for (path, access) in [(inputs, read), (outputs, work)] {
        if let Some(rule) = beneath(path, access)? {
            rules = rules.add_rule(rule)?;
        }
    }
    let status = rules.restrict_self()?;
    let files = status.ruleset != RulesetStatus::NotEnforced;
    let scopes = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => files && effective_abi >= ABI::V6,
        _ => false,
    };
    Ok((files, scopes))
}
