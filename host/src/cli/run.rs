//! `host run`: leases tasks and runs them until a signal, a notice or a setting stops it.

mod confine;
mod listen;
mod otlp;
mod progress;
mod stop;
mod summary;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use task_host::activity::SlowRule;
use task_host::config::Config;
use task_host::confinement::InForce;
use task_host::environment::Environment;
use task_host::fit::Finding;
use task_host::heartbeat::Heart;
use task_host::hold::HeldAhead;
use task_host::machine::Machine;
use task_host::notice::{self, Notices, Watcher};
use task_host::services::{OpenError, Services};
use task_host::worker::{Stopped, Worker};
use task_host::{identity, protection};
use tokio::runtime::Handle;

use otlp::Exports;
use progress::Progress;
use stop::{Stop, Waiting};
use summary::{Ending, Summary};

use super::console::Console;
use super::doctor;
use super::exit_code::{Advice, Exit};
use super::open_files;
use super::output;
use super::settings::{DisplaySettings, Everything, Flags};
use super::signals::Signals;

/// The name of an outage of file systems.
const FILE_CALLS: &str = "calls to file systems";
/// The interval between checks for file system calls that hang.
const WATCH: Duration = Duration::from_secs(1);
/// How long a file system call may take before it is an outage.
const STALLED: Duration = Duration::from_secs(5);
/// Options of `host run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Settings can also be HOST_… variables (HOST_MAX_TASKS=10) or keys in host.toml (max-tasks = 10).
`host config` shows the settings in effect.

After SIGTERM or Ctrl-C, running tasks may finish within --grace and waiting tasks go back to the
queue. A second signal releases all tasks at once. A notice that the machine will be taken away
(--notice) has the effect of the first signal, and does not count as one. For exit codes, see
`host --help`.

Examples:
  host run --fq ./queue
  host run --fq ./queue --bucket /data/bucket --parallel 8 -x
  host run --fq ./queue --components ./components --max-tasks 10 --log-level debug")]
pub(crate) struct Run {
    /// Print the final summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<Everything>,
}

impl Run {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let waiting = Waiting::begin();
        let settings = self.flags.load()?;
        let config = settings.config_to_run()?;
        let display: DisplaySettings = settings.get()?;
        let screen = Console::open(&display);
        for slip in settings.misspelt() {
            tracing::warn!("{slip}");
        }
        let missing = Missing::of(&config);
        // Confine the process before any other thread starts and before reading from a queue.
        let confined = confine::confine(&settings, &config, display.listen)?;
        // The compiler needs its threads while the threads of all tasks exist.
        super::ask_for_threads(super::base_threads() + config.work.parallel)?;
        // A file system call may hang, for example if the server of a network file system is down.
        // It then blocks a thread of the runtime for tasks, but not of these two runtimes.
        let (control, renewals) = (super::waiting_runtime()?, super::waiting_runtime()?);
        let side = Side { control: control.handle().clone(), renewals: renewals.handle().clone() };
        // Before the first output, because a program that waits for it may then send a signal.
        let signals = side.listen()?;
        drop(waiting);
        let config = open_files::prepare(config);
        let runtime = super::runtime()?;
        let exit = runtime.block_on(async {
            // Create only the default bucket. A bucket that a setting names must exist, because a
            // new one would be empty.
            if settings.has_default_bucket()
                && let Some(dir) = config.data.bucket.path()
            {
                create_bucket(dir)?;
            }
            let opened = Services::open(config, &side.control).await;
            let services = Arc::new(opened.map_err(open_error)?);
            let notices = watcher(services.config());
            announce(&screen, &services, &missing, confined, notices.as_ref());
            let config = services.config().clone();
            if missing.has(&config.queue) && config.stop.exit_when_empty {
                tracing::warn!(
                    "{} did not exist before, so it is empty and there is nothing to do; is its \
                     name right?",
                    config.queue
                );
            }
            for finding in doctor::warnings(&config) {
                warn(&finding);
            }
            // Asking the queue for its configuration may be slow, so nothing waits for the answer.
            tokio::spawn(async move {
                for problem in doctor::problems(&config).await {
                    warn(&problem);
                }
            });
            if let Some(address) = display.listen {
                let settings = settings.effective()?;
                let serving = listen::serve(address, services.clone(), settings);
                side.control.spawn(serving).await??;
            }
            side.control.spawn(watch(Handle::current(), services.clone()));
            let exports = Exports::start(&services, &side.control)?;
            keep_history(&side.control, &services, SlowRule::of(display.slow));
            tell_engine(&side.control, &services);
            let heart = heartbeats(&services, display.heartbeat);
            let exit = work(&screen, services, side, signals, notices, self.json).await;
            if let Some(heart) = heart {
                heart.stop().await;
            }
            exports.end().await;
            exit
        });
        for runtime in [control, renewals, runtime] {
            // Don't wait for calls that hang. Other calls end soon, and then remove the files of
            // this process.
            runtime.shutdown_timeout(Duration::from_secs(3));
        }
        exit
    }
}

