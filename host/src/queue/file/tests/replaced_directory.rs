//! A queue whose directory goes away under the hosts that work on it, and comes back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;

use super::*;

const NONE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory in which the queue's directory is, and what may be mounted there.
struct Yard {
    dir: tempfile::TempDir,
    mounts: Vec<PathBuf>,
}

impl Yard {
    fn new() -> Yard {
        Yard { dir: tempfile::tempdir().unwrap(), mounts: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mount(&mut self, args: &[&str], from: &Path, at: &str) {
        let at = self.path(at);
        std::fs::create_dir_all(&at).unwrap();
        run(Command::new("mount").args(args).arg(from).arg(&at));
        self.mounts.push(at);
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        for at in self.mounts.iter().rev() {
            let _ = Command::new("umount").arg("-l").arg(at).output();
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

fn open(path: &Path) -> FileQueue {
    FileQueue::open("fq://test", path).unwrap()
}

async fn send(queue: &FileQueue, body: &'static str) {
    queue.send(&[Bytes::from_static(body.as_bytes())]).await.remove(0).unwrap();
}

async fn lease_one(queue: &FileQueue) -> Message {
    queue.lease(1, LONG, PATIENCE).await.unwrap().pop().expect("there is no message")
}

/// A queue with two messages, one of which is held and started.
async fn queue(path: &Path) -> (FileQueue, Receipt) {
    let queue = open(path);
    send(&queue, "[1]").await;
    let held = lease_one(&queue).await;
    queue.start(&held.receipt).await.unwrap();
    send(&queue, "[2]").await;
    (queue, held.receipt)
}

/// The file system's error that an operation failed for.
fn trouble(error: &QueueError) -> Option<Errno> {
    let mut error: &dyn std::error::Error = error;
    loop {
        if let Some(errno) = error.downcast_ref::<Errno>() {
            return Some(*errno);
        }
        error = error.source()?;
    }
}

/// Checks that nothing can be done, and that nobody takes that for a lost lease.
async fn check_away(queue: &FileQueue, held: &Receipt) {
    fn away<T: std::fmt::Debug>(what: &str, result: Result<T, QueueError>) {
        match result {
            Err(error @ QueueError::Unavailable { .. }) => {
                assert!(trouble(&error).is_some(), "{what}: {error}");
                let said = error.to_string();
                assert!(said.starts_with("fq://test: opening "), "{what}: {said}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    away("lease", queue.lease(1, LONG, PATIENCE).await);
    away("start", queue.start(held).await);
    away("extend", queue.extend(held, LONG).await);
    away("release", queue.release(held, NONE, Release::Uncounted).await);
    away("failed", queue.release(held, NONE, Release::Failed("x")).await);
    away("disown", queue.disown(held).await);
    away("give up", queue.give_up(held).await);
    away("ack", queue.ack(held).await);
    away("send", queue.send(&[Bytes::from_static(b"[3]")]).await.remove(0));
    away("counts", queue.counts().await);
}

/// Checks that both messages of [`queue`] can be done, and leave nothing.
async fn check_back(queue: FileQueue, path: &Path, held: &Receipt) {
    let held = queue.extend(held, 2 * LONG).await.unwrap();
    queue.ack(&held).await.unwrap();
    send(&queue, "[3]").await;
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let message = lease_one(&queue).await;
        assert_eq!((message.attempts, message.deaths), (0, 0));
        queue.ack(&message.receipt).await.unwrap();
        bodies.push(message.body);
    }
    bodies.sort();
    assert_eq!(bodies, ["[2]", "[3]"]);
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.enqueued, counts.completed), (Some(0), Some(3)));
    drop(queue);
    open(path);
    for part in ["queue", "movement", "host/tmp"] {
        let left = std::fs::read_dir(path.join(part)).unwrap().map(|e| e.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name != ".lock").collect();
        assert!(left.is_empty(), "{part}: {left:?}");
    }
}

/// Waits until it is noticed that the directory is not in its place.
async fn until_noticed(queue: &FileQueue) {
    while queue.counts().await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_directory_that_is_moved_away_and_back_is_used_again() {
    for part in ["", "queue", "movement"] {
        let yard = Yard::new();
        let path = yard.path("tasks");
        let (queue, held) = queue(&path).await;
        let (there, away) = (path.join(part), yard.path("away"));
        std::fs::rename(&there, &away).unwrap();
        until_noticed(&queue).await;
        check_away(&queue, &held).await;
        assert!(!there.exists(), "{part} was made anew by a host");
        std::fs::rename(&away, &there).unwrap();
        check_back(queue, &path, &held).await;
    }
}

#[tokio::test]
async fn a_directory_that_is_removed_and_restored_from_a_copy_is_used_again() {
    for part in ["", "queue", "movement"] {
        let yard = Yard::new();
        let path = yard.path("tasks");
        let (queue, held) = queue(&path).await;
        let (there, kept) = (path.join(part), yard.path("kept"));
        copy(&there, &kept);
        std::fs::remove_dir_all(&there).unwrap();
        if part == "queue" {
            // Nobody has it now, rather than somebody else.
            let error = queue.ack(&held).await.unwrap_err();
            assert_eq!(trouble(&error), Some(Errno::NOENT), "{error}");
            assert!(error.to_string().contains("directory was removed"), "{error}");
        }
        until_noticed(&queue).await;
        check_away(&queue, &held).await;
        assert!(!there.exists(), "{part} was made anew by a host");
        copy(&kept, &there);
        check_back(queue, &path, &held).await;
    }
}

#[tokio::test]
async fn a_file_in_the_place_of_the_directory_is_an_outage() {
    let yard = Yard::new();
    let path = yard.path("tasks");
    let (queue, held) = queue(&path).await;
    let away = yard.path("away");
    std::fs::rename(&path, &away).unwrap();
    std::fs::write(&path, "").unwrap();
    until_noticed(&queue).await;
    check_away(&queue, &held).await;
    std::fs::remove_file(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    check_back(queue, &path, &held).await;
}

#[tokio::test]
async fn a_host_that_waits_finds_messages_in_a_directory_that_was_made_anew() {
    let yard = Yard::new();
    let path = yard.path("tasks");
    let waiting = open(&path);
    let found = async {
        loop {
            match waiting.lease(1, LONG, PATIENCE).await {
                Ok(found) => break found,
                // It looked just when there was nothing.
                Err(error) => assert_eq!(trouble(&error), Some(Errno::NOENT), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (found, ()) = tokio::join!(found, async {
        // It waits by now.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        std::fs::remove_dir_all(&path).unwrap();
        send(&open(&path), "[1]").await;
    });
    assert_eq!(found.first().expect("the wait was in vain").body, "[1]");
    waiting.ack(&found[0].receipt).await.unwrap();
}

#[tokio::test]
async fn a_mount_point_without_its_file_system_is_left_empty() {
    let mut yard = Yard::new();
    let backing = yard.path("backing");
    yard.mount(&["-t", "tmpfs", "-o", "size=1m"], Path::new("tmpfs"), "backing");
    yard.mount(&["--bind"], &backing, "tasks");
    let path = yard.path("tasks");
    let (queue, held) = queue(&path).await;
    run(Command::new("umount").arg("-l").arg(&path));
    until_noticed(&queue).await;
    check_away(&queue, &held).await;
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    yard.mount(&["--bind"], &backing, "tasks");
    check_back(queue, &path, &held).await;
}

#[tokio::test]
async fn a_file_system_that_is_mounted_anew_unnoticed_is_no_obstacle() {
    let mut yard = Yard::new();
    let backing = yard.path("backing");
    yard.mount(&["-t", "tmpfs", "-o", "size=1m"], Path::new("tmpfs"), "backing");
    yard.mount(&["--bind"], &backing, "tasks");
    let path = yard.path("tasks");
    let (queue, held) = queue(&path).await;
    run(Command::new("umount").arg("-l").arg(&path));
    yard.mount(&["--bind"], &backing, "tasks");
    // The directory in which to delete is opened by the path, the queue's is open.
    queue.current().opened.forget_staging();
    check_back(queue, &path, &held).await;
}

#[tokio::test]
async fn a_lease_is_not_lost_while_its_queue_is_being_restored() {
    let yard = Yard::new();
    let path = yard.path("tasks");
    let (queue, held) = queue(&path).await;
    let kept = yard.path("kept");
    copy(&path, &kept);
    std::fs::remove_dir_all(&path).unwrap();
    // The directories are there, and the files not yet.
    for part in ["queue", "movement"] {
        std::fs::create_dir_all(path.join(part)).unwrap();
    }
    let error = queue.ack(&held).await.unwrap_err();
    assert!(matches!(error, QueueError::Unavailable { .. }), "{error}");
    run(Command::new("cp").arg("-a").arg(kept.join(".")).arg(&path));
    check_back(queue, &path, &held).await;
}

#[tokio::test]
async fn a_message_that_does_not_come_back_with_its_queue_is_lost_to_its_holder() {
    let yard = Yard::new();
    let path = yard.path("tasks");
    let (queue, held) = queue(&path).await;
    std::fs::remove_dir_all(&path).unwrap();
    send(&open(&path), "[4]").await;
    assert_eq!(lease_one(&queue).await.body, "[4]");
    loop {
        match queue.ack(&held).await {
            Err(QueueError::LeaseLost { .. }) => break,
            Err(QueueError::Unavailable { .. }) => {}
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn every_failure_of_the_file_system_can_be_told_by_its_number() {
    let mut yard = Yard::new();
    yard.mount(&["-t", "tmpfs", "-o", "size=64k"], Path::new("tmpfs"), "tasks");
    let path = yard.path("tasks");
    let (queue, held) = queue(&path).await;
    let large = Bytes::from(vec![b'1'; 100_000]);
    let error = queue.send(&[large]).await.remove(0).unwrap_err();
    assert_eq!(trouble(&error), Some(Errno::NOSPC), "{error}");
    // The kernel refuses this while a file is open to be written.
    queue.current().opened.forget_staging();
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(&path));
    for error in [
        queue.lease(1, LONG, NONE).await.unwrap_err(),
        queue.start(&held).await.unwrap_err(),
        queue.extend(&held, 2 * LONG).await.unwrap_err(),
        queue.ack(&held).await.unwrap_err(),
    ] {
        assert!(matches!(error, QueueError::Unavailable { .. }), "{error}");
        assert_eq!(trouble(&error), Some(Errno::ROFS), "{error}");
    }
    run(Command::new("mount").args(["-o", "remount,rw"]).arg(&path));
    check_back(queue, &path, &held).await;
}
