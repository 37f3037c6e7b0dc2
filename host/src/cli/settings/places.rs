//! Directories that must not lie in each other: what a task may write must hold nothing that the
//! host trusts.
//!
//! Two directories are compared as the file system has them: links are resolved, and a directory
//! that is mounted in two places is one. What is not there yet is where it will be made.

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, stat, statx};
use task_host::cache;
use task_host::config::Config;

use super::fq_path;

/// Where a queue keeps its messages and what it knows of them.
const QUEUE_PARTS: [&str; 5] = ["queue", "movement", "host", "insertions", "completions"];
/// What the host makes in a cache.
const CACHE_PARTS: [&str; 5] = {
    let [blobs, index, tmp, work] = cache::PARTS;
    [blobs, index, tmp, work, cache::COMPILED]
};
/// Links on one way that are followed, as the kernel has it.
const MOST_LINKS: usize = 40;

/// What a directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Bucket,
    Inputs,
    Components,
    Cache,
    Queue,
    Errors,
    Done,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Bucket => "the bucket",
            Self::Inputs => "the input bucket",
            Self::Components => "the directory of components",
            Self::Cache => "the cache",
            Self::Queue => "the queue",
            Self::Errors => "the error queue",
            Self::Done => "the done queue",
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::Bucket => "--bucket",
            Self::Inputs => "--input-bucket",
            Self::Components => "--components",
            Self::Cache => "--cache-dir",
            Self::Queue => "--queue",
            Self::Errors => "--error-queue",
            Self::Done => "--done-queue",
        }
    }

    /// The parts of such a directory that matter. Beside them there may be anything.
    fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Bucket | Self::Inputs | Self::Components => &[""],
            Self::Cache => &CACHE_PARTS,
            Self::Queue | Self::Errors | Self::Done => &QUEUE_PARTS,
        }
    }
}

/// What comes of two directories that lie in each other. None if that does no harm.
fn harm(one: Role, other: Role, lie: Lie) -> Option<&'static str> {
    use Role::*;
    Some(match (one, other) {
        (Bucket, Cache) => {
            "a task could write compiled code there, which runs outside of the sandbox, and change \
             what other tasks read"
        }
        (Bucket, Queue) => "a task could read, change and add messages",
        (Bucket, Errors | Done) => "a task could read, change and add reports",
        (Inputs, Cache) => "a task could read the inputs and outputs of others",
        (Inputs, Queue) => "a task could read the messages of others",
        (Inputs, Errors | Done) => "a task could read the reports of others",
        // A component that lies in the bucket is protected by its key.
        (Bucket, Components) if lie == Lie::Inside => {
            "a task could write components there, for tasks whose names say the way to it"
        }
        (Components, Cache) => "what a task writes while it runs would be components",
        (Cache, Queue | Errors | Done) => {
            "the host removes from its cache what is not in use, and the messages with it"
        }
        (Queue, Errors | Done) if lie == Lie::Same => "reports would be leased as tasks",
        (Queue, Errors | Done) | (Errors, Done) if lie != Lie::Same => {
            "the files of one would be taken for messages of the other"
        }
        _ => return None,
    })
}

/// How one directory lies to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    Same,
    Inside,
    Around,
}

/// Two directories that must be apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overlap {
    /// Which, and what would come of it.
    pub(crate) problem: String,
    /// What to do about it.
    pub(crate) cure: String,
}

/// Looks at every two of the directories that a run would use. Makes nothing.
pub(crate) fn overlaps(config: &Config) -> Vec<Overlap> {
    let directories = [
        (Role::Bucket, bucket_path(&config.bucket)),
        (Role::Inputs, config.input_bucket.as_deref().and_then(bucket_path)),
        (Role::Components, config.components.clone()),
        (Role::Cache, Some(config.cache_dir.clone())),
        (Role::Queue, fq_path(&config.queue)),
        (Role::Errors, fq_path(&config.error_queue)),
        (Role::Done, config.done_queue.as_deref().and_then(fq_path)),
    ];
    let mounts = Mounts::read();
    let places: Vec<Place> = directories
        .into_iter()
        .filter_map(|(role, path)| Some(Place::new(role, path?, &mounts)))
        .collect();
    let mut found = Vec::new();
    for (n, one) in places.iter().enumerate() {
        found.extend(places[n + 1..].iter().filter_map(|other| one.overlap(other)));
    }
    found
}

/// The directory of a bucket's URL.
fn bucket_path(url: &str) -> Option<PathBuf> {
    match url.split_once("://") {
        None => Some(PathBuf::from(url)),
        Some(("file", path)) => Some(PathBuf::from(path)),
        Some(_) => None,
    }
}

/// A directory that a setting names.
struct Place {
    role: Role,
    named: PathBuf,
    whole: Spot,
    parts: Vec<Spot>,
}

