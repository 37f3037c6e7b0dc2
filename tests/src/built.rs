//! The paths of the built programs, guests and tools under test.

use std::path::{Path, PathBuf};

/// The build directory. The path of the test is `TARGET/PROFILE/deps/NAME`.
pub fn target() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    test.ancestors().nth(3).expect("a build directory").to_owned()
}

/// The program under test, built with the same profile as the test.
pub fn host() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    needed(test.ancestors().nth(2).expect("a build directory").join("host"))
}

/// The program under test, built with fault points.
pub fn host_with_fault_points() -> PathBuf {
    needed(target().join("fault-points/host"))
}

/// The component of a guest. `name` is the name of its library, such as `NO_OP` or `misbehave`.
pub fn guest(name: &str) -> PathBuf {
    needed(target().join("guests").join(format!("{name}.wasm")))
}

/// A program of the Python environment, such as `python` or `ptq`.
pub fn python(program: &str) -> PathBuf {
    needed(target().join("python/bin").join(program))
}

/// A program of the environment that checks the files in `deploy` and serves AWS, such as
/// `cfn-lint` or `shellcheck`.
pub fn fleet_tool(program: &str) -> PathBuf {
    needed(target().join("fleet/bin").join(program))
}

/// The directory of the packages that control a browser.
pub(crate) fn browser_packages() -> PathBuf {
    needed(target().join("browser"))
}

/// The path of the program Helm.
pub fn helm() -> PathBuf {
    needed(target().join("helm/helm"))
}

fn needed(path: PathBuf) -> PathBuf {
    assert!(
        Path::new(&path).exists(),
        "{} is missing: `cargo xtask test` builds everything that the tests need",
        path.display()
    );
    path
}
