//! Every two of the directories of a run, in each other in every way.

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
        let fq = |path: String| if path.contains("://") { path } else { format!("fq://{path}") };
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
                open_files: 10,
            },
            compile_limits: task_host::catalog::CompileLimits {
                memory: bytesize::ByteSize::gib(1),
                time: Duration::from_secs(1),
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
    ("bucket=c/bucket components=c", "the bucket c/bucket is inside the directory of components c"),
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
    ("cache=c queue=c/tmp/queue", "the queue c/tmp/queue is inside the cache c: the host removes"),
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
    let id =
        |path: &Path| statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).unwrap().stx_mnt_id;
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
