//! Entries that anyone with write access can put into a queue directory: pipes, links, directories
//! and files of any size. The host must not wait for a pipe, so a test that hangs has failed.

use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{CWD, Mode};

use crate::queue::LONGEST_MESSAGE;
use crate::queue::file::candidates::Candidates;
use crate::queue::file::name::Name;
use crate::queue::file::*;

const NONE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(300);
const SECRET: &str = "a secret";

/// A queue, and unrelated files next to it.
struct Yard {
    dir: tempfile::TempDir,
    queue: FileQueue,
}

/// The kinds of entries that are not a regular file.
#[derive(Debug, Clone, Copy)]
enum Thing {
    Fifo,
    Socket,
    Directory,
    LinkToFile,
    LinkToDirectory,
    LinkToFifo,
    DanglingLink,
    LinkToItself,
}

const THINGS: [Thing; 8] = [
    Thing::Fifo,
    Thing::Socket,
    Thing::Directory,
    Thing::LinkToFile,
    Thing::LinkToDirectory,
    Thing::LinkToFifo,
    Thing::DanglingLink,
    Thing::LinkToItself,
];

impl Yard {
    fn new() -> Yard {
        let dir = tempfile::tempdir().unwrap();
        let others = dir.path().join("others");
        std::fs::create_dir_all(others.join("work")).unwrap();
        std::fs::write(others.join("file"), SECRET).unwrap();
        std::fs::write(others.join("work/a"), SECRET).unwrap();
        fifo(&others.join("fifo"));
        let queue = FileQueue::open("fq://test", &dir.path().join("queue")).unwrap();
        Yard { dir, queue }
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join("queue").join(part)
    }

    fn others(&self, part: &str) -> PathBuf {
        self.dir.path().join("others").join(part)
    }

    /// Replaces an entry with one of this kind.
    fn put(&self, thing: Thing, part: &str) {
        let path = self.path(part);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&path);
        match thing {
            Thing::Fifo => fifo(&path),
            // No process listens on the socket.
            Thing::Socket => drop(UnixListener::bind(&path).unwrap()),
            Thing::Directory => std::fs::create_dir_all(path.join("more")).unwrap(),
            Thing::LinkToFile => symlink(self.others("file"), &path).unwrap(),
            Thing::LinkToDirectory => symlink(self.others("work"), &path).unwrap(),
            Thing::LinkToFifo => symlink(self.others("fifo"), &path).unwrap(),
            Thing::DanglingLink => symlink(self.others("nothing"), &path).unwrap(),
            Thing::LinkToItself => symlink(path.file_name().unwrap(), &path).unwrap(),
        }
    }

    /// Sends a message, and returns its id.
    async fn send(&self, body: &str) -> String {
        self.queue.send(&[Bytes::from(body.to_owned())]).await.remove(0).unwrap();
        let name = self.messages().pop().unwrap();
        Name::parse(&name).unwrap().id().to_owned()
    }

    async fn lease(&self) -> Option<Message> {
        self.queue.lease(1, LONG, NONE).await.unwrap().pop()
    }

    fn messages(&self) -> Vec<String> {
        names(&self.path("queue"))
    }

    /// Checks that nothing outside the queue was written, created or removed.
    #[track_caller]
    fn others_are_as_they_were(&self) {
        assert_eq!(std::fs::read_to_string(self.others("file")).unwrap(), SECRET);
        assert_eq!(std::fs::read_to_string(self.others("work/a")).unwrap(), SECRET);
        assert_eq!(names(&self.others("")), ["fifo", "file", "work"]);
        assert_eq!(names(&self.others("work")), ["a"]);
        assert!(std::fs::metadata(self.others("fifo")).unwrap().file_type().is_fifo());
    }
}

fn fifo(path: &Path) {
    rustix::fs::mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
}

fn names(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != ".lock");
    names.sort();
    names
}

/// Makes a sparse file of this size.
fn make_long(path: &Path, size: u64) {
    std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
        .set_len(size)
        .unwrap();
}

