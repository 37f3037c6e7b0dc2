//! Checks that a directory is writable, with an unnamed file: other processes do not see it, and it
//! is removed when it is closed.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::super::output;
use bytesize::ByteSize;
use rustix::fs::{self, Access, AtFlags, CWD};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use task_host::fit::{Finding, Level};
use task_host::system;

/// The size of the test file in bytes: a block, because a full disk may have room for one byte.
const BLOCK: usize = 4096;
/// A disk with less free space causes a warning.
const LITTLE: ByteSize = ByteSize(64 << 20);
/// The largest harmless difference between two clocks.
const SKEW: Duration = Duration::from_secs(5);

/// The use of a directory.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Use {
    /// Files are written there. The text tells what to do if the directory can't be used.
    Fill(&'static str),
    /// Messages are leased there by the clock of its file system.
    Share,
}

/// Checks a directory, or the nearest existing one above it. Returns the free space of its disk.
///
/// # Errors
/// The finding, if something is wrong.
pub(in super::super) fn look_at(
    subject: &str,
    path: &Path,
    purpose: Use,
) -> Result<ByteSize, Finding> {
    let place = existing(path);
    let cure = match purpose {
        Use::Fill(cure) => cure,
        Use::Share => "correct its owner, its permissions or its disk, or name another directory",
    };
    let written = write(place).map_err(|errno| {
        let text = format!("{} {}", output::path(place), why(errno, place));
        Finding::new(Level::Problem, subject, text).cure(cure)
    })?;
    if written.free < LITTLE {
        let left = written.free.display().iec();
        let text = format!("{}: its disk has only {left} free", output::path(place));
        return Err(Finding::new(Level::Warn, subject, text).cure("free some space on this disk"));
    }
    if let (Use::Share, Some(text)) = (purpose, written.skew()) {
        let cure = "synchronize the clocks of both machines with NTP";
        return Err(Finding::new(Level::Warn, subject, text).cure(cure));
    }
    Ok(written.free)
}

/// The nearest existing directory at or above `path`.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|path| path.is_dir())
        .filter(|path| !path.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The result of a test write to a directory.
struct Written {
    free: ByteSize,
    /// The time of this machine, and of the file system at the same moment, since 1970.
    times: Option<(Duration, Duration)>,
}

impl Written {
    /// Describes the difference of the two clocks if it is too large.
    fn skew(&self) -> Option<String> {
        let (here, there) = self.times?;
        let (difference, word) = match there.checked_sub(here) {
            Some(ahead) => (ahead, "ahead of"),
            None => (here.saturating_sub(there), "behind"),
        };
        let shown = humantime::format_duration(Duration::from_secs(difference.as_secs()));
        (difference > SKEW).then(|| {
            format!(
                "the clock of its file system is {shown} {word} this machine's, so leases would last too \
                 long or too short"
            )
        })
    }
}

fn write(place: &Path) -> Result<Written, Errno> {
    fs::accessat(CWD, place, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?;
    let times = match system::open_unnamed(CWD, place) {
        Ok(file) => {
            // Beyond this limit, a write fails, and a process without a handler for SIGXFSZ is
            // killed.
            let may_write = getrlimit(Resource::Fsize).current.is_none_or(|n| n >= BLOCK as u64);
            if may_write {
                let mut rest = &[0; BLOCK][..];
                while !rest.is_empty() {
                    let written = rustix::io::write(&file, rest)?;
                    rest = rest.get(written..).unwrap_or_default();
                }
            }
            let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let stat = fs::fstat(&file)?;
            let there = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or_default());
            may_write.then_some((here, there))
        }
        // Some file systems do not support unnamed files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => None,
        Err(errno) => return Err(errno),
    };
    let stat = fs::statvfs(place)?;
    // File systems that allocate inodes as needed report zero of them.
    if stat.f_bavail == 0 || (stat.f_files > 0 && stat.f_favail == 0) {
        return Err(Errno::NOSPC);
    }
    Ok(Written { free: ByteSize(stat.f_bavail.saturating_mul(stat.f_frsize)), times })
}

fn why(errno: Errno, place: &Path) -> String {
    match errno {
        Errno::ROFS => "is on a read-only file system".to_owned(),
        Errno::NOSPC => "is on a full disk".to_owned(),
        Errno::DQUOT => "can't be written to: this user's quota is used up".to_owned(),
        Errno::ACCESS | Errno::PERM => {
            let us = rustix::process::geteuid().as_raw();
            match fs::statat(CWD, place, AtFlags::empty()) {
                Ok(stat) => format!(
                    "can't be written to by this user (uid {us}): it belongs to uid {}, with \
                     permissions {:o}",
                    stat.st_uid,
                    stat.st_mode & 0o7777
                ),
                Err(_) => format!("can't be written to by this user (uid {us})"),
            }
        }
        errno => format!("can't be written to: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_of_a_trial() {
        let dir = tempfile::tempdir().unwrap();
        let before = dir.path().metadata().unwrap().modified().unwrap();
        look_at("x", dir.path(), Use::Share).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(dir.path().metadata().unwrap().modified().unwrap(), before);
    }

    #[test]
    fn what_is_not_there_will_be_made_in_what_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(existing(&dir.path().join("a/b/c")), dir.path());
        assert_eq!(existing(Path::new("not-here")), Path::new("."));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(existing(&file.join("a")), dir.path());
    }

    #[test]
    fn a_clock_that_differs_is_told_with_the_figure() {
        let seconds = Duration::from_secs;
        let check = |here, there, want: Option<&str>| {
            let times = Some((seconds(here), seconds(there)));
            let told = Written { free: LITTLE, times }.skew();
            assert_eq!(told.is_some(), want.is_some(), "{told:?}");
            assert!(told.unwrap_or_default().contains(want.unwrap_or_default()));
        };
        check(1000, 1000, None);
        check(1000, 1004, None);
        check(10_000, 13_600, Some("1h ahead of this machine's"));
        check(10_000, 9_000, Some("16m 40s behind this machine's"));
    }
}
