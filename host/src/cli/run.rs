//! `host run`: leases tasks and runs them until there is a reason to stop.

mod health;
mod progress;
mod summary;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use task_host::config::Config;
use task_host::services::{OpenError, Services};
use task_host::worker::{Stopped, Worker};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use progress::Progress;
use summary::Summary;

use super::console::Console;
use super::doctor::{self, rules::Finding};
use super::exit_code::{Advice, Exit};
use super::open_files;
use super::output;
use super::settings::{BUCKET, Everything, Flags, fq_path};

/// What an outage of file systems is called.
const FILE_CALLS: &str = "calls to file systems";
/// How often is looked whether calls to file systems return.
const WATCH: Duration = Duration::from_secs(1);
/// How long they may take until that is a problem.
const STALLED: Duration = Duration::from_secs(5);
/// How long a host that stops may take, beyond the time that tasks are given.
const TO_STOP: Duration = Duration::from_secs(60);

/// Options of `host run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every setting may also be given as a HOST_… variable (HOST_MAX_TASKS=10) or in host.toml
(max-tasks = 10); `host config` shows what is in force.

The first SIGTERM or Ctrl-C lets running tasks finish within --grace and gives the others
back to the queue; the second gives all back at once. Exit codes: `host --help`.

Examples:
  host run --fq ./queue
  host run --fq ./queue --bucket /data/bucket --parallel 8 -x
  host run --fq ./queue --components ./components --max-tasks 10 --log-level debug")]
pub(crate) struct Run {
    /// Print a summary as JSON on standard output at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<Everything>,
}

impl Run {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let config = settings.config_to_run()?;
        let listen = settings.listen()?;
        let screen = Console::open(&settings)?;
        for slip in settings.misspelt() {
            tracing::warn!("{slip}");
        }
        // What compiles a component has to find threads when the tasks have theirs.
        super::ask_for_threads(super::base_threads() + config.parallel)?;
        // A file call may hang, as on a network file system whose server is away. It then
        // holds up a thread of the runtime that works on tasks, and neither of these two.
        let (control, renewals) = (super::waiting_runtime()?, super::waiting_runtime()?);
        let side = Side { control: control.handle().clone(), renewals: renewals.handle().clone() };
        // Before anything is said: who reads that a host has started may stop it.
        let signals = side.listen()?;
        let config = open_files::prepare(config);
        let runtime = super::runtime()?;
        let exit = runtime.block_on(async {
            let missing = Missing::of(&config);
            if settings.is_default(&BUCKET) {
                // One that was named has to be there: an empty one would be no help.
                make_bucket(&config.bucket)?;
            }
            let opened = Services::open(config, &side.control).await;
            let services = Arc::new(opened.map_err(open_error)?);
            announce(&screen, &services, &missing);
            let config = services.config().clone();
            // The queue may be slow to say how it is set up: nothing waits for that.
            tokio::spawn(async move {
                for problem in doctor::problems(&config).await {
                    warn(&problem);
                }
            });
            if let Some(address) = listen {
                side.control.spawn(health::serve(address, services.clone())).await??;
            }
            side.control.spawn(watch(Handle::current(), services.clone()));
            work(&screen, services, side, signals, self.json).await
        });
        for runtime in [control, renewals, runtime] {
            // A call that hangs is not waited for.
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
        exit
    }
}

/// Says what will go wrong, in the words of `host doctor`.
fn warn(problem: &Finding) {
    match &problem.cure {
        Some(cure) => tracing::warn!("{problem} -> {cure}"),
        None => tracing::warn!("{problem}"),
    }
}

fn make_bucket(bucket: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(bucket)
        .map_err(|e| Advice::failed(format!("the bucket {bucket} can't be made: {e}")).into())
}

fn open_error(error: OpenError) -> anyhow::Error {
    match error {
        OpenError::Sandbox(problem) => {
            let cure = doctor::machine::cure(&problem);
            Advice::failed(format!("the sandbox could not be set up: {problem}")).hint(cure).into()
        }
        other => other.into(),
    }
}

