//! `movement/{id}`: the names that a message has had, one a line, and the executions that
//! were started.
//!
//! Python appends a line when it leases, and when it deletes, it removes the file of every
//! name. It passes over empty lines in all that it does, so they are free for us: an empty
//! line is an execution that was started. Three other lines are names that no file has, of the
//! form that Python can take apart. One says that an execution failed, which is an attempt;
//! two take one back:
//!
//! ```text
//! 0--failed            the last one, which failed
//! 0--uncounted         the last one, by the holder of the lease that it was started under
//! {N}--uncounted       one that was started under the lease whose first line begins at byte
//!                      N, by its former holder: others may have started theirs meanwhile
//! ```

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::fs::{self, FlockOperation, OFlags};
use rustix::io::Errno;

use super::dirs::{Dirs, FILE, read_lines, write_all};
use super::name::Name;

const UNCOUNTED: &str = "--uncounted";
const FAILED: &str = "0--failed";
/// Bytes that are read of a movement file, its end: thousands of leases. Of one that is longer
/// the beginning is forgotten.
const READ: usize = 1 << 20;

/// A movement file, open and locked against all other processes and threads.
#[derive(Debug)]
pub(super) struct Movement {
    // The order matters: closing a file gives up this process's lock on it, and until that
    // has happened nobody else in the process may have it open.
    fd: OwnedFd,
    _alone: ProcessLock,
}

/// What opening a movement file came to.
#[derive(Debug)]
pub(super) enum Opened {
    Locked(Movement),
    /// Somebody else is just moving the message.
    Busy,
    /// There is none, or there is nothing in it.
    Missing,
}

impl Movement {
    /// Opens and locks the file of a message if there is one. Waits for nobody.
    pub(super) fn open(dirs: &Dirs, id: &str) -> Result<Opened, Errno> {
        Movement::open_with(dirs, id, OFlags::empty())
    }

    /// The same, but makes the file if there is none.
    pub(super) fn open_or_make(dirs: &Dirs, id: &str) -> Result<Opened, Errno> {
        Movement::open_with(dirs, id, OFlags::CREATE)
    }

