//! The clock that leases are read by.
//!
//! `T` is a time of day, and all who share a queue have to agree on it. A file that was just
//! made has the time of the file system, which is the same for all of them. Where this host's
//! clock differs from it by more than [`TOLERATED`], the difference is said and allowed for.
//!
//! It is measured anew every few minutes, when a lease was lost, and when the time of day has
//! gone another way than the monotonic clock: the machine was suspended, or its clock was set.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::dirs::{Dirs, remove};

/// Some file systems keep times in steps of two seconds.
const TOLERATED: Duration = Duration::from_secs(2);
/// The longest time between two measurements.
const EVERY: Duration = Duration::from_secs(5 * 60);
/// The shortest, unless the clock was seen to jump.
const AGAIN: Duration = Duration::from_secs(10);
/// The time of day may differ from the monotonic clock by this much since it was measured.
const JUMP: Duration = Duration::from_secs(1);
/// A measurement that took longer says nothing.
const SLOW: Duration = Duration::from_secs(1);

/// The time of day as the file system of a queue has it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    host: HostClock,
    state: Mutex<ClockState>,
}

#[derive(Debug, Default)]
struct ClockState {
    offset: ClockOffset,
    /// When it was measured last, by both clocks of the host.
    measured: Option<(Duration, Instant)>,
    is_suspect: bool,
    /// The offset that was warned of.
    said: ClockOffset,
}

/// How far the file system's clock is ahead of this host's.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ClockOffset {
    #[default]
    None,
    Ahead(Duration),
    Behind(Duration),
}

impl Clock {
    /// The time since 1970.
    pub(super) fn now(&self, dirs: &Dirs) -> Duration {
        let mut state = self.state();
        if state.is_due(self.host.now(), Instant::now()) {
            state.measure(dirs, &self.host);
        }
        state.offset.added_to(self.host.now())
    }

    /// A lease was lost. It may be that the clocks differ.
    pub(super) fn suspect(&self) {
        self.state().is_suspect = true;
    }

    fn state(&self) -> MutexGuard<'_, ClockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A clock on a host whose time of day is wrong by this many seconds.
    #[cfg(test)]
    pub(super) fn wrong_by(seconds: &std::sync::Arc<std::sync::atomic::AtomicI64>) -> Clock {
        Clock { host: HostClock { wrong_by: seconds.clone() }, state: Mutex::default() }
    }
}

impl ClockState {
    fn is_due(&self, wall: Duration, now: Instant) -> bool {
        let Some((then_wall, then)) = self.measured else {
            return true;
        };
        let passed = now.saturating_duration_since(then);
        let jumped = wall.abs_diff(then_wall.saturating_add(passed)) > JUMP;
        jumped || passed >= EVERY || (self.is_suspect && passed >= AGAIN)
    }

    fn measure(&mut self, dirs: &Dirs, host: &HostClock) {
        let measured = ClockOffset::measured(dirs, host);
        self.measured = Some((host.now(), Instant::now()));
        // If it could not be measured, then soon again.
        self.is_suspect = !matches!(measured, Ok(Some(_)));
        match measured {
            Ok(Some(offset)) => self.offset = offset,
            Ok(None) => {}
            Err(errno) => {
                tracing::debug!(queue = dirs.url, %errno, "can't read the file system's clock");
            }
        }
        self.say(dirs);
    }

    fn say(&mut self, dirs: &Dirs) {
        let said = self.said.added_to(EPOCH);
        if said.abs_diff(self.offset.added_to(EPOCH)) <= TOLERATED {
            return;
        }
        self.said = self.offset;
        let queue = &dirs.url;
        match self.offset.words() {
            None => tracing::info!(queue, "the clocks of this host and of the queue's files agree"),
            Some(words) => tracing::warn!(queue, "{words}"),
        }
    }
}

/// What is wrong with the clock of this host, if that can be told without making anything that
/// stays.
pub(super) fn complaint(dirs: &Dirs) -> Option<String> {
    dirs.host_if_any("tmp").ok()??;
    ClockOffset::measured(dirs, &HostClock::default()).ok()??.words()
}

/// Some time that is far from zero.
const EPOCH: Duration = Duration::from_secs(1 << 40);

impl ClockOffset {
    /// `None` if it took too long to tell.
    fn measured(dirs: &Dirs, host: &HostClock) -> Result<Option<ClockOffset>, Errno> {
        let dir = dirs.host("tmp")?;
        let before = host.now();
        let stamp = time_of_new_file(&dir)?;
        let after = host.now();
        if after.abs_diff(before) > SLOW {
            return Ok(None);
        }
        Ok(Some(ClockOffset::of(before, stamp, after)))
    }

