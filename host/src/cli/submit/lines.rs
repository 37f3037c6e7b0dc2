//! Tasks from lines of files or of standard input, in constant memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use super::super::exit_code::Advice;
use super::super::progress_line::ProgressLine;
use super::super::refusals::{Place, Refusals};
use super::super::sender::{Batch, Sender};
use super::{Outcome, To};

/// The longest line that is taken: no queue has larger messages.
const LONGEST: u64 = 64 << 20;
/// Bytes that are asked for at once.
const BUFFER: usize = 256 << 10;
/// Batches that are read ahead of being sent.
const AHEAD: usize = 2;
/// What has been read is sent when nothing more comes for so long.
const QUIET: Duration = Duration::from_millis(200);

/// Sends the lines of `files`, or of standard input.
pub(super) async fn send(
    files: Vec<PathBuf>,
    all_or_nothing: bool,
    rejects: Option<PathBuf>,
    to: &To<'_>,
) -> anyhow::Result<Outcome> {
    let mut inputs = Input::all(files)?;
    let refusals = Arc::new(Refusals::new(to.screen, rejects.as_deref())?);
    if all_or_nothing {
        let told = refusals.clone();
        let first_pass = tokio::task::spawn_blocking(move || {
            Input::keep(&mut inputs)?;
            read(&mut inputs, &mut |line| {
                if let Line::Bad(place, problem, text) = line {
                    told.add(&place, &problem, text);
                }
                true
            })?;
            anyhow::Ok(inputs)
        });
        inputs = first_pass.await??;
        let bad = refusals.count();
        if bad > 0 {
            refusals.finish()?;
            to.screen.tell("nothing is sent, because of --all-or-nothing");
            return Ok(to.outcome(0, bad));
        }
    }
    let whole = inputs.iter().map(Input::size).sum();
    let meter = ProgressLine::new(to.screen, "tasks", "sent", whole);
    let mut sender = Sender::new(to.open().await?, refusals.clone(), meter);
    let position = Arc::new(AtomicU64::new(0));
    let (full, mut batches) = mpsc::channel(AHEAD);
    let mut ahead = Ahead { full, batch: Batch::default(), size: sender.batch() };
    let at = position.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let ended = read(&mut inputs, &mut |line| match line {
            Line::Good(body, place, length) => {
                at.fetch_add(length, Relaxed);
                ahead.add(body, place)
            }
            Line::Bad(place, problem, text) => {
                refusals.add(&place, &problem, text);
                true
            }
            Line::Quiet => ahead.send(),
        });
        // What came before a file that could not be read to its end is sent all the same.
        ahead.send();
        ended
    });
    while let Some(batch) = batches.recv().await {
        if !sender.send(batch, position.load(Relaxed)).await {
            // The reading ends when it finds that nobody takes what it reads.
            drop(batches);
            break;
        }
    }
    let outcome = sender.finish("task").await.map(|(sent, refused)| to.outcome(sent, refused));
    match (reading.await?, outcome) {
        (Ok(()), outcome) | (Err(_), outcome @ Err(_)) => outcome,
        (Err(error), Ok(outcome)) => {
            outcome.tell(to.screen, to.dry_run);
            Err(error)
        }
    }
}

/// What was read ahead of being sent.
struct Ahead {
    full: mpsc::Sender<Batch>,
    batch: Batch,
    size: usize,
}

impl Ahead {
    /// False when nobody takes it any more.
    fn add(&mut self, body: Bytes, place: Place) -> bool {
        self.batch.add(body, place);
        !self.batch.is_full(self.size) || self.send()
    }

    fn send(&mut self) -> bool {
        if self.batch.is_empty() {
            return !self.full.is_closed();
        }
        self.full.blocking_send(std::mem::take(&mut self.batch)).is_ok()
    }
}

/// Where lines come from.
enum Input {
    Stdin,
    Path(PathBuf),
    /// What standard input held, on disk and without a name: gone when it is closed.
    Kept(File),
}

impl Input {
    fn all(files: Vec<PathBuf>) -> anyhow::Result<Vec<Self>> {
        let mut inputs = Vec::new();
        for path in files {
            if path.as_os_str() == "-" {
                inputs.push(Self::Stdin);
            } else {
                // Better now than after the files before it have been sent.
                File::open(&path).map_err(|e| unreadable(&path, &e))?;
                inputs.push(Self::Path(path));
            }
        }
        if inputs.is_empty() {
            if io::stdin().is_terminal() {
                return Err(Advice::usage("no tasks are given, and standard input is a terminal")
                    .hint("name a file with one task a line, pipe lines in, or describe a task with --name")
                    .into());
            }
            inputs.push(Self::Stdin);
        }
        Ok(inputs)
    }

    /// Makes it possible to read them twice.
    fn keep(inputs: &mut [Self]) -> anyhow::Result<()> {
        for input in inputs.iter_mut().filter(|input| matches!(input, Self::Stdin)) {
            let mut file =
                tempfile::tempfile().map_err(|e| unreadable(Path::new("standard input"), &e))?;
            io::copy(&mut io::stdin().lock(), &mut file)
                .map_err(|e| unreadable(Path::new("standard input"), &e))?;
            *input = Self::Kept(file);
        }
        Ok(())
    }

    fn name(&self) -> &Path {
        match self {
            Self::Stdin | Self::Kept(_) => Path::new("standard input"),
            Self::Path(path) => path,
        }
    }

