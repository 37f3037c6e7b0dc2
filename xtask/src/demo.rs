//! stub
use clap::Args;
#[derive(Args)]
pub(crate) struct Options {}
pub(crate) fn run(_: &crate::project::Project, _: &Options) -> anyhow::Result<()> {
    Ok(())
}
