//! Landlock and seccomp of Linux.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod calls;
#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset,
    RulesetAttr, RulesetError, RulesetStatus, Scope,
};

use super::Confinement;

/// Asks the kernel to keep this thread, for good, from all files that it does not have as open
/// descriptors, and from the system calls that executing a guest does not take. What the kernel
/// refuses is logged and left out.
pub(in super::super) fn confine() -> Confinement {
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
