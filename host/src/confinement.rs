//! The kernel's rules for the whole process of a host: Landlock for files and TCP ports, seccomp for
//! system calls, no new privileges, and fewer of root's capabilities.
//!
//! Before it leases its first message, a host names what it needs and gives up everything else. It
//! can't get it back. Threads that execute guests are confined further, in `sandbox/confine.rs`.
//! Processes that the host starts inherit the rules.
//!
//! A Landlock rule applies to a directory itself, not to its name. So if a directory may be
//! replaced, the directory above it needs a rule.

mod links;
#[cfg(target_os = "linux")]
mod linux;
mod machine;
#[cfg(target_os = "macos")]
mod macos;
mod ports;
mod rules;

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

#[cfg(target_os = "linux")]
use linux as here;
#[cfg(target_os = "macos")]
use macos as here;
pub use rules::Rules;

/// Whether a host confines itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confine {
    /// No.
    Off,
    /// Yes, as far as the kernel can.
    On,
    /// Yes. A host that can't be confined does not start.
    Require,
}

/// The rules that the kernel enforces on the process of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InForce {
    /// Landlock allows only the files and directories of its [`Rules`].
    pub files: bool,
    /// Landlock allows only the TCP ports of its [`Rules`].
    pub ports: bool,
    /// seccomp refuses the system calls that no host needs.
    pub calls: bool,
}

impl InForce {
    /// No rules.
    pub const NOTHING: Self = Self { files: false, ports: false, calls: false };
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = match self.ports {
            true => "keeps this host to its files and TCP ports (Landlock)",
            false => "keeps this host to its files (Landlock)",
        };
        let calls = "from system calls that no host needs (seccomp)";
        match (self.files, self.calls) {
            (true, true) => write!(f, "{files} and {calls}"),
            (true, false) => f.write_str(files),
            (false, true) => write!(f, "keeps this host {calls}"),
            (false, false) => f.write_str("does not confine this host"),
        }
    }
}

/// The identity of a file or directory: its device and its inode.
type Place = (u64, u64);

/// The files and directories that the rules in force name. Not set while there are no rules.
static NAMED: OnceLock<Vec<Place>> = OnceLock::new();

fn place(path: &Path) -> Option<Place> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// What the kernel can enforce here. Tries the rules on a thread that ends afterwards.
pub fn possible() -> InForce {
    std::thread::spawn(here::try_on_thread).join().unwrap_or(InForce::NOTHING)
}

/// Confines this process until it ends. A rule that the kernel can't enforce is logged and left
/// out.
///
/// Call it before any other thread runs: Landlock confines only the calling thread and the threads
/// that it starts.
pub fn confine(rules: &Rules) -> InForce {
    let in_force = here::confine(rules);
    if in_force.files {
        let _ = NAMED.set(rules.paths().filter_map(place).collect());
    }
    in_force
}

/// Drops this process's access to all files and networks, as far as the kernel can. Open
/// descriptors stay usable.
pub(crate) fn give_up_files() {
    if let Err(error) = here::give_up_files() {
        tracing::debug!("the kernel does not keep this process from files: {error}");
    }
}

/// Why this process may not use a path, if the cause is its own confinement.
pub fn refusal(path: &Path) -> Option<String> {
    let named = NAMED.get()?;
    let path = std::path::absolute(path).ok()?;
    // Landlock does not restrict looking up names and reading links, so this resolves the path.
    let there = path.ancestors().find_map(|part| fs::canonicalize(part).ok())?;
    let is_named = |part: &Path| place(part).is_some_and(|place| named.contains(&place));
    if there.ancestors().any(is_named) {
        return None;
    }
    Some(format!(
        "{} is not among the directories that this host may use since it confined itself: name its \
         directory with --confine-allow; or restart the host, if a directory was replaced",
        there.display()
    ))
}

/// The text to append to the error `said` about a service or its credentials, if confinement may be
/// its cause.
pub(crate) fn may_be_the_cause(said: &str) -> &'static str {
    let is_denied = said.contains("Permission denied") || said.contains("Operation not permitted");
    match NAMED.get() {
        Some(_) if is_denied => {
            "; this host confines itself, which may be the cause: write the port into the URL of \
             the endpoint, name files with --confine-allow, or try --confine off"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_what_is_in_force() {
        let check = |files, ports, calls, want: &str| {
            assert_eq!(InForce { files, ports, calls }.to_string(), want);
        };
        check(
            true,
            true,
            true,
            "keeps this host to its files and TCP ports (Landlock) and from system calls that no \
             host needs (seccomp)",
        );
        check(true, false, false, "keeps this host to its files (Landlock)");
        check(false, false, true, "keeps this host from system calls that no host needs (seccomp)");
        check(false, false, false, "does not confine this host");
    }

    #[test]
    fn nothing_is_refused_by_a_process_that_is_not_confined() {
        assert_eq!(refusal(Path::new("/etc")), None);
    }
}
