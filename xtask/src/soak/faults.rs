//! Faults of networks and disks, one at a time.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use task_host_test_network::faults::{Fault, Proxy};

use super::dice::Dice;
use super::ledger::Ledger;
use super::place::Place;
use crate::command::capture;

/// The shortest and the longest fault, in milliseconds.
const LENGTH: (u64, u64) = (300, 3000);
/// How long after a fault a host may still end because of it. Hosts retry before they end.
const AFTERMATH: Duration = Duration::from_secs(60);

/// The networks and disks of a run, and their current fault.
pub(super) struct Faults<'p> {
    networks: Vec<&'p Proxy>,
    disks: Vec<&'p Disk>,
    current: Option<(Sick<'p>, Instant)>,
    next: Instant,
    last: Option<Instant>,
    network_faults: u64,
    disk_faults: u64,
}

enum Sick<'p> {
    Network(&'p Proxy),
    Disk(&'p Disk),
}

impl<'p> Faults<'p> {
    pub(super) fn new(place: &'p Place) -> Self {
        Self {
            networks: place.networks().collect(),
            disks: place.disks().collect(),
            current: None,
            next: Instant::now(),
            last: None,
            network_faults: 0,
            disk_faults: 0,
        }
    }

    /// Begins or ends a fault if its time has come. `every` is the average time between two faults,
    /// in milliseconds.
    pub(super) fn look(&mut self, every: u64, dice: &mut Dice) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.current.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.end()?;
        }
        let count = self.networks.len() + self.disks.len();
        if self.current.is_some() || now < self.next || count == 0 {
            return Ok(());
        }
        let length = LENGTH.0 + dice.below(LENGTH.1 - LENGTH.0);
        self.next = now + Duration::from_millis(length + dice.below(2 * every.max(1)));
        let which = dice.below(count as u64) as usize;
        let sick = match self.networks.get(which) {
            Some(network) => {
                network.fail(network_fault(dice));
                self.network_faults += 1;
                Sick::Network(network)
            }
            None => {
                let disk = self.disks[which - self.networks.len()];
                disk.fill(dice.below(3) == 0)?;
                self.disk_faults += 1;
                Sick::Disk(disk)
            }
        };
        self.last = Some(now);
        self.current = Some((sick, now + Duration::from_millis(length)));
        Ok(())
    }

    /// Whether a host may fail to start because of a fault.
    pub(super) fn are_recent(&self) -> bool {
        self.current.is_some() || self.last.is_some_and(|last| last.elapsed() < AFTERMATH)
    }

    /// Ends the current fault.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        match self.current.take() {
            Some((Sick::Network(network), _)) => network.mend(),
            Some((Sick::Disk(disk), _)) => disk.empty()?,
            None => {}
        }
        Ok(())
    }

    pub(super) fn count(&self, ledger: &mut Ledger) {
        ledger.network_faults = self.network_faults;
        ledger.disk_faults = self.disk_faults;
    }
}

fn network_fault(dice: &mut Dice) -> Fault {
    let bytes = dice.below(2000) as usize;
    match dice.below(5) {
        0 => Fault::Refused,
        1 => Fault::Reset(bytes),
        2 => Fault::Cut(bytes),
        3 => Fault::Slow(Duration::from_millis(50 + dice.below(500))),
        _ => Fault::Answer { status: 503, body: "<Error><Code>SlowDown</Code></Error>".to_owned() },
    }
}

/// A file system in memory (tmpfs) that can be full. Dropping this unmounts it.
pub(super) struct Disk {
    path: PathBuf,
    bytes: u64,
    files: u64,
}

impl Disk {
    /// Mounts a file system at an existing directory.
    pub(super) fn mount(path: PathBuf, bytes: u64, files: u64) -> anyhow::Result<Self> {
        let options = format!("size={bytes},nr_inodes={files}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "task-host-soak"]).arg(&path);
        capture(&mut mount)
            .context("mounting a disk that can fail needs root; see --no-disk-faults")?;
        Ok(Self { path, bytes, files })
    }

    /// Makes the file system full: of files if `of_files`, otherwise of bytes.
    fn fill(&self, of_files: bool) -> anyhow::Result<()> {
        let column = if of_files { "iused" } else { "used" };
        let mut df = Command::new("df");
        df.args(["--block-size=1", &format!("--output={column}")]).arg(&self.path);
        let said = capture(&mut df)?;
        let used = said.lines().nth(1).context("`df` printed no number")?.trim();
        let limit = if of_files { "nr_inodes" } else { "size" };
        // The kernel refuses a size below the current use. If the use has grown meanwhile, the disk
        // stays as it is.
        let _ = self.remount(&format!("{limit}={used}"))?;
        Ok(())
    }

    /// Restores the original size.
    fn empty(&self) -> anyhow::Result<()> {
        let mended = self.remount(&format!("size={},nr_inodes={}", self.bytes, self.files))?;
        anyhow::ensure!(mended, "{} can't be made larger again", self.path.display());
        Ok(())
    }

    fn remount(&self, options: &str) -> anyhow::Result<bool> {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]).arg(&self.path);
        Ok(mount.stderr(Stdio::null()).status()?.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// Unmounts the file system at a directory, if one is mounted there.
pub(super) fn unmount(path: &Path) {
    let mut command = Command::new("umount");
    let _ = command.arg("-l").arg(path).stderr(Stdio::null()).status();
}