    /// Its length in bytes, if that can be known before it is read.
    fn size(&self) -> Option<u64> {
        let metadata = match self {
            Self::Stdin => {
                let stat = rustix::fs::fstat(io::stdin()).ok()?;
                let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
                return is_file.then(|| u64::try_from(stat.st_size).unwrap_or_default());
            }
            Self::Path(path) => std::fs::metadata(path),
            Self::Kept(file) => file.metadata(),
        };
        metadata.ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len())
    }

    fn open(&mut self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::Stdin => Box::new(io::stdin()),
            Self::Path(path) => Box::new(File::open(path)?),
            Self::Kept(file) => {
                file.rewind()?;
                Box::new(file)
            }
        })
    }
}

/// True when standard input has nothing to read for a while.
fn is_quiet() -> bool {
    let stdin = io::stdin();
    let wait = Timespec::try_from(QUIET).ok();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    matches!(poll(&mut fds, wait.as_ref()), Ok(0))
}

fn unreadable(name: &Path, error: &io::Error) -> Advice {
    Advice::failed(format!("{} can't be read: {error}", name.display()))
}

/// What is read.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// A task, where it stands, and the bytes that it takes there.
    Good(Bytes, Place, u64),
    /// Where it stands, what is wrong with it, and its text if it is not too long.
    Bad(Place, String, Option<&'a [u8]>),
    /// Nothing, for a while.
    Quiet,
}

/// Reads all lines until `each` says false.
fn read(inputs: &mut [Input], each: &mut dyn FnMut(Line<'_>) -> bool) -> anyhow::Result<()> {
    for input in inputs {
        let may_wait = matches!(input, Input::Stdin);
        let name = input.name().to_owned();
        let opened = input.open().map_err(|e| unreadable(&name, &e))?;
        let mut reader = BufReader::with_capacity(BUFFER, opened);
        let shown: Arc<str> = name.display().to_string().into();
        let mut number = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            number += 1;
            while may_wait && !reader.buffer().contains(&b'\n') && is_quiet() {
                if !each(Line::Quiet) {
                    return Ok(());
                }
            }
            let place = Place::Line(shown.clone(), number);
            let failed = |e: io::Error| Advice::failed(format!("{shown}, line {number}: {e}"));
            let got = (&mut reader).take(LONGEST).read_until(b'\n', &mut line).map_err(failed)?;
            if got == 0 {
                break;
            }
            let checked = if got as u64 == LONGEST && line.last() != Some(&b'\n') {
                reader.skip_until(b'\n').map_err(failed)?;
                let problem = format!("is longer than {} MiB", LONGEST >> 20);
                Some(Line::Bad(place, problem, None))
            } else {
                check(&line, place)
            };
            if let Some(line) = checked
                && !each(line)
            {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// None for a blank line. What is sent is the line without its end, and without the byte order
/// mark that some editors put at the start of a file, byte for byte.
fn check(whole: &[u8], place: Place) -> Option<Line<'_>> {
    let line = whole.strip_suffix(b"\n").unwrap_or(whole);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Files that were put together have one in the middle, too.
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    let trimmed = line.trim_ascii();
    if trimmed.is_empty() {
        return None;
    }
    let problem = match task_host::message::decode(line) {
        Ok(_) => {
            return Some(Line::Good(Bytes::copy_from_slice(line), place, whole.len() as u64));
        }
        // The usual slip: a task, or an array of them, printed over several lines.
        Err(_) if matches!(trimmed, b"{" | b"[") => {
            "a task has to be on one line (`jq -c .` puts it there, `jq -c '.[]'` an array's)"
                .to_owned()
        }
        Err(error) => error.to_string(),
    };
    Some(Line::Bad(place, problem, Some(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place::Line("t".into(), 3)
    }

    #[test]
    fn a_good_line_is_sent_byte_for_byte() {
        let task = br#" { "basic_info": {"name": "A", "base_directory": "d"}, "x" : 1.50 } "#;
        for end in ["", "\n", "\r\n"] {
            let line = [task, end.as_bytes()].concat();
            let want = Line::Good(Bytes::from_static(task), place(), line.len() as u64);
            assert_eq!(check(&line, place()), Some(want));
        }
    }

    #[test]
    fn a_mark_of_an_editor_is_not_sent() {
        let task = br#"{"basic_info": {"name": "A", "base_directory": "d"}}"#;
        let line = [b"\xef\xbb\xbf", &task[..], b"\n"].concat();
        let want = Line::Good(Bytes::from_static(task), place(), line.len() as u64);
        assert_eq!(check(&line, place()), Some(want));
        assert_eq!(check(b"\xef\xbb\xbf\r\n", place()), None);
    }

    #[test]
    fn blank_lines_are_no_tasks_and_no_errors() {
        assert_eq!(check(b" \t\r\n", place()), None);
    }

    #[test]
    fn a_bad_line_says_where_and_why() {
        let check = |line: &str, want: &str| match check(line.as_bytes(), place()) {
            Some(Line::Bad(place, problem, Some(text))) => {
                let told = format!("{place}: {problem}");
                assert!(told.starts_with(want), "{told}");
                assert_eq!(text, line.as_bytes());
            }
            other => panic!("{other:?}"),
        };
        check("{}", "t, line 3: message: has neither");
        check("{", "t, line 3: a task has to be on one line");
        check("nonsense", "t, line 3: message: is not JSON");
    }
}
