//! Finds the targets of links in a directory bucket.
//!
//! A bucket may have links to other directories, and the host follows them. Most links are near the
//! root of the bucket, where they were made when the bucket was set up. This module finds these.
//! The user must name the targets of deeper links.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

/// The levels of directories that are searched for links.
const DEPTH: usize = 3;
/// The most entries that are searched.
const ENTRIES: usize = 4096;

/// The targets of the bucket's links that are outside the bucket.
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
