//! Where the clone is, and where its builds go.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// A clone of this repository.
pub(crate) struct Project {
    /// Its top directory.
    pub(crate) root: PathBuf,
    /// Where cargo builds: `target`, unless the user wants it elsewhere.
    pub(crate) target: PathBuf,
}

impl Project {
    /// The clone that this program was built in.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask has no directory above it")?
            .to_owned();
        ensure!(
            root.join("wit/task.wit").is_file(),
            "{} is not a clone of Task Host any more; build xtask again",
            root.display()
        );
        // This program is at TARGET/PROFILE/xtask, however TARGET was chosen.
        let program = std::env::current_exe().context("where xtask itself is")?;
        let target = program
            .ancestors()
            .nth(2)
            .with_context(|| format!("{} is in no build directory", program.display()))?
            .to_owned();
        Ok(Self { root, target })
    }

    /// A command of the cargo that started us.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        cargo
    }
}
