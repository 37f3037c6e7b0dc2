//! Landlock, seccomp and capabilities on Linux.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod calls;
mod capabilities;

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    path_beneath_rules,
};

use super::{InForce, Rules};

/// The version of Landlock that is used. It covers all kinds of access to files.
const FILES: ABI = ABI::V6;

/// Confines this thread until it ends, to find out what the kernel can enforce.
pub(super) fn try_on_thread() -> InForce {
    InForce {
        calls: restrict_calls(false).is_ok(),
        ..restrict_files(&Rules::default()).unwrap_or(InForce::NOTHING)
    }
}

/// Confines this process until it ends. A rule that the kernel can't enforce is logged and left
/// out.
pub(super) fn confine(rules: &Rules) -> InForce {
    if let Err(errno) = capabilities::drop() {
        tracing::debug!("this host keeps the capabilities that it has: {errno}");
    }
    let files = restrict_files(rules).unwrap_or_else(|error| {
        tracing::debug!("the kernel does not keep this host to its files: {error}");
        InForce::NOTHING
    });
    let calls = restrict_calls(true);
    if let Err(error) = &calls {
        tracing::debug!("the kernel does not filter the system calls of this host: {error}");
    }
    InForce { calls: calls.is_ok(), ..files }
}

/// Drops this process's access to all files and networks. Open descriptors stay usable.
///
/// # Errors
/// When the kernel can't enforce this.
pub(super) fn give_up_files() -> Result<(), RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(FILES))?
        .handle_access(AccessNet::from_all(FILES))?
        .scope(Scope::from_all(FILES))?
        .create()?
        .restrict_self()?;
    Ok(())
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn restrict_calls(all_threads: bool) -> Result<(), seccompiler::Error> {
    calls::restrict(all_threads)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn restrict_calls(_all_threads: bool) -> Result<(), &'static str> {
    Err("there is no list of system calls for this kind of processor")
}

fn restrict_files(rules: &Rules) -> Result<InForce, RulesetError> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let running = reading | AccessFs::Execute;
    let all = AccessFs::from_all(FILES);
    // In writable directories, nothing can be executed, and no device can be made.
    let writing = all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        // Version 3 is the first that covers truncation, and so all ways to change a file's content.
        .handle_access(AccessFs::from_all(ABI::V3))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(FILES))?
        .scope(Scope::from_all(FILES))?
        .create()?;
    let kinds: [(&[PathBuf], BitFlags<AccessFs>); 3] =
        [(&rules.read, reading), (&rules.run, running), (&rules.write, writing)];
    for (paths, access) in kinds {
        ruleset = ruleset.add_rules(path_beneath_rules(paths, access))?;
    }
    for port in &rules.connect {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    for port in &rules.listen {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    let status = ruleset.restrict_self()?;
    let files = status.ruleset != RulesetStatus::NotEnforced;
    let ports = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => files && effective_abi >= ABI::V4,
        _ => false,
    };
    Ok(InForce { files, ports, calls: false })
}
