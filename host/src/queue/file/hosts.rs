//! `hosts/`: a small file of each host that takes messages from the queue. Python ignores it.
//!
//! Each call opens the directories again, because seconds pass between two calls. Calls change
//! nothing outside of `hosts/`, and block.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{self, AtFlags, OFlags};
use rustix::io::Errno;

use super::clock::{self, Clock};
use super::dirs::Dirs;
use super::files::{self, directory_no_link, is_regular, make_directory, written};
use super::listing::Listing;
use crate::queue::QueueError;

/// The directory, relative to the queue directory.
const HOSTS: &str = "hosts";
/// The end of the name of a file that is being written.
const UNFINISHED: &str = ".tmp";

/// The files of the hosts of one queue.
#[derive(Debug, Clone)]
pub struct HostFiles {
    url: String,
    path: PathBuf,
    clock: Arc<Clock>,
}

/// A file in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFile {
    /// The name.
    pub name: String,
    /// When the file was written, by the clock of the file system.
    pub modified: SystemTime,
}

impl HostFiles {
    /// Creates access to the files of the queue in the directory `path`, which may not exist yet.
    pub fn new(url: &str, path: &Path) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { url: url.to_owned(), path, clock: Arc::default() }
    }

    /// Writes a complete file, and replaces an older one. `name` must not contain a slash.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] if there is no queue, and [`QueueError::Unavailable`] if the file
    /// can't be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), QueueError> {
        let dirs = self.dirs()?;
        let write = || -> Result<(), Errno> {
            let hosts = match directory_no_link(&dirs.root, HOSTS) {
                Err(Errno::NOENT) => {
                    make_directory(&dirs.root, HOSTS)?;
                    directory_no_link(&dirs.root, HOSTS)?
                }
                opened => opened?,
            };
            let unfinished = format!("{name}{UNFINISHED}");
            // A host of this name that was killed may have left the file.
            files::remove(&hosts, &unfinished)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let file = files::open(&hosts, &unfinished, flags)?.ok_or(Errno::EXIST)?;
            let written = files::write_all(&file, bytes)
                .and_then(|()| fs::renameat(&hosts, &*unfinished, &hosts, name));
            if written.is_err() {
                let _ = files::remove(&hosts, &unfinished);
            }
            written
        };
        write().map_err(|errno| dirs.failed(format!("writing {HOSTS}/{name}"), errno))
    }

    /// Removes a file unless it is already gone.
    ///
    /// # Errors
    /// As [`HostFiles::write`].
    pub fn remove(&self, name: &str) -> Result<(), QueueError> {
        let dirs = self.dirs()?;
        let removed = match directory_no_link(&dirs.root, HOSTS) {
            Err(Errno::NOENT) => Ok(()),
            opened => opened.and_then(|hosts| files::remove(hosts, name)),
        };
        removed.map_err(|errno| dirs.failed(format!("removing {HOSTS}/{name}"), errno))
    }

    /// Returns up to `most` files in no particular order, and the current time by the clock that
    /// dates them.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] if there is no queue, and [`QueueError::Unavailable`] if the
    /// directory can't be read.
    pub fn list(&self, most: usize) -> Result<(Vec<HostFile>, SystemTime), QueueError> {
        let dirs = self.dirs()?;
        let list = || -> Result<Vec<HostFile>, Errno> {
            let Some(hosts) = opened_if_any(&dirs)? else { return Ok(Vec::new()) };
            let mut listing = Listing::of(&hosts)?;
            let mut names = Vec::new();
            while names.len() < most && listing.piece(|name, _| names.push(name.to_owned()))? {}
            names.truncate(most);
            let file = |name: String| match fs::statat(&hosts, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if is_regular(&stat) => {
                    let since = written(&stat);
                    let modified = SystemTime::UNIX_EPOCH.checked_add(since)?;
                    Some(HostFile { name, modified })
                }
                _ => None,
            };
            Ok(names.into_iter().filter_map(file).collect())
        };
        let files = list().map_err(|errno| dirs.failed(format!("listing {HOSTS}"), errno))?;
        let since = self.now(&dirs);
        let now = SystemTime::UNIX_EPOCH.checked_add(since);
        Ok((files, now.unwrap_or_else(SystemTime::now)))
    }

    /// The first `most` bytes of a file, if it exists.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] if there is no queue, and [`QueueError::Unavailable`] if the file
    /// can't be read.
    pub fn read(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>, QueueError> {
        let dirs = self.dirs()?;
        let read = || -> Result<Option<Vec<u8>>, Errno> {
            let Some(hosts) = opened_if_any(&dirs)? else { return Ok(None) };
            match files::open_regular(&hosts, name, OFlags::RDONLY) {
                Ok(Some(file)) => files::read(&file, most).map(Some),
                Ok(None) | Err(Errno::NOENT) => Ok(None),
                Err(errno) => Err(errno),
            }
        };
        read().map_err(|errno| dirs.failed(format!("reading {HOSTS}/{name}"), errno))
    }

    /// The time of the file system, since 1970. Only a file server can have a different clock from
    /// this machine. Its clock is read with a new file in a directory that hosts create; a listing
    /// does not create the directory.
    fn now(&self, dirs: &Dirs) -> Duration {
        match dirs.remote && matches!(dirs.host_if_any("tmp"), Ok(Some(_))) {
            true => self.clock.now(dirs),
            false => clock::of_host(),
        }
    }

    fn dirs(&self) -> Result<Dirs, QueueError> {
        Dirs::existing(&self.url, &self.path)
    }
}

