//! The clock that measures leases.
//!
//! The due time in a message's name is a time of day, and all users of a queue must agree on it.
//! The file system stamps new files with one clock for all users. If this host's clock differs from
//! that clock by more than [`TOLERATED`], the host warns, and corrects its times by the difference.
//!
//! The difference is measured every few minutes, after a lost lease, and when the time of day jumps
//! relative to the monotonic clock, because the machine was suspended or its clock was set.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::dirs::Dirs;
use super::files::{remove, written};
use crate::system::open_unnamed;

/// The maximum difference that is ignored. Some file systems store times in steps of two seconds.
const TOLERATED: Duration = Duration::from_secs(2);
/// The maximum time between two measurements.
const EVERY: Duration = Duration::from_secs(5 * 60);
/// The minimum time between two measurements, unless the clock jumped.
const AGAIN: Duration = Duration::from_secs(10);
/// A larger change of the time of day relative to the monotonic clock is a jump.
const JUMP: Duration = Duration::from_secs(1);
/// The result of a measurement that took longer is discarded.
const SLOW: Duration = Duration::from_secs(1);

/// The time of day by the clock of a queue's file system.
#[derive(Debug, Default)]
pub(super) struct Clock {
    host: HostClock,
    state: Mutex<ClockState>,
}

#[derive(Debug, Default)]
struct ClockState {
    offset: ClockOffset,
    /// When the offset was last measured, by both clocks of the host.
    measured: Option<(Duration, Instant)>,
    is_suspect: bool,
    /// The offset of the last warning.
    warned: ClockOffset,
}

/// The difference between the file system's clock and this host's clock.
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
        let mut state = self.state.lock();
        if state.is_due(self.host.now(), Instant::now()) {
            state.measure(dirs, &self.host);
        }
        state.offset.added_to(self.host.now())
    }

    /// Requests an early measurement: a lease was lost, and different clocks may be the cause.
    pub(super) fn suspect(&self) {
        self.state.lock().is_suspect = true;
    }

    /// The clock of a host whose time of day is wrong by this number of seconds.
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
        // A failed measurement is repeated soon.
        self.is_suspect = !matches!(measured, Ok(Some(_)));
        match measured {
            Ok(Some(offset)) => self.offset = offset,
            Ok(None) => {}
            Err(errno) => {
                tracing::debug!(queue = dirs.url, %errno, "can't read the file system's clock");
            }
        }
        self.warn(dirs);
    }

    fn warn(&mut self, dirs: &Dirs) {
        let warned = self.warned.added_to(EPOCH);
        if warned.abs_diff(self.offset.added_to(EPOCH)) <= TOLERATED {
            return;
        }
        self.warned = self.offset;
        let queue = &dirs.url;
        match self.offset.warning() {
            None => tracing::info!(queue, "this host's clock and the file system's clock agree"),
            Some(warning) => tracing::warn!(queue, "{warning}"),
        }
    }
}

/// A warning if this host's clock is wrong. `None` for a queue that no host has used, because a
/// measurement would create `host/` in it.
pub(super) fn warning(dirs: &Dirs) -> Option<String> {
    dirs.host_if_any("tmp").ok()??;
    ClockOffset::measured(dirs, &HostClock::default()).ok()??.warning()
}

/// A time far from zero, to which offsets can be added in both directions.
const EPOCH: Duration = Duration::from_secs(1 << 40);

impl ClockOffset {
    /// Returns `None` if the measurement took too long.
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

    /// The offset, from the time of a file that was created between two readings of the host's
    /// clock.
    fn of(before: Duration, stamp: Duration, after: Duration) -> ClockOffset {
        if stamp > after + TOLERATED {
            ClockOffset::Ahead(stamp - after)
        } else if stamp + TOLERATED < before {
            ClockOffset::Behind(before - stamp)
        } else {
            ClockOffset::None
        }
    }

    /// A description of the difference, and what to do about it.
    fn warning(self) -> Option<String> {
        let (by, way) = match self {
            ClockOffset::None => return None,
            ClockOffset::Ahead(by) => (by, "behind"),
            ClockOffset::Behind(by) => (by, "ahead of"),
        };
        let by = humantime::format_duration(Duration::from_secs(by.as_secs()));
        Some(format!(
            "this host's clock is {by} {way} the clock of the queue's file system; hosts measure \
             leases by the file system's clock, but Python clients by their own. Set the clocks \
             of this machine and of the file server with NTP"
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

/// The time since 1970 by this host's clock. A clock before 1970 reads as 1970.
pub(super) fn of_host() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Creates and removes a file, and returns the file's time.
fn time_of_new_file(dir: &OwnedFd) -> Result<Duration, Errno> {
    match open_unnamed(dir, c".") {
        Ok(file) => return Ok(written(&fs::fstat(file)?)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    // Network file systems do not support files without names.
    let name = format!(".clock-{}", uuid::Uuid::new_v4());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = fs::openat(dir, &*name, flags, Mode::RUSR | Mode::WUSR)?;
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
    fn a_coarse_file_time_is_not_a_wrong_clock() {
        let check = |stamp: u64, expected: ClockOffset| {
            let found = ClockOffset::of(seconds(1000), seconds(stamp), seconds(1001));
            assert_eq!(found, expected, "{stamp}");
        };
        check(998, ClockOffset::None);
        check(1003, ClockOffset::None);
        check(997, ClockOffset::Behind(seconds(3)));
        check(1005, ClockOffset::Ahead(seconds(4)));
        check(4601, ClockOffset::Ahead(seconds(3600)));
        let warning = ClockOffset::Ahead(seconds(3600)).warning().unwrap();
        assert!(warning.contains("is 1h behind") && warning.contains("NTP"), "{warning}");
    }

    #[test]
    fn a_host_with_a_wrong_clock_uses_the_clock_of_the_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::create("fq://test", dir.path()).unwrap();
        let close = |a: Duration, b: Duration| a.abs_diff(b) < seconds(100);
        for wrong in [3600, -3600, 0] {
            let by = Arc::new(AtomicI64::new(wrong));
            let clock = Clock::wrong_by(&by);
            assert!(close(clock.now(&dirs), of_host()), "{wrong}");
            // The clock is set while the host runs.
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
