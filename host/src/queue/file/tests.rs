//! The directory queue: what is on disk, and what goes wrong there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::*;
use crate::queue::conformance::{Subject, suite};

const NONE: Duration = Duration::ZERO;
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(30);

suite!({
    let dir = tempfile::tempdir().unwrap();
    let ours = Arc::new(open(dir.path()));
    let theirs = Arc::new(open(dir.path()));
    Subject::new(ours, theirs, dir)
});

fn open(path: &Path) -> FileQueue {
    FileQueue::open("fq://test", path).unwrap()
}

fn queue() -> (tempfile::TempDir, FileQueue) {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    (dir, queue)
}

async fn send(queue: &FileQueue, bodies: &[&str]) {
    let bodies: Vec<Bytes> = bodies.iter().map(|b| b.to_string().into()).collect();
    for result in queue.send(&bodies).await {
        result.unwrap();
    }
}

async fn lease(queue: &FileQueue, wait: Duration) -> Option<Message> {
    queue.lease(1, LONG, wait).await.unwrap().pop()
}

/// The names in a directory of the queue.
fn names(dir: &tempfile::TempDir, part: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir.path().join(part)) else {
        return Vec::new();
    };
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    // The locks are nobody's.
    names.filter(|name| name != ".lock").collect()
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Puts a message into the queue as the Python client does, without its movement file.
fn put(dir: &tempfile::TempDir, name: &str, body: &str) -> PathBuf {
    let path = dir.path().join("queue").join(name);
    std::fs::write(&path, body).unwrap();
    path
}

