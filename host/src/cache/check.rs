//! Checks a whole cache and removes damaged blobs. Hosts may be using it meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, statat, unlinkat};
use rustix::io::Errno;

use super::blobs::path;
use super::download::PROBE;
use super::index::Index;
use super::verified::Stamp;
use super::{CacheError, PARTS};
use crate::digest::Digest;
use crate::dirs::{for_each, open_dir};
use crate::ownership::{self, Us};
use crate::shortage::is_damage;
use crate::system::IS_NO_USE;

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// Blobs that were read.
    pub blobs: u64,
    /// The size of these blobs in bytes.
    pub bytes: u64,
    /// Damaged blobs, which were removed.
    pub damaged_blobs: u64,
    /// The size of these blobs in bytes.
    pub damaged_bytes: u64,
    /// Entries of the index.
    pub index_entries: u64,
    /// Unreadable entries, which were removed.
    pub damaged_index_entries: u64,
    /// Blobs that could not be checked, and why.
    pub problems: Vec<String>,
}

/// Reads every blob of the cache in `dir`. Removes blobs whose bytes do not match their digest, and
/// unreadable index entries. Calls `progress` after each blob. A missing cache counts as empty.
///
/// # Errors
/// [`CacheError::Local`] when its directories can't be listed.
pub fn check(dir: &Path, mut progress: impl FnMut(&Checked)) -> Result<Checked, CacheError> {
    let failed = |error: io::Error| CacheError::local(dir, "listing its blobs", error);
    let mut checked = Checked::default();
    ownership::check(dir, &PARTS)
        .map_err(|not_ours| CacheError::local(dir, "opening it", io::Error::other(not_ours)))?;
    let blobs = match open_dir(CWD, dir.join("blobs")) {
        // No host has used the cache yet.
        Err(Errno::NOENT) => return Ok(checked),
        blobs => blobs.map_err(|error| failed(error.into()))?,
    };
    for digest in list(&blobs).map_err(|error| failed(error.into()))? {
        match look(&blobs, &digest) {
            Ok(None) => continue,
            Ok(Some((size, is_whole))) => {
                checked.blobs += 1;
                checked.bytes += size;
                if !is_whole {
                    checked.damaged_blobs += 1;
                    checked.damaged_bytes += size;
                }
            }
            Err(error) => {
                checked.problems.push(format!("blob {digest}: {error}"));
            }
        }
        progress(&checked);
    }
    let _ = unlinkat(&blobs, PROBE, AtFlags::empty());
    let entries = Index::new(dir.join("index")).prune(|_| true);
    checked.index_entries = entries.seen;
    checked.damaged_index_entries = entries.damaged;
    Ok(checked)
}

fn list(blobs: &impl AsFd) -> Result<Vec<Digest>, Errno> {
    let mut found = Vec::new();
    for_each(blobs.as_fd(), |shard, _| {
        let shard = match open_dir(blobs, shard) {
            Ok(shard) => shard,
            Err(Errno::NOTDIR | Errno::NOENT | Errno::LOOP) => return Ok(()),
            Err(error) => return Err(error),
        };
        for_each(shard.as_fd(), |name, _| {
            found.extend(name.to_str().ok().and_then(|name| name.parse::<Digest>().ok()));
            Ok(())
        })
    })?;
    Ok(found)
}

/// Checks a blob: its size, and whether it is whole. Removes a damaged one. `None` when it is gone.
fn look(blobs: &impl AsFd, digest: &Digest) -> io::Result<Option<(u64, bool)>> {
    let path = path(digest);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // A check must not count as a use. Only the owner of a file may open it with this flag.
    let opened = match openat(blobs, &*path, flags | IS_NO_USE, Mode::empty()) {
        Err(Errno::PERM) => openat(blobs, &*path, flags, Mode::empty()),
        other => other,
    };
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => {
            unlinkat(blobs, &*path, AtFlags::empty())?;
            return Ok(Some((0, false)));
        }
        Err(error) => return Err(error.into()),
    };
    let stat = fstat(&file)?;
    let stamp = Stamp::of(&stat);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("is not a file; remove it"));
    }
    let is_whole = match Digest::of_reader(file) {
        Ok((found, _)) => found == *digest && Us::now().trusts(stat.st_uid),
        Err(error) if is_damage(&error) => false,
        Err(error) => return Err(error),
    };
    if !is_whole {
        // A host may have replaced the blob meanwhile.
        match statat(blobs, &*path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if Stamp::of(&stat) != stamp => return Ok(None),
            Ok(_) => unlinkat(blobs, &*path, AtFlags::empty())?,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some((stamp.size, is_whole)))
}
