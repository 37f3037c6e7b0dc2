//! Whether a directory can be written to: tried with a file that has no name, so that nobody
//! sees it and nothing stays.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytesize::ByteSize;
use rustix::fs::{self, Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::super::rules::{Finding, Level};

/// What is written on trial: a block, since a full disk may have room for a byte.
const BLOCK: usize = 4096;
/// A disk with less room than this is as good as full.
const LITTLE: ByteSize = ByteSize(64 << 20);
/// Clocks that differ by less are as good as equal.
const SKEW: Duration = Duration::from_secs(5);

/// What a directory is for.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Use {
    /// Files are put there; the cure for one that can't be used.
    Fill(&'static str),
    /// Messages are leased there, by the clock of its file system.
    Share,
}

/// Looks at a directory, or at where it will be made. Returns the room on its disk.
///
/// # Errors
/// What is wrong with it.
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
        let text = format!("{} {}", place.display(), why(errno, place));
        Finding::new(Level::Problem, subject, text).cure(cure)
    })?;
    if written.free < LITTLE {
        let left = written.free.display().iec();
        let text = format!("{}: its disk has only {left} left", place.display());
        return Err(Finding::new(Level::Warn, subject, text).cure("make room there"));
    }
    if let (Use::Share, Some(text)) = (purpose, written.skew()) {
        let cure = "set the clocks of both machines by NTP";
        return Err(Finding::new(Level::Warn, subject, text).cure(cure));
    }
    Ok(written.free)
}

/// The nearest directory on the way to `path` that is there.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|path| path.is_dir())
        .filter(|path| !path.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// What is known of a directory after something was written to it.
struct Written {
    free: ByteSize,
    /// This machine's time, and the file system's of the same moment; since 1970.
    times: Option<(Duration, Duration)>,
}

impl Written {
    /// How the file system's clock differs from this machine's, if it does.
    fn skew(&self) -> Option<String> {
        let (here, there) = self.times?;
        let (difference, word) = match there.checked_sub(here) {
            Some(ahead) => (ahead, "ahead of"),
            None => (here.saturating_sub(there), "behind"),
        };
        let shown = humantime::format_duration(Duration::from_secs(difference.as_secs()));
        (difference > SKEW).then(|| {
            format!(
                "the clock of its file system is {shown} {word} this machine's: leases seem to \
                 last longer or shorter than they do"
            )
        })
    }
}

fn write(place: &Path) -> Result<Written, Errno> {
    fs::accessat(CWD, place, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?;
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let times = match fs::openat(CWD, place, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => {
            // Beyond this limit the kernel ends a process that writes.
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
        // Not all file systems have files without a name.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => None,
        Err(errno) => return Err(errno),
    };
    let stat = fs::statvfs(place)?;
    // File systems that make room for files as they need it count none.
    if stat.f_bavail == 0 || (stat.f_files > 0 && stat.f_favail == 0) {
        return Err(Errno::NOSPC);
    }
    Ok(Written { free: ByteSize(stat.f_bavail.saturating_mul(stat.f_frsize)), times })
}

fn why(errno: Errno, place: &Path) -> String {
    match errno {
        Errno::ROFS => "is on a file system that is read-only".to_owned(),
        Errno::NOSPC => "is on a disk that is full".to_owned(),
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
