//! Directories inside each other, which would let a task write to the cache or the queue.

use std::fs;
use std::path::Path;

use serde_json::Value;
use task_host_tests::{Place, no_op};

/// Checks that `host run` and `host config` refuse the settings in these words, and that `host
/// doctor` reports them.
#[track_caller]
fn is_refused(place: &Place, settings: &[&str], problem: &str, cure: &str) {
    for command in ["run", "config"] {
        let refused = place.host(&[&[command], settings].concat()).code(2);
        assert!(refused.stderr.contains(&format!("error: {problem}")), "{}", refused.stderr);
        assert!(refused.stderr.contains("hint: ") && refused.stderr.contains(cure), "{refused:?}");
    }
    let doctor = place.host(&[&["doctor", "--json"], settings].concat()).code(1);
    let found: Value = serde_json::from_str(&doctor.stdout).expect("findings that are JSON");
    let found = found["findings"].as_array().expect("findings");
    let is_told = |finding: &Value| {
        finding["level"] == "problem"
            && finding["text"].as_str().is_some_and(|text| text.contains(problem))
            && finding["cure"].as_str().is_some_and(|text| text.contains(cure))
    };
    assert!(found.iter().any(is_told), "{found:#?}");
}

#[test]
fn a_bucket_around_the_queue_or_the_cache_is_refused_and_nothing_is_made() {
    let place = Place::new();
    is_refused(
        &place,
        &["--fq", "./queue", "--bucket", "."],
        "the cache ",
        "use two separate directories: change --cache-dir or --bucket",
    );
    is_refused(
        &place,
        &["--fq", "./queue", "--bucket", ".", "--cache-dir", "/tmp/task-host-no-cache"],
        "the queue ./queue is inside the bucket .: a task could read, change and add messages",
        "change --queue or --bucket",
    );
    is_refused(
        &place,
        &["--fq", "./queue", "--done-queue", "fq://./bucket/done"],
        "the done queue ./bucket/done is inside the bucket ./bucket: a task could read, change and \
         add reports",
        "change --done-queue or --bucket",
    );
    is_refused(
        &place,
        &["--fq", "./queue", "--error-queue", "./queue"],
        "the queue ./queue is the same directory as the error queue ./queue: the host would \
         lease reports as tasks",
        "change --queue or --error-queue",
    );
    for made in ["queue", "bucket", "queue-errors", "home/.cache"] {
        assert!(!place.path().join(made).exists(), "{made}");
    }
}

#[test]
fn links_and_mounts_lead_to_the_same_refusal() {
    let place = Place::new();
    let path = |name: &str| place.path().join(name);
    fs::create_dir_all(path("bucket/inner")).unwrap();
    std::os::unix::fs::symlink("bucket/inner", path("link")).unwrap();
    is_refused(
        &place,
        &["--fq", "./queue", "--cache-dir", "./link/cache"],
        "the cache ./link/cache is inside the bucket ./bucket, through a link or a mount: a task \
         could write compiled code",
        "change --cache-dir or --bucket",
    );
    // Mounts the inner directory elsewhere, so that the paths of queue and bucket have nothing in
    // common.
    fs::create_dir(path("mounted")).unwrap();
    let Some(_mount) = Mount::bind(&path("bucket/inner"), &path("mounted")) else { return };
    is_refused(
        &place,
        &["--fq", "./mounted/queue"],
        "the queue ./mounted/queue is inside the bucket ./bucket, through a link or a mount",
        "change --queue or --bucket",
    );
}

/// A bind mount. Dropping this unmounts it.
struct Mount(std::path::PathBuf);

impl Mount {
    /// Returns None if the user may not mount.
    fn bind(from: &Path, to: &Path) -> Option<Self> {
        let mut mount = std::process::Command::new("mount");
        let done = mount.arg("--bind").arg(from).arg(to).output().ok()?;
        done.status.success().then(|| Self(to.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn directories_beside_each_other_work_also_in_those_of_others() {
    // The directories of a queue and of a cache may contain files that the host did not create.
    let place = Place::with(&["NO_OP"]);
    fs::create_dir(place.path().join("all")).unwrap();
    fs::rename(place.path().join("bucket"), place.path().join("all/bucket")).unwrap();
    let objects = place.path().join("all/bucket/data/0_input");
    fs::create_dir_all(&objects).unwrap();
    fs::write(objects.join("1.dat"), "content").unwrap();
    let task = place.path().join("task.jsonl");
    fs::write(&task, no_op(1, &["0_input/1.dat".to_owned()]).to_string()).unwrap();
    place.host(&["submit", "--fq", "./all", "task.jsonl"]).good();
    let settings = [
        "--fq",
        "./all",
        "--error-queue",
        "./all/errors",
        "--bucket",
        "./all/bucket",
        "--components",
        "./all/bucket/components",
        "--cache-dir",
        "./all",
    ];
    place.host(&[&["run", "-x"], &settings[..]].concat()).good();
    let output = fs::read(place.path().join("all/bucket/data/0_output/1.dat")).unwrap();
    assert_eq!(output, b"content");
}