/// Makes a file look as if it had been written long ago.
fn make_old(path: &Path) {
    let then = SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn python_finds_on_disk_what_it_expects() {
    let (dir, queue) = queue();
    send(&queue, &[r#"{"basic_info": {"id": 4}}"#]).await;

    let sent = names(&dir, "queue").remove(0);
    let id = sent.strip_prefix("0--").unwrap().strip_suffix(".json").unwrap().to_owned();
    uuid::Uuid::parse_str(&id).unwrap();
    let body = format!(r#"{{"basic_info": {{"id": 4}},"id":"{id}"}}"#);
    assert_eq!(read(dir.path().join("queue").join(&sent)), body);
    let movement = dir.path().join("movement").join(&id);
    assert_eq!(read(movement.clone()), format!("{sent}\n"));
    assert_eq!(read(dir.path().join("insertions")), "1");

    let before = unix_now();
    let message = lease(&queue, NONE).await.unwrap();
    let leased = names(&dir, "queue").remove(0);
    let due: u64 = leased.split("--").next().unwrap().parse().unwrap();
    assert!((before + 300..=unix_now() + 301).contains(&due), "{leased}");
    assert_eq!(read(movement.clone()), format!("{sent}\n{leased}\n"));
    assert_eq!(message.id, id);

    // A line that Python passes over.
    queue.start(&message.receipt).await.unwrap();
    assert_eq!(read(movement), format!("{sent}\n{leased}\n\n"));

    queue.ack(&message.receipt).await.unwrap();
    assert_eq!(names(&dir, "queue").len() + names(&dir, "movement").len(), 0);
    assert_eq!(std::fs::read(dir.path().join("completions")).unwrap(), b"\0");
    drop(queue);
    assert!(names(&dir, "host/tmp").is_empty());
}

#[tokio::test]
async fn a_message_whose_sender_is_not_done_is_left_until_it_is() {
    let (dir, queue) = queue();
    let name = format!("0--{}.json", uuid::Uuid::new_v4());
    let id = &name[3..39];
    put(&dir, &name, "{\"half");
    assert!(lease(&queue, NONE).await.is_none());
    // Python makes the file before it writes the line.
    std::fs::write(dir.path().join("movement").join(id), "").unwrap();
    assert!(lease(&queue, NONE).await.is_none());

    let (message, ()) = tokio::join!(lease(&queue, PATIENCE), async {
        put(&dir, &name, "{\"whole\": 1}");
        std::fs::write(dir.path().join("movement").join(id), format!("{name}\n")).unwrap();
    });
    let message = message.unwrap();
    assert_eq!(message.body, "{\"whole\": 1}");
    queue.ack(&message.receipt).await.unwrap();
}

#[tokio::test]
async fn a_message_whose_sender_died_is_adopted() {
    for leave_empty_file in [false, true] {
        let (dir, queue) = queue();
        make_old(&put(&dir, "0--a.json", "{}"));
        let movement = dir.path().join("movement/a");
        if leave_empty_file {
            std::fs::write(&movement, "").unwrap();
        }
        let message = lease(&queue, NONE).await.unwrap();
        let leased = names(&dir, "queue").remove(0);
        assert_eq!(read(movement), format!("0--a.json\n{leased}\n"));
        queue.ack(&message.receipt).await.unwrap();
        assert_eq!(names(&dir, "queue").len() + names(&dir, "movement").len(), 0);
    }
}

#[tokio::test]
async fn files_that_are_no_messages_harm_nobody() {
    let (dir, queue) = queue();
    for name in ["README", "x--y.json", "0--a--b.json", ".nfs0001", "0--ä.json"] {
        put(&dir, name, "{}");
    }
    std::fs::create_dir(dir.path().join("queue/0--directory.json")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("queue/0--link.json")).unwrap();
    std::fs::write(dir.path().join("movement/link"), "0--link.json\n").unwrap();
    let before = names(&dir, "queue").len();

    send(&queue, &["[1]"]).await;
    assert_eq!(lease(&queue, NONE).await.unwrap().body, "[1]");
    assert!(lease(&queue, NONE).await.is_none());
    assert_eq!(queue.counts().await.unwrap().enqueued, Some(1));
    assert_eq!(names(&dir, "queue").len(), before + 1);
}

#[tokio::test]
async fn a_time_beyond_all_times_is_not_yet() {
    let (dir, queue) = queue();
    for (n, due) in
        ["99999999999", "18446744073709551615", "99999999999999999999999"].iter().enumerate()
    {
        make_old(&put(&dir, &format!("{due}--{n}.json"), "{}"));
    }
    assert!(lease(&queue, SHORT / 10).await.is_none());
    assert_eq!(queue.counts().await.unwrap().leased, Some(3));
    // The way out, after the clock of some machine was wrong.
    assert_eq!(Admin::open("fq://test", dir.path()).unwrap().release_all().unwrap(), 3);
    assert_eq!(queue.lease(5, LONG, NONE).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_message_that_is_gone_since_it_was_listed_is_passed_over() {
    let (dir, queue) = queue();
    send(&queue, &["1", "2", "3"]).await;
    let leased = lease(&queue, NONE).await.unwrap();
    for name in names(&dir, "queue") {
        if name.starts_with("0--") {
            std::fs::remove_file(dir.path().join("queue").join(&name)).unwrap();
        }
    }
    assert!(lease(&queue, NONE).await.is_none());
    // Those that were not leased keep the movement files that they had.
    for id in names(&dir, "movement").into_iter().filter(|id| *id != leased.id) {
        assert_eq!(read(dir.path().join("movement").join(&id)), format!("0--{id}.json\n"));
    }

    Admin::open("fq://test", dir.path()).unwrap().purge().unwrap();
    let lost = queue.ack(&leased.receipt).await;
    assert!(matches!(lost, Err(QueueError::LeaseLost { .. })), "{lost:?}");
    let lost = queue.start(&leased.receipt).await;
    assert!(matches!(lost, Err(QueueError::LeaseLost { .. })), "{lost:?}");
    assert!(names(&dir, "movement").is_empty());
}

#[tokio::test]
async fn a_movement_file_that_python_removed_is_made_again() {
    let (dir, queue) = queue();
    send(&queue, &["1"]).await;
    let message = lease(&queue, NONE).await.unwrap();
    let movement = dir.path().join("movement").join(&message.id);
    std::fs::remove_file(&movement).unwrap();
    let receipt = queue.extend(&message.receipt, 2 * LONG).await.unwrap();
    let leased = names(&dir, "queue").remove(0);
    assert!(read(movement).ends_with(&format!("{leased}\n")));
    queue.ack(&receipt).await.unwrap();
}

#[tokio::test]
async fn leasing_lists_a_long_queue_once_and_not_for_each_message() {
    const MESSAGES: u64 = 9_000;
    let (dir, queue) = queue();
    for n in 0..MESSAGES {
        put(&dir, &format!("0--{n}.json"), "{}");
        std::fs::write(dir.path().join(format!("movement/{n}")), format!("0--{n}.json\n")).unwrap();
    }
    for _ in 0..MESSAGES {
        assert!(lease(&queue, NONE).await.is_some());
    }
    // What is listed while it is renamed may be listed again under its new name.
    assert_eq!(queue.feed().next_listing(), 2);
    assert!(lease(&queue, NONE).await.is_none());
}

#[tokio::test]
async fn the_kernel_tells_of_messages_that_come() {
    let (dir, queue) = queue();
    let watch = Watch::begin(&queue.dirs).unwrap();
    send(&queue, &["1"]).await;
    watch.changed().await;
    let mut told = Vec::new();
    assert!(watch.read(|name| told.push(name.as_str().to_owned())));
    assert_eq!(told, names(&dir, "queue"));
    // Nothing more now: it waits.
    let waited = tokio::time::timeout(SHORT / 20, watch.changed()).await;
    assert!(waited.is_err());
}

#[tokio::test]
async fn messages_are_found_where_the_kernel_tells_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let sender = open(dir.path());
    let mut dirs = Dirs::existing("fq://test", dir.path()).unwrap();
    // There is nothing to watch under this path.
    dirs.path = dir.path().join("elsewhere");
    let queue = FileQueue::with(dirs);
    assert!(queue.watch().is_none());
    let started = Instant::now();
    let (message, ()) = tokio::join!(lease(&queue, PATIENCE), async {
        tokio::task::yield_now().await;
        send(&sender, &["1"]).await;
    });
    assert!(message.is_some() && started.elapsed() < PATIENCE / 2);
}

#[tokio::test]
async fn a_queue_that_was_removed_is_an_error_and_not_an_empty_queue() {
    let (dir, queue) = queue();
    std::fs::remove_dir_all(dir.path()).unwrap();
    let error = queue.lease(1, LONG, PATIENCE).await.unwrap_err();
    assert!(matches!(error, QueueError::Unavailable { .. }));
    let said = error.to_string();
    assert!(said.contains("fq://test") && said.contains("directory was removed"), "{said}");
    assert!(queue.send(&[Bytes::new()]).await.remove(0).is_err());
}

#[test]
fn what_is_no_queue_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let error = Admin::open("fq://x", dir.path()).unwrap_err().to_string();
    assert!(error.contains("there is no queue") && error.contains("host submit"), "{error}");
    assert!(names(&dir, "").is_empty(), "looking has made something");

    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = FileQueue::open("fq://x", &file).unwrap_err();
    assert!(matches!(error, QueueError::Invalid { .. }), "{error}");
    // Below a file there can be no directory, whoever asks.
    let error = FileQueue::open("fq://x", &file.join("queue")).unwrap_err().to_string();
    assert!(error.contains("a part of the path is a file"), "{error}");
}

#[test]
fn an_error_says_what_to_do() {
    let check = |errno, hint: &str| {
        let said = dirs::Trouble(errno).to_string();
        assert!(said.contains(hint), "{said}");
    };
    check(Errno::NOSPC, "make room");
    check(Errno::ACCESS, "read and write");
    check(Errno::NOLCK, "record locks");
    check(Errno::MFILE, "ulimit -n");
}

#[tokio::test]
async fn a_living_hosts_directory_is_not_swept() {
    let (dir, queue) = queue();
    send(&queue, &["1"]).await;
    assert_eq!(names(&dir, "host/tmp").len(), 1);
    drop(open(dir.path()));
    assert_eq!(names(&dir, "host/tmp").len(), 1);
    let message = lease(&queue, NONE).await.unwrap();
    queue.ack(&message.receipt).await.unwrap();
}

#[tokio::test]
async fn what_a_dead_sender_left_goes_with_its_directory() {
    let (dir, queue) = queue();
    send(&queue, &["1"]).await;
    let dead = dir.path().join("host/tmp/dead");
    std::fs::create_dir(&dead).unwrap();
    // Killed before and after the movement file was moved into its place.
    for file in [".lock", "early", ".early", "late"] {
        std::fs::write(dead.join(file), "").unwrap();
    }
    std::fs::write(dir.path().join("movement/late"), "0--late.json\n").unwrap();
    open(dir.path());
    assert!(!dead.exists());
    assert_eq!((names(&dir, "queue").len(), names(&dir, "movement").len()), (1, 1));
}

#[tokio::test]
async fn what_python_leaves_of_messages_that_are_done_goes_when_there_are_none() {
    let (dir, queue) = queue();
    send(&queue, &["1"]).await;
    for orphan in ["old", "young"] {
        std::fs::write(dir.path().join("movement").join(orphan), "").unwrap();
    }
    make_old(&dir.path().join("movement/old"));
    open(dir.path());
    assert_eq!(names(&dir, "movement").len(), 3);
    let message = lease(&queue, NONE).await.unwrap();
    queue.ack(&message.receipt).await.unwrap();
    open(dir.path());
    assert_eq!(names(&dir, "movement"), ["young"]);
}

#[tokio::test]
async fn a_host_whose_own_directory_was_removed_goes_on() {
    let (dir, queue) = queue();
    send(&queue, &["1", "2"]).await;
    let message = lease(&queue, NONE).await.unwrap();
    let remove = || std::fs::remove_dir_all(dir.path().join("host")).unwrap();
    remove();
    queue.ack(&message.receipt).await.unwrap();
    remove();
    send(&queue, &["3"]).await;
    assert_eq!(queue.counts().await.unwrap().enqueued, Some(2));
    let message = lease(&queue, NONE).await.unwrap();
    remove();
    let failed = Release::Failed("x");
    queue.release(&message.receipt, NONE, failed).await.unwrap();
    assert_eq!(queue.lease(2, LONG, NONE).await.unwrap().len(), 2);
}

#[tokio::test]
async fn counters_that_were_removed_begin_again() {
    let (dir, queue) = queue();
    for expected in [1, 1] {
        send(&queue, &["1"]).await;
        let message = lease(&queue, NONE).await.unwrap();
        queue.ack(&message.receipt).await.unwrap();
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.inserted, counts.completed), (Some(expected), Some(expected)));
        std::fs::remove_file(dir.path().join("insertions")).unwrap();
        std::fs::remove_file(dir.path().join("completions")).unwrap();
    }
}

#[tokio::test]
async fn a_long_reason_is_cut_and_a_torn_one_left_out() {
    let (dir, queue) = queue();
    send(&queue, &["1"]).await;
    let message = lease(&queue, NONE).await.unwrap();
    let reason = "€".repeat(10_000);
    queue.release(&message.receipt, NONE, Release::Failed(&reason)).await.unwrap();
    let file = dir.path().join("host/attempts").join(&message.id);
    let torn = read(file.clone()) + "\"not wri";
    std::fs::write(file, torn).unwrap();
    let failures = lease(&queue, NONE).await.unwrap().failures;
    assert_eq!(failures.len(), 1);
    assert!(failures[0].ends_with("€ …") && failures[0].len() < 5000);
}

#[tokio::test]
async fn an_operator_sees_and_sets_right_the_queue() {
    let (dir, queue) = queue();
    send(&queue, &["{\"a\": 1}", "[2]"]).await;
    let held = lease(&queue, NONE).await.unwrap();
    let admin = Admin::open("fq://test", dir.path()).unwrap();
    let mut seen: Vec<_> = admin.messages().unwrap().map(Result::unwrap).collect();
    seen.sort_by_key(|m| m.due);
    assert_eq!(seen.len(), 2);
    let due = |n: usize| seen[n].due.unwrap();
    assert!(due(0).is_zero() && due(1).as_secs() > unix_now());
    assert_eq!((&seen[1].id, &seen[1].body), (&held.id, &held.body));

    assert_eq!(admin.release_all().unwrap(), 1);
    assert_eq!(admin.counts().unwrap().leased, Some(0));
    let again = queue.lease(2, LONG, NONE).await.unwrap();
    assert_eq!(again.len(), 2);
    let lost = queue.extend(&held.receipt, 2 * LONG).await;
    assert!(matches!(lost, Err(QueueError::LeaseLost { .. })), "{lost:?}");

    queue.release(&again[0].receipt, NONE, Release::Failed("x")).await.unwrap();
    admin.rezero().unwrap();
    assert_eq!(read(dir.path().join("insertions")), "0");
    assert_eq!(admin.counts().unwrap().inserted, Some(0));
    std::fs::write(dir.path().join("movement/orphan"), "").unwrap();
    assert_eq!(admin.purge().unwrap(), 2);
    for part in ["queue", "movement", "host/attempts"] {
        assert!(names(&dir, part).is_empty(), "{part}");
    }
}

#[tokio::test]
async fn many_messages_pass_through_a_listing_whole() {
    const MESSAGES: usize = 10_000;
    let (dir, _queue) = queue();
    for n in 0..MESSAGES {
        put(&dir, &format!("0--{n}.json"), "");
    }
    let admin = Admin::open("fq://test", dir.path()).unwrap();
    let seen: std::collections::BTreeSet<_> =
        admin.messages().unwrap().map(|m| m.unwrap().id).collect();
    assert_eq!(seen.len(), MESSAGES);
    assert_eq!(admin.counts().unwrap().enqueued, Some(MESSAGES as u64));
}

#[tokio::test]
async fn a_queue_can_be_shared_by_those_whom_the_umask_lets() {
    let (dir, queue) = queue();
    send(&queue, &["1"]).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    // What any other program would make here, and not less.
    let file = dir.path().join("any file");
    let directory = dir.path().join("any directory");
    std::fs::write(&file, "").unwrap();
    std::fs::create_dir(&directory).unwrap();
    let message = dir.path().join("queue").join(names(&dir, "queue").remove(0));
    assert_eq!(mode(&message), mode(&file));
    assert_eq!(mode(&dir.path().join("movement")), mode(&directory));
    assert_eq!(mode(&dir.path().join("host/tmp")), mode(&directory));
}
