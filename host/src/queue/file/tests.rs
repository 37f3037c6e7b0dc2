//! Tests of the file queue: the conformance suite, and the files on disk.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

pub(super) mod crashes;
mod hostile_files;
mod replaced_directory;

use super::name::Name;
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

/// The names in a directory of the queue, without lock files.
fn names(dir: &tempfile::TempDir, part: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir.path().join(part)) else {
        return Vec::new();
    };
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".lock").collect()
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Sends a message as the Python client does, but without its movement file.
fn put(dir: &tempfile::TempDir, name: &str, body: &str) -> PathBuf {
    let path = dir.path().join("queue").join(name);
    std::fs::write(&path, body).unwrap();
    path
}

/// Sets the time of a file to an hour ago.
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

    // Python ignores an empty line.
    queue.start(&message.receipt).await.unwrap();
    assert_eq!(read(movement), format!("{sent}\n{leased}\n\n"));

    queue.ack(&message.receipt).await.unwrap();
    assert_eq!(names(&dir, "queue").len() + names(&dir, "movement").len(), 0);
    assert_eq!(std::fs::read(dir.path().join("completions")).unwrap(), b"\0");
    drop(queue);
    assert!(names(&dir, "host/tmp").is_empty());
}

#[tokio::test]
async fn a_message_is_not_leased_while_it_is_being_sent() {
    let (dir, queue) = queue();
    let name = format!("0--{}.json", uuid::Uuid::new_v4());
    let id = &name[3..39];
    put(&dir, &name, "{\"half");
    assert!(lease(&queue, NONE).await.is_none());
    // Python creates the file before it writes the line.
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

/// Creates files of the kinds that other programs leave next to messages, and returns their names.
fn put_foreign(dir: &tempfile::TempDir) -> Vec<String> {
    let files = [
        "README",
        "x--y.json",
        "0--a--b.json",
        ".nfs0001",
        "0--ä.json",
        "0--a.json~",
        ".0--a.json.swp",
        "0--a.json.bak",
        "0--a.json.tmp",
        ".0--a.json.AbCdEf",
        "sedAbCdEf",
        ".DS_Store",
        "0--a (copy).json",
    ];
    for name in files {
        make_old(&put(dir, name, "{}"));
    }
    let queue = dir.path().join("queue");
    std::fs::create_dir(queue.join("0--directory.json")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", queue.join("0--link.json")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(queue.join("0--socket.json")).unwrap());
    let pipe = queue.join("0--pipe.json");
    rustix::fs::mkfifoat(rustix::fs::CWD, pipe, rustix::fs::Mode::RWXU).unwrap();
    let movement = dir.path().join("movement");
    std::fs::write(movement.join("link"), "0--link.json\n").unwrap();
    for name in ["README", "a.json~", ".DS_Store"] {
        std::fs::write(movement.join(name), "not about a message").unwrap();
        make_old(&movement.join(name));
    }
    names(dir, "queue")
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

#[tokio::test]
async fn files_that_are_not_messages_are_ignored_and_stay() {
    let (dir, queue) = queue();
    let foreign = sorted(put_foreign(&dir));
    drop(open(dir.path()));
    send(&queue, &["[1]"]).await;
    let message = lease(&queue, NONE).await.unwrap();
    assert_eq!(message.body, "[1]");
    assert!(lease(&queue, SHORT / 10).await.is_none());
    assert_eq!(queue.counts().await.unwrap().enqueued, Some(1));
    queue.ack(&message.receipt).await.unwrap();

    send(&queue, &["[2]"]).await;
    let admin = Admin::open("fq://test", dir.path()).unwrap();
    assert_eq!(admin.messages().unwrap().map(Result::unwrap).count(), 1);
    assert_eq!(admin.release_all().unwrap(), 0);
    assert_eq!(admin.purge().unwrap(), 1);
    assert_eq!(sorted(names(&dir, "queue")), foreign);
    let left = sorted(names(&dir, "movement"));
    assert_eq!(left, [".DS_Store", "README", "a.json~"]);
}

#[tokio::test]
async fn entries_of_unknown_type_are_not_leased_unless_they_are_files() {
    let (dir, queue) = queue();
    put_foreign(&dir);
    let opened = queue.opened().unwrap();
    for name in ["directory", "link", "socket", "pipe"] {
        let name = Name::parse(&format!("0--{name}.json")).unwrap();
        assert!(!files::is_regular_at(&opened.dirs.queue, name.as_str()), "{}", name.as_str());
        // A notification from the kernel has no type either.
        opened.candidates().saw(name, 1);
    }
    assert!(lease(&queue, NONE).await.is_none());
    assert!(!dir.path().join("movement/directory").exists());
}

#[tokio::test]
async fn a_message_with_an_impossible_time_is_not_due() {
    let (dir, queue) = queue();
    for (n, due) in
        ["99999999999", "18446744073709551615", "99999999999999999999999"].iter().enumerate()
    {
        make_old(&put(&dir, &format!("{due}--{n}.json"), "{}"));
    }
    assert!(lease(&queue, SHORT / 10).await.is_none());
    assert_eq!(queue.counts().await.unwrap().leased, Some(3));
    // This is how an operator recovers after a machine's clock was wrong.
    assert_eq!(Admin::open("fq://test", dir.path()).unwrap().release_all().unwrap(), 3);
    assert_eq!(queue.lease(5, LONG, NONE).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_message_that_was_removed_after_the_listing_is_skipped() {
    let (dir, queue) = queue();
    send(&queue, &["1", "2", "3"]).await;
    let leased = lease(&queue, NONE).await.unwrap();
    for name in names(&dir, "queue") {
        if name.starts_with("0--") {
            std::fs::remove_file(dir.path().join("queue").join(&name)).unwrap();
        }
    }
    assert!(lease(&queue, NONE).await.is_none());
    // The other messages keep their movement files.
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
async fn a_movement_file_that_python_removed_is_created_again() {
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
async fn a_long_queue_is_listed_once_not_for_each_lease() {
    const MESSAGES: u64 = 9_000;
    let (dir, queue) = queue();
    for n in 0..MESSAGES {
        put(&dir, &format!("0--{n}.json"), "{}");
        std::fs::write(dir.path().join(format!("movement/{n}")), format!("0--{n}.json\n")).unwrap();
    }
    for _ in 0..MESSAGES {
        assert!(lease(&queue, NONE).await.is_some());
    }
    assert_eq!(queue.current().opened.candidates().next_listing(), 2);
    assert!(lease(&queue, NONE).await.is_none());
}

#[tokio::test]
async fn the_kernel_notifies_of_new_messages() {
    let (dir, queue) = queue();
    let watch = crate::system::Watch::begin(&dir.path().join("queue")).unwrap();
    send(&queue, &["1"]).await;
    watch.changed().await;
    let mut seen = Vec::new();
    assert!(watch.read(|name| seen.push(name.to_owned())));
    assert_eq!(seen, names(&dir, "queue"));
    // There are no more events.
    let waited = tokio::time::timeout(SHORT / 20, watch.changed()).await;
    assert!(waited.is_err());
}

#[tokio::test]
async fn messages_are_found_without_notifications() {
    let dir = tempfile::tempdir().unwrap();
    let sender = open(dir.path());
    let dirs = Dirs::existing("fq://test", dir.path()).unwrap();
    // This path does not exist, so it cannot be watched.
    let queue = FileQueue::with(OpenedQueue::watching(dirs, dir.path().join("elsewhere")));
    assert!(queue.current().opened.watch.get("fq://test").is_none());
    let started = Instant::now();
    let (message, ()) = tokio::join!(lease(&queue, PATIENCE), async {
        tokio::task::yield_now().await;
        send(&sender, &["1"]).await;
    });
    assert!(message.is_some() && started.elapsed() < PATIENCE / 2);
}

#[test]
fn a_path_without_a_queue_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let error = Admin::open("fq://x", dir.path()).unwrap_err().to_string();
    assert!(error.contains("there is no queue") && error.contains("host submit"), "{error}");
    assert!(names(&dir, "").is_empty(), "opening created something");

    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = FileQueue::open("fq://x", &file).unwrap_err();
    assert!(matches!(error, QueueError::Invalid { .. }), "{error}");
    let error = FileQueue::open("fq://x", &file.join("queue")).unwrap_err().to_string();
    assert!(error.contains("a part of the path is a file"), "{error}");
}

#[test]
fn an_error_of_the_file_system_says_what_to_do() {
    let check = |errno, hint: &str| {
        let said = FileError(errno).to_string();
        assert!(said.contains(hint), "{said}");
    };
    check(Errno::NOSPC, "free some space");
    check(Errno::ACCESS, "read and write");
    check(Errno::NOLCK, "record locks");
    check(Errno::MFILE, "ulimit -n");
    check(Errno::NOTCONN, "mount it again");
}

#[tokio::test]
async fn a_former_holder_can_take_back_its_executions() {
    let (dir, queue) = queue();
    send(&queue, &["1"]).await;
    let first = lease(&queue, NONE).await.unwrap();
    let movement = || read(dir.path().join("movement").join(&first.id));
    let sent = movement();
    queue.start(&first.receipt).await.unwrap();
    Admin::open("fq://test", dir.path()).unwrap().release_all().unwrap();
    let second = lease(&queue, NONE).await.unwrap();
    assert_eq!((second.attempts, second.deaths), (0, 1));
    queue.start(&second.receipt).await.unwrap();
    let before = movement();
    for _ in 0..2 {
        queue.disown(&first.receipt).await.unwrap();
    }
    // Python ignores this line, because no file has that name.
    let since = sent.lines().next().unwrap().len() + 1;
    assert_eq!(movement(), format!("{before}{since}--uncounted\n"));
    // The new holder is not affected.
    let receipt = queue.extend(&second.receipt, 2 * LONG).await.unwrap();
    queue.release(&receipt, NONE, Release::Failed("x")).await.unwrap();
    let third = lease(&queue, NONE).await.unwrap();
    assert_eq!((third.attempts, third.deaths), (1, 0));
    queue.ack(&third.receipt).await.unwrap();
    queue.disown(&third.receipt).await.unwrap();
    assert!(names(&dir, "movement").is_empty());
}

#[tokio::test]
async fn a_failure_before_the_start_does_not_hide_a_death() {
    let (_dir, queue) = queue();
    send(&queue, &["1"]).await;
    let first = lease(&queue, NONE).await.unwrap();
    queue.start(&first.receipt).await.unwrap();
    queue.extend(&first.receipt, SHORT).await.unwrap();
    let second = lease(&queue, PATIENCE).await.unwrap();
    queue.release(&second.receipt, NONE, Release::Failed("no such input")).await.unwrap();
    let third = lease(&queue, NONE).await.unwrap();
    assert_eq!((third.attempts, third.deaths), (1, 1));
}

/// A host whose clock is wrong by this number of seconds.
fn open_wrong(path: &Path, seconds: i64) -> (FileQueue, Arc<AtomicI64>) {
    let wrong = Arc::new(AtomicI64::new(seconds));
    let mut opened = OpenedQueue::new(Dirs::create("fq://wrong", path).unwrap());
    opened.clock = clock::Clock::wrong_by(&wrong);
    (FileQueue::with(opened), wrong)
}

#[tokio::test]
async fn hosts_with_different_clocks_respect_each_others_leases() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = [0, 3600, -3600].map(|seconds| open_wrong(dir.path(), seconds).0);
    send(&hosts[0], &["1", "2", "3"]).await;
    let mut held = Vec::new();
    for host in &hosts {
        held.push(lease(host, NONE).await.unwrap());
    }
    for name in names(&dir, "queue") {
        let due: u64 = name.split("--").next().unwrap().parse().unwrap();
        assert!(due.abs_diff(unix_now() + 300) < 200, "{name}");
    }
    for (host, message) in hosts.iter().zip(&held) {
        assert!(lease(host, NONE).await.is_none());
        let receipt = host.extend(&message.receipt, 2 * LONG).await.unwrap();
        host.release(&receipt, NONE, Release::Uncounted).await.unwrap();
        for other in &hosts {
            let message =
                lease(other, PATIENCE).await.expect("other hosts can lease a released message");
            other.release(&message.receipt, NONE, Release::Uncounted).await.unwrap();
        }
        let message = lease(host, PATIENCE).await.unwrap();
        host.ack(&message.receipt).await.unwrap();
    }
    assert!(names(&dir, "queue").is_empty());
}

#[tokio::test]
async fn a_clock_that_jumps_does_not_affect_leases() {
    let dir = tempfile::tempdir().unwrap();
    let right = open(dir.path());
    for jump in [3600, -3600] {
        let (jumping, wrong) = open_wrong(dir.path(), 0);
        send(&right, &["1", "2"]).await;
        let theirs = lease(&right, NONE).await.unwrap();
        let ours = lease(&jumping, NONE).await.unwrap();
        wrong.store(jump, Ordering::Relaxed);
        assert!(lease(&jumping, NONE).await.is_none());
        let receipt = jumping.extend(&ours.receipt, 2 * LONG).await.unwrap();
        assert!(lease(&right, NONE).await.is_none());
        jumping.ack(&receipt).await.unwrap();
        right.ack(&theirs.receipt).await.unwrap();
    }
}

#[tokio::test]
async fn the_staging_directory_of_a_running_host_is_not_removed() {
    let (dir, queue) = queue();
    send(&queue, &["1"]).await;
    assert_eq!(names(&dir, "host/tmp").len(), 1);
    drop(open(dir.path()));
    assert_eq!(names(&dir, "host/tmp").len(), 1);
    let message = lease(&queue, NONE).await.unwrap();
    queue.ack(&message.receipt).await.unwrap();
}

#[tokio::test]
async fn the_files_of_a_dead_sender_are_removed() {
    let (dir, queue) = queue();
    send(&queue, &["1"]).await;
    let dead = dir.path().join("host/tmp/dead");
    std::fs::create_dir(&dead).unwrap();
    // The senders were killed before and after they created the movement file.
    for file in [".lock", "early", "late"] {
        std::fs::write(dead.join(file), "").unwrap();
    }
    std::fs::write(dir.path().join("movement/late"), "0--late.json\n").unwrap();
    open(dir.path());
    assert!(!dead.exists());
    assert_eq!((names(&dir, "queue").len(), names(&dir, "movement").len()), (1, 1));
}

#[tokio::test]
async fn old_movement_files_are_removed_when_the_queue_is_empty() {
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
async fn a_host_continues_when_its_directory_is_removed() {
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
    remove();
    // The reasons are lost, but the movement file still counts the failure.
    let found = queue.lease(2, LONG, NONE).await.unwrap();
    let counted = |m: &Message| (m.attempts, m.deaths, m.failures.len());
    let mut counted: Vec<_> = found.iter().map(counted).collect();
    counted.sort_unstable();
    assert_eq!(counted, [(0, 0, 0), (1, 0, 0)]);
}

#[tokio::test]
async fn counters_restart_after_they_were_removed() {
    let (dir, queue) = queue();
    for _ in 0..2 {
        // The host checks a few times per second that the file exists.
        let started = Instant::now();
        let counts = loop {
            send(&queue, &["1"]).await;
            let message = lease(&queue, NONE).await.unwrap();
            queue.ack(&message.receipt).await.unwrap();
            let counts = queue.counts().await.unwrap();
            if counts.completed != Some(0) {
                break counts;
            }
            assert!(started.elapsed() < PATIENCE, "completed messages are no longer counted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(counts.completed, Some(1));
        assert!(counts.inserted >= Some(1));
        std::fs::remove_file(dir.path().join("insertions")).unwrap();
        std::fs::remove_file(dir.path().join("completions")).unwrap();
    }
}

#[tokio::test]
async fn a_long_reason_is_cut_and_an_incomplete_one_ignored() {
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
async fn an_operator_can_inspect_and_repair_the_queue() {
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
async fn a_listing_finds_every_message_of_a_long_queue() {
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
async fn permissions_of_new_files_follow_the_umask() {
    let (dir, queue) = queue();
    send(&queue, &["1"]).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    // The permissions are the same as those of any other program's files.
    let file = dir.path().join("any file");
    let directory = dir.path().join("any directory");
    std::fs::write(&file, "").unwrap();
    std::fs::create_dir(&directory).unwrap();
    let message = dir.path().join("queue").join(names(&dir, "queue").remove(0));
    assert_eq!(mode(&message), mode(&file));
    assert_eq!(mode(&dir.path().join("movement")), mode(&directory));
    assert_eq!(mode(&dir.path().join("host/tmp")), mode(&directory));
}
