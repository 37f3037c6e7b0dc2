//! The Debian package, which includes a systemd service.
//!
//! The program is named `task-host` in the package, because Debian's bind9-host has a
//! `/usr/bin/host`. dpkg-deb packs it, because every machine with Debian packages has dpkg-deb, and
//! cargo-deb takes minutes to compile.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::ensure;

use super::manual::Manual;
use super::release::{Program, Release};
use super::stage::Stage;
use super::target::Target;
use crate::setup;

/// The program's path in the service file, and its path in this package.
const PROGRAMS: [&str; 2] = ["/usr/local/bin/host", "/usr/bin/task-host"];

/// The name of the program in the package.
pub(crate) const NAME: &str = "task-host";

/// Writes `task-host_VERSION_ARCHITECTURE.deb`.
pub(crate) fn pack(
    release: &Release<'_>,
    program: &Program,
    manual: &Manual,
) -> anyhow::Result<PathBuf> {
    setup::debian_packer()?;
    let stage = release.stage("debian")?;
    let deploy = release.project.root.join("deploy");
    let ours = deploy.join("debian");
    stage.copy(&program.file, PROGRAMS[1].trim_start_matches('/'), 0o755)?;

    let unit = fs::read_to_string(deploy.join("task-host.service"))?;
    ensure!(unit.contains(PROGRAMS[0]), "deploy/task-host.service does not run {}", PROGRAMS[0]);
    let unit = unit.replace(PROGRAMS[0], PROGRAMS[1]);
    stage.write("usr/lib/systemd/system/task-host.service", &unit, 0o644)?;
    stage.copy(&ours.join("sysusers.conf"), "usr/lib/sysusers.d/task-host.conf", 0o644)?;
    // Administrators may put credentials into this file.
    stage.copy(&ours.join("environment"), "etc/task-host/environment", 0o600)?;
    documents(release, &stage, program)?;
    manual.add(&stage)?;

    stage.write("DEBIAN/control", &control(release, program.target), 0o644)?;
    stage.write("DEBIAN/conffiles", "/etc/task-host/environment\n", 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        stage.copy(&ours.join(script), &format!("DEBIAN/{script}"), 0o755)?;
    }
    let name = format!("task-host_{}_{}.deb", release.version, program.target.debian());
    let mut pack = Command::new("dpkg-deb");
    // Debian 11 supports no newer compression than xz.
    pack.args(["--root-owner-group", "-Zxz", "-z1", "--build"]).arg(stage.dir());
    release.made(&name, pack.arg(release.dir.join(&name)))
}

fn documents(release: &Release<'_>, stage: &Stage, program: &Program) -> anyhow::Result<()> {
    let doc = "usr/share/doc/task-host";
    release.documents(stage, doc, program)?;
    // `copyright` is Debian's name for the file with the licence.
    let mit = fs::read_to_string(release.project.root.join("LICENSE-MIT"))?;
    let copyright = format!(
        "Source: {}\nLicence: {}, at your option\n\nThe Apache License is in \
         /usr/share/common-licenses/Apache-2.0. The MIT License:\n\n{mit}",
        release.repository, release.licence
    );
    stage.write(&format!("{doc}/copyright"), &copyright, 0o644)
}

fn control(release: &Release<'_>, target: Target) -> String {
    let Release { version, summary, repository, .. } = release;
    format!(
        "\
Package: task-host
Version: {version}
Architecture: {}
Maintainer: Task Host contributors
Homepage: {repository}
Section: utils
Priority: optional
Depends: systemd | systemd-standalone-sysusers | systemd-sysusers
Recommends: ca-certificates
Description: {summary}
 The queue is SQS, Pub/Sub or a directory; the bucket is S3, Google Cloud
 Storage, Azure Blob Storage or a directory.
 .
 The program is called task-host here. The service of the same name is not
 started before an administrator does: see /etc/task-host/environment.
",
        target.debian()
    )
}
