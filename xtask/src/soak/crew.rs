//! The processes of a soak run.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::Options;
use super::ledger::Ledger;
use super::place::Place;

/// How long a host may take to stop.
const TO_STOP: Duration = Duration::from_secs(120);

/// How long to wait before restarting a host that could not start.
const PAUSE: Duration = Duration::from_millis(500);
/// The exit code of a host that cannot use its queue, bucket or cache when it starts.
const CANNOT_START: i32 = 1;

/// Hosts, and optionally a Python worker. Dropping this kills them.
pub(super) struct Crew<'p> {
    place: &'p Place,
    settings: Vec<String>,
    hosts: Vec<Host>,
    python: Option<Child>,
    /// The number of hosts started so far.
    started: usize,
    /// The events of the hosts.
    ledger: Ledger,
}

enum Host {
    Running(Process),
    Stopped { process: Process, until: Instant },
    Dead { until: Instant },
}

struct Process {
    child: Child,
    log: String,
}

impl<'p> Crew<'p> {
    pub(super) fn start(
        place: &'p Place,
        python: Option<&Path>,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let start = |python: &Path| {
            let log = File::create(place.log_file("python"))?;
            let mut command = Command::new(python);
            command.arg("python.py").current_dir(place.dir()).stdin(Stdio::null());
            command.stdout(log.try_clone()?).stderr(log);
            command.spawn().context("cannot start the Python worker")
        };
        let python = python.map(start).transpose()?;
        let dead = || Host::Dead { until: Instant::now() };
        let hosts = (0..options.hosts).map(|_| dead()).collect();
        let (lease, parallel) = (format!("{}s", options.lease), options.parallel.to_string());
        let mut settings: Vec<String> =
            ["--lease", &lease, "--parallel", &parallel, "--progress", "never"]
                .map(str::to_owned)
                .to_vec();
        if python.is_none() {
            settings.push("--receipts".to_owned());
        }
        let ledger = Ledger::default();
        let mut crew = Self { place, settings, hosts, python, started: 0, ledger };
        crew.look(false)?;
        Ok(crew)
    }

    /// Restarts or continues hosts whose pause has ended, and checks the others.
    ///
    /// During a network or disk fault, a host may end because it cannot start.
    pub(super) fn look(&mut self, is_faulty: bool) -> anyhow::Result<()> {
        let now = Instant::now();
        for number in 0..self.hosts.len() {
            match &mut self.hosts[number] {
                Host::Dead { until } if *until <= now => self.start_host(number)?,
                Host::Dead { .. } => {}
                Host::Stopped { until, .. } if *until <= now => self.go_on(number)?,
                Host::Stopped { .. } => {}
                Host::Running(process) => {
                    if let Some(peak) = peak_of(&process.child) {
                        self.ledger.peak_bytes = self.ledger.peak_bytes.max(peak);
                    }
                    let Some(status) = process.child.try_wait()? else { continue };
                    ensure!(
                        is_faulty && status.code() == Some(CANNOT_START),
                        "a host ended by itself ({status}): {}",
                        self.place.log(&process.log)
                    );
                    self.ledger.not_started += 1;
                    self.hosts[number] = Host::Dead { until: now + PAUSE };
                }
            }
        }
        let Some(python) = &mut self.python else { return Ok(()) };
        let ended = python.try_wait()?;
        ensure!(ended.is_none(), "the Python worker ended: {}", self.place.log("python"));
        Ok(())
    }

    fn start_host(&mut self, number: usize) -> anyhow::Result<()> {
        let log = format!("host-{}", self.started);
        let stderr = File::create(self.place.log_file(&log))?;
        let child = self
            .place
            .host_at_work()
            .args(&self.settings)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .context("cannot start a host")?;
        self.started += 1;
        self.hosts[number] = Host::Running(Process { child, log });
        Ok(())
    }

    /// The numbers of the running hosts.
    pub(super) fn running(&self) -> Vec<usize> {
        let is_running = |number: &usize| matches!(self.hosts[*number], Host::Running(_));
        (0..self.hosts.len()).filter(is_running).collect()
    }

    /// Kills a running host. A new host replaces it after `pause`.
    pub(super) fn kill(&mut self, number: usize, pause: Duration) {
        let host = &mut self.hosts[number];
        if let Host::Running(process) = host {
            let child = &mut process.child;
            if let Some(peak) = peak_of(child) {
                self.ledger.peak_bytes = self.ledger.peak_bytes.max(peak);
            }
            // The host may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            self.ledger.kills += 1;
            *host = Host::Dead { until: Instant::now() + pause };
        }
    }

    /// Suspends a host for `time`.
    pub(super) fn stop(&mut self, number: usize, time: Duration) -> anyhow::Result<()> {
        let dead = Host::Dead { until: Instant::now() };
        self.hosts[number] = match std::mem::replace(&mut self.hosts[number], dead) {
            Host::Running(process) => {
                signal(&process.child, "STOP")?;
                self.ledger.stops += 1;
                Host::Stopped { process, until: Instant::now() + time }
            }
            other => other,
        };
        Ok(())
    }

    fn go_on(&mut self, number: usize) -> anyhow::Result<()> {
        let dead = Host::Dead { until: Instant::now() };
        self.hosts[number] = match std::mem::replace(&mut self.hosts[number], dead) {
            Host::Stopped { process, .. } => {
                signal(&process.child, "CONT")?;
                Host::Running(process)
            }
            other => other,
        };
        Ok(())
    }

    /// Restarts or continues all hosts that are not running.
    pub(super) fn mend(&mut self) -> anyhow::Result<()> {
        for number in 0..self.hosts.len() {
            match self.hosts[number] {
                Host::Running(_) => {}
                Host::Stopped { .. } => self.go_on(number)?,
                Host::Dead { .. } => self.start_host(number)?,
            }
        }
        Ok(())
    }

    /// Tells all processes to stop, and waits until they end. Returns the events of the hosts.
    pub(super) fn end(mut self) -> anyhow::Result<Ledger> {
        self.look(false)?;
        fs::write(self.place.dir().join("stop"), "")?;
        let mut ledger = std::mem::take(&mut self.ledger);
        for host in &self.hosts {
            if let Host::Running(process) = host {
                signal(&process.child, "TERM")?;
            }
        }
        for host in &mut self.hosts {
            let Host::Running(process) = host else { continue };
            let status = wait(&mut process.child).context("a host that was told to stop")?;
            // A host that has just started does not handle signals yet.
            if !status.success() && status.signal() != Some(15) {
                ledger.bad_ends.push(format!("a host that was told to stop ended: {status}"));
            }
        }
        if let Some(python) = &mut self.python {
            wait(python).context("the Python worker")?;
        }
        Ok(ledger)
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        let hosts = self.hosts.iter_mut().filter_map(|host| match host {
            Host::Running(process) | Host::Stopped { process, .. } => Some(&mut process.child),
            Host::Dead { .. } => None,
        });
        for child in hosts.chain(&mut self.python) {
            // The process may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn wait(child: &mut Child) -> anyhow::Result<std::process::ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(start.elapsed() < TO_STOP, "did not end within {} s", TO_STOP.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal with the shell's built-in `kill`, which exists on every machine.
fn signal(child: &Child, name: &str) -> anyhow::Result<()> {
    let script = format!("kill -{name} {}", child.id());
    let status = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status()?;
    // If the host has ended by itself, the next check finds that.
    if !status.success() {
        eprintln!("`{script}` failed");
    }
    Ok(())
}

/// The peak memory of a process in bytes.
fn peak_of(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(kib.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}
