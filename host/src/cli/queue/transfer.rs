//! `host queue cp` and `host queue mv`: from one queue to another, of whatever kind, without a
//! loss.

use std::sync::Arc;

use futures_util::StreamExt;
use serde::Serialize;
use task_host::config::parse;
use task_host::queue::{self, Access, Address};

use super::super::carry::{Carrier, Choice};
use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::progress_line::ProgressLine;
use super::super::refusals::{Place, Refusals};
use super::super::sender::{Sender, Target};
use super::super::settings::{Flags, QueueAccess};
use super::{done, existing, load};

pub(super) const COPY_HELP: &str = "\
From a directory, all messages are copied, leased or not. From a cloud queue, only messages that
are not leased are copied: the command leases each one to read it, and then releases it.

Examples:
  host queue cp ./queue ./queue-copy
  host queue cp sqs://my-tasks ./my-tasks";
pub(super) const MOVE_HELP: &str = "\
Each message is sent to TO before it is deleted from FROM. If the command is killed, a message may
be in both queues, but it is never lost. Messages that TO refuses stay in FROM; the exit code is
then 3.

Examples:
  host queue mv ./queue sqs://my-tasks
  host queue mv sqs://my-tasks pubsub://projects/P/topics/T";

/// Options of `host queue cp` and `host queue mv`.
#[derive(Debug, clap::Args)]
pub(crate) struct Transfer {
    /// URL or directory of the source queue
    #[arg(value_name = "FROM")]
    from: String,
    /// URL or directory of the target queue; a missing directory is created
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
        let (source, to) = self.addresses(&access).await?;
        let (from, to) = (source.to_string(), to.to_string());
        let source = queue::admin(&source, &access).await?;
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
        let (source, target) = self.addresses(&access).await?;
        let is_remote = source.is_remote();
        let any_remote = is_remote || target.is_remote();
        let (from, to) = (source.to_string(), target.to_string());
        // Only the target may have to be made.
        let source = queue::open(&source, &Access { create: false, ..access.clone() }).await?;
        let target = Target::open(&screen, &to, &access).await?;
        let there = source.counts().await?.enqueued;
        let carrier = Carrier {
            source: source.clone(),
            is_remote: any_remote,
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
        if !is_remote
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

    async fn addresses(&self, access: &Access) -> anyhow::Result<(Address, Address)> {
        let url = |name: &str, text: &str| {
            parse::queue(text).map_err(|e| Advice::usage(format!("{name}: {e}")))
        };
        let (from, to) = (url("FROM", &self.from)?, url("TO", &self.to)?);
        existing(&from, access).await?;
        let place = |queue: &Address| queue.directory()?.canonicalize().ok();
        if from == to || place(&from).is_some_and(|from| place(&to) == Some(from)) {
            return Err(Advice::usage("FROM and TO are the same queue").into());
        }
        Ok((from, to))
    }
}
