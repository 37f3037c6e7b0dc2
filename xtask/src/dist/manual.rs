//! Manual pages and shell completions, for the packages that install the program for a whole
//! machine.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use super::release::{Program, Release, STAGES};
use super::stage::{Stage, gzip};
use super::target::Target;
use crate::command::{capture, run};
use crate::setup;

/// The shells, and where a package puts the completions of each for the program `name`.
fn completions(name: &str) -> [(&'static str, String); 3] {
    [
        ("bash", format!("usr/share/bash-completion/completions/{name}")),
        ("fish", format!("usr/share/fish/vendor_completions.d/{name}.fish")),
        ("zsh", format!("usr/share/zsh/vendor-completions/_{name}")),
    ]
}

/// Manual pages and shell completions of the program, under the name `name`.
pub(crate) struct Manual {
    dir: PathBuf,
    name: &'static str,
}

impl Manual {
    /// Runs the program to get the files: one for this machine, or one in an emulator.
    pub(crate) fn write(
        release: &Release<'_>,
        programs: &[Program],
        name: &'static str,
    ) -> anyhow::Result<Self> {
        let dir = release.dir.join(STAGES).join("manual");
        fs::create_dir_all(&dir)?;
        let native = programs.iter().find(|program| Some(program.target) == Target::here());
        let asked = native.or(programs.first()).context("there is no program to pack")?;
        if native.is_none() {
            setup::emulator(asked.target.emulator())?;
        }
        let program = || match native {
            Some(program) => Command::new(&program.file),
            None => {
                let mut emulator = Command::new(asked.target.emulator());
                emulator.arg(&asked.file);
                emulator
            }
        };
        run(program().arg("man").arg(dir.join("man1")).args(["--name", name]))?;
        for (shell, _) in completions(name) {
            let script = capture(program().args(["completions", shell, "--name", name]))?;
            fs::write(dir.join(shell), script)?;
        }
        Ok(Self { dir, name })
    }

    /// Adds the files to a package.
    pub(crate) fn add(&self, stage: &Stage) -> anyhow::Result<()> {
        let packed = self.dir.join("page.gz");
        for entry in fs::read_dir(self.dir.join("man1"))? {
            let page = entry?.path();
            gzip(&page, &packed)?;
            let name = page.file_name().unwrap_or_default().to_string_lossy();
            stage.copy(&packed, &format!("usr/share/man/man1/{name}.gz"), 0o644)?;
        }
        for (shell, place) in completions(self.name) {
            stage.copy(&self.dir.join(shell), &place, 0o644)?;
        }
        Ok(())
    }
}
