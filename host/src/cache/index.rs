//! What the digest of a remote object was, across restarts: `index/ab/abcd…`, one small file
//! for each key.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Source;
use crate::bucket::Version;
use crate::digest::Digest;

#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    bucket: String,
    key: String,
    tag: String,
    size: u64,
    digest: Digest,
}

impl Index {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The version of the object that was fetched last, and its digest.
    pub(super) fn get(&self, source: &Source) -> Option<(Version, Digest)> {
        let Entry { bucket, key, tag, size, digest } = read(&self.file(source))?;
        let same = bucket == source.bucket && key == source.key.as_str();
        same.then_some((Version { tag, size }, digest))
    }

    /// Remembers a digest. `tmp` is a name that is free for a file that is renamed.
    pub(super) fn put(
        &self,
        source: &Source,
        version: &Version,
        digest: Digest,
        tmp: &Path,
    ) -> io::Result<()> {
        let entry = Entry {
            bucket: source.bucket.clone(),
            key: source.key.to_string(),
            tag: version.tag.clone(),
            size: version.size,
            digest,
        };
        std::fs::write(tmp, serde_json::to_vec(&entry)?)?;
        let file = self.file(source);
        match std::fs::rename(tmp, &file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(shard) = file.parent() {
                    std::fs::create_dir_all(shard)?;
                }
                std::fs::rename(tmp, &file)
            }
            other => other,
        }
    }

    /// Removes the entries whose blob is gone.
    pub(super) fn prune(&self, is_there: impl Fn(&Digest) -> bool) {
        let Ok(shards) = std::fs::read_dir(&self.path) else { return };
        for shard in shards.flatten() {
            let Ok(files) = std::fs::read_dir(shard.path()) else { continue };
            for file in files.flatten() {
                // What can't be read is no entry.
                if !read(&file.path()).is_some_and(|entry| is_there(&entry.digest)) {
                    let _ = std::fs::remove_file(file.path());
                }
            }
        }
    }

    fn file(&self, source: &Source) -> PathBuf {
        let name = Digest::of(format!("{}\0{}", source.bucket, source.key).as_bytes()).to_string();
        self.path.join(&name[..2]).join(name)
    }
}

fn read(path: &Path) -> Option<Entry> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
