//! Queues whose directory is removed, moved or unmounted while hosts use it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;

use crate::queue::file::*;

const NONE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(30);

/// The parent of the queue directory, and the mounts below it.
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

/// A queue with two messages, one of them leased and started.
async fn queue(path: &Path) -> (FileQueue, Receipt) {
    let queue = open(path);
    send(&queue, "[1]").await;
    let held = lease_one(&queue).await;
    queue.start(&held.receipt).await.unwrap();
    send(&queue, "[2]").await;
    (queue, held.receipt)
}

/// The file system's error that caused a queue error.
fn file_error(error: &QueueError) -> Option<Errno> {
    let mut error: &dyn std::error::Error = error;
    loop {
        if let Some(errno) = error.downcast_ref::<Errno>() {
            return Some(*errno);
        }
        error = error.source()?;
    }
}

/// Checks that every operation fails, and that none reports a lost lease.
async fn check_away(queue: &FileQueue, held: &Receipt) {
    fn away<T: std::fmt::Debug>(what: &str, result: Result<T, QueueError>) {
        match result {
            Err(error @ QueueError::Unavailable { .. }) => {
                assert!(file_error(&error).is_some(), "{what}: {error}");
                let text = error.to_string();
                assert!(text.starts_with("fq://test: opening "), "{what}: {text}");
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

/// Checks that both messages of [`queue`] can be completed, and that no files are left.
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

/// Waits until the queue notices that its directory is missing.
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
        assert!(!there.exists(), "a host created {part} again");
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
            // The message is missing, but no other host has leased it.
            let error = queue.ack(&held).await.unwrap_err();
            assert_eq!(file_error(&error), Some(Errno::NOENT), "{error}");
            assert!(error.to_string().contains("was removed, moved or unmounted"), "{error}");
        }
        until_noticed(&queue).await;
        check_away(&queue, &held).await;
        assert!(!there.exists(), "a host created {part} again");
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
async fn a_waiting_host_finds_messages_in_a_directory_that_was_created_again() {
    let yard = Yard::new();
    let path = yard.path("tasks");
    let waiting = open(&path);
    let found = async {
        loop {
            match waiting.lease(1, LONG, PATIENCE).await {
                Ok(found) => break found,
                // The call checked the path while the directory was missing.
                Err(error) => assert_eq!(file_error(&error), Some(Errno::NOENT), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (found, ()) = tokio::join!(found, async {
        // Let the other future begin to wait.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        std::fs::remove_dir_all(&path).unwrap();
        send(&open(&path), "[1]").await;
    });
    assert_eq!(found.first().expect("found no message").body, "[1]");
    waiting.ack(&found[0].receipt).await.unwrap();
}

#[tokio::test]
async fn nothing_is_created_in_an_empty_mount_point() {
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
async fn a_file_system_may_be_mounted_again_between_two_checks() {
    let mut yard = Yard::new();
    let backing = yard.path("backing");
    yard.mount(&["-t", "tmpfs", "-o", "size=1m"], Path::new("tmpfs"), "backing");
    yard.mount(&["--bind"], &backing, "tasks");
    let path = yard.path("tasks");
    let (queue, held) = queue(&path).await;
    run(Command::new("umount").arg("-l").arg(&path));
    yard.mount(&["--bind"], &backing, "tasks");
    // The staging directory is opened by its path, on the new mount; `queue/` is still open
    // on the old one.
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
    // The directories are restored, but the files are not.
    for part in ["queue", "movement"] {
        std::fs::create_dir_all(path.join(part)).unwrap();
    }
    let error = queue.ack(&held).await.unwrap_err();
    assert!(matches!(error, QueueError::Unavailable { .. }), "{error}");
    run(Command::new("cp").arg("-a").arg(kept.join(".")).arg(&path));
    check_back(queue, &path, &held).await;
}

#[tokio::test]
async fn a_lease_is_lost_if_its_message_is_not_restored_with_the_queue() {
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
async fn every_error_includes_the_error_number_of_the_file_system() {
    let mut yard = Yard::new();
    yard.mount(&["-t", "tmpfs", "-o", "size=64k"], Path::new("tmpfs"), "tasks");
    let path = yard.path("tasks");
    let (queue, held) = queue(&path).await;
    let large = Bytes::from(vec![b'1'; 100_000]);
    let error = queue.send(&[large]).await.remove(0).unwrap_err();
    assert_eq!(file_error(&error), Some(Errno::NOSPC), "{error}");
    // The kernel refuses the remount while a file is open for writing.
    queue.current().opened.forget_staging();
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(&path));
    for error in [
        queue.lease(1, LONG, NONE).await.unwrap_err(),
        queue.start(&held).await.unwrap_err(),
        queue.extend(&held, 2 * LONG).await.unwrap_err(),
        queue.ack(&held).await.unwrap_err(),
    ] {
        assert!(matches!(error, QueueError::Unavailable { .. }), "{error}");
        assert_eq!(file_error(&error), Some(Errno::ROFS), "{error}");
    }
    run(Command::new("mount").args(["-o", "remount,rw"]).arg(&path));
    check_back(queue, &path, &held).await;
}
