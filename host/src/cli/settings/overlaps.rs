//! Finds settings that would let tasks reach files that the host trusts: directories inside each
//! other, and a bucket for messages that overlaps with the data.
//!
//! Directories are compared by their location on disk, so symbolic links and mounts are followed. A
//! directory that does not exist yet has the location where the host would create it.

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::stat;
use task_host::cache;
use task_host::config::{Config, DataSettings, QueueSettings};
use task_host::system;

use super::super::exit_code::Advice;

/// The entries of a queue's directory that contain its state.
const QUEUE_PARTS: [&str; 6] = ["queue", "movement", "host", "hosts", "insertions", "completions"];
/// The entries of a cache's directory.
const CACHE_PARTS: [&str; 5] = {
    let [blobs, index, tmp, work] = cache::PARTS;
    [blobs, index, tmp, work, cache::COMPILED]
};
/// The maximum number of symbolic links to follow in one path: the kernel's limit.
const MOST_LINKS: usize = 40;

/// The purpose of a directory.
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

    /// The entries that must not overlap with other directories. Other entries do not matter.
    fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Bucket | Self::Inputs | Self::Components => &[""],
            Self::Cache => &CACHE_PARTS,
            Self::Queue | Self::Errors | Self::Done => &QUEUE_PARTS,
        }
    }
}

/// The harm of an overlap of two directories, if there is any.
fn harm(one: Role, other: Role, relation: Relation) -> Option<&'static str> {
    use Role::*;
    Some(match (one, other) {
        (Bucket, Cache) => {
            "a task could write compiled code, which runs outside the sandbox, and change the \
             inputs of other tasks"
        }
        (Bucket, Queue) => "a task could read, change and add messages",
        (Bucket, Errors | Done) => "a task could read, change and add reports",
        (Inputs, Cache) => "a task could read the inputs and outputs of other tasks",
        (Inputs, Queue) => "a task could read the messages of other tasks",
        (Inputs, Errors | Done) => "a task could read the reports of other tasks",
        // A directory of components inside the bucket is safe: tasks may not write to its keys.
        (Bucket, Components) if relation == Relation::Inside => {
            "a task could write components there"
        }
        (Components, Cache) => "files of running tasks could become components",
        (Cache, Queue | Errors | Done) => {
            "the host would remove messages when it evicts from its cache"
        }
        (Queue, Errors | Done) if relation == Relation::Same => {
            "the host would lease reports as tasks"
        }
        (Queue, Errors | Done) | (Errors, Done) if relation != Relation::Same => {
            "files of one would be read as messages of the other"
        }
        _ => return None,
    })
}

/// The position of one directory relative to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Same,
    Inside,
    Around,
}

/// Two directories that must not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overlap {
    /// A description of the directories and the harm.
    pub(crate) problem: String,
    /// How to fix it.
    pub(crate) cure: String,
}

/// Compares all pairs of directories that a host would use. Creates nothing.
pub(crate) fn overlaps(config: &Config) -> Vec<Overlap> {
    let data = &config.data;
    let directories = [
        (Role::Bucket, data.bucket.path()),
        (Role::Inputs, data.input_bucket.as_ref().and_then(|bucket| bucket.path())),
        (Role::Components, data.components.as_deref()),
        (Role::Cache, Some(&*config.cache.dir)),
        (Role::Queue, config.queue.directory()),
        (Role::Errors, config.error_queue.directory()),
        (Role::Done, config.done_queue.as_ref().and_then(|queue| queue.directory())),
    ];
    let mounts = Mounts::read();
    let directories: Vec<Directory> = directories
        .into_iter()
        .filter_map(|(role, path)| Some(Directory::new(role, path?.to_owned(), &mounts)))
        .collect();
    let mut found = Vec::new();
    for (n, one) in directories.iter().enumerate() {
        found.extend(directories[n + 1..].iter().filter_map(|other| one.overlap(other)));
    }
    found
}

/// Checks that the bucket for large messages does not overlap with the data: an output of a task
/// must not become a message, and a message must not point to data.
pub(super) fn check_message_bucket(
    queue: &QueueSettings,
    data: &DataSettings,
) -> Result<(), Advice> {
    let Some(messages) = &queue.message_bucket else { return Ok(()) };
    let buckets = [("bucket", Some(&data.bucket)), ("input-bucket", data.input_bucket.as_ref())];
    for (name, bucket) in buckets {
        if let Some(bucket) = bucket.filter(|bucket| messages.overlaps(bucket)) {
            return Err(Advice::usage(format!(
                "--message-bucket {messages} and --{name} {bucket} overlap: tasks could read and \
                 replace messages, and a message could have data deleted"
            ))
            .hint(
                "use two buckets, or two prefixes: --bucket s3://BUCKET/data --message-bucket \
                 s3://BUCKET/messages",
            ));
        }
    }
    Ok(())
}

