//! Tests of all pairs of a host's directories, with each inside the other.

use std::os::unix::fs::symlink;

use clap::{Args, FromArgMatches};

use super::*;

/// A temporary directory that the settings of a test are relative to.
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

    /// The configuration for settings such as `bucket=b queue=q`. Directories that are not named do
    /// not overlap with others.
    fn config(&self, settings: &str) -> Config {
        let flags = [
            ("queue", "queue", Some("own/queue")),
            ("errors", "error-queue", Some("own/queue-errors")),
            ("done", "done-queue", None),
            ("bucket", "bucket", Some("own/bucket")),
            ("inputs", "input-bucket", None),
            ("components", "components", None),
            ("cache", "cache-dir", Some("own/cache")),
        ];
        let flag = |(name, flag, default): (&str, &str, Option<&str>)| {
            let value =
                |setting: &str| setting.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
            let value = settings.split(' ').find_map(value).or(default.map(str::to_owned))?;
            let value = if value.contains("://") { value } else { self.path(&value) };
            Some(format!("--{flag}={value}"))
        };
        let line = flags.into_iter().filter_map(flag);
        let command = Config::augment_args(clap::Command::new("host").no_binary_name(true));
        Config::from_arg_matches(&command.get_matches_from(line)).unwrap()
    }

    /// The problems of these settings, with paths relative to the directory.
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

/// Settings of directories, and the expected problem. An empty text means that they are accepted.
const PAIRS: &[(&str, &str)] = &[
    // The bucket, and directories that tasks must not write to.
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
    // The bucket for inputs.
    (
        "inputs=i cache=i/cache",
        "the cache i/cache is inside the input bucket i: a task could read the inputs and outputs of other tasks",
    ),
    ("inputs=i queue=i/queue", "a task could read the messages of other tasks"),
    ("inputs=i errors=i/errors", "a task could read the reports of other tasks"),
    ("inputs=i done=i/done", "a task could read the reports of other tasks"),
    ("inputs=q/queue queue=q", "the input bucket q/queue is inside the queue q"),
    ("inputs=b bucket=b", ""),
    ("inputs=b/sub bucket=b", ""),
    ("inputs=i bucket=i/sub", ""),
    ("inputs=i components=i/components", ""),
    // Components.
    ("components=c cache=c/cache", "files of running tasks could become components"),
    ("components=c/work/x cache=c", "is inside the cache c"),
    ("components=c/components cache=c", ""),
    ("components=c queue=c/queue", ""),
    // The cache and queues.
    (
        "cache=c queue=c/tmp/queue",
        "the queue c/tmp/queue is inside the cache c: the host would remove",
    ),
    ("cache=c errors=c/work", "the error queue c/work is inside the cache c"),
    ("cache=c done=c/blobs/q", "is inside the cache c"),
    ("cache=q/queue queue=q", "the cache q/queue is inside the queue q"),
    ("cache=c queue=c/queue errors=c/errors", ""),
    ("cache=q/cache queue=q errors=q/errors", ""),
    ("cache=q queue=q", ""),
    // Two queues.
    (
        "queue=q errors=q",
        "the queue q is the same directory as the error queue q: the host would lease reports as tasks",
    ),
    ("queue=q done=q", "the queue q is the same directory as the done queue q"),
    ("queue=q errors=q/queue", "the error queue q/queue is inside the queue q"),
    ("queue=e/movement errors=e", "the queue e/movement is inside the error queue e"),
    ("errors=e done=e/queue", "the done queue e/queue is inside the error queue e"),
    ("errors=r done=r", ""),
    ("queue=q errors=q/errors done=q/done", ""),
    // Common layouts.
    ("bucket=bucket queue=queue errors=queue-errors cache=home/.cache/task-host", ""),
    ("bucket=b queue=sqs://q errors=sqs://q-errors", ""),
    ("bucket=s3://b queue=q cache=c", ""),
    ("bucket=b queue=bb cache=bbb", ""),
];

#[test]
fn directories_inside_each_other_are_refused_if_that_does_harm() {
    for (settings, want) in PAIRS {
        Here::new().check(settings, want);
    }
    // The same with existing directories.
    for (settings, want) in PAIRS {
        let here = Here::new();
        for setting in settings.split(' ').filter(|setting| !setting.contains("://")) {
            fs::create_dir_all(here.path(setting.split_once('=').unwrap().1)).unwrap();
        }
        here.check(settings, want);
    }
}

#[test]
fn links_and_odd_paths_hide_no_overlap() {
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
    let through = "through a link or a mount";
    for (settings, want) in [
        ("bucket=bucket queue=data/q", "the queue data/q is inside the bucket bucket"),
        ("bucket=bucket queue=data/q", through),
        ("bucket=data queue=to-nothing", through),
        ("bucket=data queue=to-a-link", through),
        ("bucket=data queue=up", through),
        ("bucket=data queue=data/../data/./q", "is inside the bucket data: "),
        ("bucket=elsewhere/../data/ queue=data/q//", "the queue"),
        ("bucket=data queue=nothing/../data/q", "is inside the bucket data: "),
        ("bucket=circle queue=circle/q", "is inside the bucket circle"),
        // A link inside the bucket is harmless unless the host itself uses it.
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
fn a_directory_that_is_mounted_twice_is_one_directory() {
    let here = Here::new();
    let root = here.root.path();
    fs::create_dir_all(root.join("data/deep/queue")).unwrap();
    fs::create_dir(root.join("mounted")).unwrap();
    // The kernel's output if `data/deep` were mounted on `mounted`.
    let there = Mounts::read().stored(root).expect("a mount");
    let outer = system::mount_of(root).unwrap();
    let line = |id: u64, stored: &Path, point: &Path| {
        let escaped = |path: &Path| path.to_str().unwrap().replace(' ', "\\040");
        format!("{id} 1 {} {} {} rw - ext4 x rw\n", there.0, escaped(stored), escaped(point))
    };
    let mounts = line(outer, &there.1.join("data/deep"), &root.join("mounted"));
    let inner = Mounts::parse(mounts.as_bytes());
    let stored = inner.stored(&root.join("mounted/queue"));
    assert_eq!(stored, Some((there.0.clone(), there.1.join("data/deep/queue"))));

    let location = |path: &str, mounts: &Mounts| Location::of(&root.join(path), mounts);
    let queue = location("mounted/queue", &inner);
    assert!(queue.is_in(&location("data", &Mounts::read())), "{queue:?}");
    assert!(!queue.is_in(&location("data/other", &Mounts::read())));
    assert_eq!(unescape(br"/a\040b\134\011c\0"), Path::new("/a b\\\tc\\0"));
}
