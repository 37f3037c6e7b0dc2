//! Reads the logs of Slurm's workers from a directory that this machine shares.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::super::last_words::last_words;
use super::super::{EngineError, FleetName, Line, Logs};
use super::Slurm;

/// The time between two looks at the log files.
const LOOK: Duration = Duration::from_millis(500);
/// The number of looks for each check whether workers are left.
const LOOKS: u32 = 10;

/// An array whose elements write logs.
pub(super) struct Array {
    pub(super) number: u64,
    /// The directory of the logs.
    pub(super) logs: PathBuf,
    /// The number of its elements that run at the same time.
    pub(super) workers: u32,
}

/// The files of a fleet's workers, and the progress in reading them.
struct Files {
    slurm: Slurm,
    fleet: FleetName,
    arrays: Vec<Array>,
    wanted: Logs,
    read: BTreeMap<PathBuf, Progress>,
    lines: VecDeque<Line>,
    looks: u32,
    has_ended: bool,
}

#[derive(Default)]
struct Progress {
    worker: String,
    bytes: u64,
    /// A line that is not complete yet.
    rest: Vec<u8>,
}

/// The lines of the workers of these arrays.
pub(super) fn lines(
    slurm: Slurm,
    fleet: FleetName,
    arrays: Vec<Array>,
    wanted: Logs,
) -> BoxStream<'static, Result<Line, EngineError>> {
    let files = Files {
        slurm,
        fleet,
        arrays,
        wanted,
        read: BTreeMap::new(),
        lines: VecDeque::new(),
        looks: 0,
        has_ended: false,
    };
    stream::unfold(files, |mut files| async move {
        let line = files.next().await.transpose()?;
        Some((line, files))
    })
    .boxed()
}

impl Files {
    async fn next(&mut self) -> Result<Option<Line>, EngineError> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            if self.has_ended {
                return Ok(None);
            }
            if self.looks > 0 {
                tokio::time::sleep(LOOK).await;
            }
            // Check for running workers first, so that the look afterwards reads everything that
            // ended workers wrote.
            let is_over = match self.wanted.follow {
                true if self.looks.is_multiple_of(LOOKS) => {
                    !self.slurm.queue(&self.fleet).await?.is_alive()
                }
                follow => !follow,
            };
            self.looks += 1;
            self.look().await?;
            if is_over {
                self.has_ended = true;
                self.give_rests();
            }
        }
    }

    /// Reads the new lines of all files.
    async fn look(&mut self) -> Result<(), EngineError> {
        let is_first = self.read.is_empty();
        for (path, worker) in self.files().await? {
            let is_new = !self.read.contains_key(&path);
            let progress = self.read.entry(path.clone()).or_default();
            progress.worker = worker;
            let mut lines = match progress.advance(&path).await {
                Ok(lines) => lines,
                Err(error) => {
                    let doing = "reading logs";
                    let problem = format!("{}: {error}", path.display());
                    return Err(self.slurm.program("squeue").failed(doing, problem, None));
                }
            };
            if let (true, true, Some(tail)) = (is_first, is_new, self.wanted.tail) {
                lines.drain(..lines.len().saturating_sub(tail as usize));
            }
            self.lines.extend(lines);
        }
        Ok(())
    }

    /// The existing log files, with the names of their workers.
    async fn files(&self) -> Result<Vec<(PathBuf, String)>, EngineError> {
        let mut files = Vec::new();
        for dir in self.arrays.iter().map(|array| &array.logs).collect::<BTreeSet<_>>() {
            let wrong = |error: std::io::Error| {
                let problem = format!("{}: {error}", dir.display());
                let cure = "read the logs on a machine that has this directory";
                self.slurm.program("squeue").failed("reading logs", problem, Some(cure))
            };
            let mut entries = fs::read_dir(dir).await.map_err(wrong)?;
            while let Some(entry) = entries.next_entry().await.map_err(wrong)? {
                let name = entry.file_name();
                if let Some(worker) = name.to_str().and_then(|name| self.worker_of(name)) {
                    files.push((entry.path(), worker));
                }
            }
        }
        files.sort_by_key(|(_, worker)| *worker);
        let named = |(path, (array, element))| (path, format!("{array}_{element}"));
        Ok(files.into_iter().map(named).collect())
    }

    /// The array and the element that write this file. `None` if it belongs to no wanted worker.
    fn worker_of(&self, name: &str) -> Option<(u64, u32)> {
        let name = name.strip_prefix(self.fleet.as_str())?.strip_prefix('-')?;
        let (array, element) = name.strip_suffix(".log")?.split_once('_')?;
        let (number, element): (u64, u32) = (array.parse().ok()?, element.parse().ok()?);
        let array = self.arrays.iter().find(|array| array.number == number)?;
        // Elements that follow one another as the same worker have the same worker number.
        let worker = element % array.workers.max(1);
        self.wanted.worker.is_none_or(|wanted| wanted == worker).then_some((number, element))
    }

    /// Queues the last lines that have no line end.
    fn give_rests(&mut self) {
        for progress in self.read.values_mut().filter(|progress| !progress.rest.is_empty()) {
            let text = String::from_utf8_lossy(&std::mem::take(&mut progress.rest)).into_owned();
            self.lines.push_back(Line { worker: progress.worker.clone(), text });
        }
    }
}

impl Progress {
    /// The lines that were added since the last call.
    async fn advance(&mut self, path: &PathBuf) -> std::io::Result<Vec<Line>> {
        let mut file = File::open(path).await?;
        file.seek(SeekFrom::Start(self.bytes)).await?;
        let mut read = std::mem::take(&mut self.rest);
        self.bytes += file.read_to_end(&mut read).await? as u64;
        self.rest = match read.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => read.split_off(end + 1),
            None => std::mem::take(&mut read),
        };
        let lines = String::from_utf8_lossy(&read);
        let line = |text: &str| Line { worker: self.worker.clone(), text: text.to_owned() };
        Ok(lines.split_terminator('\n').map(line).collect())
    }
}

/// The last error or line in a worker's log.
pub(super) fn last_words_of(log: &Path) -> Option<String> {
    const ENOUGH: u64 = 4096;
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH))).ok()?;
    let mut text = Vec::new();
    file.take(ENOUGH).read_to_end(&mut text).ok()?;
    last_words(&String::from_utf8_lossy(&text))
}
