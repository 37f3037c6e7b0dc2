//! The parts that all packages of one run share.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::licences;
use super::stage::Stage;
use super::target::Target;
use crate::command::capture;
use crate::project::Project;

/// The facts about a release.
pub(crate) struct Release<'p> {
    pub(crate) project: &'p Project,
    /// The directory of the finished packages.
    pub(crate) dir: &'p Path,
    pub(crate) version: String,
    /// One sentence about the program.
    pub(crate) summary: String,
    pub(crate) licence: String,
    /// The address of the repository.
    pub(crate) repository: String,
    /// The modification time of all files in packages, in seconds since 1970.
    pub(crate) time: u64,
    /// The same time in the format of RFC 3339.
    pub(crate) created: String,
    /// The Git commit that is built.
    pub(crate) commit: String,
}

/// The directory in which packages are assembled, beside the finished packages.
pub(crate) const STAGES: &str = "stage";

/// The project's own licences.
pub(crate) const LICENCES: [&str; 2] = ["LICENSE-APACHE", "LICENSE-MIT"];

/// A program to pack.
pub(crate) struct Program {
    pub(crate) target: Target,
    pub(crate) file: PathBuf,
    /// The licences of all that is linked into it.
    licences: String,
}

impl Program {
    pub(crate) fn new(project: &Project, target: Target, file: PathBuf) -> anyhow::Result<Self> {
        Ok(Self { target, file, licences: licences::of_dependencies(project, target)? })
    }
}

impl<'p> Release<'p> {
    pub(crate) fn open(project: &'p Project, dir: &'p Path) -> anyhow::Result<Self> {
        let metadata = metadata(project, &["--no-deps"])?;
        let packages = metadata["packages"].as_array().context("cargo metadata")?;
        let package = packages
            .iter()
            .find(|package| package["name"] == "task-host")
            .context("the workspace has no package task-host")?;
        let text = |name: &str| {
            let text = package[name].as_str().map(str::to_owned);
            text.with_context(|| format!("the package task-host has no {name}"))
        };
        let git = |args: &[&str]| {
            let mut git = Command::new("git");
            capture(git.current_dir(&project.root).args(args)).map(|text| text.trim().to_owned())
        };
        let time = match env::var("SOURCE_DATE_EPOCH") {
            Ok(time) => time,
            Err(_) => git(&["log", "-1", "--format=%ct"])?,
        };
        let mut date = Command::new("date");
        date.args(["--utc", "+%Y-%m-%dT%H:%M:%SZ", &format!("--date=@{time}")]);
        Ok(Self {
            project,
            dir,
            version: text("version")?,
            summary: text("description")?,
            licence: text("license")?,
            repository: text("repository")?,
            time: time.parse().with_context(|| format!("SOURCE_DATE_EPOCH={time}"))?,
            created: capture(&mut date)?.trim().to_owned(),
            commit: commit(project)?,
        })
    }

    /// Creates an empty directory to fill.
    pub(crate) fn stage(&self, name: &str) -> anyhow::Result<Stage> {
        Stage::new(&self.dir.join(STAGES).join(name), self.time)
    }

    /// Adds the project's texts and all licences to a directory of a stage.
    pub(crate) fn documents(
        &self,
        stage: &Stage,
        below: &str,
        program: &Program,
    ) -> anyhow::Result<()> {
        for name in ["README.md", "CHANGELOG.md"] {
            stage.copy(&self.project.root.join(name), &format!("{below}/{name}"), 0o644)?;
        }
        self.licences(stage, below, program)
    }

    /// Adds the licences of the program and of everything that is linked into it to a directory of
    /// a stage.
    pub(crate) fn licences(
        &self,
        stage: &Stage,
        below: &str,
        program: &Program,
    ) -> anyhow::Result<()> {
        for name in LICENCES {
            stage.copy(&self.project.root.join(name), &format!("{below}/{name}"), 0o644)?;
        }
        stage.write(&format!("{below}/{}", licences::FILE), &program.licences, 0o644)
    }

    /// Runs a program that packs, and checks that the package exists.
    pub(crate) fn made(&self, name: &str, command: &mut Command) -> anyhow::Result<PathBuf> {
        let package = self.dir.join(name);
        // Tools that record a time use this variable instead of the current time.
        crate::command::run(command.env("SOURCE_DATE_EPOCH", self.time.to_string()))?;
        ensure!(package.is_file(), "{} was not made", package.display());
        Ok(package)
    }
}

/// The Git commit that is built.
pub(crate) fn commit(project: &Project) -> anyhow::Result<String> {
    let mut git = Command::new("git");
    capture(git.current_dir(&project.root).args(["rev-parse", "HEAD"]))
        .map(|text| text.trim().to_owned())
}

/// The output of `cargo metadata` for the workspace.
pub(crate) fn metadata(project: &Project, args: &[&str]) -> anyhow::Result<Value> {
    let mut cargo = project.cargo();
    cargo.args(["metadata", "--locked", "--format-version", "1"]).args(args);
    serde_json::from_str(&capture(&mut cargo)?).context("cargo metadata")
}
