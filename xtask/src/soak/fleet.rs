//! A fleet whose workers are killed at random until the queue is almost empty. The command that
//! started the fleet replaces killed workers.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use task_host_test_network::image;

use super::dice::Dice;
use super::ledger::Ledger;
use super::place::Place;
use super::{LAST_PART, On, Options, Progress};
use crate::project::Project;
use crate::servers::{Servers, Which};

const NAME: &str = "soak";
const IMAGE: &str = "task-host:soak";
/// How often missing workers are replaced.
const REPLACE: Duration = Duration::from_secs(2);

/// A fleet and its engine. The engine ends when this is dropped.
pub(super) struct Fleet<'p> {
    place: &'p Place,
    on: On,
    /// The environment variable with which the engine's programs find the engine.
    variable: (&'static str, String),
    up: Vec<String>,
    _servers: Servers,
    ledger: Ledger,
}

impl<'p> Fleet<'p> {
    pub(super) fn start(
        place: &'p Place,
        project: &Project,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let servers = Servers::start(project, Which::Engines)?;
        let address = |name: &str| {
            let found = servers.variables().find(|(known, _)| *known == name);
            found.map(|(_, address)| address.to_owned()).context("an engine")
        };
        let (variable, more): (_, &[&str]) = match options.on {
            On::Slurm => {
                let variable = ("SLURM_CONF", address("TASK_HOST_TEST_SLURM")?);
                // Slurm ends each worker after less than a minute, and another worker replaces it.
                (variable, &["--walltime", "1m", "--relay", "10", "--grace", "5s"])
            }
            _ => {
                let daemon = address("TASK_HOST_TEST_DOCKER")?;
                image::import(place.program(), &project.target, &daemon, IMAGE);
                // The daemon has no network of its own.
                (("DOCKER_HOST", daemon), &["--image", IMAGE, "--option", "network=host"])
            }
        };
        let (workers, parallel) = (options.hosts.to_string(), options.parallel.to_string());
        let lease = format!("{}s", options.lease);
        let up = ["--workers", &workers, "--parallel", &parallel, "--memory", "64MiB"];
        let tasks = ["--lease", &lease, "--receipts", "--cache-dir", "./cache"];
        let up = up.iter().chain(&tasks).chain(more).map(|word| (*word).to_owned()).collect();
        let ledger = Ledger::default();
        let fleet = Self { place, on: options.on, variable, up, _servers: servers, ledger };
        fleet.up("5m")?;
        Ok(fleet)
    }

    /// Kills workers until the queue is almost empty.
    pub(super) fn disturb(&mut self, options: &Options, dice: &mut Dice) -> anyhow::Result<()> {
        let mut progress = Progress::default();
        let mut replaced = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(dice.below(2 * options.every.max(1))));
            let left = self.place.left()?;
            if left <= options.tasks / LAST_PART {
                return Ok(());
            }
            progress.is(left)?;
            self.kill_one(dice)?;
            if replaced.elapsed() > REPLACE {
                self.up("0s")?;
                replaced = Instant::now();
            }
        }
    }

    /// Waits as a user would, and stops the remaining workers.
    pub(super) fn end(self) -> anyhow::Result<Ledger> {
        self.up("0s")?;
        self.host(&["wait", "--for", "done", "--timeout", "10m"], &[])?;
        self.host(&["down"], &[])?;
        Ok(self.ledger)
    }

    fn up(&self, wait: &str) -> anyhow::Result<()> {
        self.host(&["up", "--wait", wait], &self.up)
    }

    /// Runs `host fleet COMMAND soak …`, which must succeed.
    fn host(&self, command: &[&str], args: &[String]) -> anyhow::Result<()> {
        let url = if self.on == On::Slurm { "slurm://" } else { "docker://" };
        let (name, value) = &self.variable;
        let mut host = self.place.command(&["fleet"], true);
        host.args(command).args(["--on", url, NAME]).args(args).env(name, value);
        let output = host.output().context("cannot start host")?;
        let told = String::from_utf8_lossy(&output.stderr);
        let command = command.join(" ");
        ensure!(output.status.success(), "host fleet {command}: {}\n{told}", output.status);
        Ok(())
    }

    /// Kills a worker with the engine's own program, without `host`.
    fn kill_one(&mut self, dice: &mut Dice) -> anyhow::Result<()> {
        let jobs = format!("--name=task-host.{NAME}");
        let label = format!("label=task-host.fleet={NAME}");
        let (list, kill): (&[&str], &[&str]) = match self.on {
            On::Slurm => (
                &["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%F_%K", &jobs],
                &["scancel", "--signal=KILL"],
            ),
            _ => (&["docker", "ps", "--quiet", "--filter", &label], &["docker", "kill"]),
        };
        let running = self.engine(list)?;
        let running: Vec<&str> = running.split_whitespace().collect();
        let which = dice.below(running.len() as u64) as usize;
        if let Some(worker) = running.get(which) {
            // The worker may have ended meanwhile.
            self.engine(&[kill, &[worker]].concat())?;
            self.ledger.kills += 1;
        }
        Ok(())
    }

    /// Runs a program of the engine, and returns its output.
    fn engine(&self, words: &[&str]) -> anyhow::Result<String> {
        let (name, value) = &self.variable;
        let mut program = Command::new(words[0]);
        program.args(&words[1..]).env(name, value).stdin(Stdio::null()).stderr(Stdio::null());
        let output = program.output().with_context(|| format!("cannot start {}", words[0]))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
