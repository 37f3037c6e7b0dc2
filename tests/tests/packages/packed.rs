//! The packages to test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use task_host_tests::{Finished, host, target};

/// The version of all packages.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A kind of processor, and its names in packages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processor {
    /// In the names of archives: Rust's name for programs that are static.
    pub(crate) target: &'static str,
    /// In Debian packages and images.
    pub(crate) debian: &'static str,
    /// In wheels.
    pub(crate) wheel: &'static str,
}

const X86: Processor =
    Processor { target: "x86_64-unknown-linux-musl", debian: "amd64", wheel: "x86_64" };

pub(crate) const ARM: Processor =
    Processor { target: "aarch64-unknown-linux-musl", debian: "arm64", wheel: "aarch64" };

/// That of this machine.
pub(crate) const HERE: Processor = if cfg!(target_arch = "aarch64") { ARM } else { X86 };

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
    let work = work();
    std::fs::create_dir_all(&work).expect("a directory for packages");
    // Half as large: each package compresses it.
    let small = work.join(PROGRAM);
    Finished::run(Command::new("strip").arg("-o").arg(&small).arg(host())).good();
    let dir = work.join("dist");
    pack(&small, &dir);
    Packages { dir, is_release: false }
});

/// Where this run of the tests packs.
fn work() -> PathBuf {
    target().join("packages-of-tests")
}

/// The program there.
const PROGRAM: &str = "host";

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

    /// The program in them, where this run of the tests has packed it.
    pub(crate) fn program(&self) -> PathBuf {
        assert!(!self.is_release, "a release has the program in its packages only");
        work().join(PROGRAM)
    }

    /// The archive for a processor, and the directory in it.
    pub(crate) fn archive(&self, processor: Processor) -> (PathBuf, String) {
        let dir = format!("task-host-v{VERSION}-{}", processor.target);
        (self.file(&dir, ".tar.gz"), dir)
    }

    pub(crate) fn debian(&self, processor: Processor) -> PathBuf {
        self.file("task-host_", &format!("_{}.deb", processor.debian))
    }

    pub(crate) fn wheel(&self, processor: Processor) -> PathBuf {
        self.file("task_host-", &format!("_{}.whl", processor.wheel))
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
