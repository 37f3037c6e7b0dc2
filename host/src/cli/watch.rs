//! The options that `host top` and `host dashboard` share, and how they open the queue.

use task_host::config::parse;
use task_host::heartbeat::Place;
use task_host::overview::{Watched, Watcher};
use task_host::queue::{self, Address};

use super::console::Console;
use super::settings::{Flags, Group, Settings, When};
use super::submit::open_bucket;

/// The default maximum number of reports that are read from a service. Each must be leased to be
/// read.
const LEASED: u64 = 1_000;

/// For commands that watch hosts.
#[derive(Debug)]
pub(crate) struct Watching;
impl Group for Watching {
    const SETTINGS: Option<&'static [&'static str]> = Some(&[
        "queue",
        "error-queue",
        "bucket",
        "region",
        "message-bucket",
        "anonymous",
        "requester-pays",
    ]);
    const NAMES_QUEUE: bool = true;
}

/// Options of commands that watch hosts.
#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// Maximum number of error reports to read [default: all; 1000 for a cloud queue, where each must
    /// be leased to be read]
    #[arg(long, value_name = "N", value_parser = parse::whole)]
    reports: Option<u64>,
    #[command(flatten)]
    flags: Flags<Watching>,
}

impl Watch {
    /// Opens the queue, its error queue, and the place of heartbeats. `is_told` is false if
    /// warnings would disturb the screen.
    pub(crate) async fn open(&self, is_told: bool) -> anyhow::Result<Watcher> {
        let settings = self.flags.load()?;
        if is_told {
            Console::plain(When::Never);
        }
        let queue = settings.queue()?;
        // Watching must not create queues.
        let access = queue::Access { create: false, ..settings.queue_access()? };
        let errors = settings.error_queue(&queue)?;
        let most_reports = match errors.is_remote() {
            true => LEASED,
            false => u64::MAX,
        };
        Ok(Watcher::new(Watched {
            queue: queue::admin(&queue, &access).await?,
            most_reports: self.reports.unwrap_or(most_reports),
            place: place(&settings, &queue).await?,
            errors,
            access,
        }))
    }
}

/// The place in which the hosts of a queue write their heartbeats.
async fn place(settings: &Settings, queue: &Address) -> anyhow::Result<Place> {
    match Place::in_queue(queue) {
        Some(place) => Ok(place),
        None => Ok(Place::in_bucket(open_bucket(settings).await?, queue)),
    }
}
