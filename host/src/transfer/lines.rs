//! Sends the lines of files or of standard input as tasks, in constant memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use super::MessageOrigin;
use super::send::{Batch, BulkSend, SendError, Sent};
use crate::message;

/// The longest line that is read, in bytes. No queue accepts messages this large.
const LONGEST: u64 = 64 << 20;
/// How many bytes are read at once.
const BUFFER: usize = 256 << 10;
/// How many batches are read before they can be sent.
const READ_AHEAD: usize = 2;
/// If standard input is silent for this long, the lines that were read are sent.
const QUIET: Duration = Duration::from_millis(200);

/// Where lines come from.
pub enum LineSource {
    /// Standard input.
    Stdin,
    /// A file.
    Path(PathBuf),
    /// The contents of standard input in an unnamed file, which is removed when it is closed.
    Spooled(File),
}

/// A source of lines that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read {name}: {source}")]
struct Unreadable {
    /// The source, and the line if reading had begun.
    name: String,
    source: io::Error,
}

impl From<Unreadable> for SendError {
    fn from(error: Unreadable) -> Self {
        Self::Input { source: Box::new(error), done: None }
    }
}

/// Sends each line that is a task. With `all_or_nothing`, all lines are checked first, and nothing
/// is sent if one of them is not a task.
///
/// # Errors
/// If a source can't be read or the queue can't be used. Lines that were read before are sent,
/// unless the queue failed or the transfer was told to stop. In those cases, reading continues in
/// the background until the next line.
pub async fn send(
    mut sources: Vec<LineSource>,
    all_or_nothing: bool,
    to: BulkSend,
) -> Result<Sent, SendError> {
    sources.iter().try_for_each(LineSource::check)?;
    if all_or_nothing {
        let refusals = to.refusals.clone();
        let check_all = move || {
            LineSource::spool(&mut sources)?;
            read(&mut sources, &mut |line| {
                if let Line::Bad(origin, problem, text) = line {
                    refusals.add(&origin, &problem, text);
                }
                true
            })?;
            Ok::<_, Unreadable>(sources)
        };
        sources = tokio::select! {
            biased;
            () = to.stop.cancelled() => return Err(to.interrupted()),
            checked = tokio::task::spawn_blocking(check_all) => checked.map_err(interrupted)??,
        };
        if to.refusals.count() > 0 {
            return to.finish();
        }
    }
    let mut sender = to.start(sources.iter().map(LineSource::size).sum()).await?;
    let position = Arc::new(AtomicU64::new(0));
    let (full, mut batches) = mpsc::channel(READ_AHEAD);
    let mut batcher = Batcher { full, batch: Batch::default(), size: sender.batch() };
    let (at, refusals) = (position.clone(), to.refusals.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let ended = read(&mut sources, &mut |line| match line {
            Line::Good(body, origin, length) => {
                at.fetch_add(length, Relaxed);
                batcher.add(body, origin)
            }
            Line::Bad(origin, problem, text) => {
                refusals.add(&origin, &problem, text);
                true
            }
            Line::Quiet => batcher.send(),
        });
        // The lines before an unreadable line are sent.
        batcher.send();
        ended
    });
    loop {
        let batch = tokio::select! {
            biased;
            // The reader may be waiting for a line, so this does not wait for the reader.
            () = to.stop.cancelled() => return Err(sender.interrupted().await),
            batch = batches.recv() => batch,
        };
        let Some(batch) = batch else { break };
        if !sender.send(batch, position.load(Relaxed)).await {
            break;
        }
    }
    // Without a receiver, the reader ends.
    drop(batches);
    let sent = sender.finish().await;
    match (reading.await.map_err(interrupted)?, sent) {
        (Ok(()), sent) | (Err(_), sent @ Err(_)) => sent,
        (Err(error), Ok(done)) => {
            Err(SendError::Input { source: Box::new(error), done: Some(done) })
        }
    }
}

