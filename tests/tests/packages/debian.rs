//! The Debian package, installed below a directory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use task_host_tests::{Finished, Place, files};

use crate::packed::{HERE, PACKAGES, VERSION};
use crate::{first_result, in_place};

#[test]
fn dpkg_installs_the_program_and_its_service_and_takes_them_away() {
    let place = Place::new();
    let root = place.path().join("root");
    for dir in ["etc", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/cache/task-host"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let package = PACKAGES.debian(HERE);

    dpkg(&root, &["--install", package.to_str().unwrap()]);
    let program = root.join("usr/bin/task-host");
    let version = Finished::run(&mut in_place(&place, &program, &["--version"])).good();
    assert!(version.stdout.contains(VERSION), "{}", version.stdout);
    first_result(&place, |args| in_place(&place, &program, args));

    let users = fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(users.contains("\ntask-host:") || users.starts_with("task-host:"), "{users}");
    let unit = root.join("usr/lib/systemd/system/task-host.service");
    let unit = fs::read_to_string(unit).unwrap();
    assert!(unit.contains("\nExecStart=/usr/bin/task-host run\n"), "{unit}");
    assert!(unit.contains("\nEnvironmentFile=-/etc/task-host/environment\n"), "{unit}");
    // Administrators may put credentials into this file.
    let settings = root.join("etc/task-host/environment");
    assert_eq!(fs::metadata(&settings).unwrap().mode() & 0o777, 0o600);
    // `/usr/bin/host` belongs to another package.
    assert!(!root.join("usr/bin/host").exists());

    fs::write(&settings, "HOST_QUEUE=sqs://mine\n").unwrap();
    dpkg(&root, &["--install", package.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&settings).unwrap(), "HOST_QUEUE=sqs://mine\n");

    dpkg(&root, &["--purge", "task-host"]);
    let left: Vec<String> =
        files(&root).into_iter().filter(|name| name.contains("task-host")).collect();
    assert_eq!(left, [""; 0], "these are left");
    assert!(!root.join("var/cache/task-host").exists());
}

fn dpkg(root: &Path, args: &[&str]) {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg(format!("--root={}", root.display()));
    // The directory contains neither a shell nor systemd.
    dpkg.args(["--force-script-chrootless", "--force-depends", "--force-confold"]).args(args);
    Finished::run(&mut dpkg).good();
}
