//! The lines of a movement file, `movement/{id}`: the names that the message has had, and the
//! executions that were started.
//!
//! A Python client appends a name when it leases a message. When it deletes the message, it removes
//! the files of all names. It ignores empty lines, so the host records the start of an execution as
//! an empty line. The host also writes three other lines. They have the form of a name, so that
//! Python can parse them, but no file has such a name:
//!
//! ```text
//! 0--failed            the last execution failed, which is an attempt
//! 0--uncounted         the holder of the lease takes back the last execution
//! {N}--uncounted       a former holder takes back an execution of its lease, whose first line
//!                      begins at byte N; others may have started executions since
//! ```

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::files::read_last_lines;
use super::name::Name;

const UNCOUNTED: &str = "--uncounted";
const FAILED: &str = "0--failed";

/// The maximum number of bytes that are read, from the end of a movement file. They hold thousands
/// of leases. Earlier lines are ignored.
const READ: usize = 1 << 20;

/// The lines of a movement file.
#[derive(Debug)]
pub(super) struct History {
    /// The number of bytes of the file before `text`, which were not read.
    skipped: usize,
    text: Vec<u8>,
}

impl History {
    /// Reads an open movement file.
    pub(super) fn read(file: &OwnedFd) -> Result<History, Errno> {
        let (skipped, text) = read_last_lines(file, READ)?;
        Ok(History { skipped, text })
    }

    /// The history of a message that was never leased.
    pub(super) fn of(name: &Name) -> History {
        History::of_text(name.line().into_bytes())
    }

    /// The history in the text of a whole movement file.
    pub(super) fn of_text(text: Vec<u8>) -> History {
        History { skipped: 0, text }
    }

    /// The length of the file in bytes. The next line begins at this offset.
    pub(super) fn len(&self) -> usize {
        self.skipped + self.text.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the last line is incomplete.
    pub(super) fn is_torn(&self) -> bool {
        !self.is_empty() && self.text.last() != Some(&b'\n')
    }

    /// Whether the message was renamed since it was sent.
    pub(super) fn was_moved(&self) -> bool {
        self.skipped > 0 || self.text.iter().filter(|&&b| b == b'\n').take(2).count() > 1
    }

    /// A name that the message never had, due at `due` or as soon as possible after it. The name
    /// proves a lease, so it must differ from the names of all earlier leases: a message can be
    /// released and leased again within one second.
    pub(super) fn unused(&self, name: &Name, mut due: u64) -> Name {
        let names = self.text.split(|&b| b == b'\n').filter_map(|line| str::from_utf8(line).ok());
        let names = names.filter_map(Name::parse).filter(|used| used.id() == name.id());
        let mut used: Vec<u64> = names.map(|used| used.due()).filter(|used| *used >= due).collect();
        // In a sorted list, one pass finds the first gap, however many names the file contains.
        used.sort_unstable();
        for used in used {
            if used == due {
                due = due.saturating_add(1);
            }
        }
        name.at(due)
    }

    /// Whether a worker holds the message of this name. Otherwise it waits for a retry, or was sent
    /// with a delay.
    pub(super) fn is_held(&self, name: &Name) -> bool {
        let mut before: Option<&[u8]> = None;
        let mut is_held = false;
        for line in self.lines(0) {
            if line == name.as_str().as_bytes() {
                let is_free = |before| before == FAILED.as_bytes() || is_uncounted(before);
                is_held = before.is_some_and(|before| !is_free(before));
            }
            before = Some(line);
        }
        is_held
    }

    /// The number of executions that failed.
    pub(super) fn failed(&self) -> u32 {
        let failed = self.lines(0).filter(|line| *line == FAILED.as_bytes());
        u32::try_from(failed.count()).unwrap_or(u32::MAX)
    }

    /// The number of executions that were started and not taken back.
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

    /// The number of executions that were started under one lease and not taken back. The first
    /// line of the lease begins at byte `since`, and its last name is `last`. Executions after
    /// another name belong to other leases.
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
        // Without the last name, this is not the file in which the lease was recorded.
        if has_last { started.saturating_sub(disowned) } else { 0 }
    }

