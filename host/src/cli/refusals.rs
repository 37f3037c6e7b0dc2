//! What could not be sent: told one by one up to a bound, and kept in a file if one is named.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::console::Console;
use super::exit_code::Advice;
use super::output;

/// Refusals that are told; the others are counted.
const TOLD: u64 = 20;

/// Where a message stands, for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a line of a file, counted from 1.
    Line(Arc<str>, u64),
    /// Somewhere else.
    Named(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(file, number) => write!(f, "{file}, line {number}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// Messages that did not get where they were to go.
pub(crate) struct Refusals {
    screen: Console,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    count: u64,
    kept: Option<Kept>,
}

/// The file for messages that are to be sent again.
struct Kept {
    path: PathBuf,
    file: BufWriter<File>,
    lines: u64,
    failed: Option<io::Error>,
}

impl Refusals {
    /// None yet. They are written to the file `path`, which must not be there.
    ///
    /// # Errors
    /// When that file can't be made.
    pub(crate) fn new(screen: &Console, path: Option<&Path>) -> anyhow::Result<Self> {
        let kept = path.map(Kept::create).transpose()?;
        Ok(Self { screen: screen.clone(), state: Mutex::new(State { count: 0, kept }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one, tells it if not many were told before, and keeps its text if there is one.
    pub(crate) fn add(&self, place: &Place, problem: &dyn fmt::Display, text: Option<&[u8]>) {
        let count = {
            let mut state = self.state();
            state.count += 1;
            if let (Some(kept), Some(text)) = (&mut state.kept, text) {
                kept.write(text);
            }
            state.count
        };
        if count <= TOLD {
            self.screen.tell(format_args!("{place}: {problem}"));
        }
    }

    /// Keeps the text of a message that was not sent for no fault of its own. False if there
    /// is no file for it.
    pub(crate) fn keep(&self, text: &[u8]) -> bool {
        let mut state = self.state();
        let Some(kept) = &mut state.kept else { return false };
        kept.write(text);
        true
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.state().count
    }

    /// True if there is a file for what is not sent.
    pub(crate) fn keeps(&self) -> bool {
        self.state().kept.is_some()
    }

    /// Says how many were not told, and finishes the file. Returns how many were refused.
    ///
    /// # Errors
    /// When the file could not be written.
    pub(crate) fn finish(&self) -> anyhow::Result<u64> {
        let mut state = self.state();
        let count = state.count;
        if count > TOLD {
            self.screen.tell(format_args!("and {} more", output::number(count - TOLD)));
        }
        if let Some(kept) = state.kept.take() {
            kept.finish(&self.screen)?;
        }
        Ok(count)
    }
}

impl Kept {
    fn create(path: &Path) -> anyhow::Result<Self> {
        // The file may well be the one that is being read: never one that is there.
        let file = File::create_new(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Advice::usage(format!("{} is there already", path.display()))
                    .hint("--rejects takes the name of a new file")
            }
            _ => Advice::failed(format!("{} can't be made: {error}", path.display())),
        })?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), lines: 0, failed: None })
    }

    fn write(&mut self, text: &[u8]) {
        let written = self.file.write_all(text).and_then(|()| self.file.write_all(b"\n"));
        self.lines += 1;
        if let Err(error) = written {
            self.failed.get_or_insert(error);
        }
    }

    fn finish(mut self, screen: &Console) -> anyhow::Result<()> {
        let path = self.path.display();
        match self.failed.take().map_or_else(|| self.file.flush(), Err) {
            Err(error) => Err(Advice::failed(format!("{path} can't be written: {error}")).into()),
            Ok(()) if self.lines == 0 => Ok(std::fs::remove_file(&self.path)?),
            Ok(()) => {
                screen.tell(format_args!("{} kept in {path}", output::count(self.lines, "line")));
                Ok(())
            }
        }
    }
}
