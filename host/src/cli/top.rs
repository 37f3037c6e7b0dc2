//! `host top`: shows the hosts of a queue, their running tasks, and the causes of failures.

mod view;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use task_host::config::parse;
use task_host::overview::{Overview, Watcher};
use tokio::signal::unix::{SignalKind, signal};

use super::exit_code::Exit;
use super::output;
use super::screen::{Keys, Screen};
use super::watch::Watch;

/// The width of lines if standard output is not a terminal.
const WIDE: usize = 400;

/// Options of `host top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each host writes a heartbeat about every 30 s (--heartbeat of `host run`): in the directory of the
queue, or below _hosts in the bucket. A host that ends removes its heartbeat. A host that has missed
three is silent: it was killed, or it can't reach the bucket. Other hosts run its tasks when its
leases end. The list of running tasks is as old as the heartbeat.

`q` or Ctrl-C ends it. Where standard output is not a terminal, it prints once.

Examples:
  host top --fq ./queue
  host top --queue sqs://my-tasks --bucket s3://my-data
  host top --fq ./queue --once --json | jq '.hosts[] | select(.is_silent) | .snapshot.host.id'")]
pub(crate) struct Top {
    /// Print once and exit; with code 1 if something could not be read
    #[arg(long)]
    once: bool,
    /// Print JSON: one line for each refresh
    #[arg(long)]
    json: bool,
    /// Refresh interval
    #[arg(
        long, value_name = "TIME", default_value = "5s", value_parser = parse::positive_duration
    )]
    every: Duration,
    #[command(flatten)]
    watch: Watch,
}

impl Top {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let runtime = super::waiting_runtime()?;
        let exit = runtime.block_on(self.look());
        // Don't wait for file system calls, which may hang.
        runtime.shutdown_background();
        exit
    }

    async fn look(self) -> anyhow::Result<Exit> {
        let is_live = !self.once && !self.json;
        let has_screen = is_live && Screen::is_there();
        let mut watcher = self.watch.open(!has_screen).await?;
        if has_screen {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut hangup = signal(SignalKind::hangup())?;
            let mut quit_key = signal(SignalKind::quit())?;
            let screen = Arc::new(Screen::open()?);
            let keys = Keys::open();
            // In a separate task, so that Ctrl-C works even while a call hangs.
            let showing = tokio::spawn(show(watcher, screen.clone(), self.every));
            let quit = async {
                match &keys {
                    Some(keys) if keys.quit().await.is_ok() => {}
                    _ => std::future::pending().await,
                }
            };
            let ended = tokio::select! {
                shown = showing => shown.unwrap_or_else(|panic| Err(panic.into())),
                () = quit => Ok(Exit::Done),
                _ = tokio::signal::ctrl_c() => Ok(Exit::Done),
                _ = terminate.recv() => Ok(Exit::Done),
                _ = hangup.recv() => Ok(Exit::Done),
                _ = quit_key.recv() => Ok(Exit::Done),
            };
            drop(keys);
            screen.leave()?;
            return ended;
        }
        loop {
            let overview = watcher.look().await;
            if self.json {
                output::json(&overview)?;
            } else {
                print(&overview)?;
            }
            if self.once || is_live {
                let is_whole = overview.problems.is_empty();
                return Ok(if is_whole { Exit::Done } else { Exit::Failed });
            }
            tokio::time::sleep(self.every).await;
        }
    }
}

/// Shows the hosts until the process ends.
async fn show(mut watcher: Watcher, screen: Arc<Screen>, every: Duration) -> anyhow::Result<Exit> {
    loop {
        let overview = watcher.look().await;
        let (width, height) = screen.size();
        screen.show(&view::lines(&overview, width, Some(height)))?;
        tokio::time::sleep(every).await;
    }
}

fn print(overview: &Overview) -> anyhow::Result<()> {
    let mut out = output::long_out();
    for line in view::lines(overview, WIDE, None) {
        writeln!(out, "{}", line.text)?;
    }
    Ok(out.flush()?)
}