#[tokio::test]
async fn an_entry_that_is_not_a_file_is_not_a_message() {
    for thing in THINGS {
        let yard = Yard::new();
        yard.put(thing, "queue/0--evil.json");
        yard.send("{}").await;
        for _ in 0..2 {
            if let Some(message) = yard.lease().await {
                assert_eq!(message.body, "{}", "{thing:?}");
                yard.queue.ack(&message.receipt).await.unwrap();
            }
        }
        assert!(yard.lease().await.is_none());
        let admin = Admin::open("fq://test", &yard.path("")).unwrap();
        assert_eq!(admin.messages().unwrap().count(), 0, "{thing:?}");
        assert_eq!(admin.counts().unwrap().enqueued, Some(0), "{thing:?}");
        assert_eq!(yard.messages(), ["0--evil.json"], "{thing:?} was removed");
        yard.others_are_as_they_were();
    }
}

#[tokio::test]
async fn an_entry_in_the_place_of_a_movement_file_is_moved_away() {
    for thing in THINGS {
        let yard = Yard::new();
        let id = yard.send("{}").await;
        let movement = format!("movement/{id}");
        // The entry is put there before the lease, and before each operation under it.
        yard.put(thing, &movement);
        let sent = yard.path(&format!("queue/0--{id}.json"));
        let then = std::time::SystemTime::now() - Duration::from_secs(3600);
        std::fs::File::options().write(true).open(sent).unwrap().set_modified(then).unwrap();
        let message = yard.lease().await.unwrap_or_else(|| panic!("{thing:?}"));
        yard.put(thing, &movement);
        yard.queue.start(&message.receipt).await.unwrap();
        yard.put(thing, &movement);
        let receipt = yard.queue.extend(&message.receipt, 2 * LONG).await.unwrap();
        yard.put(thing, &movement);
        yard.queue.disown(&receipt).await.unwrap();
        yard.put(thing, &movement);
        yard.queue.release(&receipt, NONE, Release::Failed("x")).await.unwrap();
        let message = yard.lease().await.unwrap();
        assert_eq!(message.failures, ["x"]);
        yard.put(thing, &movement);
        yard.queue.ack(&message.receipt).await.unwrap();
        assert_eq!(yard.queue.counts().await.unwrap().completed, Some(1));
        assert!(yard.messages().is_empty() && names(&yard.path("movement")).is_empty());
        assert!(names(&yard.path("host/refused")).len() >= 5, "{thing:?}");
        yard.others_are_as_they_were();
    }
}

#[tokio::test]
async fn an_entry_in_the_place_of_the_reasons_is_moved_away() {
    for thing in THINGS {
        let yard = Yard::new();
        let id = yard.send("{}").await;
        let message = yard.lease().await.unwrap();
        yard.put(thing, &format!("host/attempts/{id}"));
        yard.queue.release(&message.receipt, NONE, Release::Failed("one")).await.unwrap();
        let message = yard.lease().await.unwrap();
        assert_eq!((message.attempts, &message.failures[..]), (1, &["one".to_owned()][..]));
        yard.queue.release(&message.receipt, NONE, Release::Uncounted).await.unwrap();
        yard.put(thing, &format!("host/attempts/{id}"));
        let message = yard.lease().await.unwrap();
        assert_eq!((message.attempts, message.failures.len()), (1, 0), "{thing:?}");
        yard.queue.ack(&message.receipt).await.unwrap();
        assert!(names(&yard.path("host/attempts")).is_empty(), "{thing:?}");
        yard.others_are_as_they_were();
    }
}

#[tokio::test]
async fn an_entry_in_the_place_of_a_counter_is_moved_away() {
    for thing in THINGS {
        let yard = Yard::new();
        for counter in ["insertions", "completions"] {
            yard.put(thing, counter);
        }
        let admin = Admin::open("fq://test", &yard.path("")).unwrap();
        let counts = admin.counts().unwrap();
        assert_eq!((counts.inserted, counts.completed), (None, None), "{thing:?}");
        assert!(names(&yard.path("host/refused")).is_empty(), "counting changed something");
        yard.send("{}").await;
        let message = yard.lease().await.unwrap();
        yard.queue.ack(&message.receipt).await.unwrap();
        let counts = yard.queue.counts().await.unwrap();
        assert_eq!((counts.inserted, counts.completed), (Some(1), Some(1)), "{thing:?}");
        for counter in ["insertions", "completions"] {
            yard.put(thing, counter);
        }
        admin.rezero().unwrap();
        assert_eq!(admin.counts().unwrap().inserted, Some(0));
        assert_eq!(admin.purge().unwrap(), 0);
        yard.others_are_as_they_were();
    }
}

