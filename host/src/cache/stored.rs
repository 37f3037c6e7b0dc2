//! Lists the files in a cache directory, and removes some of them. Hosts may be using the cache:
//! they fetch removed files again.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use super::index::Index;
use super::{CacheError, PARTS};
use crate::digest::Digest;
use crate::ownership;

/// A file in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The SHA-256 of its bytes; for compiled code, the SHA-256 of the component.
    pub digest: Digest,
    /// Its size on disk in bytes.
    pub bytes: u64,
    /// When a host last used it.
    pub used: SystemTime,
    /// The URLs of the objects of remote buckets that had these bytes when they were last fetched.
    pub objects: Vec<String>,
}

/// The inputs and components in the cache in `dir`, the most recently used first. Empty if no host
/// has used the cache yet.
///
/// # Errors
/// [`CacheError::Local`] when its directories can't be listed.
pub fn stored(dir: &Path) -> Result<Vec<Stored>, CacheError> {
    ownership::check(dir, &PARTS)
        .map_err(|not_ours| CacheError::local(dir, "opening it", io::Error::other(not_ours)))?;
    let mut objects: HashMap<Digest, Vec<String>> = HashMap::new();
    Index::new(dir.join("index")).each(|bucket, key, digest| {
        let url = format!("{}/{key}", bucket.trim_end_matches('/'));
        objects.entry(digest).or_default().push(url);
    });
    let mut found = match files(&dir.join("blobs")) {
        // No host has used the cache yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        found => found.map_err(|error| CacheError::local(dir, "listing its blobs", error))?,
    };
    for file in &mut found {
        file.objects = objects.remove(&file.digest).unwrap_or_default();
        file.objects.sort();
    }
    found.sort_by_key(|file| Reverse(file.used));
    Ok(found)
}

/// Removes an input or a component from the cache in `dir`, if it is there.
///
/// # Errors
/// [`CacheError::Local`] when the file can't be removed.
pub fn remove_stored(dir: &Path, digest: &Digest) -> Result<(), CacheError> {
    match fs::remove_file(dir.join("blobs").join(super::blobs::path(digest))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CacheError::local(dir, "removing a blob", error))
        }
        _ => Ok(()),
    }
}

/// The files `ab/abcd…` below a directory. Their names are digests, optionally with a suffix after
/// a dot.
fn files(dir: &Path) -> io::Result<Vec<Stored>> {
    let mut found = Vec::new();
    for shard in fs::read_dir(dir)? {
        let shard = shard?;
        if !shard.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(shard.path())? {
            found.extend(of_file(&file?.path()));
        }
    }
    Ok(found)
}

/// A file of the cache. `None` if the file does not exist, or its name is not a digest.
pub(crate) fn of_file(path: &Path) -> Option<Stored> {
    let name = path.file_name()?.to_str()?;
    let digest = name.split('.').next()?.parse().ok()?;
    let meta = path.symlink_metadata().ok().filter(fs::Metadata::is_file)?;
    let used = meta.accessed().or_else(|_| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    Some(Stored { digest, bytes: meta.blocks() * 512, used, objects: Vec::new() })
}
