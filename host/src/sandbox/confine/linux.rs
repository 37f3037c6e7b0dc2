//! Landlock and seccomp on Linux.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod calls;
#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset,
    RulesetAttr, RulesetError, RulesetStatus, Scope,
};

use super::Confinement;

/// Confines this thread until it ends: it can't reach files that it has no open descriptor for, and
/// can make only the system calls that executing a guest needs. A rule that the kernel can't
/// enforce is logged and left out.
pub(in super::super) fn confine() -> Confinement {
    let (files, scopes) = match restrict_files() {
        Ok(done) => done,
        Err(error) => {
            tracing::debug!("the kernel does not keep guests from files: {error}");
            (false, false)
        }
    };
    // Last, because the filter refuses the system calls that set up the other rules.
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

/// Restricts files and scopes. Returns whether each of the two is enforced.
fn restrict_files() -> Result<(bool, bool), RulesetError> {
    // Version 3 is the first that covers truncation, and so all ways to change a file's content.
    let needed = AccessFs::from_all(ABI::V3);
    // No rule is added, so every handled kind of access is denied everywhere.
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(needed)?
        // An older kernel may lack what later versions add. The seccomp filter covers it.
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
