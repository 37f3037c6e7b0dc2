//! Finds or builds the packages to test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use task_host_tests::{Finished, host, target};

/// The version of all packages.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A processor architecture, and its names in packages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processor {
    /// The name in archives: Rust's target for static programs.
    pub(crate) target: &'static str,
    /// The name in Debian packages and images.
    pub(crate) debian: &'static str,
    /// The name in wheels.
    pub(crate) wheel: &'static str,
}

const X86: Processor =
    Processor { target: "x86_64-unknown-linux-musl", debian: "amd64", wheel: "x86_64" };

pub(crate) const ARM: Processor =
    Processor { target: "aarch64-unknown-linux-musl", debian: "arm64", wheel: "aarch64" };

/// The processor of this machine.
pub(crate) const HERE: Processor = if cfg!(target_arch = "aarch64") { ARM } else { X86 };

/// A directory that `cargo xtask dist` has filled.
#[derive(Debug)]
pub(crate) struct Packages {
    dir: PathBuf,
    /// Whether the packages are those of a release: static programs for both processors.
    pub(crate) is_release: bool,
}

/// The packages of this test run.
pub(crate) static PACKAGES: LazyLock<Packages> = LazyLock::new(|| {
    if let Some(dir) = std::env::var_os("TASK_HOST_TEST_DIST") {
        return Packages { dir: dir.into(), is_release: true };
    }
    let work = work();
    std::fs::create_dir_all(&work).expect("a directory for packages");
    // Stripping halves the size, which saves time because each package compresses the program.
    let small = work.join(PROGRAM);
    Finished::run(Command::new("strip").arg("-o").arg(&small).arg(host())).good();
    let dir = work.join("dist");
    pack(&small, &dir);
    Packages { dir, is_release: false }
});

/// The directory in which this test run packs.
fn work() -> PathBuf {
    target().join("packages-of-tests")
}

/// The name of the program in that directory.
const PROGRAM: &str = "host";

/// Runs `cargo xtask dist` with an existing program.
pub(crate) fn pack(program: &Path, dir: &Path) -> Finished {
    let mut xtask = Command::new(target().join("debug/xtask"));
    xtask.args(["dist", "--host"]).arg(program).arg("--dir").arg(dir);
    Finished::run(&mut xtask).good()
}

impl Packages {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The program in the packages, if this test run packed them.
    pub(crate) fn program(&self) -> PathBuf {
        assert!(!self.is_release, "a release has the program in its packages only");
        work().join(PROGRAM)
    }

    /// The archive for a processor, and the name of the directory in it.
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

    /// The only file whose name has this beginning and end.
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
