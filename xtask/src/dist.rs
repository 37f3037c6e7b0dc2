//! `cargo xtask dist`: builds everything that a user can install, in `dist/`.
//!
//! Static programs for Linux on x86-64 and arm64, each in an archive, a wheel and a Debian package;
//! one container image for both; checksums of all files. The same commit and tools give the same
//! bytes.

mod archive;
mod cross;
mod debian;
mod guest_wheel;
mod image;
mod licences;
mod manual;
mod release;
mod stage;
mod target;
mod wheel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::build;
use crate::command::{capture, run as run_command};
use crate::project::Project;
use crate::servers::{Servers, Which};
use crate::setup;
use manual::Manual;
use release::{Program, Release, STAGES};
use target::Target;

#[derive(Args)]
pub(crate) struct Options {
    /// Directory for the files
    #[arg(long, default_value = "dist")]
    dir: PathBuf,
    /// Only for this processor [default: for both]
    #[arg(long, value_enum)]
    target: Vec<Target>,
    /// Pack this program instead of building one
    #[arg(long, value_name = "PATH", conflicts_with = "target")]
    host: Vec<PathBuf>,
    /// Only test the files that an earlier run left in the directory
    #[arg(long, conflicts_with_all = ["target", "host"])]
    check: bool,
}

/// The file with the checksums of all other files, in the format of `sha256sum --check`.
const CHECKSUMS: &str = "SHA256SUMS";

pub(crate) fn run(project: &Project, options: &Options) -> anyhow::Result<()> {
    let dir = std::path::absolute(&options.dir)?;
    if options.check {
        return check(project, &dir);
    }
    let programs = if options.host.is_empty() {
        let targets = if options.target.is_empty() { &Target::ALL } else { &*options.target };
        let commit = release::commit(project)?;
        targets
            .iter()
            .map(|target| Program::new(project, *target, cross::build(project, *target, &commit)?))
            .collect::<anyhow::Result<Vec<_>>>()?
    } else {
        let read = |file: &PathBuf| Program::new(project, Target::of(file)?, file.clone());
        options.host.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?
    };
    let packed = pack(project, &dir, &programs)?;
    for file in packed {
        let bytes = fs::metadata(&file)?.len();
        println!("{:>6.1} MB  {}", bytes as f64 / 1e6, file.display());
    }
    Ok(())
}

/// Builds the program of the packages for the processor of this machine. Returns its path.
pub(crate) fn program(project: &Project) -> anyhow::Result<PathBuf> {
    cross::build(
        project,
        Target::here().context("no packages are made for this kind of processor")?,
        &release::commit(project)?,
    )
}

/// Packs the programs in all formats. Returns the files.
fn pack(project: &Project, dir: &Path, programs: &[Program]) -> anyhow::Result<Vec<PathBuf>> {
    clear(dir)?;
    let release = Release::open(project, dir)?;
    let mut packed = Vec::new();
    let manual = Manual::write(&release, programs, debian::NAME)?;
    for program in programs {
        packed.push(archive::pack(&release, program)?);
        packed.push(wheel::pack(&release, program)?);
        packed.push(debian::pack(&release, program, &manual)?);
    }
    packed.push(guest_wheel::pack(&release)?);
    packed.push(image::pack(&release, programs)?);
    fs::remove_dir_all(dir.join(STAGES))?;
    packed.sort();

    let names = packed.iter().filter_map(|file| file.file_name());
    let sums = capture(Command::new("sha256sum").current_dir(dir).args(names))?;
    let file = dir.join(CHECKSUMS);
    fs::write(&file, sums)?;
    packed.push(file);
    Ok(packed)
}

/// Removes the files of an earlier run. Refuses a directory that contains anything else.
fn clear(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut old = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == STAGES {
            continue;
        }
        let is_ours = ["task-host", "task_host"].iter().any(|begin| name.starts_with(begin));
        if !is_ours && name != CHECKSUMS || !entry.file_type()?.is_file() {
            bail!("{} contains {name}, which is not from an earlier run", dir.display());
        }
        old.push(entry.path());
    }
    for file in old {
        fs::remove_file(file)?;
    }
    Ok(())
}

/// Installs and runs the packages in the directory as a user would. An emulator runs those for
/// arm64.
fn check(project: &Project, dir: &Path) -> anyhow::Result<()> {
    ensure!(
        dir.join(CHECKSUMS).is_file(),
        "{} has no {CHECKSUMS}; run `cargo xtask dist` first",
        dir.display()
    );
    let has = |target: Target| archive::file(dir, target).is_some();
    let is_emulated = Target::here() != Some(Target::Arm) && has(Target::Arm);
    // The module of the tests that run arm64 programs in an emulator.
    const EMULATED: &str = "emulated::";
    let selected = match (Target::here().is_some_and(has), is_emulated) {
        (true, true) => vec![],
        (true, false) => vec!["--skip", EMULATED],
        (false, true) => vec![EMULATED, "checksums"],
        (false, false) => bail!("{} has no program that this machine can run", dir.display()),
    };
    setup::wasm_target(project)?;
    setup::packages(project)?;
    setup::debian_system()?;
    if is_emulated {
        setup::emulate_arm()?;
    }
    build::guests(project)?;
    let servers = Servers::start(project, Which::Engines)?;
    let mut tests = project.cargo();
    // Selects only this package, because the host need not be built again.
    tests.args(["test", "-p", "task-host-tests", "--test", "packages"]);
    // The skipped test packs files itself, so it does not test the packages in this directory.
    tests
        .args(["--", "--include-ignored", "--show-output", "--skip", "packing_the_same"])
        .args(selected);
    run_command(tests.env("TASK_HOST_TEST_DIST", dir).envs(servers.variables()))
}
