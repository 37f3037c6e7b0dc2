//! The capabilities of root that no host needs.
//!
//! With some of them, root can bypass Landlock: for example, it can read other processes' variables
//! or open files by their handles.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs};

/// The capabilities that a host keeps as root: access to files, its own users and limits, low
/// ports.
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

/// Drops all other capabilities of this thread and of the threads that it starts. Programs that
/// they start can't gain privileges.
///
/// # Errors
/// When the kernel refuses the change.
pub(super) fn drop() -> Result<(), Errno> {
    set_no_new_privs(true)?;
    let mut sets = capabilities(None)?;
    sets.permitted &= KEPT;
    sets.effective &= KEPT;
    sets.inheritable &= KEPT;
    set_capabilities(None, sets)
}
