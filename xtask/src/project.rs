//! The paths of the clone and of its builds.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// A clone of this repository.
pub(crate) struct Project {
    /// The top directory.
    pub(crate) root: PathBuf,
    /// Cargo's build directory: `target`, or the one that the user chose.
    pub(crate) target: PathBuf,
}

impl Project {
    /// The clone in which this program was built.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask has no directory above it")?
            .to_owned();
        ensure!(
            root.join("wit/task.wit").is_file(),
            "{} is no longer a clone of Task Host; build xtask again",
            root.display()
        );
        // This program's path is TARGET/PROFILE/xtask, wherever TARGET is.
        let program = std::env::current_exe().context("the path of xtask")?;
        let target = program
            .ancestors()
            .nth(2)
            .with_context(|| format!("{} is not in a build directory", program.display()))?
            .to_owned();
        Ok(Self { root, target })
    }

    /// A command that runs the same Cargo as the one that started this program.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        cargo
    }
}