#[tokio::test]
async fn a_counter_of_any_length_is_read_quickly() {
    let yard = Yard::new();
    for counter in ["insertions", "completions"] {
        make_long(&yard.path(counter), 8 << 30);
    }
    assert_eq!(yard.queue.counts().await.unwrap().inserted, Some(0));
    yard.send("{}").await;
    assert_eq!(std::fs::read_to_string(yard.path("insertions")).unwrap(), "1");
}

#[tokio::test]
async fn a_message_that_is_too_long_is_kept_unread() {
    let yard = Yard::new();
    let file = yard.path("queue/0--long.json");
    make_long(&file, 8 << 30);
    std::fs::write(yard.path("movement/long"), "0--long.json\n").unwrap();
    let admin = Admin::open("fq://test", &yard.path("")).unwrap();
    let listed = admin.messages().unwrap().next().unwrap().unwrap();
    assert!(listed.unread.unwrap().contains("0--long.json has 8589934592 bytes"));
    for last in [false, true] {
        let message = yard.lease().await.unwrap();
        let problem = message.unread.as_ref().unwrap();
        let kept = yard.path("host/refused/long.json");
        assert!(problem.contains("has 8589934592 bytes"), "{problem}");
        assert!(problem.ends_with(&format!("kept as {}", kept.display())), "{problem}");
        assert!(message.body.is_empty());
        let error = message.task().unwrap_err().to_string();
        assert!(error.contains("8589934592"), "{error}");
        let receipt = yard.queue.extend(&message.receipt, 2 * LONG).await.unwrap();
        if last {
            yard.queue.give_up(&receipt).await.unwrap();
            assert_eq!(std::fs::metadata(kept).unwrap().len(), 8 << 30, "it is lost");
        } else {
            yard.queue.release(&receipt, NONE, Release::Failed("x")).await.unwrap();
        }
    }
    assert!(yard.messages().is_empty() && names(&yard.path("movement")).is_empty());
    assert!(names(&yard.path("host/attempts")).is_empty());
    assert_eq!(yard.queue.counts().await.unwrap().completed, Some(0));
    // A message is not sent if no host could lease it.
    let long = Bytes::from(vec![b'x'; LONGEST_MESSAGE + 1]);
    let refused = yard.queue.send(&[long.clone(), long.slice(1..)]).await;
    assert!(matches!(&refused[..], [Err(QueueError::Invalid { .. }), Ok(())]), "{refused:?}");
    assert_eq!(yard.lease().await.unwrap().body.len(), LONGEST_MESSAGE);
}

#[tokio::test]
async fn the_end_of_a_long_movement_file_counts() {
    let yard = Yard::new();
    let id = yard.send("{}").await;
    let movement = yard.path(&format!("movement/{id}"));
    let lines = format!("\n0--failed\n17--{id}.json\n").repeat(100_000);
    std::fs::write(&movement, &lines).unwrap();
    let message = yard.lease().await.unwrap();
    assert!(message.attempts > 1000 && message.deaths == 0, "{message:?}");
    yard.queue.start(&message.receipt).await.unwrap();
    let receipt = yard.queue.extend(&message.receipt, 2 * LONG).await.unwrap();
    yard.queue.release(&receipt, NONE, Release::Uncounted).await.unwrap();
    let text = std::fs::read_to_string(&movement).unwrap();
    assert!(text.starts_with(&lines) && text.contains("\n\n"), "the old lines were changed");
    assert!(text.contains("\n0--uncounted\n"), "the execution was not taken back");
    let again = yard.lease().await.unwrap();
    assert_eq!(again.deaths, 0);
    yard.queue.ack(&again.receipt).await.unwrap();

    // Repeat with a file that is not text.
    let id = yard.send("{}").await;
    make_long(&yard.path(&format!("movement/{id}")), 8 << 30);
    let message = yard.lease().await.unwrap();
    yard.queue.start(&message.receipt).await.unwrap();
    yard.queue.release(&message.receipt, NONE, Release::Failed("x")).await.unwrap();
    let message = yard.lease().await.unwrap();
    assert_eq!((message.attempts, message.deaths), (1, 0));
    yard.queue.ack(&message.receipt).await.unwrap();
    assert!(names(&yard.path("movement")).is_empty());
}