    fn open_with(dirs: &Dirs, id: &str, more: OFlags) -> Result<Opened, Errno> {
        let Some(alone) = ProcessLock::with(id) else {
            return Ok(Opened::Busy);
        };
        let flags = OFlags::RDWR | OFlags::APPEND | more;
        let fd = match dirs.file(&dirs.movement, id, flags) {
            Ok((fd, _)) => fd,
            Err(Errno::NOENT) => return Ok(Opened::Missing),
            // Somebody has a hold on the file that no lock of ours gets past, or executes it.
            Err(Errno::AGAIN | Errno::TXTBSY) => return Ok(Opened::Busy),
            Err(errno) => return Err(errno),
        };
        match fs::fcntl_lock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Opened::Locked(Movement { fd, _alone: alone })),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(Opened::Busy),
            Err(errno) => Err(errno),
        }
    }

    /// Makes the file of a new message, with its first line.
    pub(super) fn make(dirs: &Dirs, name: &Name) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(&dirs.movement, name.id(), flags, FILE)?;
        write_all(&file, name.line().as_bytes())
    }

    /// All that it says. To be read once, from the start.
    pub(super) fn history(&self) -> Result<History, Errno> {
        let (skipped, text) = read_lines(&self.fd, READ)?;
        Ok(History { skipped, text })
    }

    /// Appends lines: all of them, or none.
    pub(super) fn append(&self, lines: &str) -> Result<(), Errno> {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, lines.as_bytes()));
        match written {
            Ok(n) if n == lines.len() => Ok(()),
            Ok(n) => {
                self.take_back(n);
                Err(Errno::NOSPC)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Takes back the last bytes that were appended. If that fails there is a name in the
    /// file that no message has, which does no harm.
    pub(super) fn take_back(&self, bytes: usize) {
        if let Ok(stat) = fs::fstat(&self.fd) {
            let size = u64::try_from(stat.st_size).unwrap_or_default();
            let _ = fs::ftruncate(&self.fd, size.saturating_sub(bytes as u64));
        }
    }

    /// Records that an execution starts.
    pub(super) fn start(&self) -> Result<(), Errno> {
        self.append("\n")
    }
}

/// What a movement file says.
#[derive(Debug)]
pub(super) struct History {
    /// Bytes before those that were read.
    skipped: usize,
    text: Vec<u8>,
}

impl History {
    /// That of a message which nobody has leased yet.
    pub(super) fn of(name: &Name) -> History {
        History { skipped: 0, text: name.line().into_bytes() }
    }

    /// Where the next line will begin.
    pub(super) fn len(&self) -> usize {
        self.skipped + self.text.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the last line was never finished.
    pub(super) fn is_torn(&self) -> bool {
        !self.is_empty() && self.text.last() != Some(&b'\n')
    }

    /// Whether the message has been moved since it was sent.
    pub(super) fn was_moved(&self) -> bool {
        self.skipped > 0 || self.text.iter().filter(|&&b| b == b'\n').take(2).count() > 1
    }

    /// The first name that the message has never had, if it is to be due no earlier than
    /// that. A name is the proof of a lease, and must not prove an older one: a message that
    /// was released may be leased again within the second, for the same time.
    pub(super) fn unused(&self, name: &Name, mut due: u64) -> Name {
        loop {
            let candidate = name.at(due);
            let mut lines = self.text.split(|&b| b == b'\n');
            if due == u64::MAX || lines.all(|line| line != candidate.as_str().as_bytes()) {
                return candidate;
            }
            due += 1;
        }
    }

    /// Executions that failed.
    pub(super) fn failed(&self) -> u32 {
        let failed = self.lines(0).filter(|line| *line == FAILED.as_bytes());
        u32::try_from(failed.count()).unwrap_or(u32::MAX)
    }

    /// Executions that were started and not taken back.
    pub(super) fn started(&self) -> u32 {
        let mut started = 0_u32;
        for line in self.lines(0) {
            if line.is_empty() {
                started += 1;
            } else if is_uncounted(line) {
                started = started.saturating_sub(1);
            }
        }
        started
    }

    /// Those of them that were started under one lease: the one whose first line begins at
    /// `since`, and whose last name was `last`. What others wrote after it is theirs.
    pub(super) fn started_under(&self, since: usize, last: &Name) -> u32 {
        let taken_back = format!("{since}{UNCOUNTED}");
        let (mut started, mut disowned) = (0_u32, 0_u32);
        let (mut has_last, mut is_over) = (false, false);
        for line in self.lines(since) {
            if line.is_empty() {
                started += u32::from(!is_over);
            } else if is_uncounted(line) {
                disowned += u32::from(line == taken_back.as_bytes());
            } else if line == last.as_str().as_bytes() {
                has_last = true;
            } else {
                is_over |= has_last;
            }
        }
        // Without its last name this is not the file in which the lease was recorded.
        if has_last { started.saturating_sub(disowned) } else { 0 }
    }

    /// The whole lines that begin at this byte or after.
    fn lines(&self, from: usize) -> impl Iterator<Item = &[u8]> {
        let from = from.saturating_sub(self.skipped);
        let lines = self.text.get(from..).unwrap_or_default().split_inclusive(|&b| b == b'\n');
        lines.filter_map(|line| line.strip_suffix(b"\n"))
    }
}

fn is_uncounted(line: &[u8]) -> bool {
    let number = line.strip_suffix(UNCOUNTED.as_bytes());
    number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

/// The lines that say that an execution failed. There are as many executions as failures, or
/// one that failed before it was started would stand for another one that never ended.
pub(super) fn failed(is_started: bool) -> String {
    let start = if is_started { "" } else { "\n" };
    format!("{start}{FAILED}\n")
}

/// The lines by which the holder of a lease takes back executions that it started.
pub(super) fn uncounted(executions: u32) -> String {
    disowned(0, executions)
}

/// The lines by which the former holder of the lease that begins at `since` does.
pub(super) fn disowned(since: usize, executions: u32) -> String {
    format!("{since}{UNCOUNTED}\n").repeat(executions as usize)
}

/// The right to have the movement file of one message open in this process. Record locks
/// are the process's, not the thread's: two threads would both get the lock, and the first
/// to close its file would take it away from the other.
#[derive(Debug)]
struct ProcessLock(Box<str>);

static OPEN: LazyLock<Mutex<HashSet<Box<str>>>> = LazyLock::new(Mutex::default);

impl ProcessLock {
    fn with(id: &str) -> Option<ProcessLock> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(id.into()).then(|| ProcessLock(id.into()))
    }
}

impl Drop for ProcessLock {
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl From<&str> for History {
        fn from(text: &str) -> History {
            History { skipped: 0, text: text.into() }
        }
    }

    #[test]
    fn an_execution_counts_unless_it_was_taken_back() {
        let check =
            |text: &str, all: u32| assert_eq!(History::from(text).started(), all, "{text:?}");
        check("", 0);
        check("0--a.json\n", 0);
        check("0--a.json\n9--a.json\n\n", 1);
        check("0--a.json\n9--a.json\n\n12--a.json\n15--a.json\n\n", 2);
        check("0--a.json\n9--a.json\n\n10--a.json\n0--uncounted\n5--a.json\n", 0);
        check("0--a.json\n9--a.json\n\n20--a.json\n\n0--uncounted\n5--a.json\n", 1);
        check("0--a.json\n9--a.json\n\n20--a.json\n\n10--uncounted\n", 1);
        check("0--a.json\n9--a.json\n\n--uncounted\nx--uncounted\n0--uncounted.json\n", 1);
        // Two Python clients in one second, or one that gave back what it had given back.
        check("0--a.json\n9--a.json\n9--a.json\n", 0);
        // A line that was cut off.
        check("0--a.json\n9--a", 0);
    }

    #[test]
    fn a_lease_has_a_name_of_its_own() {
        let history = History::from("0--a.json\n9--a.json\n\n10--a.json\n5--a.json\n");
        let check = |due, name: &str| {
            assert_eq!(history.unused(&Name::new(5, "a"), due).as_str(), name);
        };
        check(8, "8--a.json");
        check(9, "11--a.json");
        check(u64::MAX, &format!("{}--a.json", u64::MAX));
    }

    #[test]
    fn only_this_leases_executions_are_taken_back() {
        let check = |text: &str, since: usize, last: &str, open: u32| {
            let last = Name::parse(last).unwrap();
            assert_eq!(History::from(text).started_under(since, &last), open, "{text:?}");
        };
        let first = "0--a.json\n9--a.json\n\n";
        let (at, since) = (10, first.len());
        // LeaseReceipt, and extended.
        check(first, at, "9--a.json", 1);
        let second = format!("{first}20--a.json\n30--a.json\n\n");
        check(&second, since, "30--a.json", 1);
        // The first lease is over; what is started after it is not its own.
        check(&second, at, "9--a.json", 1);
        check(&format!("{second}\n\n"), at, "9--a.json", 1);
        check(&format!("{second}\n\n"), since, "30--a.json", 3);
        // Taken back by one, which is nothing to the other.
        let one = format!("{second}{at}--uncounted\n");
        check(&one, at, "9--a.json", 0);
        check(&one, since, "30--a.json", 1);
        let both = format!("{one}40--a.json\n{since}--uncounted\n");
        check(&both, since, "30--a.json", 0);
        check(&format!("{one}0--uncounted\n40--a.json\n\n"), at, "9--a.json", 0);
        // Another file than the one in which the lease was recorded.
        check(&second, 10_000, "9--a.json", 0);
        check("0--a.json\n\n\n\n", 2, "9--a.json", 0);
    }
}
