//! Slurm: the workers are elements of array jobs.
//!
//! An array has `workers * relay` elements, of which `workers` run at a time. Slurm starts the next
//! element when a worker reaches its walltime, so no process has to watch the fleet. No accounting
//! database is needed: all information comes from `squeue` and `scontrol`.

mod logs;
mod queue;
mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::program::Program;
use super::{
    Access, Capacity, Engine, EngineError, FleetName, Line, Logs, Spec, Status, Stop, Times,
};
use queue::Queue;
use script::{About, Script};

/// The prefix of a job's name, before the name of its fleet.
const PREFIX: &str = "task-host.";
/// How long a job must have been seen running before it certainly has a process.
const SETTLED: Duration = Duration::from_secs(2);
/// The time limit for cancelling waiting workers and signalling running ones.
const TO_STOP: Duration = Duration::from_secs(120);
/// The time between two looks at the queue while workers are stopped.
const LOOK: Duration = Duration::from_millis(300);
/// The maximum number of jobs in one command.
const MOST_JOBS: usize = 200;
/// Variables of the launcher that Slurm's programs may need. Slurm passes the variables of `sbatch`
/// on to the job, so `sbatch` gets only these.
const VARIABLES: [&str; 18] = [
    "HOME",
    "KRB5CCNAME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "SBATCH_ACCOUNT",
    "SBATCH_CLUSTERS",
    "SBATCH_CONSTRAINT",
    "SBATCH_QOS",
    "SBATCH_RESERVATION",
    "SHELL",
    "SLURM_CLUSTERS",
    "SLURM_CONF",
    "TMPDIR",
    "TZ",
    "USER",
];

/// A Slurm cluster, used through its command line programs.
pub(super) struct Slurm {
    url: String,
    partition: Option<String>,
    access: Access,
    /// The arrays at the last [`Engine::status`]. Newer arrays belong to another launcher.
    seen: Mutex<BTreeSet<u64>>,
}

impl Slurm {
    pub(super) fn new(url: String, partition: Option<String>, access: Access) -> Self {
        Self { url, partition, access, seen: Mutex::default() }
    }

    fn program(&self, name: &'static str) -> Program {
        Program {
            engine: self.url.clone(),
            name,
            install: "run this where Slurm's commands are, such as a login node of the cluster",
        }
    }

    async fn run(
        &self,
        name: &'static str,
        doing: &str,
        args: &[&str],
    ) -> Result<String, EngineError> {
        self.program(name).run(doing, args, "").await
    }

