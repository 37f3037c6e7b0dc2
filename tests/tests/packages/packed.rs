//! The packages to test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use task_host_tests::{Finished, host, target};

/// The version of all packages.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A directory that `cargo xtask dist` has filled.
#[derive(Debug)]
pub(crate) struct Packages {
    dir: PathBuf,
    /// Whether the programs are those that users get: static, and for both processors.
    pub(crate) is_release: bool,
}

/// Those of this run of the tests.
pub(crate) static PACKAGES: LazyLock<Packages> = LazyLock::new(|| {
    if let Some(dir) = std::env::var_os("TASK_HOST_TEST_DIST") {
        return Packages { dir: dir.into(), is_release: true };
    }
    let work = target().join("packages-of-tests");
    std::fs::create_dir_all(&work).expect("a directory for packages");
    // Half as large: each package compresses it.
    let small = work.join("host");
    Finished::run(Command::new("strip").arg("-o").arg(&small).arg(host())).good();
    let dir = work.join("dist");
    pack(&small, &dir);
    Packages { dir, is_release: false }
});

/// `cargo xtask dist` for a program that is there.
pub(crate) fn pack(program: &Path, dir: &Path) -> Finished {
    let mut xtask = Command::new(target().join("debug/xtask"));
    xtask.args(["dist", "--host"]).arg(program).arg("--dir").arg(dir);
    Finished::run(&mut xtask).good()
}

impl Packages {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The one file whose name begins and ends like this.
    #[track_caller]
    pub(crate) fn file(&self, begin: &str, end: &str) -> PathBuf {
        let entries = std::fs::read_dir(&self.dir).expect("a directory with packages");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
        let names: Vec<String> = names.map(|name| name.expect("a name that is text")).collect();
        let found: Vec<&String> =
            names.iter().filter(|name| name.starts_with(begin) && name.ends_with(end)).collect();
        let [name] = &*found else { panic!("not one {begin}*{end}: {names:?}") };
        self.dir.join(name)
    }
}
