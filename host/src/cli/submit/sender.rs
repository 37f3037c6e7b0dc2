//! Sends tasks in batches, and counts them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use task_host::queue::{self, Queue};

use super::super::exit::Advice;
use super::super::settings::fq_path;
use super::super::show;
use super::super::telemetry::Screen;
use super::Outcome;

/// Tasks that are sent in one go.
const BATCH: usize = 256;
/// Bytes of tasks that are sent in one go, unless one alone has more.
const BATCH_BYTES: usize = 1 << 20;

/// Sends tasks to a queue.
pub(super) struct Sender {
    url: String,
    /// None for a dry run.
    queue: Option<Arc<dyn Queue>>,
    batch: Vec<(Bytes, String)>,
    bytes: usize,
    sent: u64,
    bar: ProgressBar,
}

impl Sender {
    /// Opens the queue, which is made if there is none.
    pub(super) async fn open(
        screen: &Screen,
        url: &str,
        access: &queue::Access,
        dry_run: bool,
    ) -> anyhow::Result<Self> {
        let is_new = fq_path(url).is_some_and(|dir| !dir.exists());
        let queue = if dry_run { None } else { Some(queue::open(url, access).await?) };
        if is_new && !dry_run {
            screen.tell(format_args!("created {url}"));
        }
        let bar = match screen.live() {
            Some(bars) => bars.add(ProgressBar::no_length()),
            None => ProgressBar::hidden(),
        };
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {human_pos} tasks, {per_sec}, {elapsed}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        let url = url.to_owned();
        Ok(Self { url, queue, batch: Vec::new(), bytes: 0, sent: 0, bar })
    }

    /// Sends a task, with the next ones. `place` is where it stood, for errors.
    pub(super) async fn push(
        &mut self,
        body: Bytes,
        place: impl Into<String>,
    ) -> anyhow::Result<()> {
        self.bytes += body.len();
        self.batch.push((body, place.into()));
        if self.batch.len() >= BATCH || self.bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// How many tasks are in the queue so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends what is left.
    pub(super) async fn finish(mut self, refused: u64) -> anyhow::Result<Outcome> {
        self.flush().await?;
        self.bar.finish_and_clear();
        let dry_run = self.queue.is_none();
        Ok(Outcome { queue: self.url, sent: self.sent, refused, dry_run })
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.bytes = 0;
        let (bodies, places): (Vec<Bytes>, Vec<String>) = self.batch.drain(..).unzip();
        let results = match &self.queue {
            Some(queue) if !bodies.is_empty() => queue.send(&bodies).await,
            _ => bodies.iter().map(|_| Ok(())).collect(),
        };
        self.sent += results.iter().filter(|result| result.is_ok()).count() as u64;
        self.bar.set_position(self.sent);
        let failed = results
            .into_iter()
            .zip(places)
            .find_map(|(result, place)| result.err().map(|error| (error, place)));
        match failed {
            None => Ok(()),
            Some((error, place)) => {
                self.bar.finish_and_clear();
                let sent = show::count(self.sent, "task");
                Err(Advice::failed(format!("{place}: {error}"))
                    .hint(format!(
                        "{sent} sent before that are in the queue, and none after its batch"
                    ))
                    .into())
            }
        }
    }
}
