//! `host/tmp/{process}/`: where a message is while it is written or deleted.
//!
//! An entry is named after its message, and whoever finds it knows what to do: the message
//! was not sent, or it is done, and what else there is of it can go. The process holds a
//! lock on its directory for as long as it lives, so that the next one to open the queue can
//! tell, also on another machine, which directories the dead have left.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::dirs::{Dirs, FILE, directory, make, remove};
use super::name::is_id;

/// The directories of all processes.
const ALL: &str = "tmp";
/// The lock in each of them. No id begins with a dot.
const LOCK: &str = ".lock";
/// Held shared while a directory is made, and alone while they are swept: in between, one
/// that is just being made looks like one that was left.
const DOOR: &str = "door";

/// This process's directory. What is left in it goes with it.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) dir: OwnedFd,
    name: String,
    all: OwnedFd,
    _lock: OwnedFd,
}

impl Scratch {
    pub(super) fn make(dirs: &Dirs) -> Result<Scratch, Errno> {
        let all = dirs.host(ALL)?;
        let _door = door(dirs, FlockOperation::LockShared)?;
        let name = uuid::Uuid::new_v4().to_string();
        make(&all, &name)?;
        let dir = directory(&all, &*name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let lock = fs::openat(&dir, LOCK, flags, FILE)?;
        locked(fs::flock(&lock, FlockOperation::NonBlockingLockExclusive))?;
        Ok(Scratch { dir, name, all, _lock: lock })
    }

    /// Removes all of a message that was not sent, or is done. Leaves the entry for last:
    /// while it is there, the rest can still be found.
    pub(super) fn discard(&self, dirs: &Dirs, id: &str) -> Result<(), Errno> {
        remove(&dirs.movement, id)?;
        super::reached("discard: forgotten");
        remove(&self.dir, id)
    }

    /// Whether the directory is there still.
    pub(super) fn is_there(&self) -> bool {
        fs::fstat(&self.dir).is_ok_and(|stat| stat.st_nlink > 0)
    }

    /// Whether there is an entry for that message.
    pub(super) fn has(&self, id: &str) -> bool {
        fs::accessat(&self.dir, id, fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Finishes what an error left half done, and removes the directory. What fails here
    /// will be swept.
    pub(super) fn leave(&self, dirs: &Dirs) {
        if clear(dirs, &self.dir).is_ok() {
            let _ = remove(&self.dir, LOCK);
            let _ = fs::unlinkat(&self.all, &*self.name, AtFlags::REMOVEDIR);
        }
    }
}

/// Finishes what dead processes left half done.
pub(super) fn sweep(dirs: &Dirs) -> Result<(), Errno> {
    let Some(all) = dirs.host_if_any(ALL)? else {
        return Ok(());
    };
    let Ok(_door) = door(dirs, FlockOperation::NonBlockingLockExclusive) else {
        // Somebody else is sweeping, or is just beginning. The next one sweeps.
        return Ok(());
    };
    for name in entries(&all)? {
        let dir = match directory(&all, &*name) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => return Err(errno),
        };
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        match fs::openat(&dir, LOCK, flags, Mode::empty()) {
            Ok(lock) if fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() => {
                clear(dirs, &dir)?;
                remove(&dir, LOCK)?;
            }
            // A living process's; or the file system can't tell, and then it is kept.
            Ok(_) => continue,
            // One that was just being left or made: there is nothing in it, or it stays.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        match fs::unlinkat(&all, &*name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn clear(dirs: &Dirs, dir: &OwnedFd) -> Result<(), Errno> {
    let attempts = dirs.host_if_any(super::ATTEMPTS)?;
    for id in entries(dir)? {
        if !is_id(&id) {
            continue;
        }
        remove(&dirs.movement, &id)?;
        super::reached("sweep: forgotten");
        if let Some(attempts) = &attempts {
            remove(attempts, &id)?;
        }
        remove(dir, &id)?;
    }
    Ok(())
}

fn door(dirs: &Dirs, how: FlockOperation) -> Result<OwnedFd, Errno> {
    let host = directory(&dirs.root, "host")?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let door = fs::openat(&host, DOOR, flags, FILE)?;
    locked(rustix::io::retry_on_intr(|| fs::flock(&door, how)))?;
    Ok(door)
}

/// A file system without such locks has no sweeping either, and works.
fn locked(lock: Result<(), Errno>) -> Result<(), Errno> {
    match lock {
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => Ok(()),
        other => other,
    }
}

/// The names in a directory that never holds many.
fn entries(dir: &OwnedFd) -> Result<Vec<String>, Errno> {
    let dir = directory(dir, ".")?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}
