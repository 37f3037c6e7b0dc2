//! Which versions of the guest interface this host runs. `docs/interface-versions.md` has the policy.

/// The prefix of the names of the interface's parts.
const PACKAGE: &str = "task-host:guest/";
/// The first two numbers of every version that this host runs.
const SUPPORTED: &str = "0.1";

/// The most characters of a version that an error shows.
const MAX_VERSION: usize = 32;

/// The error for a component with this import, if the component was built for a version of the
/// interface that this host does not run. A component imports the types of its calls under a name
/// with the version.
pub fn version_problem(import: &str) -> Option<String> {
    let (_, version) = import.strip_prefix(PACKAGE)?.split_once('@')?;
    let is_supported = version.strip_prefix(SUPPORTED).is_some_and(|patch| patch.starts_with('.'));
    (!is_supported).then(|| {
        // The version comes from the component and may be long.
        let version: String = version.chars().take(MAX_VERSION).collect();
        format!(
            "was built for version {version} of the guest interface, and this host runs {SUPPORTED}; \
             build it with the SDK of this host (`host new` makes a project with it), or use a host \
             that runs {version}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_minor_versions_are_refused() {
        for import in
            ["task-host:guest/types@0.1.0", "task-host:guest/types@0.1.7", "wasi:cli/exit@0.2.6"]
        {
            assert_eq!(version_problem(import), None, "{import}");
        }
        for version in ["0.2.0", "0.10.0", "1.0.0"] {
            let problem = version_problem(&format!("task-host:guest/types@{version}")).unwrap();
            assert!(
                problem.starts_with(&format!("was built for version {version} of")),
                "{problem}"
            );
        }
    }

    #[test]
    fn a_long_version_is_shown_in_part() {
        let import = format!("task-host:guest/types@9.0.0-{}", "x".repeat(10_000));
        assert!(version_problem(&import).unwrap().len() < 400);
    }

    #[test]
    fn the_version_of_the_interface_is_supported() {
        let wit = include_str!("../../wit/task.wit");
        let package = wit.lines().find_map(|line| line.strip_prefix("package ")).unwrap();
        let import = package.trim_end_matches(';').replace('@', "/types@");
        assert!(import.starts_with(PACKAGE), "{import}");
        assert_eq!(version_problem(&import), None);
    }
}