impl Place {
    fn new(role: Role, named: PathBuf, mounts: &Mounts) -> Self {
        let spot = |part: &&str| Spot::of(&named.join(part), mounts);
        let parts = role.parts().iter().map(spot).collect();
        Self { role, whole: Spot::of(&named, mounts), parts, named }
    }

    fn overlap(&self, other: &Self) -> Option<Overlap> {
        let lie = self.lie(other)?;
        let why = harm(self.role, other.role, lie)?;
        let ((this, that), how) = match lie {
            Lie::Same => ((self, other), "is the same directory as"),
            Lie::Inside => ((self, other), "is inside"),
            Lie::Around => ((other, self), "is inside"),
        };
        let is_seen = lexical(&this.named).starts_with(lexical(&that.named));
        let way = if is_seen { "" } else { ", by way of a link or a mount" };
        Some(Overlap {
            problem: format!(
                "{} {} {how} {} {}{way}: {why}",
                this.role.name(),
                this.named.display(),
                that.role.name(),
                that.named.display()
            ),
            cure: format!(
                "give them directories beside each other, with {} or {}",
                this.role.flag(),
                that.role.flag()
            ),
        })
    }

    /// How the directory lies to another one, if a part of one matters to a part of the other.
    fn lie(&self, other: &Self) -> Option<Lie> {
        let any = |is: fn(&Spot, &Spot) -> bool| {
            self.parts.iter().any(|part| other.parts.iter().any(|theirs| is(part, theirs)))
        };
        let is_same = self.whole.is_in(&other.whole) && other.whole.is_in(&self.whole);
        let lie = if any(|part, theirs| part.is_in(theirs)) {
            Lie::Inside
        } else if any(|part, theirs| theirs.is_in(part)) {
            Lie::Around
        } else {
            return None;
        };
        Some(if is_same { Lie::Same } else { lie })
    }
}

/// A place in the file systems, whether or not something is there yet.
#[derive(Debug)]
struct Spot {
    /// Without links.
    path: PathBuf,
    /// Device and inode of what is there, and of the directories above.
    ids: Vec<(u64, u64)>,
    is_there: bool,
    /// The file system, and the path in it, wherever it is mounted.
    stored: Option<(String, PathBuf)>,
}

impl Spot {
    fn of(path: &Path, mounts: &Mounts) -> Self {
        let path = resolve(path, MOST_LINKS);
        let id = |path: &Path| stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let ids = path.ancestors().filter_map(id).collect();
        let stored = mounts.stored(&path);
        Self { is_there: id(&path).is_some(), ids, stored, path }
    }

    fn is_in(&self, other: &Self) -> bool {
        let is_stored_in = match (&self.stored, &other.stored) {
            (Some((here, path)), Some((there, above))) => here == there && path.starts_with(above),
            _ => false,
        };
        let above = other.ids.first().filter(|_| other.is_there);
        self.path.starts_with(&other.path)
            || is_stored_in
            || above.is_some_and(|above| self.ids.contains(above))
    }
}

/// An absolute path without `.` and `..`, links not looked at.
fn lexical(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// Where a path leads, with the links on its way resolved, also if there is nothing yet.
fn resolve(path: &Path, links: usize) -> PathBuf {
    if let Ok(resolved) = path.canonicalize() {
        return resolved;
    }
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return lexical(&path);
    };
    let parent = resolve(parent, links);
    match fs::read_link(parent.join(name)) {
        Ok(target) if links > 0 => resolve(&parent.join(target), links - 1),
        _ => parent.join(name),
    }
}

/// The mounts of this process.
struct Mounts(Vec<Mount>);

struct Mount {
    id: u64,
    device: String,
    /// What of the file system is mounted.
    root: PathBuf,
    /// And where.
    point: PathBuf,
}

impl Mounts {
    fn read() -> Self {
        Self::parse(&fs::read("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Lines `ID PARENT DEVICE ROOT POINT …`, as proc_pid_mountinfo(5) has it.
    fn parse(text: &[u8]) -> Self {
        let mount = |line: &[u8]| {
            let mut fields = line.split(|byte| *byte == b' ');
            let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            let device = String::from_utf8(fields.nth(1)?.to_owned()).ok()?;
            Some(Mount {
                id,
                device,
                root: unescape(fields.next()?),
                point: unescape(fields.next()?),
            })
        };
        Self(text.split(|byte| *byte == b'\n').filter_map(mount).collect())
    }

    /// Where a path without links is stored, or will be.
    fn stored(&self, path: &Path) -> Option<(String, PathBuf)> {
        let there = path.ancestors().find(|path| path.symlink_metadata().is_ok())?;
        let id = statx(CWD, there, AtFlags::empty(), StatxFlags::MNT_ID).ok()?.stx_mnt_id;
        let mount = self.0.iter().find(|mount| mount.id == id)?;
        let below = path.strip_prefix(&mount.point).ok()?;
        Some((mount.device.clone(), mount.root.join(below)))
    }
}

/// A path in which the kernel has written some characters as `\040`.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}
