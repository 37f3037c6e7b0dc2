//! The capabilities of root that no host needs.
//!
//! With some of them, root goes around Landlock: it reads other processes' variables, for example,
//! or opens files by their numbers.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs};

/// What a host that runs as root keeps: access to files, its own users and limits, low ports.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::LEASE);

/// Drops all others from this thread and those that it starts, and lets no program that they start
/// gain privileges.
///
/// # Errors
/// When the kernel refuses it.
pub(super) fn drop() -> Result<(), Errno> {
    set_no_new_privs(true)?;
    let mut sets = capabilities(None)?;
    sets.permitted &= KEPT;
    sets.effective &= KEPT;
    sets.inheritable &= KEPT;
    set_capabilities(None, sets)
}