/// The watcher for notices that this machine will be taken away. None if there can be no notices.
fn watcher(config: &Config) -> Option<Watcher> {
    let engine = identity::of_process().engine();
    let environment = Environment::of_process();
    Watcher::find(config.stop.notice, &environment, engine, &notice::Machine::this())
}

/// Asks ECS for this host's identity, and keeps ECS informed whether the host holds tasks. Does not
/// wait for the answers.
fn tell_engine(control: &Handle, services: &Services) {
    control.spawn(async {
        let before = identity::of_process();
        let known = identity::look_up().await;
        if known != before {
            tracing::info!(worker = known.words(), "this host is a task of ECS");
        }
    });
    if services.config().stop.notice != Notices::Off {
        let stats = services.stats().clone();
        control.spawn(async move { protection::keep(&Environment::of_process(), stats).await });
    }
}

/// Writes heartbeats at an interval of `every`. None if it is zero.
fn heartbeats(services: &Arc<Services>, every: Duration) -> Option<Heart> {
    let (place, services) = (services.heartbeat_place(), services.clone());
    (!every.is_zero()).then(|| Heart::start(place, every, move || services.snapshot()))
}

/// Keeps the host's history and counts up to date. The queue may be a directory that hangs, so its
/// messages are counted on the runtime for tasks.
fn keep_history(control: &Handle, services: &Arc<Services>, rule: SlowRule) {
    let (ticking, counting) = (services.clone(), services.clone());
    control.spawn(async move { ticking.keep_ticking(rule).await });
    tokio::spawn(async move { counting.keep_counting().await });
}

/// Logs a warning about a problem, in the words of `host doctor`.
fn warn(problem: &Finding) {
    match &problem.cure {
        Some(cure) => tracing::warn!("{problem} -> {cure}"),
        None => tracing::warn!("{problem}"),
    }
}

fn create_bucket(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).map_err(|error| {
        Advice::failed(format!("could not create the bucket {}: {error}", output::path(dir))).into()
    })
}

fn open_error(error: OpenError) -> anyhow::Error {
    match error {
        OpenError::Sandbox(problem) => {
            let cure = doctor::machine::cure(&problem);
            Advice::failed(format!("could not set up the sandbox: {problem}")).hint(cure).into()
        }
        other => other.into(),
    }
}

