//! `host queue cp` and `host queue mv`: from one queue to another, of whatever kind, without a
//! loss.

use std::sync::Arc;

use futures_util::StreamExt;
use serde::Serialize;
use task_host::queue::{self, Access};

use super::super::carry::{Carrier, Choice};
use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::progress_line::ProgressLine;
use super::super::refusals::{Place, Refusals};
use super::super::sender::{self, Sender, Target};
use super::super::settings::{Flags, QueueAccess, fq_path, queue_url};
use super::{done, existing, load};

pub(super) const COPY_HELP: &str = "\
Messages of a directory are copied whether somebody holds them or not. Those of a service can
only be seen by leasing them: those that nobody holds are leased, copied and given back.

Examples:
  host queue cp ./queue ./queue-copy
  host queue cp sqs://my-tasks ./my-tasks";
pub(super) const MOVE_HELP: &str = "\
A message is in the target before it leaves the source: after a kill it may be in both, and
never in neither. What the target does not take stays where it is; the exit code is then 3.

Examples:
  host queue mv ./queue sqs://my-tasks
  host queue mv sqs://my-tasks pubsub://projects/P/topics/T";

/// Options of `host queue cp` and `host queue mv`.
#[derive(Debug, clap::Args)]
pub(crate) struct Transfer {
    /// The queue that messages are taken from: a URL, or a directory
    #[arg(value_name = "FROM")]
    from: String,
    /// The queue they go to; a directory that is not there is made
    #[arg(value_name = "TO")]
    to: String,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<QueueAccess>,
}

/// What was done, as `--json` prints it.
#[derive(Serialize)]
struct Summary {
    from: String,
    to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    copied: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved: Option<u64>,
    /// Messages that the target did not take.
    refused: u64,
}

impl Transfer {
    pub(crate) async fn copy(self) -> anyhow::Result<Exit> {
        let (settings, screen) = load(&self.flags)?;
        let access = settings.queue_access()?;
        let (from, to) = self.urls(&access).await?;
        let source = queue::admin(&from.parse()?, &access).await?;
        let target = Target::open(&screen, &to, &access).await?;
        let there = source.counts().await?.enqueued;
        let refusals = Arc::new(Refusals::new(&screen, None)?);
        let meter = ProgressLine::new(&screen, "messages", "copied", there);
        let mut sender = Sender::new(Some(target), refusals.clone(), meter);
        let mut messages = source.messages();
        let mut unread = None;
        while let Some(message) = messages.next().await {
            let message = match message {
                Ok(message) => message,
                Err(error) => {
                    unread = Some(error);
                    break;
                }
            };
            let place = Place::Named(format!("message {}", message.id));
            if let Some(problem) = &message.unread {
                refusals.add(&place, problem, None);
                continue;
            }
            if !sender.push(message.body, place).await {
                break;
            }
        }
        // What was read is sent all the same, and counted.
        let sent = sender.finish("message").await;
        drop(messages);
        source.close().await;
        let (copied, refused) = sent?;
        if let Some(error) = unread {
            let copied = output::count(copied, "message");
            return Err(Advice::failed(error.to_string())
                .hint(format!("{copied} copied before that are in {to}"))
                .into());
        }
        let mut said = format!("{} copied from {from} to {to}", output::count(copied, "message"));
        if refused > 0 {
            said.push_str(&format!("; {} refused", output::number(refused)));
        }
        let summary = Summary { from, to, copied: Some(copied), moved: None, refused };
        done(self.json, &said, &summary)?;
        Ok(if refused > 0 { Exit::Partly } else { Exit::Done })
    }

    pub(crate) async fn mv(self) -> anyhow::Result<Exit> {
        let (settings, screen) = load(&self.flags)?;
        let access = settings.queue_access()?;
        let (from, to) = self.urls(&access).await?;
        // Only the target may have to be made.
        let source =
            queue::open(&from.parse()?, &Access { create: false, ..access.clone() }).await?;
        let target = Target::open(&screen, &to, &access).await?;
        let there = source.counts().await?.enqueued;
        let carrier = Carrier {
            source: source.clone(),
            is_remote: sender::is_remote(&from)? || sender::is_remote(&to)?,
            target,
            choose: Box::new(|body| Choice::Send(body.clone(), String::new())),
            limit: u64::MAX,
            looks: u64::MAX,
            verb: "moved",
        };
        let carried = carrier.run(&screen, there).await?;
        let refused = carried.refused;
        let mut said =
            format!("{} moved from {from} to {to}", output::count(carried.sent, "message"));
        if refused > 0 {
            said.push_str(&format!("; {} refused", output::number(refused)));
        }
        // What a service counts lags behind.
        if !sender::is_remote(&from)?
            && let Some(left @ 1..) =
                source.counts().await?.enqueued.map(|n| n.saturating_sub(refused))
        {
            let why = if carried.is_interrupted {
                "left there"
            } else {
                "held or delayed, and left there"
            };
            said.push_str(&format!("; {} {why}", output::number(left)));
        }
        let summary = Summary { from, to, copied: None, moved: Some(carried.sent), refused };
        done(self.json, &said, &summary)?;
        let is_part = refused > 0 || carried.is_interrupted || carried.is_cut_short;
        Ok(if is_part { Exit::Partly } else { Exit::Done })
    }

    async fn urls(&self, access: &Access) -> anyhow::Result<(String, String)> {
        let url = |name: &str, text: &str| {
            queue_url(text).map_err(|e| Advice::usage(format!("{name}: {e}")))
        };
        let (from, to) = (url("FROM", &self.from)?, url("TO", &self.to)?);
        existing(&from, access).await?;
        let place = |url: &str| fq_path(url).and_then(|path| path.canonicalize().ok());
        if from == to || place(&from).is_some_and(|from| place(&to) == Some(from)) {
            return Err(Advice::usage("FROM and TO are the same queue").into());
        }
        Ok((from, to))
    }
}