    /// Submits a script with `sbatch`, and returns the answer. If `sbatch` rejects the options, the
    /// error is [`EngineError::Unfit`].
    async fn sbatch(
        &self,
        spec: &Spec,
        script: &str,
        option: &'static str,
    ) -> Result<String, EngineError> {
        let program = self.program("sbatch");
        let mut variables: BTreeMap<String, String> = BTreeMap::new();
        let passed = spec.pass.iter().map(String::as_str);
        let partition = self.partition.is_none().then_some("SBATCH_PARTITION");
        for name in VARIABLES.into_iter().chain(partition).chain(passed) {
            if let Some(value) = self.access.environment.get(name) {
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
        let doing = "asking for workers";
        let answer = program.ask_with(doing, &[option], script, Some(&variables)).await?;
        if answer.success {
            return Ok(answer.stdout);
        }
        Err(EngineError::Unfit {
            problem: format!("{}: sbatch refuses such workers: {}", self.url, answer.words()),
            cure: None,
        })
    }

    /// The elements of a fleet's arrays.
    async fn queue(&self, fleet: &FleetName) -> Result<Queue, EngineError> {
        let name = format!("--name={PREFIX}{fleet}");
        let mut args = queue::args();
        args.push(&name);
        let user = self.user();
        args.push(&user);
        let program = self.program("squeue");
        let doing = "looking at the queue";
        let answer = program.ask_with(doing, &args, "", Some(&self.for_squeue())).await?;
        if !answer.success {
            return Err(program.failed(doing, answer.words(), None));
        }
        Queue::parse(&answer.stdout).map_err(|line| {
            program.failed(doing, format!("squeue answered with an unknown line: {line}"), None)
        })
    }

    /// The variables of this process, and the time format.
    fn for_squeue(&self) -> BTreeMap<String, String> {
        let mut variables: BTreeMap<String, String> = self
            .access
            .environment
            .starting("")
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        variables.insert("SLURM_TIME_FORMAT".to_owned(), "%s".to_owned());
        variables
    }

    /// The argument that selects the jobs of this user. Other users' jobs do not belong to the
    /// fleet.
    fn user(&self) -> String {
        format!("--user={}", rustix::process::getuid().as_raw())
    }

    /// The description that the launcher wrote into the script of an array.
    async fn about(&self, array: u64) -> Result<About, EngineError> {
        let doing = "reading the script of the workers";
        let args = ["write", "batch_script", &array.to_string(), "-"];
        let text = self.run("scontrol", doing, &args).await?;
        About::of_script(&text).ok_or_else(|| {
            let problem = format!("job {array} was not started by this program");
            self.program("scontrol").failed(doing, problem, None)
        })
    }

    /// The maximum number of elements of an array.
    async fn longest_array(&self) -> Result<u32, EngineError> {
        let settings = self.run("scontrol", "asking for its settings", &["show", "config"]).await?;
        let value = settings.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == "MaxArraySize").then(|| value.trim().parse().ok())?
        });
        Ok(value.unwrap_or(script::USUAL_LONGEST_ARRAY))
    }

    /// Stops workers of the fleet, or only of these arrays. Waiting elements are cancelled first,
    /// so that none of them takes the place of a worker that ends.
    async fn cancel(
        &self,
        fleet: &FleetName,
        arrays: Option<&BTreeSet<u64>>,
        which: Stop,
    ) -> Result<(), EngineError> {
        let doing = "stopping workers";
        let mut told = BTreeSet::<String>::new();
        let mut seen = BTreeMap::new();
        let start = Instant::now();
        while start.elapsed() < TO_STOP {
            let queue = self.queue(fleet).await?;
            let is_meant = |array| arrays.is_none_or(|arrays| arrays.contains(&array));
            let waiting: Vec<String> = queue
                .arrays_that_wait()
                .filter(|one| is_meant(*one))
                .map(|array| array.to_string())
                .collect();
            if !waiting.is_empty() {
                let mut args = vec!["--state=PENDING"];
                args.extend(waiting.iter().map(String::as_str));
                // `scancel` fails if the last of them has started meanwhile.
                self.program("scancel").ask(doing, &args, "").await?;
            }
            if which == Stop::Waiting {
                return Ok(());
            }
            let running: Vec<String> =
                queue.running(is_meant).filter(|job| !told.contains(job)).collect();
            // A job without processes loses the signal, and a second signal ends the grace period.
            let now = Instant::now();
            let is_old = |job: &String| now - *seen.entry(job.clone()).or_insert(now) >= SETTLED;
            let (old, young): (Vec<_>, Vec<_>) = running.into_iter().partition(is_old);
            for some in old.chunks(MOST_JOBS) {
                let mut args = vec!["--signal=TERM", "--batch"];
                args.extend(some.iter().map(String::as_str));
                // `scancel` fails for a job that has just ended.
                self.program("scancel").ask(doing, &args, "").await?;
                told.extend(some.iter().cloned());
            }
            if waiting.is_empty() && young.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        let problem = format!("some still wait after {} s", TO_STOP.as_secs());
        Err(self.program("scancel").failed(doing, problem, None))
    }

    fn seen(&self) -> BTreeSet<u64> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Engine for Slurm {
    fn times(&self) -> Times {
        Times { stop: None, start: Duration::from_secs(10 * 60) }
    }

    async fn check(&self, spec: &Spec) -> Result<Option<Capacity>, EngineError> {
        let longest = self.longest_array().await?;
        if spec.relay > longest {
            return Err(EngineError::Unfit {
                problem: format!(
                    "{}: {} workers in a row are more than this Slurm's MaxArraySize of {longest}",
                    self.url, spec.relay
                ),
                cure: Some(format!("use --relay {longest}, or a longer --walltime")),
            });
        }
        let script = Script { spec, partition: self.partition.as_deref(), longest }.text(1)?;
        self.sbatch(spec, &script, "--test-only").await?;
        Ok(None)
    }

    fn render(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        let longest = script::USUAL_LONGEST_ARRAY;
        Script { spec, partition: self.partition.as_deref(), longest }.text(workers)
    }

    async fn start(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        let longest = self.longest_array().await?;
        let script = Script { spec, partition: self.partition.as_deref(), longest };
        if let Some(logs) = spec.options.get(script::LOGS).and_then(|dirs| dirs.last()) {
            std::fs::create_dir_all(logs).map_err(|error| EngineError::Unfit {
                problem: format!("the directory of logs can't be created: {logs}: {error}"),
                cure: None,
            })?;
        }
        let before = self.seen();
        let mut started = Vec::new();
        let mut missing = workers;
        while missing > 0 {
            let some = missing.min(script.most());
            let answer = self.sbatch(spec, &script.text(some)?, "--parsable").await?;
            // The answer may also contain the name of the cluster.
            let array = answer.trim().split(';').next().unwrap_or_default();
            started.push(array.to_owned());
            missing -= some;
        }
        let ours: BTreeSet<u64> = started.iter().filter_map(|array| array.parse().ok()).collect();
        let now = self.queue(&spec.fleet).await?;
        let other = now.arrays().find(|array| !before.contains(array) && !ours.contains(array));
        if let Some(other) = other.filter(|other| ours.first().is_some_and(|first| other < first)) {
            // If two launchers start a fleet at the same time, the first one keeps its workers.
            self.cancel(&spec.fleet, Some(&ours), Stop::All).await?;
            return Ok(format!("nothing: another launcher has just asked for array job {other}"));
        }
        let what = if started.len() > 1 { "array jobs" } else { "array job" };
        let at_a_time = match spec.relay {
            1 => String::new(),
            relay => format!(", {relay} for each place"),
        };
        let plural = if workers == 1 { "" } else { "s" };
        Ok(format!("{workers} worker{plural} ({what} {}{at_a_time})", started.join(", ")))
    }

    async fn status(&self, fleet: &FleetName) -> Result<Option<Status>, EngineError> {
        let queue = self.queue(fleet).await?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = queue.arrays().collect();
        let Some(newest) = queue.arrays().max() else { return Ok(None) };
        let About { digest, logs, environment, .. } = self.about(newest).await?;
        let (counts, reasons) = queue.counts(|array, number| {
            logs::last_words_of(&logs.join(script::log_file(fleet, array, number)))
        });
        Ok(Some(Status { counts, reasons, since: queue.since(), digest, environment }))
    }

    async fn fleets(&self) -> Result<BTreeSet<FleetName>, EngineError> {
        let args = ["--noheader", "--states=all", &self.user(), "--format=%j"];
        let names = self.run("squeue", "looking at the queue", &args).await?;
        let fleets =
            names.lines().filter_map(|name| name.trim().strip_prefix(PREFIX)?.parse().ok());
        Ok(fleets.collect())
    }

    async fn logs(
        &self,
        fleet: &FleetName,
        wanted: &Logs,
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError> {
        let queue = self.queue(fleet).await?;
        let mut places = Vec::new();
        for array in queue.arrays() {
            let About { logs, workers, .. } = self.about(array).await?;
            places.push(logs::Array { number: array, logs, workers });
        }
        let slurm = Self::new(self.url.clone(), self.partition.clone(), self.access.clone());
        Ok(logs::lines(slurm, fleet.clone(), places, wanted.clone()))
    }

    async fn stop(&self, fleet: &FleetName, which: Stop) -> Result<(), EngineError> {
        self.cancel(fleet, None, which).await
    }
}
