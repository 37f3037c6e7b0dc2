//! A Debian system in a directory, in which `apt` and `pip` install the packages.

use std::fs;
use std::path::Path;
use std::process::Command;

use task_host_tests::{Finished, Place};
use tempfile::TempDir;

use crate::packed::{HERE, PACKAGES, Processor, VERSION};
use crate::{first_result, shared};

#[test]
#[ignore = "downloads a Debian system: `cargo xtask dist --check` runs this"]
fn a_debian_system_installs_the_package_and_the_wheel() {
    installs_package_and_wheel(HERE);
}

/// Installs the package and the wheel in a Debian system for the same processor, runs a task with
/// each, and removes the package.
#[track_caller]
pub(crate) fn installs_package_and_wheel(processor: Processor) {
    let system = System::new(processor);
    let package = system.copy(&PACKAGES.debian(processor));
    let wheel = system.copy(&PACKAGES.wheel(processor));

    // Installs all dependencies of the package, and runs its scripts in that system's shell.
    system.run(&["apt-get", "update"]);
    system.run(&["apt-get", "install", "--yes", "--no-install-recommends", &package]);
    system.run(&["id", "task-host"]);
    system.works("task-host");
    system.run(&["apt-get", "purge", "--yes", "task-host"]);
    let left = ["etc/task-host", "usr/bin/task-host", "var/cache/task-host"];
    let left = left.map(|name| system.root.path().join(name).exists());
    assert_eq!(left, [false; 3], "something of the package is left");

    system.run(&["python3", "-m", "venv", "/environment"]);
    system.run(&["/environment/bin/pip", "install", "--no-index", &wheel]);
    system.works("/environment/bin/host");
}

struct System {
    root: TempDir,
}

impl System {
    /// Installs a minimal system with Python from Debian's servers.
    fn new(processor: Processor) -> Self {
        let root = tempfile::Builder::new().prefix("task-host-debian-").tempdir().unwrap();
        let mut make = Command::new("debootstrap");
        make.args(["--variant=minbase", "--include=python3-venv", "--arch", processor.debian]);
        Finished::run(make.arg("bookworm").arg(root.path())).good();
        fs::create_dir(root.path().join("work")).unwrap();
        Self { root }
    }

    /// Copies a file to the system's root directory, and returns its path in the system.
    fn copy(&self, file: &Path) -> String {
        let name = file.file_name().unwrap().to_str().unwrap();
        fs::copy(file, self.root.path().join(name)).unwrap();
        format!("/{name}")
    }

    /// A program that runs in the system, with a place as `/work`.
    fn command(&self, place: &Place, args: &[&str]) -> Command {
        // The mounts are in the program's own mount namespace, so they disappear when it ends.
        const ENTER: &str = "set -e
            mount --bind \"$2\" \"$1/work\"
            mount -t proc proc \"$1/proc\"
            root=$1
            shift 2
            exec chroot \"$root\" env --ignore-environment --chdir=/work HOME=/work/home \\
                DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", ENTER, "sh"]);
        command.args([self.root.path(), place.path()]).args(args);
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) {
        Finished::run(&mut self.command(&Place::new(), args)).good();
    }

    /// Checks that an installed program runs a task for a user without rights.
    #[track_caller]
    fn works(&self, program: &str) {
        let place = shared();
        let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program];
        let host = |args: &[&str]| self.command(&place, &[&nobody, args].concat());
        let version = Finished::run(&mut host(&["--version"])).good();
        assert!(version.stdout.contains(VERSION), "{}", version.stdout);
        first_result(&place, host);
    }
}