    /// From the time of a file that was made between two readings of the host's clock.
    fn of(before: Duration, stamp: Duration, after: Duration) -> ClockOffset {
        if stamp > after + TOLERATED {
            ClockOffset::Ahead(stamp - after)
        } else if stamp + TOLERATED < before {
            ClockOffset::Behind(before - stamp)
        } else {
            ClockOffset::None
        }
    }

    /// What is wrong, and what to do about it.
    fn words(self) -> Option<String> {
        let (by, way) = match self {
            ClockOffset::None => return None,
            ClockOffset::Ahead(by) => (by, "behind"),
            ClockOffset::Behind(by) => (by, "ahead of"),
        };
        let by = humantime::format_duration(Duration::from_secs(by.as_secs()));
        Some(format!(
            "this host's clock is {by} {way} the clock of the queue's file system; leases go by \
             the file system's clock. Set the clocks of this machine and of the file server \
             right (NTP): the Python client goes by its own"
        ))
    }

    fn added_to(self, time: Duration) -> Duration {
        match self {
            ClockOffset::None => time,
            ClockOffset::Ahead(by) => time.saturating_add(by),
            ClockOffset::Behind(by) => time.saturating_sub(by),
        }
    }
}

/// The clock of this host.
#[derive(Debug, Default)]
struct HostClock {
    #[cfg(test)]
    wrong_by: std::sync::Arc<std::sync::atomic::AtomicI64>,
}

impl HostClock {
    #[cfg(not(test))]
    fn now(&self) -> Duration {
        of_host()
    }

    #[cfg(test)]
    fn now(&self) -> Duration {
        let seconds = self.wrong_by.load(std::sync::atomic::Ordering::Relaxed);
        let by = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { of_host().saturating_sub(by) } else { of_host() + by }
    }
}

/// The time since 1970, as this host has it. A clock before 1970 reads as 1970.
pub(super) fn of_host() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// When the file was last written, since 1970.
pub(super) fn written(stat: &fs::Stat) -> Duration {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Duration::new(u64::try_from(stat.st_mtime).unwrap_or_default(), nanos)
}

/// Makes a file that leaves nothing behind, and returns its time.
fn time_of_new_file(dir: &OwnedFd) -> Result<Duration, Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match fs::openat(dir, c".", flags | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok(written(&fs::fstat(file)?)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    // Network file systems have only files with names.
    let name = format!(".clock-{}", uuid::Uuid::new_v4());
    let file = fs::openat(dir, &*name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    let stat = fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW);
    drop(file);
    remove(dir, &name)?;
    Ok(written(&stat?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_coarse_time_of_a_file_is_not_a_wrong_clock() {
        let check = |stamp: u64, expected: ClockOffset| {
            let found = ClockOffset::of(seconds(1000), seconds(stamp), seconds(1001));
            assert_eq!(found, expected, "{stamp}");
        };
        check(998, ClockOffset::None);
        check(1003, ClockOffset::None);
        check(997, ClockOffset::Behind(seconds(3)));
        check(1005, ClockOffset::Ahead(seconds(4)));
        check(4601, ClockOffset::Ahead(seconds(3600)));
        let words = ClockOffset::Ahead(seconds(3600)).words().unwrap();
        assert!(words.contains("is 1h behind") && words.contains("NTP"), "{words}");
    }

    #[test]
    fn a_host_with_a_wrong_clock_goes_by_the_clock_of_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::create("fq://test", dir.path()).unwrap();
        let close = |a: Duration, b: Duration| a.abs_diff(b) < seconds(100);
        for wrong in [3600, -3600, 0] {
            let by = Arc::new(AtomicI64::new(wrong));
            let clock = Clock::wrong_by(&by);
            assert!(close(clock.now(&dirs), of_host()), "{wrong}");
            // And also when it is set while the host runs.
            by.store(-2 * wrong + 7200, Ordering::Relaxed);
            assert!(close(clock.now(&dirs), of_host()), "{wrong}");
        }
        let left: Vec<_> = std::fs::read_dir(dir.path().join("host/tmp")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_clock_is_measured_again_when_it_jumps_or_a_lease_is_lost() {
        let (wall, now) = (seconds(1000), Instant::now());
        let check = |state: &ClockState, wall: u64, later: u64, due: bool| {
            assert_eq!(state.is_due(seconds(wall), now + seconds(later)), due, "{wall} {later}");
        };
        let mut state = ClockState { measured: Some((wall, now)), ..ClockState::default() };
        check(&ClockState::default(), 1000, 0, true);
        check(&state, 1000, 0, false);
        check(&state, 1100, 100, false);
        check(&state, 1300, 300, true);
        check(&state, 1100, 90, true);
        check(&state, 1100, 110, true);
        state.is_suspect = true;
        check(&state, 1005, 5, false);
        check(&state, 1010, 10, true);
    }
}
