//! `host completions` and `host man`: completions for shells, and manual pages.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

use super::exit_code::{Advice, Exit};
use super::output;
use super::version;

/// The program's name, for packages that install it under another one.
#[derive(Debug, clap::Args)]
struct Name {
    /// Name of the program [default: the one that it was started as]
    #[arg(long)]
    name: Option<String>,
}

impl Name {
    fn get(&self) -> String {
        let started_as = || {
            let path = PathBuf::from(std::env::args_os().next()?);
            Some(path.file_name()?.to_str()?.to_owned())
        };
        self.name.clone().or_else(started_as).unwrap_or_else(|| "host".to_owned())
    }
}

/// Options of `host completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints a script for the shell's start-up files.

Examples:
  host completions bash > ~/.local/share/bash-completion/completions/host
  host completions zsh > ~/.zfunc/_host
  host completions fish > ~/.config/fish/completions/host.fish")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
    #[command(flatten)]
    name: Name,
}

impl Completions {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut super::command(false),
            self.name.get(),
            &mut script,
        );
        output::script(&script)?;
        Ok(Exit::Done)
    }
}

/// Options of `host man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Writes a page for each command, as its --help. `man` finds pages in DIR if DIR is called man1 and
the directory above it is in MANPATH.

Examples:
  host man ~/.local/share/man/man1
  man host-queue-redrive")]
pub(crate) struct Manual {
    /// Directory for the pages, created if it does not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    name: Name,
}

impl Manual {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let failed =
            |error: std::io::Error| Advice::failed(format!("{}: {error}", output::path(&self.dir)));
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        let mut command = super::command(false).name(self.name.get()).version(version::SHORT);
        command.build();
        let count = write(&command, command.get_name(), &self.dir).map_err(failed)?;
        let pages = output::count(count, "page");
        writeln!(output::out(), "{pages} written to {}", output::path(&self.dir))?;
        Ok(Exit::Done)
    }
}

/// Writes the pages of a command and its subcommands. Returns the number of pages.
fn write(command: &Command, name: &str, dir: &Path) -> std::io::Result<u64> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone().name(name.to_owned())).render(&mut page)?;
    std::fs::write(dir.join(format!("{name}.1")), page)?;
    let mut count = 1;
    for child in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        count += write(child, &format!("{name}-{}", child.get_name()), dir)?;
    }
    Ok(count)
}
