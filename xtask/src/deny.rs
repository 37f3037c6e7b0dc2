//! Checks dependencies against the rules in `deny.toml`, with cargo-deny.

use std::process::Command;

use crate::command::run;
use crate::project::Project;
use crate::setup;

/// Checks licences, banned crates and sources. Needs no network.
pub(crate) fn check(project: &Project) -> anyhow::Result<()> {
    deny(project, &["licenses", "bans", "sources"])
}

/// Checks for crates that are yanked or have a known vulnerability. Fetches the RustSec database.
pub(crate) fn advisories(project: &Project) -> anyhow::Result<()> {
    deny(project, &["advisories"])
}

fn deny(project: &Project, checks: &[&str]) -> anyhow::Result<()> {
    let deny = setup::cargo_deny(project)?;
    run(Command::new(deny).current_dir(&project.root).args(["--locked", "check"]).args(checks))
}