async fn work(
    screen: &Console,
    services: Arc<Services>,
    side: Side,
    signals: Signals,
    json: bool,
) -> anyhow::Result<Exit> {
    let stop = Stop::heed(signals, screen.clone(), services.clone(), &side.control);
    let start = Instant::now();
    let shown = Progress::new(
        screen.clone(),
        services.stats().clone(),
        services.queue().clone(),
        services.config().exit_when_empty,
    )
    .start();
    let worker = Arc::new(Worker::new(services.clone()));
    let (drain, kill) = (stop.drain.clone(), stop.kill.clone());
    // On a thread of the runtime, so that the one that waits here is never held up.
    let run = tokio::spawn(async move { worker.run(drain, kill, &side.renewals).await });
    let stopped = run.await?;
    let elapsed = start.elapsed();
    drop(shown);

    let counting = tokio::time::timeout(Duration::from_secs(5), services.queue().counts()).await;
    let counts = counting.ok().and_then(Result::ok);
    let summary = Summary::new(
        services.config(),
        services.stats(),
        elapsed,
        stopped,
        counts,
        services.queue().requests(),
    );
    if json {
        output::json(&summary)?;
    } else {
        summary.print(output::out())?;
    }
    Ok(match (stopped, stop.second_signal()) {
        (Stopped::Finished, _) if summary.has_failures() => Exit::Partly,
        (Stopped::Finished | Stopped::Drained, _) => Exit::Done,
        (Stopped::Killed, Some(signal)) => Exit::Killed(signal),
        (Stopped::Killed, None) => Exit::GaveBack,
    })
}

/// Runtimes beside the one that works on tasks.
struct Side {
    /// Signals, answers to whoever asks how the host is, and connections to queues of services.
    control: Handle,
    /// The renewal of leases.
    renewals: Handle,
}

impl Side {
    fn listen(&self) -> io::Result<Signals> {
        let _control = self.control.enter();
        Signals::listen()
    }
}

/// Waits until a host that was told to stop within `grace` should have stopped, and has not:
/// soon after that time if calls to a file system hang, later otherwise.
async fn overdue(services: &Services, grace: Duration) {
    tokio::time::sleep(grace + STALLED).await;
    let hangs = async {
        while !services.outages().is_out(&FILE_CALLS) {
            tokio::time::sleep(WATCH).await;
        }
    };
    // Else whatever it waits for has had its time.
    let _ = tokio::time::timeout(TO_STOP, hangs).await;
}

/// Looks whether the runtime that works on tasks makes progress. Says so if it doesn't. Never
/// ends.
async fn watch(tasks: Handle, services: Arc<Services>) {
    loop {
        tokio::time::sleep(WATCH).await;
        let mut turn = tasks.spawn(async {});
        if tokio::time::timeout(STALLED, &mut turn).await.is_err() {
            let problem = "calls to a file system do not return; is a network file system, of \
                the queue, the bucket or the cache, away?";
            services.outages().begins(&FILE_CALLS, &problem);
            let _ = turn.await;
            services.outages().ends(&FILE_CALLS);
        }
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they are kept for whoever asks.
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The number of the next one.
    async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        };
        kind.as_raw_value()
    }
}

/// What signals ask for.
struct Stop {
    drain: CancellationToken,
    kill: CancellationToken,
    /// The number of the second signal; zero until it comes.
    second: Arc<AtomicI32>,
}

impl Stop {
    /// The first signal drains, the second gives everything back, the third exits.
    fn heed(
        mut signals: Signals,
        screen: Console,
        services: Arc<Services>,
        control: &Handle,
    ) -> Self {
        let stop = Self {
            drain: CancellationToken::new(),
            kill: CancellationToken::new(),
            second: Arc::default(),
        };
        let (drain, kill, second) = (stop.drain.clone(), stop.kill.clone(), stop.second.clone());
        control.spawn(async move {
            signals.next().await;
            drain.cancel();
            let running = services.stats().running.load(Relaxed);
            say(
                &screen,
                &format!(
                    "stopping: {} running may finish within {}, the others go back to the queue; \
                     a second signal gives all back at once",
                    output::count(running, "task"),
                    humantime::format_duration(services.config().grace)
                ),
            );
            let signal = tokio::select! {
                signal = signals.next() => signal,
                // It would have stopped by now.
                () = overdue(&services, services.config().grace) => {
                    SignalKind::terminate().as_raw_value()
                }
            };
            second.store(signal, Relaxed);
            kill.cancel();
            say(&screen, "stopping now: running tasks go back to the queue; a third signal exits");
            let signal = tokio::select! {
                third = signals.next() => third,
                () = overdue(&services, Duration::ZERO) => {
                    say(&screen, "exiting: calls to a file system do not return");
                    signal
                }
            };
            // What is held comes back to the queue when its leases run out.
            std::process::exit(128 + signal);
        });
        stop
    }