async fn work(
    screen: &Console,
    services: Arc<Services>,
    side: Side,
    signals: Signals,
    notices: Option<Watcher>,
    json: bool,
) -> anyhow::Result<Exit> {
    let worker = Arc::new(Worker::new(services.clone()));
    let stop = Stop::heed(
        signals,
        notices,
        screen.clone(),
        worker.clone(),
        services.clone(),
        &side.control,
    );
    let start = Instant::now();
    let shown = Progress::new(screen.clone(), services.clone()).start();
    let (drain, kill) = (stop.drain.clone(), stop.kill.clone());
    // In a separate task, because this thread only waits and must not be blocked.
    let working = worker.clone();
    let run = tokio::spawn(async move { working.run(drain, kill, &side.renewals).await });
    let stopped = run.await?;
    let elapsed = start.elapsed();
    drop(shown);

    let counting = tokio::time::timeout(Duration::from_secs(5), services.queue().counts()).await;
    let counts = counting.ok().and_then(Result::ok);
    let summary = Summary::new(
        &services,
        elapsed,
        Ending {
            stopped,
            goal: worker.goal(),
            cause: stop.cause(),
            is_hurried: stop.second_signal().is_some(),
        },
        counts,
    );
    if json {
        output::json(&summary)?;
    } else {
        summary.print(output::out())?;
    }
    Ok(match (stopped, stop.second_signal()) {
        _ if services.config().stop.exit_zero => Exit::Done,
        (Stopped::Finished, _) if summary.has_failures() => Exit::Partly,
        (Stopped::Finished | Stopped::Drained, _) => Exit::Done,
        (Stopped::Killed, Some(signal)) => Exit::Killed(signal),
        (Stopped::Killed, None) => Exit::GaveBack,
    })
}

/// The runtimes besides the one for tasks.
struct Side {
    /// Handles signals, health checks, and connections to queue services.
    control: Handle,
    /// Renews leases.
    renewals: Handle,
}

impl Side {
    fn listen(&self) -> io::Result<Signals> {
        let _control = self.control.enter();
        Signals::listen()
    }
}

/// Reports an outage while the runtime for tasks makes no progress. Never returns.
async fn watch(tasks: Handle, services: Arc<Services>) {
    loop {
        tokio::time::sleep(WATCH).await;
        let mut turn = tasks.spawn(async {});
        if tokio::time::timeout(STALLED, &mut turn).await.is_err() {
            let problem = "file system calls do not return; check the file systems of the queue, \
                the bucket and the cache";
            services.outages().begins(&FILE_CALLS, &problem);
            let _ = turn.await;
            services.outages().ends(&FILE_CALLS);
        }
    }
}

/// The queues and the bucket whose directories do not exist yet and will be created.
struct Missing(Vec<String>);

impl Missing {
    fn of(config: &Config) -> Self {
        let queues = [Some(&config.queue), Some(&config.error_queue), config.done_queue.as_ref()];
        let queues =
            queues.into_iter().flatten().map(|queue| (queue.to_string(), queue.directory()));
        let bucket = (config.data.bucket.to_string(), config.data.bucket.path());
        let all = queues.chain([bucket]);
        Self(
            all.filter(|(_, dir)| dir.is_some_and(|dir| !dir.exists()))
                .map(|(url, _)| url)
                .collect(),
        )
    }

    fn has(&self, address: impl fmt::Display) -> bool {
        self.0.contains(&address.to_string())
    }

    fn note(&self, address: impl fmt::Display) -> String {
        let created = if self.has(&address) { " (created)" } else { "" };
        format!("{address}{created}")
    }
}

