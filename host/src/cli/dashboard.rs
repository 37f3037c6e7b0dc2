//! `host dashboard`: the status page of all hosts of a queue, over HTTP and read-only.
//!
//! The queue and the heartbeats are read only while a browser shows the page, and once for all
//! browsers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::IntoResponse;
use axum::routing::get;
use task_host::config::parse;
use task_host::overview::Watcher;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

use super::exit_code::Exit;
use super::listener::{Bounded, listen};
use super::output;
use super::page;
use super::settings::address;
use super::watch::Watch;

/// Options of `host dashboard`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The page shows what `host top` shows. /api/hosts has the same as JSON, and /api/events sends it
repeatedly as server-sent events. Everything is read-only, and there is no login: restrict access to
the address to people who may see the names of tasks, their last lines and their errors.

Examples:
  host dashboard --fq ./queue
  host dashboard --queue sqs://my-tasks --bucket s3://my-data --listen 127.0.0.1:9000
  ssh -L 8080:127.0.0.1:8080 login.example.org host dashboard --fq /shared/queue")]
pub(crate) struct Dashboard {
    /// Address of the page
    #[arg(
        long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = address
    )]
    listen: SocketAddr,
    /// Refresh interval while a page is open
    #[arg(
        long, value_name = "TIME", default_value = "5s", value_parser = parse::positive_duration
    )]
    every: Duration,
    #[command(flatten)]
    watch: Watch,
}

impl Dashboard {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let runtime = super::runtime()?;
        let exit = runtime.block_on(self.serve());
        // Don't wait for file system calls, which may hang.
        runtime.shutdown_background();
        exit
    }

    async fn serve(self) -> anyhow::Result<Exit> {
        let watcher = self.watch.open(true).await?;
        let mut terminate = signal(SignalKind::terminate())?;
        let listener = listen(self.listen).await?;
        let address = listener.local_addr()?;
        let queue = watcher.queue();
        output::tell(format_args!("the hosts of {queue}: http://{address}/ (Ctrl-C ends it)"));
        if !address.ip().is_loopback() {
            output::tell(format_args!(
                "warning: there is no login: everybody who reaches {address} sees the names of \
                 tasks, their last lines and their errors"
            ));
        }
        let seen = Seen { watcher, last: None };
        let shared = Arc::new(Shared { every: self.every, seen: Mutex::new(seen) });
        let serving =
            tokio::spawn(async move { axum::serve(Bounded::new(listener), router(shared)).await });
        tokio::select! {
            ended = serving => ended??,
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        Ok(Exit::Done)
    }
}

/// What all requests share.
struct Shared {
    every: Duration,
    seen: Mutex<Seen>,
}

struct Seen {
    watcher: Watcher,
    /// The time of the last overview, and the overview as JSON.
    last: Option<(Instant, Arc<str>)>,
}

impl Shared {
    /// The latest overview as JSON, at most `every` old. Requests within this time share one
    /// overview.
    async fn latest(&self) -> Arc<str> {
        let mut seen = self.seen.lock().await;
        if let Some((at, json)) = &seen.last
            && at.elapsed() < self.every
        {
            return json.clone();
        }
        let overview = seen.watcher.look().await;
        // An overview can always be written as JSON.
        let json = output::json_line(&overview).unwrap_or_default();
        let json: Arc<str> = String::from_utf8_lossy(&json).into();
        seen.last = Some((Instant::now(), json.clone()));
        json
    }
}

/// The page, its events, and the overview as JSON.
fn router(shared: Arc<Shared>) -> Router {
    let followed = shared.clone();
    let figures = move || {
        let followed = followed.clone();
        async move { followed.latest().await }
    };
    let hosts = Router::new().route("/api/hosts", get(hosts)).with_state(shared);
    hosts.merge(page::router(figures))
}

async fn hosts(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, shared.latest().await.to_string())
}
