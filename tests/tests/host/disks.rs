//! Faults of a directory bucket's disk: a power loss, and a directory that is replaced.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, Running, eventually};
use tempfile::TempDir;

/// A file system in a file. Mounting it needs root.
struct Disk {
    dir: TempDir,
}

impl Disk {
    fn new() -> Self {
        let disk = Self::in_memory();
        run(Command::new("truncate").args(["-s", "96M"]).arg(disk.image()));
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image()));
        // Only a sync writes the file system's journal, because the commit interval is long.
        assert!(disk.mount("loop,commit=300"), "mounting takes root and loop devices");
        disk
    }

    fn in_memory() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        fs::create_dir(dir.path().join("mnt")).expect("a mount point");
        Self { dir }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&self, options: &str) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-o", options]).args([self.image(), self.path()]);
        mount.output().expect("mount").status.success()
    }

    /// The disk as a power loss at this moment would leave it. None if the disk is being written
    /// to.
    fn after_power_loss(&self) -> Option<Self> {
        let copy = Self::in_memory();
        fs::copy(self.image(), copy.image()).expect("room for a copy of the disk");
        copy.mount("loop").then_some(copy)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The file system is not mounted if mounting failed.
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// A place whose bucket and cache are on this disk, and whose queue is not.
fn place_on(disk: &Disk) -> Place {
    let place = Place::new();
    for (part, link) in [("bucket", "bucket"), ("cache", "home/.cache")] {
        let dir = disk.path().join(part);
        fs::create_dir(&dir).expect("a directory on the disk");
        symlink(dir, place.path().join(link)).expect("a link to the disk");
    }
    place.push("NO_OP");
    place
}

fn input(id: usize) -> Vec<u8> {
    format!("{id}\n").repeat(100).into_bytes()
}

fn submit(place: &Place, ids: std::ops::Range<usize>) {
    let task = |id: usize| {
        let key = format!("0_input/{id}.dat");
        place.put(&format!("d/{key}"), input(id));
        json!({"basic_info": {"id": id, "name": "NO_OP", "base_directory": "d", "inputs": [key]}})
    };
    place.submit(&ids.map(task).collect::<Vec<Value>>());
}

/// The ids of the tasks that are still in the queue.
fn unfinished(place: &Place) -> BTreeSet<usize> {
    let id = |task: Value| task["basic_info"]["id"].as_u64().expect("a task of ours") as usize;
    place.messages("queue").into_iter().map(id).collect()
}

fn is_whole(bucket: &Path, id: usize) -> bool {
    fs::read(bucket.join(format!("d/0_output/{id}.dat"))).is_ok_and(|bytes| bytes == input(id))
}

/// Stops a program while none of its threads is in a system call.
fn stop(host: &Running) {
    host.signal(Signal::STOP);
    let tasks = PathBuf::from(format!("/proc/{}/task", host.pid().as_raw_nonzero()));
    eventually("all threads of the host are stopped", || {
        let stopped = |thread: fs::DirEntry| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        fs::read_dir(&tasks).ok()?.flatten().all(stopped).then_some(())
    });
}

#[test]
fn a_loss_of_power_loses_no_output_of_a_durable_host() {
    const TASKS: usize = 1500;
    let disk = Disk::new();
    let place = place_on(&disk);
    submit(&place, 0..TASKS);
    let host = place.start(&["--durable"]);
    let mut done = 0;
    for cut in 0..3 {
        let want = (done + 20 + usize::from(a_byte())).min(TASKS);
        eventually("some more tasks are done", || (place.counts().0 + want <= TASKS).then_some(()));
        stop(&host);
        fs::write(disk.path().join(format!("canary-{cut}")), vec![1; 100_000]).expect("a canary");
        let left = unfinished(&place);
        done = TASKS - left.len();
        let after = disk.after_power_loss().expect("nobody writes to the disk");
        let canary = fs::metadata(after.path().join(format!("canary-{cut}")));
        assert!(canary.map_or(0, |file| file.len()) == 0, "what nobody synced is lost");
        let lost: Vec<_> = (0..TASKS)
            .filter(|id| !left.contains(id) && !is_whole(&after.path().join("bucket"), *id))
            .collect();
        assert!(
            lost.is_empty(),
            "of {done} tasks that were done, the outputs of {lost:?} are lost"
        );
        host.signal(Signal::CONT);
    }
}

/// A number that changes with the clock.
fn a_byte() -> u8 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("a clock").subsec_nanos().to_le_bytes()[1]
}

#[test]
fn outputs_are_on_the_disk_soon_without_being_durable() {
    let disk = Disk::new();
    let place = place_on(&disk);
    submit(&place, 0..50);
    let host = place.start(&["--sync-every", "100ms"]);
    eventually("all tasks are done", || (place.counts().0 == 0).then_some(()));
    eventually("all outputs are on the disk", || {
        let after = disk.after_power_loss()?;
        (0..50).all(|id| is_whole(&after.path().join("bucket"), id)).then_some(())
    });
    drop(host);
}

#[test]
fn outputs_go_to_the_directory_that_the_path_of_the_bucket_leads_to() {
    let place = Place::with(&["NO_OP"]);
    submit(&place, 0..5);
    let host = place.start(&[]);
    eventually("the first tasks are done", || (place.counts().0 == 0).then_some(()));
    let (bucket, old) = (place.path().join("bucket"), place.path().join("old"));
    run(Command::new("cp").arg("-a").arg(&bucket).arg(place.path().join("copy")));
    fs::rename(&bucket, &old).expect("the bucket can be moved");
    fs::rename(place.path().join("copy"), &bucket).expect("its copy can be moved");
    submit(&place, 5..10);
    eventually("the other tasks are done", || (place.counts().0 == 0).then_some(()));
    assert!(place.errors().is_empty(), "{:?}", place.errors());
    assert!((0..10).all(|id| is_whole(&bucket, id)), "{:?}", place.keys());
    assert!(!old.join("d/0_output/5.dat").exists());
    let said = host.stderr();
    assert_eq!(said.matches("the directory was replaced; using the new one").count(), 1, "{said}");
}
