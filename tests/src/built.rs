//! Where what is tested was built.

use std::path::{Path, PathBuf};

/// The build directory: the test is at `TARGET/PROFILE/deps/NAME`.
pub fn target() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    test.ancestors().nth(3).expect("a build directory").to_owned()
}

/// The program under test, of the test's own profile.
pub fn host() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    needed(test.ancestors().nth(2).expect("a build directory").join("host"))
}

/// The program under test, built with fault points.
pub fn host_with_fault_points() -> PathBuf {
    needed(target().join("fault-points/host"))
}

/// The component of a guest, by the name of its library: `NO_OP`, `misbehave`.
pub fn guest(name: &str) -> PathBuf {
    needed(target().join("guests").join(format!("{name}.wasm")))
}

/// A program of the Python environment: `python`, `ptq`.
pub fn python(program: &str) -> PathBuf {
    needed(target().join("python/bin").join(program))
}

/// A program of the environment that checks and serves what is deployed: `cfn-lint`, `shellcheck`.
pub fn fleet_tool(program: &str) -> PathBuf {
    needed(target().join("fleet/bin").join(program))
}

/// The directory of the packages that drive a browser.
pub(crate) fn browser_packages() -> PathBuf {
    needed(target().join("browser"))
}

/// The program Helm.
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
