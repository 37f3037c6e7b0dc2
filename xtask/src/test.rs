//! `cargo xtask test`: formatting, lints, documentation and every test, as CI runs them.
//!
//! Tests are run by plain `cargo test`: there is nothing to install for it, and its result
//! lines are the ones that everybody can read.

use std::time::Instant;

use clap::Args;

use crate::build::{self, Profile};
use crate::command;
use crate::project::Project;
use crate::servers::Servers;
use crate::setup;

#[derive(Args)]
pub(crate) struct Options {
    /// Only tests: no formatting, lints and documentation
    #[arg(long)]
    no_lint: bool,
    /// Only lints: no tests
    #[arg(long, conflicts_with_all = ["no_lint", "filter"])]
    lint: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

pub(crate) fn run(project: &Project, options: &Options) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut ran = Vec::new();
    if options.filter.is_none() && !options.no_lint {
        lint(project)?;
        ran.push("formatting, lints and documentation");
    }
    if !options.lint {
        setup::wasm_target(project)?;
        setup::python(project)?;
        setup::machine_tools()?;
        setup::fuse()?;
        build::guests(project)?;
        build::host(project, Profile::Dev)?;
        let servers = Servers::start(project)?;
        let mut tests = project.cargo();
        // Go on after the first failure: a red run is to tell all it knows.
        tests.args(["test", "--workspace", "--no-fail-fast"]);
        tests.args(&options.filter).envs(servers.variables());
        command::run(&mut tests)?;
        ran.push("unit tests, documentation tests, and the real host end to end, against servers of SQS, S3, \
             GCS, Azure Blob Storage and Pub/Sub");
    }
    println!("All passed: {} ({} s).", ran.join("; "), start.elapsed().as_secs());
    Ok(())
}

fn lint(project: &Project) -> anyhow::Result<()> {
    command::run(project.cargo().args(["fmt", "--all", "--check"]))?;
    command::run(project.cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    command::run(project.cargo().env("RUSTDOCFLAGS", "-D warnings").args([
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]))
}