#[tokio::test]
async fn a_message_that_can_not_be_leased_does_not_block_others() {
    let yard = Yard::new();
    // The file of a running program cannot be opened for writing.
    std::fs::copy("/bin/sleep", yard.path("movement/program")).unwrap();
    std::fs::write(yard.path("queue/0--program.json"), "{}").unwrap();
    let program = yard.path("movement/program");
    let mut program = std::process::Command::new(program).arg("600").spawn().unwrap();
    // With a time of ten digits, the name is too long for a file.
    let long = format!("0--{}.json", "a".repeat(255 - "0--.json".len()));
    std::fs::write(yard.path("queue").join(&long), "{}").unwrap();
    std::fs::write(yard.path("movement").join(&long[3..long.len() - 5]), "").unwrap();
    for _ in 0..3 {
        yard.send("{}").await;
        let message = yard.lease().await.unwrap();
        assert!(uuid::Uuid::parse_str(&message.id).is_ok(), "{}", message.id);
        yard.queue.ack(&message.receipt).await.unwrap();
        assert!(yard.lease().await.is_none());
    }
    program.kill().unwrap();
    program.wait().unwrap();
    let message = yard.lease().await.unwrap();
    assert_eq!(message.id, "program");
    yard.queue.ack(&message.receipt).await.unwrap();
    assert_eq!(yard.messages(), [long]);
}

#[test]
fn the_rate_of_tries_is_limited_however_many_messages_are_locked() {
    let mut candidates = Candidates::default();
    assert_eq!(candidates.retry_after(), None);
    for (count, tries_a_second) in [(1, 20), (64, 1280), (1000, 1280), (10_000, 1280)] {
        for n in 0..count {
            candidates.saw_busy(Name::new(0, &n.to_string()));
        }
        let after = candidates.retry_after().unwrap();
        candidates.retry_busy();
        let mut tries = 0;
        while candidates.next().is_some() {
            tries += 1;
        }
        assert!(after >= Duration::from_millis(50));
        assert!(f64::from(tries) / after.as_secs_f64() <= f64::from(tries_a_second), "{count}");
    }
}

#[tokio::test]
async fn only_the_last_of_many_reasons_are_read() {
    let yard = Yard::new();
    let id = yard.send("{}").await;
    let message = yard.lease().await.unwrap();
    yard.queue.release(&message.receipt, NONE, Release::Failed("x")).await.unwrap();
    let reasons: String = (0..100_000).map(|n| format!("\"reason {n}\"\n")).collect();
    std::fs::write(yard.path(&format!("host/attempts/{id}")), reasons).unwrap();
    let failures = yard.lease().await.unwrap().failures;
    assert_eq!(failures.last().unwrap(), "reason 99999");
    assert!(failures.len() < 50_000);
}

/// If a link replaced a directory, the host would work in the link's target. It would remove files
/// with the names of messages, and anything that looks like a leftover of a dead host.
#[tokio::test]
async fn a_link_in_the_place_of_a_directory_is_refused() {
    for part in ["queue", "movement", "host"] {
        let Yard { dir, queue } = Yard::new();
        drop(queue);
        let path = dir.path().join("queue");
        let _ = std::fs::remove_dir_all(path.join(part));
        // The target has the layout of a dead host's directory.
        let others = dir.path().join("others");
        std::fs::create_dir_all(others.join("tmp/work")).unwrap();
        std::fs::write(others.join("tmp/work/thesis"), SECRET).unwrap();
        symlink(&others, path.join(part)).unwrap();
        let error = FileQueue::open("fq://test", &path).unwrap_err().to_string();
        assert!(error.contains("link"), "{part}: {error}");
        let thesis = std::fs::read_to_string(others.join("tmp/work/thesis"));
        assert_eq!(thesis.unwrap(), SECRET, "{part}");
        assert_eq!(names(&others.join("tmp")), ["work"], "{part}");
    }
}

#[tokio::test]
async fn links_among_staging_directories_are_not_followed() {
    let yard = Yard::new();
    std::fs::create_dir_all(yard.path("host/tmp/dead/directory")).unwrap();
    std::fs::write(yard.path("host/tmp/dead/half"), "").unwrap();
    symlink(yard.others("work"), yard.path("host/tmp/dead/link")).unwrap();
    symlink(yard.others("work"), yard.path("host/tmp/link")).unwrap();
    fifo(&yard.path("host/tmp/fifo"));
    fifo(&yard.path("movement/half"));
    FileQueue::open("fq://test", &yard.path("")).unwrap();
    assert!(!yard.path("host/tmp/dead").exists() && !yard.path("movement/half").exists());
    yard.others_are_as_they_were();
}
