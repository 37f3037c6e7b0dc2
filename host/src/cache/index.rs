//! Keeps the digests of remote objects across restarts: `index/ab/abcd…`, one small file per key.
//! An unreadable entry counts as missing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::ObjectId;
use super::directories::{OpenDirs, create};
use crate::bucket::Version;
use crate::digest::Digest;
use crate::fault::{self, Step};
use crate::ownership::{self, Us};

/// How often to make an entry's directory while another process removes it.
const TRIES: usize = 3;
/// The largest entry in bytes: a name, a version and a digest.
const LARGEST: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    us: Us,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    bucket: String,
    key: String,
    tag: String,
    size: u64,
    digest: Digest,
}

impl Index {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, us: Us::now() }
    }

    /// The version and digest of the object when it was last fetched.
    pub(super) fn get(&self, source: &ObjectId) -> Option<(Version, Digest)> {
        let Entry { bucket, key, tag, size, digest } = read(&self.file(source), self.us)?;
        let same = bucket == source.bucket && key == source.key.as_str();
        same.then_some((Version { tag, size }, digest))
    }

    /// Stores a digest. `tmp` is an unused name in the directory `tmp`.
    pub(super) fn put(
        &self,
        source: &ObjectId,
        version: &Version,
        digest: Digest,
        open: &OpenDirs,
        tmp: &str,
    ) -> io::Result<()> {
        let entry = Entry {
            bucket: source.bucket.clone(),
            key: source.key.to_string(),
            tag: version.tag.clone(),
            size: version.size,
            digest,
        };
        let entry = serde_json::to_vec(&entry)?;
        fault::shortage(Step::StoreIndex)?;
        let mut file = File::from(create(open.tmp.dir(), tmp)?);
        let put = file.write_all(&entry).and_then(|()| self.rename(open, tmp, &self.file(source)));
        if put.is_err() {
            let _ = unlinkat(open.tmp.dir(), tmp, AtFlags::empty());
        }
        put
    }

    /// Renames an entry into place. Removes whatever is there, and makes the entry's directory if
    /// needed.
    fn rename(&self, open: &OpenDirs, tmp: &str, file: &Path) -> io::Result<()> {
        let shard = file.parent().unwrap_or(&self.path);
        for _ in 0..TRIES {
            match renameat(open.tmp.dir(), tmp, CWD, file) {
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR) => std::fs::remove_file(shard)?,
                Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                    std::fs::remove_dir_all(file)?;
                }
                other => return Ok(other?),
            }
            ownership::make_private(shard)?;
        }
        Ok(renameat(open.tmp.dir(), tmp, CWD, file)?)
    }

    /// Calls `each` with the bucket, the key and the digest of every entry.
    pub(super) fn each(&self, mut each: impl FnMut(&str, &str, Digest)) {
        let Ok(shards) = std::fs::read_dir(&self.path) else { return };
        for shard in shards.flatten() {
            let Ok(files) = std::fs::read_dir(shard.path()) else { continue };
            for Entry { bucket, key, digest, .. } in
                files.flatten().filter_map(|file| read(&file.path(), self.us))
            {
                each(&bucket, &key, digest);
            }
        }
    }

    /// Removes unreadable entries and those whose blob is gone.
    pub(super) fn prune(&self, is_there: impl Fn(&Digest) -> bool) -> Pruned {
        let mut pruned = Pruned::default();
        let Ok(shards) = std::fs::read_dir(&self.path) else { return pruned };
        for shard in shards.flatten() {
            let Ok(files) = std::fs::read_dir(shard.path()) else { continue };
            for file in files.flatten() {
                pruned.seen += 1;
                match read(&file.path(), self.us) {
                    Some(entry) if is_there(&entry.digest) => continue,
                    Some(_) => {}
                    None => pruned.damaged += 1,
                }
                let _ = std::fs::remove_file(file.path());
            }
        }
        pruned
    }

    fn file(&self, source: &ObjectId) -> PathBuf {
        let name = Digest::of(format!("{}\0{}", source.bucket, source.key).as_bytes()).to_string();
        self.path.join(&name[..2]).join(name)
    }
}

/// Counts of index entries.
#[derive(Debug, Default)]
pub(super) struct Pruned {
    pub(super) seen: u64,
    /// Unreadable entries.
    pub(super) damaged: u64,
}

/// Reads an entry. Ignores an entry of another user, who could otherwise choose the bytes of an
/// input.
fn read(path: &Path, us: Us) -> Option<Entry> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::empty()).ok()?);
    let meta = file.metadata().ok()?;
    if !meta.is_file() || !us.trusts(meta.uid()) || meta.len() > LARGEST {
        return None;
    }
    let mut entry = Vec::with_capacity(meta.len() as usize + 1);
    file.take(LARGEST).read_to_end(&mut entry).ok()?;
    parse(&entry)
}

/// Parses the text of an entry.
pub(super) fn parse(text: &[u8]) -> Option<Entry> {
    serde_json::from_slice(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::BucketKey;

    #[test]
    fn an_entry_that_is_too_long_or_not_a_file_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::new(dir.path().to_owned());
        let source = ObjectId { bucket: "b".to_owned(), key: BucketKey::new("k").unwrap() };
        let file = index.file(&source);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let digest = Digest::of(b"bytes");
        let (bucket, key) = (source.bucket.clone(), source.key.to_string());
        let entry = Entry { bucket, key, tag: "t".to_owned(), size: 5, digest };
        let entry = serde_json::to_string(&entry).unwrap();
        let padded = |len: usize| entry.clone() + &" ".repeat(len - entry.len());
        std::fs::write(&file, padded(LARGEST as usize)).unwrap();
        assert_eq!(index.get(&source).map(|(_, digest)| digest), Some(digest));
        std::fs::write(&file, padded(LARGEST as usize + 1)).unwrap();
        assert!(index.get(&source).is_none());
        std::fs::remove_file(&file).unwrap();
        // Opening a FIFO would wait for a writer.
        rustix::fs::mkfifoat(CWD, &file, Mode::RUSR | Mode::WUSR).unwrap();
        assert!(index.get(&source).is_none());
        std::fs::remove_file(&file).unwrap();
        std::fs::write(dir.path().join("elsewhere"), &entry).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &file).unwrap();
        assert!(index.get(&source).is_none());
    }
}
