//! Directories that must not lie in each other: what a task may write must hold nothing that the
//! host trusts.
//!
//! Two directories are compared as the file system has them: links are resolved, and a directory
//! that is mounted in two places is one. What is not there yet is where it will be made.

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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    /// The settings of a run in a directory of its own, and what is said of them.
    struct Here {
        root: tempfile::TempDir,
    }

    impl Here {
        fn new() -> Self {
            Self { root: tempfile::tempdir().unwrap() }
        }

        fn path(&self, name: &str) -> String {
            self.root.path().join(name).to_str().unwrap().to_owned()
        }

        /// Settings like `bucket=b queue=q`, the others being apart.
        fn config(&self, settings: &str) -> Config {
            let value = |name: &str| {
                let of =
                    |setting: &str| Some(setting.strip_prefix(name)?.strip_prefix('=')?.to_owned());
                settings.split(' ').find_map(of)
            };
            let path = |name: &str, default: &str| {
                let value = value(name).unwrap_or_else(|| default.to_owned());
                if value.contains("://") { value } else { self.path(&value) }
            };
            let optional = |name: &str| value(name).map(|value| self.path(&value));
            let fq =
                |path: String| if path.contains("://") { path } else { format!("fq://{path}") };
            Config {
                queue: fq(path("queue", "own/queue")),
                error_queue: fq(path("errors", "own/queue-errors")),
                done_queue: optional("done").map(fq),
                queue_access: Default::default(),
                bucket: path("bucket", "own/bucket"),
                input_bucket: optional("inputs"),
                bucket_access: task_host::bucket::Access::new(Default::default()),
                freshness: Duration::ZERO,
                components: optional("components").map(PathBuf::from),
                component_prefix: task_host::key::Prefix::root(),
                cache_dir: path("cache", "own/cache").into(),
                cache_size: bytesize::ByteSize::gib(1),
                parallel: 1,
                prefetch: None,
                prefetch_bytes: bytesize::ByteSize::gib(1),
                durable: false,
                lease: Duration::from_secs(300),
                limits: task_host::sandbox::Limits {
                    memory: bytesize::ByteSize::gib(1),
                    time: Duration::from_secs(1),
                    output_bytes: bytesize::ByteSize::gib(1),
                    output_files: 1,
                },
                policy: Default::default(),
                exit_when_empty: false,
                max_tasks: None,
                run_for: None,
                grace: Duration::ZERO,
            }
        }

        /// What is wrong with these settings, with names relative to the directory.
        fn problems(&self, settings: &str) -> Vec<String> {
            let root = format!("{}/", self.root.path().display());
            let told = overlaps(&self.config(settings)).into_iter();
            told.map(|overlap| overlap.problem.replace(&root, "")).collect()
        }

        #[track_caller]
        fn check(&self, settings: &str, want: &str) {
            let problems = self.problems(settings);
            if want.is_empty() {
                assert_eq!(problems, [""; 0], "{settings}");
            } else {
                assert!(
                    problems.iter().any(|problem| problem.contains(want)),
                    "{settings}: {problems:#?}"
                );
            }
        }
    }

    /// Every two of the directories, in each other in both ways; and whether that is refused.
    const PAIRS: &[(&str, &str)] = &[
        // The bucket, and all that no task may write.
        (
            "bucket=b cache=b/cache",
            "the cache b/cache is inside the bucket b: a task could write compiled code",
        ),
        ("bucket=b cache=b", "the bucket b is the same directory as the cache b"),
        ("bucket=c/compiled/x cache=c", "the bucket c/compiled/x is inside the cache c"),
        ("bucket=c/work cache=c", "the bucket c/work is inside the cache c"),
        ("bucket=c/blobs cache=c", "inside the cache c"),
        ("bucket=c/index cache=c", "inside the cache c"),
        ("bucket=c/tmp/a cache=c", "inside the cache c"),
        ("bucket=c/bucket cache=c", ""),
        (
            "bucket=b queue=b/queue",
            "the queue b/queue is inside the bucket b: a task could read, change and add messages",
        ),
        ("bucket=b queue=b", "the bucket b is the same directory as the queue b"),
        ("bucket=q/queue queue=q", "the bucket q/queue is inside the queue q"),
        ("bucket=q/movement/b queue=q", "is inside the queue q"),
        ("bucket=q/host queue=q", "is inside the queue q"),
        ("bucket=q/bucket queue=q", ""),
        (
            "bucket=b errors=b/errors",
            "the error queue b/errors is inside the bucket b: a task could read, change and add reports",
        ),
        ("bucket=b done=b/done", "the done queue b/done is inside the bucket b"),
        ("bucket=c components=c/components", ""),
        ("bucket=c components=c", ""),
        (
            "bucket=c/bucket components=c",
            "the bucket c/bucket is inside the directory of components c",
        ),
        // A bucket that is only read.
        (
            "inputs=i cache=i/cache",
            "the cache i/cache is inside the input bucket i: a task could read the inputs and outputs of others",
        ),
        ("inputs=i queue=i/queue", "a task could read the messages of others"),
        ("inputs=i errors=i/errors", "a task could read the reports of others"),
        ("inputs=i done=i/done", "a task could read the reports of others"),
        ("inputs=q/queue queue=q", "the input bucket q/queue is inside the queue q"),
        ("inputs=b bucket=b", ""),
        ("inputs=b/sub bucket=b", ""),
        ("inputs=i bucket=i/sub", ""),
        ("inputs=i components=i/components", ""),
        // Components.
        ("components=c cache=c/cache", "what a task writes while it runs would be components"),
        ("components=c/work/x cache=c", "is inside the cache c"),
        ("components=c/components cache=c", ""),
        ("components=c queue=c/queue", ""),
        // The cache and queues.
        (
            "cache=c queue=c/tmp/queue",
            "the queue c/tmp/queue is inside the cache c: the host removes",
        ),
        ("cache=c errors=c/work", "the error queue c/work is inside the cache c"),
        ("cache=c done=c/blobs/q", "is inside the cache c"),
        ("cache=q/queue queue=q", "the cache q/queue is inside the queue q"),
        ("cache=c queue=c/queue errors=c/errors", ""),
        ("cache=q/cache queue=q errors=q/errors", ""),
        ("cache=q queue=q", ""),
        // Queues among each other.
        (
            "queue=q errors=q",
            "the queue q is the same directory as the error queue q: reports would be leased as tasks",
        ),
        ("queue=q done=q", "the queue q is the same directory as the done queue q"),
        ("queue=q errors=q/queue", "the error queue q/queue is inside the queue q"),
        ("queue=e/movement errors=e", "the queue e/movement is inside the error queue e"),
        ("errors=e done=e/queue", "the done queue e/queue is inside the error queue e"),
        ("errors=r done=r", ""),
        ("queue=q errors=q/errors done=q/done", ""),
        // What people have.
        ("bucket=bucket queue=queue errors=queue-errors cache=home/.cache/task-host", ""),
        ("bucket=b queue=sqs://q errors=sqs://q-errors", ""),
        ("bucket=s3://b queue=q cache=c", ""),
        ("bucket=b queue=bb cache=bbb", ""),
    ];

    #[test]
    fn directories_that_lie_in_each_other_are_refused_where_that_does_harm() {
        for (settings, want) in PAIRS {
            Here::new().check(settings, want);
        }
        // The same with directories that are there.
        for (settings, want) in PAIRS {
            let here = Here::new();
            for setting in settings.split(' ').filter(|setting| !setting.contains("://")) {
                fs::create_dir_all(here.path(setting.split_once('=').unwrap().1)).unwrap();
            }
            here.check(settings, want);
        }
    }

    #[test]
    fn links_and_odd_names_hide_nothing() {
        let here = Here::new();
        for dir in ["data", "elsewhere"] {
            fs::create_dir(here.path(dir)).unwrap();
        }
        let link = |name: &str, to: &str| symlink(to, here.path(name)).unwrap();
        link("bucket", "data");
        link("to-nothing", "data/not-there-yet");
        link("to-a-link", "to-nothing");
        link("up", "elsewhere/../data/q");
        link("circle", "circle");
        link("data/cache", &here.path("elsewhere/cache"));
        let by_way = "by way of a link or a mount";
        for (settings, want) in [
            ("bucket=bucket queue=data/q", "the queue data/q is inside the bucket bucket"),
            ("bucket=bucket queue=data/q", by_way),
            ("bucket=data queue=to-nothing", by_way),
            ("bucket=data queue=to-a-link", by_way),
            ("bucket=data queue=up", by_way),
            ("bucket=data queue=data/../data/./q", "is inside the bucket data: "),
            ("bucket=elsewhere/../data/ queue=data/q//", "the queue"),
            ("bucket=data queue=nothing/../data/q", "is inside the bucket data: "),
            ("bucket=circle queue=circle/q", "is inside the bucket circle"),
            // A link in the bucket is no way for a task to the cache, unless the host works there.
            ("bucket=data cache=elsewhere/other", ""),
            (
                "bucket=elsewhere cache=data/cache",
                "the cache data/cache is inside the bucket elsewhere",
            ),
        ] {
            here.check(settings, want);
        }
    }

    #[test]
    fn a_directory_that_is_mounted_twice_is_one() {
        let here = Here::new();
        let root = here.root.path();
        fs::create_dir_all(root.join("data/deep/queue")).unwrap();
        fs::create_dir(root.join("mounted")).unwrap();
        // The deep directory is mounted on the other one, as the kernel would say it.
        let there = Mounts::read().stored(root).expect("a mount");
        let id = |path: &Path| {
            statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).unwrap().stx_mnt_id
        };
        let outer = id(root);
        let line = |id: u64, stored: &Path, point: &Path| {
            let escaped = |path: &Path| path.to_str().unwrap().replace(' ', "\\040");
            format!("{id} 1 {} {} {} rw - ext4 x rw\n", there.0, escaped(stored), escaped(point))
        };
        let mounts = line(outer, &there.1.join("data/deep"), &root.join("mounted"));
        let inner = Mounts::parse(mounts.as_bytes());
        let stored = inner.stored(&root.join("mounted/queue"));
        assert_eq!(stored, Some((there.0.clone(), there.1.join("data/deep/queue"))));

        let spot = |path: &str, mounts: &Mounts| Spot::of(&root.join(path), mounts);
        let queue = spot("mounted/queue", &inner);
        assert!(queue.is_in(&spot("data", &Mounts::read())), "{queue:?}");
        assert!(!queue.is_in(&spot("data/other", &Mounts::read())));
        assert_eq!(unescape(br"/a\040b\134\011c\0"), Path::new("/a b\\\tc\\0"));
    }
}
