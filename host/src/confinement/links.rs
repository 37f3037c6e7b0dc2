//! Where the links in a directory bucket lead.
//!
//! A bucket may have links to other places, and the host follows them. Most are near the root of
//! the bucket, made when it was set up. Those are found; a place that only a deeper link leads to
//! has to be named.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

/// How deep below the root links are looked for.
const DEPTH: usize = 3;
/// How many entries are looked at.
const ENTRIES: usize = 4096;

/// The places outside of the bucket that links in it lead to.
pub(super) fn targets(bucket: &Path) -> Vec<PathBuf> {
    let Ok(root) = fs::canonicalize(bucket) else { return Vec::new() };
    let mut found = Vec::new();
    let mut left = ENTRIES;
    let mut dirs = VecDeque::from([(root.clone(), 1)]);
    while let Some((dir, depth)) = dirs.pop_front() {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten().take(left);
        for entry in entries {
            left -= 1;
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < DEPTH {
                dirs.push_back((entry.path(), depth + 1));
            }
            if kind.is_symlink()
                && let Ok(target) = fs::canonicalize(entry.path())
                && !target.starts_with(&root)
            {
                found.push(target);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_near_the_root_are_found() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let bucket = root.join("bucket");
        fs::create_dir_all(bucket.join("a/b/c")).unwrap();
        fs::create_dir(root.join("data")).unwrap();
        let link = |at: &str, to: &str| std::os::unix::fs::symlink(to, bucket.join(at)).unwrap();
        link("a/b/data", "../../../data");
        link("a/inside", "b");
        link("nowhere", "gone");
        assert_eq!(targets(&bucket), [root.join("data")]);
        link("a/b/c/too-deep", "/usr");
        assert_eq!(targets(&bucket), [root.join("data")]);
    }
}
