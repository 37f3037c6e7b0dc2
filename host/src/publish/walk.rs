//! The files below a task's outputs directory. No link is followed.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use bytesize::ByteSize;
use cap_std::fs::Dir;
use rustix::fs::{AtFlags, FileType, Stat, fstat, statat};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::{Limits, MAX_DEPTH, PublishError, invalid, too_much, unavailable};
use crate::dirs::{for_each, open_dir};
use crate::key::BucketKey;

/// A regular file below `/outputs`.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) file: BucketKey,
    /// Its length in bytes.
    pub(super) size: u64,
}

/// Why there is no list of all files.
pub(super) enum Stopped {
    /// There are more entries than the caller wants to wait for.
    OverBudget,
    /// The walk was cancelled.
    Cancelled,
    /// The task left what can't be published, or the disk failed.
    Because(PublishError),
    Failed(Errno),
}

impl From<PublishError> for Stopped {
    fn from(error: PublishError) -> Self {
        Self::Because(error)
    }
}

impl From<Errno> for Stopped {
    fn from(error: Errno) -> Self {
        Self::Failed(error)
    }
}

/// Finds the files below `outputs`, but looks at no more than `budget` files and directories.
///
/// Each directory is opened once on the way down, and the directory above it once on the way
/// back, whatever the depth; one is open at a time.
pub(super) fn walk(
    outputs: &Dir,
    limits: Limits,
    budget: u64,
    cancelled: &CancellationToken,
) -> Result<Vec<Output>, Stopped> {
    let mut found = Found { limits, budget, outputs: Vec::new(), entries: 0, bytes: 0 };
    let mut dir = open_dir(outputs, ".")?;
    let mut path = String::new();
    // From the outermost to the one that is open.
    let mut levels = Vec::new();
    loop {
        if cancelled.is_cancelled() {
            return Err(Stopped::Cancelled);
        }
        let ahead = found.list(&dir, &path).map_err(|stopped| named(stopped, &path))?;
        let id = if ahead.is_empty() { (0, 0) } else { id_of(&dir)? };
        levels.push(Level { id, path_len: path.len(), ahead });
        let depth = levels.len();
        let next = loop {
            let Some(level) = levels.last_mut() else { return Ok(found.outputs) };
            match level.ahead.pop() {
                Some(next) => break next,
                None => drop(levels.pop()),
            }
        };
        if let (Some(level), up @ 1..) = (levels.last(), depth - levels.len()) {
            path.truncate(level.path_len);
            dir = open_dir(&dir, vec![".."; up].join("/")).map_err(|e| unavailable(&path, e))?;
            if id_of(&dir)? != level.id {
                // Somebody moved directories about meanwhile.
                return Err(unavailable(&path, Errno::STALE).into());
            }
        }
        path.push_str(&next.to_string_lossy());
        if levels.len() > MAX_DEPTH {
            let problem = format!(
                "is a directory {} levels deep; outputs may be up to {MAX_DEPTH} directories deep",
                levels.len()
            );
            return Err(invalid(&path, problem).into());
        }
        dir = open_dir(&dir, &next).map_err(|error| unavailable(&path, error))?;
        path.push('/');
    }
}

fn named(stopped: Stopped, path: &str) -> Stopped {
    match stopped {
        Stopped::Failed(error) => unavailable(path, error).into(),
        other => other,
    }
}

/// Which directory it is.
fn id_of(dir: &OwnedFd) -> Result<(u64, u64), Errno> {
    fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}

/// A directory on the way to the one that is open.
struct Level {
    id: (u64, u64),
    /// The length of its path.
    path_len: usize,
    /// The directories in it that are still to be walked.
    ahead: Vec<CString>,
}

struct Found {
    limits: Limits,
    budget: u64,
    outputs: Vec<Output>,
    entries: u64,
    bytes: u64,
}

impl Found {
    /// Looks at the entries of one directory. Returns the directories among them.
    fn list(&mut self, dir: &OwnedFd, path: &str) -> Result<Vec<CString>, Stopped> {
        let mut dirs = Vec::new();
        for_each(dir.as_fd(), |name, _| {
            if self.entries == self.budget {
                return Err(Stopped::OverBudget);
            }
            let text = name.to_str().map_err(|_| {
                let shown = format!("{path}{}", String::from_utf8_lossy(name.to_bytes()));
                invalid(&shown, "its name is not UTF-8, and so can't be a key")
            })?;
            let file = BucketKey::of_output(&format!("{path}{text}")).map_err(|error| {
                let problem = format!("its name can't be a key: it {error}");
                invalid(&format!("{path}{text}"), problem)
            })?;
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| unavailable(&file, error))?;
            if self.look(file, &stat)? {
                dirs.push(name.to_owned());
            }
            Ok::<(), Stopped>(())
        })?;
        Ok(dirs)
    }

    /// Takes an entry, or refuses it. True for a directory.
    fn look(&mut self, file: BucketKey, stat: &Stat) -> Result<bool, PublishError> {
        let Limits { max_bytes, max_files } = self.limits;
        self.entries += 1;
        if self.entries > max_files {
            let problem = format!("there are more than {max_files} files and directories");
            return Err(too_much(problem));
        }
        let what = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(true),
            FileType::RegularFile if stat.st_nlink == 1 => {
                let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
                self.bytes = self.bytes.saturating_add(size);
                if self.bytes > max_bytes {
                    let max = ByteSize(max_bytes);
                    return Err(too_much(format!("they are larger than {max} together")));
                }
                self.outputs.push(Output { file, size });
                return Ok(false);
            }
            FileType::RegularFile => "a file with a second name (a hard link)",
            FileType::Symlink => "a symbolic link",
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "a device",
            FileType::Unknown => "of an unknown type",
        };
        Err(invalid(&file, format!("is {what}; only regular files can be published")))
    }
}
