//! A host does not use a cache that another user could write to.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use serde_json::Value;
use task_host_tests::{Finished, Place, eventually, http};

/// A user id that no user of the machine has.
const OTHER: u32 = 1_800_000_001;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Only root may change the owner of a file.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Checks that `host run`, `host cache verify` and `host doctor` refuse this cache in the same
/// words.
#[track_caller]
fn is_refused(place: &Place, cache: &str, words: &[&str]) {
    let says = |told: &str| {
        for word in words {
            assert!(told.contains(word), "{word:?} is not in {told}");
        }
    };
    let run = ["run", "-x", "--fq", "./queue", "--cache-dir", cache];
    says(&place.host(&run).code(1).stderr);
    let doctor = place.host(&["doctor", "--json", "--fq", "./queue", "--cache-dir", cache]).code(1);
    let found: Value = serde_json::from_str(&doctor.stdout).expect("findings that are JSON");
    let of_cache = |finding: &&Value| finding["subject"].as_str().unwrap().starts_with("cache ");
    let finding = found["findings"].as_array().unwrap().iter().find(of_cache).unwrap();
    assert_eq!(finding["level"], "problem");
    says(&format!("{}; {}", finding["text"].as_str().unwrap(), finding["cure"].as_str().unwrap()));
}

#[test]
fn a_cache_that_others_may_write_to_is_refused_with_the_cure() {
    let place = Place::with(&["NO_OP"]);
    place.submit(&place.innocent(3));
    place.run_until_empty(&["--cache-dir", "./cache"]).good();
    let cache = place.path().join("cache");
    assert_eq!(cache.metadata().unwrap().mode() & 0o777, 0o700);
    for part in ["", "blobs", "index", "tmp", "work"] {
        let part = cache.join(part);
        fs::create_dir_all(&part).unwrap();
        set_mode(&part, 0o777);
        let name = part.strip_prefix(place.path()).unwrap().to_str().unwrap().trim_end_matches('/');
        is_refused(
            &place,
            "./cache",
            &[name, "by everybody (mode 777, owner uid", "`chmod -R go-w"],
        );
        set_mode(&part, 0o700);
    }
    // Applies the fix that the message suggests.
    set_mode(&cache, 0o777);
    place.host(&["cache", "verify", "--cache-dir", "./cache"]).code(1);
    Finished::run(std::process::Command::new("chmod").args(["-R", "go-w"]).arg(&cache)).good();
    place.submit(&place.innocent(3));
    place.run_until_empty(&["--cache-dir", "./cache"]).good();
    place.innocent_are_done(3);
}

#[test]
fn a_cache_of_somebody_else_is_refused_with_the_cure() {
    if !is_root() {
        return;
    }
    let place = Place::with(&["NO_OP"]);
    place.submit(&place.innocent(3));
    let cache = place.path().join("cache");
    fs::create_dir(&cache).unwrap();
    chown(&cache, Some(OTHER), None).unwrap();
    is_refused(
        &place,
        "./cache",
        &[
            "cache belongs to uid 1800000001 (mode 7",
            "this host runs as uid 0",
            "./cache/task-host",
        ],
    );
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0, "something was made in it");
    // Applies the suggested fix: a subdirectory, which the host creates and therefore owns.
    place.run_until_empty(&["--cache-dir", "./cache/task-host"]).good();
    place.innocent_are_done(3);
    let blobs = cache.join("task-host/blobs");
    chown(&blobs, Some(OTHER), None).unwrap();
    is_refused(&place, "./cache/task-host", &["cache/task-host/blobs belongs to uid 1800000001"]);
    chown(&blobs, Some(0), None).unwrap();
    let shard = fs::read_dir(&blobs).unwrap().flatten().next().unwrap().path();
    chown(&shard, Some(OTHER), None).unwrap();
    let run = place.run(&["-x", "--cache-dir", "./cache/task-host"]).code(1);
    assert!(run.stderr.contains("belongs to uid 1800000001"), "{}", run.stderr);

    // In a directory like /tmp, every user may create a link, and another user created this one.
    let shared = place.path().join("shared");
    fs::create_dir(&shared).unwrap();
    set_mode(&shared, 0o1777);
    symlink("../elsewhere", shared.join("cache")).unwrap();
    lchown(shared.join("cache"), Some(OTHER), None).unwrap();
    is_refused(
        &place,
        "./shared/cache",
        &["the link", "belongs to uid 1800000001", "remove the link"],
    );
    assert!(!place.path().join("elsewhere").exists());
}

#[test]
fn a_way_that_everybody_may_change_is_told_of() {
    let place = Place::with(&["NO_OP"]);
    let shared = place.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let doctor =
        || place.host(&["doctor", "--fq", "./queue", "--cache-dir", "./shared/own"]).good();
    let words = ["shared/own, is writable by everybody (mode 777, owner uid ", "`chmod +t "];
    for (mode, is_risk) in [(0o777, true), (0o1777, false), (0o755, false)] {
        set_mode(&shared, mode);
        place.submit(&place.innocent(1));
        let run = place.run_until_empty(&["--cache-dir", "./shared/own"]).good();
        for word in words {
            assert_eq!(run.stderr.contains(word), is_risk, "{mode:o}: {}", run.stderr);
            assert_eq!(doctor().stdout.contains(word), is_risk, "{mode:o}");
        }
    }
}

