//! `host config`: shows each setting, its value and where the value came from.

use super::exit_code::Exit;
use super::fleet;
use super::output;
use super::settings::{Everything, Flags};

/// Options of `host config`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A setting comes from its flag (--max-tasks 10), else its variable (HOST_MAX_TASKS=10), else
host.toml (max-tasks = 10), else its default. This command takes the flags of `host run`, checks
them, and shows the settings that `host run` would use. Tables [tasks.NAME] of host.toml come last.

Examples:
  host config
  host config --fq ./queue --json")]
pub(crate) struct Config {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<Everything>,
}

impl Config {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        for slip in settings.misspelt() {
            output::tell(format_args!("warning: {slip}"));
        }
        let shown = settings.shown()?;
        fleet::check_table(&settings)?;
        if self.json {
            let object: serde_json::Map<String, serde_json::Value> = shown
                .into_iter()
                .map(|(name, value, origin)| {
                    let entry = serde_json::json!({"value": value, "from": origin.to_string()});
                    (name, entry)
                })
                .collect();
            output::json(&object)?;
        } else {
            let rows: Vec<Vec<String>> = shown
                .into_iter()
                .map(|(name, value, origin)| {
                    let value = value.unwrap_or_else(|| "(none)".to_owned());
                    vec![name, value, origin.to_string()]
                })
                .collect();
            output::table(output::out(), &rows)?;
        }
        Ok(Exit::Done)
    }
}