/// The error of a background thread that was stopped or panicked.
fn interrupted(error: tokio::task::JoinError) -> SendError {
    SendError::Input { source: Box::new(error), done: None }
}

/// Collects lines in batches, and passes full batches on.
struct Batcher {
    full: mpsc::Sender<Batch>,
    batch: Batch,
    size: usize,
}

impl Batcher {
    /// False when the receiver of the batches is gone.
    fn add(&mut self, body: Bytes, origin: MessageOrigin) -> bool {
        self.batch.add(body, origin);
        !self.batch.is_full(self.size) || self.send()
    }

    fn send(&mut self) -> bool {
        if self.batch.is_empty() {
            return !self.full.is_closed();
        }
        self.full.blocking_send(std::mem::take(&mut self.batch)).is_ok()
    }
}

impl LineSource {
    /// Checks early that a file can be opened, before other files are sent. Does not open a pipe,
    /// because closing the pipe would end its writer.
    fn check(&self) -> Result<(), Unreadable> {
        match self {
            Self::Path(path) => std::fs::metadata(path)
                .and_then(|meta| if meta.is_file() { File::open(path).map(drop) } else { Ok(()) })
                .map_err(|e| self.unreadable(e)),
            Self::Stdin | Self::Spooled(_) => Ok(()),
        }
    }

    fn unreadable(&self, source: io::Error) -> Unreadable {
        Unreadable { name: self.name().display().to_string(), source }
    }

    /// Writes standard input to a file, so that it can be read twice.
    fn spool(sources: &mut [Self]) -> Result<(), Unreadable> {
        for source in sources.iter_mut().filter(|source| matches!(source, Self::Stdin)) {
            let mut file = tempfile::tempfile().map_err(|e| source.unreadable(e))?;
            io::copy(&mut io::stdin().lock(), &mut file).map_err(|e| source.unreadable(e))?;
            *source = Self::Spooled(file);
        }
        Ok(())
    }

    fn name(&self) -> &Path {
        match self {
            Self::Stdin | Self::Spooled(_) => Path::new("standard input"),
            Self::Path(path) => path,
        }
    }

    /// The length in bytes, if it is known before reading.
    fn size(&self) -> Option<u64> {
        let metadata = match self {
            Self::Stdin => {
                let stat = rustix::fs::fstat(io::stdin()).ok()?;
                let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
                return is_file.then(|| u64::try_from(stat.st_size).unwrap_or_default());
            }
            Self::Path(path) => std::fs::metadata(path),
            Self::Spooled(file) => file.metadata(),
        };
        metadata.ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len())
    }

    fn open(&mut self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::Stdin => Box::new(io::stdin()),
            Self::Path(path) => Box::new(File::open(path)?),
            Self::Spooled(file) => {
                file.rewind()?;
                Box::new(file)
            }
        })
    }
}

/// True if standard input stays silent for [`QUIET`].
fn is_quiet() -> bool {
    let stdin = io::stdin();
    let wait = Timespec::try_from(QUIET).ok();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    matches!(poll(&mut fds, wait.as_ref()), Ok(0))
}

/// A result of reading.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// A task, its origin, and the length of its line in bytes.
    Good(Bytes, MessageOrigin, u64),
    /// A line that is not a task: its origin, the problem, and the text if it is not too long.
    Bad(MessageOrigin, String, Option<&'a [u8]>),
    /// No line for a while.
    Quiet,
}

