//! The text of `host --version`.

/// The version of this program.
pub(crate) const SHORT: &str = env!("CARGO_PKG_VERSION");
/// The commit that this program was built from, if the build set the variable.
const COMMIT: Option<&str> = option_env!("TASK_HOST_COMMIT");
/// The version of wasmtime. wasmtime has no constant for it, so a test compares this one with
/// `Cargo.lock`.
const WASMTIME: &str = "48.0.8";
const WIT: &str = include_str!("../../wit/task.wit");

/// The versions that a report about a problem needs.
pub(crate) fn long() -> String {
    let commit = COMMIT.map_or(String::new(), |commit| format!(" (commit {commit})"));
    let interface = WIT.lines().find_map(|line| line.strip_prefix("package ")?.strip_suffix(';'));
    format!(
        "{SHORT}{commit}\nwasmtime {WASMTIME}\nguest interface {}",
        interface.unwrap_or("unknown")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_of_the_engine_and_the_interface() {
        let lock = include_str!("../../../Cargo.lock");
        let is_locked = format!("name = \"wasmtime\"\nversion = \"{WASMTIME}\"\n");
        assert!(lock.contains(&is_locked), "WASMTIME is not the version in Cargo.lock");
        assert!(long().ends_with("guest interface task-host:guest@0.1.1"), "{}", long());
    }
}
