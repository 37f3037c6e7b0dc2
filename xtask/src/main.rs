//! The project's own commands: `cargo xtask demo`, `test`, `bench`, `soak` and others.
//!
//! Each command installs what it needs: a clone and a Rust toolchain are enough.

mod bench;
mod book;
mod build;
mod command;
mod demo;
mod deny;
mod dist;
mod fuzz;
mod languages;
mod macos;
mod package;
mod project;
mod servers;
mod setup;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::project::Project;
use crate::servers::{Servers, Which};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, try, test and measure Task Host")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run a few hundred tasks over the data in this repository
    Demo(demo::Options),
    /// Check and test everything, as CI does
    Test(test::Options),
    /// Compare the speed of `host` with the real python-task-queue
    Bench(bench::Options),
    /// Search for inputs that break a promise of a parser
    Fuzz(fuzz::Options),
    /// Run many tasks on hosts that are killed and stopped at random, while networks and disks fail,
    /// and check each result
    Soak(soak::Options),
    /// Build what users install: programs, wheels, Debian packages and a container image
    Dist(dist::Options),
    /// Check that the host compiles for macOS
    CheckMacos,
    /// Build the documentation site in `target/book`
    Book,
    /// Check dependencies for known vulnerabilities (needs a network)
    Advisories,
    /// Only install what the other commands need
    Setup,
    /// Start the servers for tests; stop them at Ctrl-C or end of input
    Servers {
        /// Docker and Slurm too, which need root
        #[arg(long)]
        engines: bool,
    },
    /// Only build the guests in Rust, as `target/guests/NAME.wasm`
    Guests,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let project = Project::find()?;
    match cli.chore {
        Chore::Demo(options) => demo::run(&project, &options),
        Chore::Test(options) => test::run(&project, &options),
        Chore::Bench(options) => bench::run(&project, &options),
        Chore::Fuzz(options) => fuzz::run(&project, &options),
        Chore::Soak(options) => soak::run(&project, &options),
        Chore::Dist(options) => dist::run(&project, &options),
        Chore::CheckMacos => macos::check(&project),
        Chore::Book => book::build(&project),
        Chore::Advisories => deny::advisories(&project),
        Chore::Setup => {
            setup::wasm_target(&project)?;
            setup::python(&project)?;
            setup::aws_server(&project)?;
            setup::azure_server(&project)?;
            setup::pubsub_server()?;
            setup::browser(&project)?;
            setup::cargo_deny(&project)?;
            setup::mdbook(&project)?;
            setup::cpp_compiler()?;
            setup::engines()?;
            setup::packages(&project)?;
            languages::install(&project)?;
            Ok(())
        }
        Chore::Servers { engines } => {
            let which = if engines { Which::All } else { Which::Clouds };
            let servers = Servers::start(&project, which)?;
            for (name, address) in servers.variables() {
                println!("export {name}={address}");
            }
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
            Ok(())
        }
        Chore::Guests => {
            setup::wasm_target(&project)?;
            for guest in build::guests(&project)? {
                println!("{}", guest.display());
            }
            Ok(())
        }
    }
}