    fn second_signal(&self) -> Option<i32> {
        Some(self.second.load(Relaxed)).filter(|signal| *signal != 0)
    }
}

fn say(screen: &Console, line: &str) {
    if screen.is_json {
        tracing::info!("{line}");
    } else {
        screen.tell(line);
    }
}

/// Directories that are not there yet, and will be made.
struct Missing(Vec<String>);

impl Missing {
    fn of(config: &Config) -> Self {
        let queues = [Some(&config.queue), Some(&config.error_queue), config.done_queue.as_ref()];
        let urls = queues.into_iter().flatten().chain([&config.bucket]);
        let is_missing = |url: &&String| match fq_path(url) {
            Some(path) => !path.exists(),
            None => url.strip_prefix("file://").is_some_and(|path| !Path::new(path).exists()),
        };
        Self(urls.filter(is_missing).cloned().collect())
    }

    fn note(&self, url: &str) -> String {
        let created = if self.0.iter().any(|missing| missing == url) { " (created)" } else { "" };
        format!("{url}{created}")
    }
}

/// Says what this host works by.
fn announce(screen: &Console, services: &Services, missing: &Missing) {
    let config = services.config();
    let time = |time: Duration| humantime::format_duration(time).to_string();
    let queue = missing.note(&config.queue);
    let errors = missing.note(&config.error_queue);
    let done = config.done_queue.as_ref().map(|url| missing.note(url));
    let bucket = missing.note(&config.bucket);
    let components = match &config.components {
        Some(dir) => dir.display().to_string(),
        None => format!("{}/{}", config.bucket.trim_end_matches('/'), config.component_prefix),
    };
    let cache =
        format!("{}, up to {}", config.cache_dir.display(), config.cache_size.display().iec());
    let parallel =
        format!("{} at a time, {} more made ready", config.parallel, config.least_prefetch());
    let lease = format!("{}, renewed while a task is held", time(config.lease));
    let attempts = format!(
        "{}, the second after about {}",
        config.policy.max_attempts,
        time(config.policy.first_retry)
    );
    let limits = &config.limits;
    let limits = format!(
        "{} of memory, {}, {} in {} files of output for each task",
        limits.memory.display().iec(),
        time(limits.time),
        limits.output_bytes.display().iec(),
        output::number(limits.output_files)
    );
    let kernel = services.confinement().to_string();
    let until = until(config);
    if screen.is_json {
        tracing::info!(
            queue,
            errors,
            done,
            bucket,
            components,
            cache,
            parallel,
            lease,
            attempts,
            limits,
            kernel,
            until,
            version = env!("CARGO_PKG_VERSION"),
            "starting"
        );
        return;
    }
    screen.tell(format_args!("host {}", env!("CARGO_PKG_VERSION")));
    let rows = [
        ("queue", Some(&*queue)),
        ("errors to", Some(&*errors)),
        ("done to", done.as_deref()),
        ("bucket", Some(&*bucket)),
        ("components", Some(&*components)),
        ("cache", Some(&*cache)),
        ("parallel", Some(&*parallel)),
        ("lease", Some(&*lease)),
        ("attempts", Some(&*attempts)),
        ("limits", Some(&*limits)),
        ("kernel", Some(&*kernel)),
        ("until", Some(&*until)),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            screen.tell(format_args!("  {name:<11} {value}"));
        }
    }
}

/// When this host stops.
fn until(config: &Config) -> String {
    let mut ends = Vec::new();
    if config.exit_when_empty {
        ends.push("the queue is empty".to_owned());
    }
    ends.extend(config.max_tasks.map(|n| format!("{} ended", output::count(n, "task"))));
    ends.extend(config.run_for.map(|time| format!("{} passed", humantime::format_duration(time))));
    ends.push("Ctrl-C".to_owned());
    ends.join(", or ")
}