/// Checks that the logs of tasks do not overlap with the components in the bucket.
pub(super) fn check_logs(data: &DataSettings) -> Result<(), Advice> {
    let Some(logs) = data.logs.as_ref().filter(|_| data.components.is_none()) else {
        return Ok(());
    };
    let components = &data.component_prefix;
    let [inner, outer] = [logs, components].map(|prefix| format!("{}/", prefix.as_str()));
    if !inner.starts_with(&outer) && !outer.starts_with(&inner) {
        return Ok(());
    }
    Err(Advice::usage(format!(
        "--logs {logs} and --component-prefix {components} overlap: the logs of tasks would be among \
         the components"
    ))
    .hint("choose another prefix for the logs, such as --logs logs"))
}

/// A directory that a setting names.
struct Directory {
    role: Role,
    named: PathBuf,
    whole: Location,
    parts: Vec<Location>,
}

impl Directory {
    fn new(role: Role, named: PathBuf, mounts: &Mounts) -> Self {
        let location = |part: &&str| Location::of(&named.join(part), mounts);
        let parts = role.parts().iter().map(location).collect();
        Self { role, whole: Location::of(&named, mounts), parts, named }
    }

    fn overlap(&self, other: &Self) -> Option<Overlap> {
        let relation = self.relation(other)?;
        let why = harm(self.role, other.role, relation)?;
        let ((this, that), how) = match relation {
            Relation::Same => ((self, other), "is the same directory as"),
            Relation::Inside => ((self, other), "is inside"),
            Relation::Around => ((other, self), "is inside"),
        };
        let is_seen = lexical(&this.named).starts_with(lexical(&that.named));
        let way = if is_seen { "" } else { ", through a link or a mount" };
        Some(Overlap {
            problem: format!(
                "{} {} {how} {} {}{way}: {why}",
                this.role.name(),
                this.named.display(),
                that.role.name(),
                that.named.display()
            ),
            cure: format!(
                "use two separate directories: change {} or {}",
                this.role.flag(),
                that.role.flag()
            ),
        })
    }

    /// How the directories overlap. None if no entries that matter overlap.
    fn relation(&self, other: &Self) -> Option<Relation> {
        let any = |is: fn(&Location, &Location) -> bool| {
            self.parts.iter().any(|part| other.parts.iter().any(|theirs| is(part, theirs)))
        };
        let is_same = self.whole.is_in(&other.whole) && other.whole.is_in(&self.whole);
        let relation = if any(|part, theirs| part.is_in(theirs)) {
            Relation::Inside
        } else if any(|part, theirs| theirs.is_in(part)) {
            Relation::Around
        } else {
            return None;
        };
        Some(if is_same { Relation::Same } else { relation })
    }
}

/// The location of a path, which may not exist yet.
#[derive(Debug)]
struct Location {
    /// The path without symbolic links.
    path: PathBuf,
    /// Device and inode of the path, if it exists, and of each existing directory above it.
    ids: Vec<(u64, u64)>,
    is_there: bool,
    /// The file system, and the path inside it, regardless of the mount point.
    stored: Option<(String, PathBuf)>,
}

impl Location {
    fn of(path: &Path, mounts: &Mounts) -> Self {
        let path = resolve(path, MOST_LINKS);
        let id = |path: &Path| stat(path).ok().map(|stat| system::place(&stat));
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

/// The absolute path without `.` and `..`. Does not follow links.
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

/// The absolute path with links resolved. The path need not exist.
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
    /// The mounted directory of the file system.
    root: PathBuf,
    /// The mount point.
    point: PathBuf,
}

impl Mounts {
    fn read() -> Self {
        Self::parse(&fs::read("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Parses lines `ID PARENT DEVICE ROOT POINT …`: see proc_pid_mountinfo(5).
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

    /// The file system and the path inside it where a path without links is or will be stored.
    fn stored(&self, path: &Path) -> Option<(String, PathBuf)> {
        let there = path.ancestors().find(|path| path.symlink_metadata().is_ok())?;
        let id = system::mount_of(there)?;
        let mount = self.0.iter().find(|mount| mount.id == id)?;
        let below = path.strip_prefix(&mount.point).ok()?;
        Some((mount.device.clone(), mount.root.join(below)))
    }
}

/// Decodes a path in which the kernel wrote some characters in octal, such as `\040`.
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
