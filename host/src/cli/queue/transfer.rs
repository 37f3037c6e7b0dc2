//! `host queue cp` and `host queue mv`: copy or move messages between two queues of any kind.

use indicatif::HumanCount;
use serde::Serialize;
use task_host::config::parse;
use task_host::queue::{self, Access, Address};
use task_host::transfer::copy::copy;
use task_host::transfer::forward::move_all;
use task_host::transfer::send::{BulkSend, SendError};

use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::settings::{Flags, QueueAccess};
use super::super::transfer_display::{TransferDisplay, forward_error, stop_on_signal};
use super::{done, load};

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

/// The result, as `--json` prints it.
#[derive(Serialize)]
struct Summary {
    from: String,
    to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    copied: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved: Option<u64>,
    /// Messages that the target refused.
    refused: u64,
}

impl Transfer {
    pub(crate) async fn copy(self) -> anyhow::Result<Exit> {
        let (settings, console) = load(&self.flags)?;
        let access = settings.queue_access()?;
        let (from, to) = self.urls(&access).await?;
        let display = TransferDisplay::new(&console, "messages", "copied");
        let target = BulkSend::new(to.clone(), access.clone(), false, None, display.clone());
        let sent = match display.follow(copy(&from, &access, target)).await {
            Ok(sent) => sent,
            Err(error) => {
                let advice = Advice::failed(error.to_string());
                let copied = match error {
                    SendError::Stopped { done, .. } => Some(done.sent),
                    SendError::Input { done, .. } => done.map(|done| done.sent),
                    SendError::Interrupted { done, .. } => Some(done.sent),
                    SendError::Queue(_) | SendError::Rejects(_) => None,
                };
                return Err(match copied.map(|copied| output::count(copied, "message")) {
                    Some(copied) => {
                        advice.hint(format!("{copied} copied to {to} before the error"))
                    }
                    None => advice,
                }
                .into());
            }
        };
        let (copied, refused) = (sent.sent, sent.refused);
        let mut said = format!("{} copied from {from} to {to}", output::count(copied, "message"));
        if refused > 0 {
            said.push_str(&format!("; {} refused", HumanCount(refused)));
        }
        let (from, to) = (from.to_string(), to.to_string());
        let summary = Summary { from, to, copied: Some(copied), moved: None, refused };
        done(self.json, &said, &summary)?;
        Ok(if refused > 0 { Exit::Partly } else { Exit::Done })
    }

    pub(crate) async fn mv(self) -> anyhow::Result<Exit> {
        let (settings, console) = load(&self.flags)?;
        let access = settings.queue_access()?;
        let (from, to) = self.urls(&access).await?;
        let display = TransferDisplay::new(&console, "messages", "moved");
        let stop = stop_on_signal(&console);
        let moving = move_all(&from, &to, &access, display.clone(), &stop.token);
        let (moved, left) =
            display.follow(moving).await.map_err(|error| forward_error(&error, "moved"))?;
        let refused = moved.refused;
        let mut said =
            format!("{} moved from {from} to {to}", output::count(moved.sent, "message"));
        if refused > 0 {
            said.push_str(&format!("; {} refused", HumanCount(refused)));
        }
        if let Some(left @ 1..) = left {
            let why = match moved.is_interrupted {
                true => "left there",
                false => "leased or delayed, and left there",
            };
            said.push_str(&format!("; {} {why}", HumanCount(left)));
        }
        let (from, to) = (from.to_string(), to.to_string());
        let summary = Summary { from, to, copied: None, moved: Some(moved.sent), refused };
        done(self.json, &said, &summary)?;
        let is_part = refused > 0 || moved.is_interrupted || moved.is_cut_short;
        Ok(if is_part { Exit::Partly } else { Exit::Done })
    }

    async fn urls(&self, access: &Access) -> anyhow::Result<(Address, Address)> {
        let address = |name: &str, text: &str| {
            parse::queue(text).map_err(|e| Advice::usage(format!("{name}: {e}")))
        };
        let (from, to) = (address("FROM", &self.from)?, address("TO", &self.to)?);
        // Opening a missing directory as a queue would create it. `admin` fails instead.
        if !from.is_remote() {
            queue::admin(&from, access).await?;
        }
        let place = |queue: &Address| queue.directory()?.canonicalize().ok();
        if from == to || place(&from).is_some_and(|from| place(&to) == Some(from)) {
            return Err(Advice::usage("FROM and TO are the same queue").into());
        }
        Ok((from, to))
    }
}
