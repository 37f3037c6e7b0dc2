//! Hosts that are killed between two steps. Each test kills a child process.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;

use crate::fault::{self, Step};
use crate::queue::file::FileQueue;
use crate::queue::{Message, Queue, Release};

const NONE: Duration = Duration::ZERO;
const SHORT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// The operations of the child process until it is killed.
#[test]
#[ignore = "runs in the child processes that other tests start"]
fn child() {
    let (Ok(path), Ok(job)) = (std::env::var("TEST_QUEUE"), std::env::var("TEST_JOB")) else {
        return;
    };
    let _faults = fault::arm();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let queue = FileQueue::open("fq://child", path.as_ref()).unwrap();
        if job == "send" {
            queue.send(&[Bytes::from_static(b"{\"n\": 2}")]).await;
            return;
        }
        if job == "drain" {
            loop {
                let found = queue.lease(2, PATIENCE, NONE).await.unwrap();
                if found.is_empty() {
                    return;
                }
                for message in found {
                    queue.ack(&message.receipt).await.unwrap();
                    println!("done {}", message.id);
                }
            }
        }
        let message = queue.lease(1, SHORT, NONE).await.unwrap().remove(0);
        queue.start(&message.receipt).await.unwrap();
        match &*job {
            "extend" => drop(queue.extend(&message.receipt, 2 * SHORT).await.unwrap()),
            "fail" => queue.release(&message.receipt, NONE, Release::Failed("x")).await.unwrap(),
            "drain one" => queue.release(&message.receipt, NONE, Release::Uncounted).await.unwrap(),
            "ack" => queue.ack(&message.receipt).await.unwrap(),
            "give up" => queue.give_up(&message.receipt).await.unwrap(),
            "disown" => queue.disown(&message.receipt).await.unwrap(),
            _ => panic!("no such job: {job}"),
        }
    });
}

fn start_child(path: &Path, job: &str, last_step: Option<Step>) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "queue::file::tests::crashes::child", "--ignored", "--nocapture"])
        .env("TEST_QUEUE", path)
        .env("TEST_JOB", job)
        .env("FAILPOINTS", last_step.map_or(String::new(), |step| format!("{step:?}=return(kill)")))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    child
}

fn open(path: &Path) -> FileQueue {
    FileQueue::open("fq://test", path).unwrap()
}

fn ids(path: &Path, of: impl Fn(&str) -> &str) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return BTreeSet::new();
    };
    entries.map(|e| of(e.unwrap().file_name().to_str().unwrap()).to_owned()).collect()
}

/// Checks that the queue has no files about messages that are not in it.
fn check_tidy(path: &Path) {
    let id = |name: &str| -> String {
        crate::queue::file::name::Name::parse(name).unwrap().id().to_owned()
    };
    let messages: BTreeSet<_> =
        ids(&path.join("queue"), |name| name).iter().map(|n| id(n)).collect();
    assert_eq!(ids(&path.join("movement"), |id| id), messages, "movement files");
    assert!(ids(&path.join("host/attempts"), |id| id).is_subset(&messages), "failures");
    let mut dead = ids(&path.join("host/tmp"), |id| id);
    dead.remove(".lock");
    assert_eq!(dead, BTreeSet::new(), "staging directories of dead processes");
}

/// Runs `job` in a host with a queue of one message, kills the host after `last_step`, and
/// returns the messages that the next host finds.
async fn after(job: &str, last_step: Step) -> (tempfile::TempDir, Vec<Message>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    {
        // The reason of this failure must be removed with the message.
        let queue = open(path);
        queue.send(&[Bytes::from_static(b"{\"n\": 1}")]).await.remove(0).unwrap();
        let message = queue.lease(1, PATIENCE, NONE).await.unwrap().remove(0);
        queue.release(&message.receipt, NONE, Release::Failed("first")).await.unwrap();
    }
    let output = start_child(path, job, Some(last_step)).output().unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(9), "{last_step:?} was not reached: {output:?}");

    let queue = open(path);
    let count = queue.counts().await.unwrap().enqueued.unwrap();
    let mut found = Vec::new();
    while (found.len() as u64) < count {
        let next = queue.lease(10, PATIENCE, PATIENCE).await.unwrap();
        assert!(!next.is_empty(), "a message is stranded");
        found.extend(next);
    }
    drop(queue);
    check_tidy(path);
    (dir, found)
}