/// Calls `each` for every line until it returns false.
fn read(
    sources: &mut [LineSource],
    each: &mut dyn FnMut(Line<'_>) -> bool,
) -> Result<(), Unreadable> {
    for source in sources {
        let may_wait = matches!(source, LineSource::Stdin);
        let shown: Arc<str> = source.name().display().to_string().into();
        let name = shown.to_string();
        let opened = source.open().map_err(|source| Unreadable { name, source })?;
        let mut reader = BufReader::with_capacity(BUFFER, opened);
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
            let origin = MessageOrigin::Line(shown.clone(), number);
            let failed =
                |source: io::Error| Unreadable { name: format!("{shown}, line {number}"), source };
            let got = (&mut reader).take(LONGEST).read_until(b'\n', &mut line).map_err(failed)?;
            if got == 0 {
                break;
            }
            let checked = if got as u64 == LONGEST && line.last() != Some(&b'\n') {
                reader.skip_until(b'\n').map_err(failed)?;
                let problem = format!("is longer than {} MiB", LONGEST >> 20);
                Some(Line::Bad(origin, problem, None))
            } else {
                check(&line, origin)
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

/// Checks a line. `None` for a blank one. A task is sent byte for byte, except for the end of the
/// line and the byte order mark that some editors put at the start of a file.
fn check(whole: &[u8], origin: MessageOrigin) -> Option<Line<'_>> {
    let line = whole.strip_suffix(b"\n").unwrap_or(whole);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Concatenated files have the mark in the middle too.
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    let trimmed = line.trim_ascii();
    if trimmed.is_empty() {
        return None;
    }
    let problem = match message::decode(line) {
        Ok(_) => {
            return Some(Line::Good(Bytes::copy_from_slice(line), origin, whole.len() as u64));
        }
        // A common mistake: a task, or an array of tasks, over several lines.
        Err(_) if matches!(trimmed, b"{" | b"[") => {
            "a task has to be on one line (use `jq -c .` for a task, `jq -c '.[]'` for an array)"
                .to_owned()
        }
        Err(error) => error.to_string(),
    };
    Some(Line::Bad(origin, problem, Some(line)))
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::super::tests::Unobserved;
    use super::*;
    use crate::queue::Access;

    fn origin() -> MessageOrigin {
        MessageOrigin::Line("t".into(), 3)
    }

    #[tokio::test]
    async fn nothing_is_sent_after_a_stop() {
        for all_or_nothing in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (file, queue) = (dir.path().join("tasks"), dir.path().join("queue"));
            let task = br#"{"basic_info": {"name": "A", "base_directory": "d"}}"#;
            std::fs::write(&file, task).unwrap();
            let stop = CancellationToken::new();
            stop.cancel();
            let address = format!("fq://{}", queue.display()).parse().unwrap();
            let (access, observer) = (Access::default(), Arc::new(Unobserved));
            let to = BulkSend::new(address, access, false, None, observer).until(stop);
            let sent = send(vec![LineSource::Path(file)], all_or_nothing, to).await;
            let none = Sent::default();
            assert!(
                matches!(sent, Err(SendError::Interrupted { done, last: None }) if done == none),
                "{sent:?}"
            );
            assert!(!queue.exists());
        }
    }

    #[test]
    fn a_good_line_is_sent_byte_for_byte() {
        let task = br#" { "basic_info": {"name": "A", "base_directory": "d"}, "x" : 1.50 } "#;
        for end in ["", "\n", "\r\n"] {
            let line = [task, end.as_bytes()].concat();
            let want = Line::Good(Bytes::from_static(task), origin(), line.len() as u64);
            assert_eq!(check(&line, origin()), Some(want));
        }
    }

    #[test]
    fn a_mark_of_an_editor_is_not_sent() {
        let task = br#"{"basic_info": {"name": "A", "base_directory": "d"}}"#;
        let line = [b"\xef\xbb\xbf", &task[..], b"\n"].concat();
        let want = Line::Good(Bytes::from_static(task), origin(), line.len() as u64);
        assert_eq!(check(&line, origin()), Some(want));
        assert_eq!(check(b"\xef\xbb\xbf\r\n", origin()), None);
    }

    #[test]
    fn blank_lines_are_no_tasks_and_no_errors() {
        assert_eq!(check(b" \t\r\n", origin()), None);
    }

    #[test]
    fn a_bad_line_says_where_and_why() {
        let check = |line: &str, want: &str| match check(line.as_bytes(), origin()) {
            Some(Line::Bad(origin, problem, Some(text))) => {
                let told = format!("{origin}: {problem}");
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