    /// The complete lines that begin at byte `from` or later.
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

/// The lines that record a failed execution. If the start of the execution was not recorded, a line
/// for the start is added, so that the failure does not hide a death.
pub(super) fn failed(is_started: bool) -> String {
    let start = if is_started { "" } else { "\n" };
    format!("{start}{FAILED}\n")
}

/// The lines with which the holder of a lease takes back executions that it started.
pub(super) fn uncounted(executions: u32) -> String {
    disowned(0, executions)
}

/// The lines with which the former holder of the lease that begins at `since` takes back
/// executions.
pub(super) fn disowned(since: usize, executions: u32) -> String {
    format!("{since}{UNCOUNTED}\n").repeat(executions as usize)
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
        // Two Python clients leased it in one second, or one released it twice.
        check("0--a.json\n9--a.json\n9--a.json\n", 0);
        // An incomplete line.
        check("0--a.json\n9--a", 0);
    }

    #[test]
    fn a_message_is_held_from_its_lease_to_its_release() {
        let check = |text: &str, name: &str, is_held: bool| {
            let name = Name::parse(name).unwrap();
            assert_eq!(History::from(text).is_held(&name), is_held, "{text:?}");
        };
        check("90--a.json\n", "90--a.json", false);
        check("0--a.json\n90--a.json\n", "90--a.json", true);
        check("0--a.json\n90--a.json\n\n95--a.json\n", "95--a.json", true);
        let failed = "0--a.json\n90--a.json\n\n0--failed\n50--a.json\n";
        check(failed, "50--a.json", false);
        check(&format!("{failed}99--a.json\n"), "99--a.json", true);
        check("0--a.json\n90--a.json\n\n0--uncounted\n50--a.json\n", "50--a.json", false);
        check("", "90--a.json", false);
    }

    #[test]
    fn two_leases_never_have_the_same_name() {
        let history = History::from("0--a.json\n9--a.json\n\n10--a.json\n5--a.json\n");
        let check = |due, name: &str| {
            assert_eq!(history.unused(&Name::new(5, "a"), due).as_str(), name);
        };
        check(8, "8--a.json");
        check(9, "11--a.json");
        check(u64::MAX, &format!("{}--a.json", u64::MAX));
    }

    #[test]
    fn names_that_somebody_wrote_into_the_file_hold_up_no_lease() {
        // Comparing each candidate with each line would take minutes.
        let names = (0..READ as u64 / 16).map(|due| format!("{due}--a.json\n"));
        let history = History::from(&*names.collect::<String>());
        let last = READ as u64 / 16;
        assert_eq!(history.unused(&Name::new(0, "a"), 0).due(), last);
        assert_eq!(history.unused(&Name::new(0, "b"), 0).due(), 0);
        // The same second with other digits is a different name. A due time one second later does
        // no harm.
        assert_eq!(History::from("007--a.json\n").unused(&Name::new(0, "a"), 7).due(), 8);
    }

    #[test]
    fn only_the_executions_of_this_lease_are_taken_back() {
        let check = |text: &str, since: usize, last: &str, open: u32| {
            let last = Name::parse(last).unwrap();
            assert_eq!(History::from(text).started_under(since, &last), open, "{text:?}");
        };
        let first = "0--a.json\n9--a.json\n\n";
        let (at, since) = (10, first.len());
        // Leased, and extended.
        check(first, at, "9--a.json", 1);
        let second = format!("{first}20--a.json\n30--a.json\n\n");
        check(&second, since, "30--a.json", 1);
        // The first lease is over; later executions do not belong to it.
        check(&second, at, "9--a.json", 1);
        check(&format!("{second}\n\n"), at, "9--a.json", 1);
        check(&format!("{second}\n\n"), since, "30--a.json", 3);
        // One lease takes back its execution. The other lease's count does not change.
        let one = format!("{second}{at}--uncounted\n");
        check(&one, at, "9--a.json", 0);
        check(&one, since, "30--a.json", 1);
        let both = format!("{one}40--a.json\n{since}--uncounted\n");
        check(&both, since, "30--a.json", 0);
        check(&format!("{one}0--uncounted\n40--a.json\n\n"), at, "9--a.json", 0);
        // This is not the file in which the lease was recorded.
        check(&second, 10_000, "9--a.json", 0);
        check("0--a.json\n\n\n\n", 2, "9--a.json", 0);
    }
}