#[test]
fn a_blob_of_somebody_else_is_not_given_to_a_task() {
    if !is_root() {
        return;
    }
    let place = Place::with(&["NO_OP"]);
    let tasks = place.innocent(1);
    // Inputs from a web server go through the cache.
    let inputs = http::serve_files(place.path().join("bucket"));
    let host = place.watch(&["--input-bucket", &inputs]);
    place.submit(&tasks);
    place.innocent_are_done(1);
    fs::remove_file(place.path().join("bucket/data/0_output/0.dat")).unwrap();
    let blobs: Vec<_> = task_host_tests::files(&place.cache().join("blobs")).into_iter().collect();
    assert!(blobs.len() >= 2, "an input and a component");
    for blob in &blobs {
        // The bytes are correct now, but the owner could change them after the host has checked
        // them.
        chown(place.cache().join("blobs").join(blob), Some(OTHER), None).unwrap();
    }
    place.submit(&tasks);
    eventually("the output", || place.object("data/0_output/0.dat"));
    place.innocent_are_done(1);
    let told = host.host().stderr();
    assert!(told.contains("a cache blob is damaged: it belongs to another user"), "{told}");
    host.stop();
    // The host kept the component in memory, so it did not check the component's blob.
    place.host(&["cache", "verify"]).code(3);
    for blob in &blobs {
        let owner = place.cache().join("blobs").join(blob).metadata().map(|meta| meta.uid());
        assert!(owner.is_err() || owner.is_ok_and(|owner| owner == 0), "{blob}");
    }
}

#[test]
fn a_directory_that_somebody_else_puts_into_the_place_of_the_cache_is_an_outage() {
    if !is_root() {
        return;
    }
    let place = Place::with(&["NO_OP"]);
    let inputs = http::serve_files(place.path().join("bucket"));
    let settings = ["--cache-dir", "./cache", "--retry-after", "10ms", "--input-bucket", &inputs];
    let host = place.watch(&settings);
    place.submit(&place.innocent(2));
    place.innocent_are_done(2);
    let cache = place.path().join("cache");
    host.in_one_moment(|| {
        fs::rename(&cache, place.path().join("away")).unwrap();
        for part in ["", "blobs", "tmp", "index"] {
            fs::create_dir_all(cache.join(part)).unwrap();
            chown(cache.join(part), Some(OTHER), None).unwrap();
        }
        // Removes the old directory, so that the host must open the new one.
        fs::remove_dir_all(place.path().join("away")).unwrap();
    });
    for id in 2..4 {
        place.put(&format!("data/0_input/{id}.dat"), format!("new {id}"));
    }
    let tasks: Vec<Value> =
        (2..4).map(|id| task_host_tests::no_op(id, &[format!("0_input/{id}.dat")])).collect();
    place.submit(&tasks);
    host.is_out("belongs to uid 1800000001");
    assert_eq!(fs::read_dir(cache.join("blobs")).unwrap().count(), 0);
    // Removes the other user's directory, so that the host creates its own.
    fs::remove_dir_all(&cache).unwrap();
    eventually("the outputs", || {
        (2..4).all(|id| place.object(&format!("data/0_output/{id}.dat")).is_some()).then_some(())
    });
    assert_eq!(place.errors(), [Value::Null; 0], "it cost no task");
    host.stop();
}

#[test]
fn without_a_home_the_cache_is_where_nobody_else_can_be() {
    let place = Place::with(&["NO_OP"]);
    let shown = |variables: &[(&str, &Path)]| {
        let mut command = place.command(&["config", "--json"]);
        command.env_remove("HOME").env("TMPDIR", place.path());
        command.envs(variables.iter().copied());
        let config: Value =
            serde_json::from_str(&Finished::run(&mut command).good().stdout).unwrap();
        config["cache-dir"]["value"].as_str().unwrap().to_owned()
    };
    let service = place.path().join("service");
    let of_service = shown(&[("CACHE_DIRECTORY", &service)]);
    assert_eq!(of_service, service.to_str().unwrap());
    let of_nobody = shown(&[]);
    let own = format!("task-host-{}", fs::metadata("/proc/self").unwrap().uid());
    assert!(of_nobody.contains("/.cache/") || of_nobody.ends_with(&own), "{of_nobody}");
    assert!(!of_nobody.ends_with("/tmp/task-host"), "anybody may have made that");
    if !is_root() {
        return;
    }
    // A user without a home directory: the host refuses the directory because another user owns it.
    let own = place.path().join(format!("task-host-{OTHER}"));
    // The directory of the program may be accessible only to its owner, so a descriptor passes the
    // program on.
    let script = format!(
        "exec 3<\"$0\"; exec setpriv --reuid={OTHER} --clear-groups /proc/self/fd/3 cache verify"
    );
    let host = place.command(&[]);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).arg(host.get_program()).current_dir("/");
    command.env_remove("HOME").env_remove("XDG_CACHE_HOME").env("TMPDIR", place.path());
    set_mode(place.path(), 0o1777);
    fs::create_dir(&own).unwrap();
    chown(&own, Some(OTHER + 1), None).unwrap();
    set_mode(&own, 0o755);
    let refused = Finished::run(&mut command).code(1);
    let want = format!("{} belongs to uid {}", own.display(), OTHER + 1);
    assert!(refused.stderr.contains(&want), "{}", refused.stderr);
}