fn opened_if_any(dirs: &Dirs) -> Result<Option<OwnedFd>, Errno> {
    match directory_no_link(&dirs.root, HOSTS) {
        Err(Errno::NOENT) => Ok(None),
        opened => opened.map(Some),
    }
}

impl fmt::Display for HostFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{HOSTS}", self.url)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn files() -> (tempfile::TempDir, HostFiles) {
        let dir = tempfile::tempdir().unwrap();
        drop(Dirs::create("fq://q", dir.path()).unwrap());
        let files = HostFiles::new("fq://q", dir.path());
        (dir, files)
    }

    #[test]
    fn a_file_is_replaced_listed_and_removed() {
        let (_dir, files) = files();
        assert_eq!(files.list(10).unwrap().0, []);
        files.remove("a.json").unwrap();
        assert_eq!(files.read("a.json", 10).unwrap(), None);
        for text in ["first, and longer", "second"] {
            files.write("a.json", text.as_bytes()).unwrap();
            assert_eq!(files.read("a.json", 100).unwrap().unwrap(), text.as_bytes());
        }
        files.write("b.json", b"other").unwrap();
        assert_eq!(files.read("b.json", 3).unwrap().unwrap(), b"oth");
        let mut names: Vec<_> = files.list(10).unwrap().0.into_iter().map(|f| f.name).collect();
        names.sort();
        assert_eq!(names, ["a.json", "b.json"]);
        assert_eq!(files.list(1).unwrap().0.len(), 1);
        let age = SystemTime::now().duration_since(files.list(1).unwrap().0[0].modified);
        assert!(age.unwrap_or_default() < Duration::from_secs(600));
        files.remove("a.json").unwrap();
        assert_eq!(files.list(10).unwrap().0.len(), 1);
    }

    #[test]
    fn nothing_is_written_or_read_through_a_link() {
        let (dir, files) = files();
        let elsewhere = tempfile::tempdir().unwrap();
        let secret = elsewhere.path().join("secret.json");
        std::fs::write(&secret, "secret").unwrap();
        std::fs::create_dir(dir.path().join(HOSTS)).unwrap();
        symlink(&secret, dir.path().join("hosts/a.json")).unwrap();
        symlink(&secret, dir.path().join("hosts/a.json.tmp")).unwrap();
        assert_eq!(files.read("a.json", 10).unwrap(), None);
        assert_eq!(files.list(10).unwrap().0, []);
        files.write("a.json", b"ours").unwrap();
        assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
        assert_eq!(files.read("a.json", 10).unwrap().unwrap(), b"ours");
        std::fs::remove_dir_all(dir.path().join(HOSTS)).unwrap();
        symlink(elsewhere.path(), dir.path().join(HOSTS)).unwrap();
        assert!(files.write("b.json", b"ours").is_err());
        assert!(files.list(10).is_err() && files.read("secret.json", 10).is_err());
        assert!(!elsewhere.path().join("b.json").exists());
    }

    #[test]
    fn a_queue_that_is_not_there_is_not_made() {
        let (dir, files) = files();
        std::fs::remove_dir_all(dir.path().join("queue")).unwrap();
        assert!(matches!(files.write("a.json", b"x"), Err(QueueError::Invalid { .. })));
        assert!(!dir.path().join(HOSTS).exists());
    }
}
