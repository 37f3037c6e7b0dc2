//! `host queue cp` and `host queue mv`: from one queue to another, without a loss.
//!
//! A message is in the target before it leaves the source: a kill in between leaves it in
//! both.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use task_host::lease::{Lease, Leases, Settlement};
use task_host::queue::{self, Access, QueueError};

use super::super::exit::{Advice, Exit};
use super::super::settings::{fq_path, queue_url};
use super::super::show;
use super::super::telemetry::Screen;
use super::{done, existing};

/// Messages that are sent in one go.
const BATCH: usize = 256;
/// How long a message that is being moved is held at a time.
const HOLD: Duration = Duration::from_secs(60);

/// Options of `host queue cp` and `host queue mv`.
#[derive(Debug, clap::Args)]
pub(crate) struct Transfer {
    /// The queue that messages are taken from: fq://DIR, or a directory
    #[arg(value_name = "FROM")]
    from: String,
    /// The queue they go to; a directory that is not there is made
    #[arg(value_name = "TO")]
    to: String,
}

impl Transfer {
    pub(crate) async fn copy(self, screen: &Screen) -> anyhow::Result<Exit> {
        let access = Access::default();
        let (from, to) = self.check(&access).await?;
        let source = queue::admin(&from, &access).await?;
        let target = open(screen, &to, &access).await?;
        let mut copied = 0;
        let mut batch = Vec::new();
        let mut messages = source.messages();
        loop {
            let next = messages.next().await.transpose()?;
            let is_last = next.is_none();
            batch.extend(next.map(|message| message.body));
            if batch.len() >= BATCH || (is_last && !batch.is_empty()) {
                for result in target.send(&batch).await {
                    result.map_err(|error| broken_off(&error, "copied", copied))?;
                    copied += 1;
                }
                batch.clear();
            }
            if is_last {
                break;
            }
        }
        done(&format!("{} copied from {from} to {to}", show::count(copied, "message")))
    }

    pub(crate) async fn mv(self, screen: &Screen) -> anyhow::Result<Exit> {
        let access = Access::default();
        let (from, to) = self.check(&access).await?;
        let source = queue::open(&from, &access).await?;
        let target = open(screen, &to, &access).await?;
        let leases = Leases::new(source.clone(), HOLD);
        let mut moved = 0;
        loop {
            let leased = leases.lease(BATCH, Duration::ZERO).await?;
            if leased.is_empty() {
                break;
            }
            let bodies: Vec<Bytes> = leased.iter().map(|l| l.message().body.clone()).collect();
            let sent = target.send(&bodies).await;
            moved += settle(leased, sent, moved).await?;
        }
        let held = source.counts().await?.enqueued.unwrap_or(0);
        let rest = match held {
            0 => String::new(),
            n => format!("; {} held or delayed, and left there", show::number(n)),
        };
        done(&format!("{} moved from {from} to {to}{rest}", show::count(moved, "message")))
    }

    async fn check(self, access: &Access) -> anyhow::Result<(String, String)> {
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

async fn open(
    screen: &Screen,
    url: &str,
    access: &Access,
) -> anyhow::Result<std::sync::Arc<dyn queue::Queue>> {
    let is_new = fq_path(url).is_some_and(|dir| !dir.exists());
    let queue = queue::open(url, access).await?;
    if is_new {
        screen.tell(format_args!("created {url}"));
    }
    Ok(queue)
}

/// Deletes what was sent, and gives back the rest.
async fn settle(
    leased: Vec<Lease>,
    sent: Vec<Result<(), QueueError>>,
    before: u64,
) -> anyhow::Result<u64> {
    let mut moved = 0;
    let mut failed = None;
    for (lease, sent) in leased.into_iter().zip(sent) {
        let settled = match sent {
            Ok(()) => {
                moved += 1;
                lease.settle(Settlement::Ack).await
            }
            Err(error) => {
                failed.get_or_insert(error);
                lease.settle(Settlement::Release(Duration::ZERO, queue::Release::Uncounted)).await
            }
        };
        if let Err(error) = settled {
            failed.get_or_insert(error);
        }
    }
    match failed {
        None => Ok(moved),
        Some(error) => Err(broken_off(&error, "moved", before + moved).into()),
    }
}

fn broken_off(error: &QueueError, done: &str, count: u64) -> Advice {
    Advice::failed(error.to_string())
        .hint(format!("{} {done} before that", show::count(count, "message")))
}