/// Shows the settings that this host runs with.
fn announce(
    screen: &Console,
    services: &Services,
    missing: &Missing,
    confined: InForce,
    notices: Option<&Watcher>,
) {
    let config = services.config();
    let time = |time: Duration| humantime::format_duration(time).to_string();
    let queue = missing.note(&config.queue);
    let errors = missing.note(&config.error_queue);
    let done = config.done_queue.as_ref().map(|queue| missing.note(queue));
    let bucket = missing.note(&config.data.bucket);
    let components = config.data.components_place();
    let cache =
        format!("{}, up to {}", config.cache.dir.display(), config.cache.size.display().iec());
    let ahead = match config.held_ahead(&**services.queue()) {
        HeldAhead::Always(count) => format!("{count} more prefetched"),
        HeldAhead::Soon(_) => "more prefetched if they start within seconds".to_owned(),
    };
    let parallel = format!("{} at a time, {ahead}", config.work.parallel);
    let lease = format!("{}, renewed while the host holds a task", time(config.work.lease));
    let attempts = format!(
        "{}, the second after about {}",
        config.retries.max_attempts,
        time(config.retries.retry_after)
    );
    let memory = memory(config);
    let limits = &config.task.limits();
    let cpu_time =
        limits.cpu_time.map_or(String::new(), |most| format!("{} of processor time, ", time(most)));
    let limits = format!(
        "{} of memory, {}, {cpu_time}{} of output in {} for each task",
        limits.memory.display().iec(),
        time(limits.time),
        limits.output_bytes.display().iec(),
        output::count(limits.output_files, "file")
    );
    let own_limits = own_limits(config);
    let kernel = doctor::machine::kernel_line(services.confinement(), confined, config);
    let until = until(config);
    let worker = Some(identity::of_process().words()).filter(|words| !words.is_empty());
    let notices = notices.map(|watcher| format!("from {watcher}"));
    if screen.is_json {
        tracing::info!(
            queue,
            errors,
            done,
            bucket,
            components,
            cache,
            parallel,
            memory,
            lease,
            attempts,
            limits,
            own_limits,
            kernel,
            until,
            worker,
            notices,
            version = env!("CARGO_PKG_VERSION"),
            "starting"
        );
        return;
    }
    screen.note(format_args!("host {}", env!("CARGO_PKG_VERSION")));
    let rows = [
        ("queue", Some(&*queue)),
        ("errors to", Some(&*errors)),
        ("done to", done.as_deref()),
        ("bucket", Some(&*bucket)),
        ("components", Some(&*components)),
        ("cache", Some(&*cache)),
        ("parallel", Some(&*parallel)),
        ("memory", memory.as_deref()),
        ("lease", Some(&*lease)),
        ("attempts", Some(&*attempts)),
        ("limits", Some(&*limits)),
        ("", own_limits.as_deref()),
        ("kernel", Some(&*kernel)),
        ("until", Some(&*until)),
        ("worker", worker.as_deref()),
        ("notices", notices.as_deref()),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            screen.note(format_args!("  {name:<11} {value}"));
        }
    }
}

/// The memory that this host has for tasks. None if it is unknown.
fn memory(config: &Config) -> Option<String> {
    let machine = Machine::of_process();
    let for_tasks = config.limits().for_guests(machine, config.work.parallel)?;
    Some(format!("{} for tasks; {}", for_tasks.display().iec(), machine.memory()?))
}

/// The names of tasks that have their own limits, and their settings.
fn own_limits(config: &Config) -> Option<String> {
    let tables = config.tasks.iter().filter(|(_, task)| !task.own.is_empty());
    let tables: Vec<String> = tables
        .map(|(name, task)| {
            let settings: Vec<&str> = task.own.iter().copied().collect();
            format!("{name} ({})", settings.join(", "))
        })
        .collect();
    (!tables.is_empty()).then(|| format!("other limits for {}", tables.join(", ")))
}

/// The conditions that end this run.
fn until(config: &Config) -> String {
    let mut ends = Vec::new();
    if config.stop.exit_when_empty {
        ends.push("the queue is empty".to_owned());
    }
    ends.extend(config.stop.exit_when_idle.map(|time| {
        let time = humantime::format_duration(time);
        match identity::of_process().is_first() {
            true => format!("no task could be leased for {time} and the queue is empty"),
            false => format!("no task could be leased for {time}"),
        }
    }));
    ends.extend(config.stop.max_tasks.map(|n| format!("{} ended", output::count(n, "task"))));
    ends.extend(
        config.stop.run_for.map(|time| format!("{} passed", humantime::format_duration(time))),
    );
    ends.push("Ctrl-C".to_owned());
    ends.join(", or ")
}