/// Checks that one message is found, with these failures, the same number of attempts, and these
/// deaths.
async fn check(job: &str, last_step: Step, deaths: u32, failures: &[&str]) {
    let (dir, found) = after(job, last_step).await;
    assert_eq!(found.len(), 1, "{job}, {last_step:?}");
    assert_eq!(found[0].failures, failures, "{job}, {last_step:?}");
    let counted = (found[0].attempts as usize, found[0].deaths);
    assert_eq!(counted, (failures.len(), deaths), "{job}, {last_step:?}");
    // The message can be completed, and no files are left.
    let queue = open(dir.path());
    queue.ack(&found[0].receipt).await.unwrap();
    drop(queue);
    check_tidy(dir.path());
}

#[tokio::test]
async fn a_host_killed_while_it_leases_loses_no_message_and_is_not_counted() {
    tokio::join!(
        check("ack", Step::LeaseNoted, 0, &["first"]),
        check("ack", Step::LeaseRenamed, 0, &["first"]),
    );
}

#[tokio::test]
async fn a_host_killed_while_it_executes_counts_as_a_death() {
    tokio::join!(
        check("ack", Step::StartNoted, 1, &["first"]),
        check("extend", Step::MoveNoted, 1, &["first"]),
        check("extend", Step::MoveRenamed, 1, &["first"]),
    );
}

#[tokio::test]
async fn a_host_killed_while_it_releases_leaves_the_message() {
    tokio::join!(
        check("fail", Step::FailureNoted, 0, &["first", "x"]),
        check("fail", Step::MoveNoted, 0, &["first", "x"]),
        check("fail", Step::MoveRenamed, 0, &["first", "x"]),
        check("drain one", Step::MoveNoted, 0, &["first"]),
        check("drain one", Step::MoveRenamed, 0, &["first"]),
        check("disown", Step::DisownNoted, 0, &["first"]),
    );
}

#[tokio::test]
async fn a_host_killed_while_it_deletes_leaves_nothing_behind() {
    for step in [Step::Claimed, Step::Forgotten, Step::Discarded] {
        for job in ["ack", "give up"] {
            let (_dir, found) = after(job, step).await;
            assert!(found.is_empty(), "{job}, {step:?}: {found:?}");
        }
    }
}

#[tokio::test]
async fn a_host_killed_while_it_sends_has_sent_a_whole_message_or_none() {
    for (step, expected) in [(Step::SendWritten, 1), (Step::SendNoted, 1), (Step::SendRenamed, 2)] {
        let (_dir, found) = after("send", step).await;
        assert_eq!(found.len(), expected, "{step:?}");
        if expected == 2 {
            assert!(found.iter().any(|m| m.body == "{\"n\": 2}"), "{found:?}");
        }
    }
}

#[tokio::test]
async fn the_next_host_finishes_the_cleanup_of_a_killed_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    open(path).send(&[Bytes::from_static(b"{}")]).await.remove(0).unwrap();
    for step in [Step::Claimed, Step::SweepForgotten] {
        let output = start_child(path, "ack", Some(step)).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
    }
    open(path);
    check_tidy(path);
}

#[tokio::test]
async fn processes_that_drain_one_queue_complete_each_message_once() {
    const MESSAGES: usize = 1500;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    for result in queue.send(&vec![Bytes::from_static(b"{}"); MESSAGES]).await {
        result.unwrap();
    }
    let children: Vec<_> =
        (0..3).map(|_| start_child(dir.path(), "drain", None).spawn().unwrap()).collect();
    let mut done = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        // The test harness writes its own output on the same line as the first result.
        done.extend(text.lines().filter_map(|l| l.split("done ").nth(1)).map(str::to_owned));
    }
    let unique: BTreeSet<_> = done.iter().collect();
    assert_eq!((done.len(), unique.len()), (MESSAGES, MESSAGES));
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.enqueued, counts.completed), (Some(0), Some(MESSAGES as u64)));
    drop(queue);
    check_tidy(dir.path());
}
