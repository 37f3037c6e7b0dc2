//! Only executions of a task that end count as attempts. Lost leases and killed hosts do not.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, Running, eventually, misbehaviour};

/// A task that sleeps for `secs` seconds, and whose executions each publish an output with a name
/// of its own.
fn task(id: i64, secs: f64) -> Value {
    let steps = json!([{"do": "sleep", "secs": secs}, {"do": "mark", "dir": "marks"}]);
    misbehaviour(id, &[], json!({"do": "all", "steps": steps}))
}

/// The number of executions of a task that published their outputs.
fn published(place: &Place, id: i64) -> usize {
    let begin = format!("tests/marks/{id}-");
    place.keys().iter().filter(|key| key.starts_with(&begin)).count()
}

/// The movement file of a task's message, while the message is in the queue.
fn movement(place: &Place, id: i64) -> Option<PathBuf> {
    let queue = place.path().join("queue");
    let messages = fs::read_dir(queue.join("queue")).ok()?.flatten();
    let ours = messages.filter(|message| {
        let body: Option<Value> =
            fs::read(message.path()).ok().and_then(|body| serde_json::from_slice(&body).ok());
        body.is_some_and(|body| body["basic_info"]["id"] == id)
    });
    let names = ours.filter_map(|message| message.file_name().into_string().ok());
    let mut ids = names.filter_map(|name| {
        let (_, id) = name.strip_suffix(".json")?.split_once("--")?;
        Some(queue.join("movement").join(id))
    });
    ids.next()
}

/// The number of executions of a task that began: the empty lines in its message's movement file.
fn starts(place: &Place, id: i64) -> usize {
    let lines = movement(place, id).and_then(|path| fs::read_to_string(path).ok());
    lines.unwrap_or_default().lines().filter(|line| line.is_empty()).count()
}

fn all_starts(place: &Place, ids: std::ops::Range<i64>) -> usize {
    ids.map(|id| starts(place, id)).sum()
}

/// Kills a host, and releases its leases at once for other hosts.
fn kill(place: &Place, host: Running) {
    host.signal(Signal::KILL);
    host.wait();
    place.host(&["queue", "release", "--fq", "./queue", "--yes"]).good();
}

#[track_caller]
fn none_given_up(place: &Place) {
    assert!(place.errors().is_empty(), "{:#?}", place.errors());
}

#[test]
fn leases_that_are_lost_are_no_attempts() {
    let place = Place::with(&["misbehave"]);
    place.submit(&[task(1, 3600.0)]);
    // One failure, or two deaths, would reject the task.
    let args = [
        "--max-attempts",
        "1",
        "--lease",
        "2s",
        "--parallel",
        "1",
        "--prefetch",
        "0",
        "--grace",
        "100ms",
    ];
    let mut holder = place.start(&args);
    eventually("the first execution", || (starts(&place, 1) == 1).then_some(()));
    for _ in 0..4 {
        let before = starts(&place, 1);
        holder.signal(Signal::STOP);
        let other = place.start(&args);
        eventually("another host that executes the task", || {
            none_given_up(&place);
            (starts(&place, 1) > before).then_some(())
        });
        holder.signal(Signal::CONT);
        eventually("a host that sees what it lost", || {
            holder.stderr().contains("another host may have leased the task").then_some(())
        });
        holder.signal(Signal::TERM);
        holder.wait();
        holder = other;
    }
    drop(holder);

    // No execution of the task has ended, so the task still has all its attempts.
    place.push("NO_OP");
    fs::copy(
        place.path().join("bucket/components/NO_OP.wasm"),
        place.path().join("bucket/components/misbehave.wasm"),
    )
    .unwrap();
    place.host(&["queue", "release", "--fq", "./queue", "--yes"]).good();
    place.run_until_empty(&["--max-attempts", "1"]).good();
    none_given_up(&place);
}

#[test]
fn a_task_that_kills_its_hosts_is_given_up_and_its_neighbours_are_not() {
    const POISON: i64 = 0;
    let place = Place::with(&["misbehave"]);
    let mut tasks = vec![task(POISON, 3600.0)];
    tasks.extend((1..6).map(|id| task(id, 0.5)));
    place.submit(&tasks);
    let args = ["--parallel", "4", "--prefetch", "0", "--lease", "30s", "--max-attempts", "3"];
    let mut deaths = 0;
    loop {
        let before = all_starts(&place, 1..6);
        let mut host = place.start(&[&args[..], &["-x"]].concat());
        let has_ended = eventually("the poison or the end of a host", || {
            if starts(&place, POISON) > deaths {
                return Some(false);
            }
            host.has_ended().then_some(true)
        });
        if has_ended {
            // The host rejected the poison.
            host.wait().code(3);
            break;
        }
        if deaths < 2 {
            eventually("a neighbour that dies with it, unless all are done", || {
                let is_begun = all_starts(&place, 1..6) > before;
                (is_begun || place.counts().0 == 1).then_some(())
            });
        } else {
            // After two deaths, the poison runs alone: no other task begins or ends.
            let before: Vec<usize> = (1..6).map(|id| starts(&place, id)).collect();
            let objects = place.keys();
            std::thread::sleep(Duration::from_millis(700));
            let begun = (1..6).filter(|&id| starts(&place, id) > before[id as usize - 1]);
            assert_eq!(Vec::from_iter(begun), [] as [i64; 0], "begun beside the poison");
            assert_eq!(place.keys(), objects, "published beside the poison");
        }
        kill(&place, host);
        deaths += 1;
        assert!(deaths <= 6, "the poison is executed for ever");
    }
    let report = place.the_error();
    assert_eq!(report["task"]["basic_info"]["id"], POISON, "{report:#}");
    let exception = report["exception"].as_str().unwrap();
    assert!(exception.contains("6 executions of the task did not end"), "{exception}");
    assert_eq!(deaths, 6);
    for id in 1..6 {
        assert!(published(&place, id) >= 1, "task {id}");
    }
    assert_eq!(place.counts(), (0, 0));
}

#[test]
fn hosts_that_are_taken_away_use_up_no_attempts() {
    const TASKS: i64 = 4;
    let place = Place::with(&["misbehave"]);
    place.submit(&(0..TASKS).map(|id| task(id, 1.0)).collect::<Vec<_>>());
    let args = ["--parallel", "4", "--max-attempts", "5", "--lease", "30s"];
    // Nine deaths are more than `--max-attempts`, but fewer than the ten after which a task is
    // rejected.
    let mut seen = 0;
    for _ in 0..9 {
        let host = place.start(&args);
        eventually("an execution, or nothing left to execute", || {
            let is_begun = all_starts(&place, 0..TASKS) > seen;
            (is_begun || place.counts().0 == 0).then_some(())
        });
        kill(&place, host);
        seen = all_starts(&place, 0..TASKS);
    }
    place.run_until_empty(&["--max-attempts", "5", "--parallel", "4"]).good();
    none_given_up(&place);
    for id in 0..TASKS {
        assert!(published(&place, id) >= 1, "task {id}");
    }
}

#[test]
fn tasks_that_are_only_held_ahead_are_not_charged_when_their_host_is_killed() {
    const TASKS: i64 = 5;
    let place = Place::with(&["misbehave"]);
    place.submit(&(0..TASKS).map(|id| task(id, 3600.0)).collect::<Vec<_>>());
    // The second death rejects a task. Each killed host holds all tasks.
    let args = ["--parallel", "1", "--prefetch", "10", "--lease", "30s", "--max-attempts", "1"];
    let mut kills = 0;
    while place.errors().is_empty() {
        let host = place.start(&args);
        eventually("one that runs, and all others held", || {
            let held = place.counts().1 == place.counts().0;
            let is_over = !place.errors().is_empty();
            let runs = all_starts(&place, 0..TASKS) == kills + 1;
            (is_over || (held && runs)).then_some(())
        });
        if place.errors().is_empty() {
            kill(&place, host);
            kills += 1;
        }
        assert!(kills <= 2 * TASKS as usize, "nothing is ever given up");
    }
    // The rejected task itself was executed twice.
    let report = place.the_error();
    let exception = report["exception"].as_str().unwrap();
    assert!(exception.contains("2 executions of the task did not end"), "{exception}");
    let given_up = report["task"]["basic_info"]["id"].as_i64().unwrap();
    let others: usize = (0..TASKS).filter(|id| *id != given_up).map(|id| starts(&place, id)).sum();
    assert!(others < kills, "{others} executions of others, and {kills} kills");
}

/// Locks the movement file of a task that has not begun, as a host would that is stopped at that
/// moment.
fn lock_one_that_waits(place: &Place, ids: std::ops::Range<i64>) -> Option<(i64, fs::File)> {
    ids.rev().find_map(|id| {
        let path = movement(place, id)?;
        let mut file = fs::File::options().read(true).write(true).open(path).ok()?;
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        // Reads through this file: a process loses its lock when it closes another descriptor of
        // the file.
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        text.lines().all(|line| !line.is_empty()).then_some((id, file))
    })
}

#[test]
fn a_message_that_another_process_has_locked_holds_up_no_other() {
    let place = Place::with(&["misbehave"]);
    let ids = 1..5;
    place.submit(&ids.clone().map(|id| task(id, 2.0)).collect::<Vec<_>>());
    let args = ["--parallel", "1", "--prefetch", "5", "--lease", "6s", "--max-attempts", "1"];
    let host = place.start(&args);
    eventually("one that runs, and all others held", || {
        (place.counts() == (4, 4) && all_starts(&place, ids.clone()) > 0).then_some(())
    });
    let (waiting, lock) = eventually("a task that waits", || lock_one_that_waits(&place, 1..5));
    // The host tries to start the task before the lease ends, or afterwards.
    let signs = ["the message is delivered again when its lease expires", "the lease ended before"];
    eventually("a message that can neither be started nor kept", || {
        let said = host.stderr();
        signs.iter().any(|sign| said.contains(sign)).then_some(())
    });
    eventually("all other tasks", || {
        let mut others = ids.clone().filter(|&id| id != waiting);
        others.all(|id| published(&place, id) > 0).then_some(())
    });
    assert_eq!(published(&place, waiting), 0);
    drop(lock);
    eventually("the last task", || (place.counts().0 == 0).then_some(()));
    host.signal(Signal::TERM);
    let said = host.wait().good().stderr;
    assert!(!said.contains("trying again until it works"), "an outage: {said}");
    assert_eq!(published(&place, waiting), 1);
    none_given_up(&place);
}

#[test]
fn short_tasks_among_long_ones_run_once_each_and_cost_no_attempt() {
    const TASKS: i64 = 300;
    let place = Place::with(&["misbehave"]);
    // The host starts short tasks ahead, and takes the start back if a long task runs first.
    let secs = |id: i64| if id % 25 == 0 { 0.2 } else { 0.0 };
    place.submit(&(0..TASKS).map(|id| task(id, secs(id))).collect::<Vec<_>>());
    place.run_until_empty(&["--parallel", "2", "--max-attempts", "1"]).good();
    assert_eq!(place.counts(), (0, 0));
    for id in 0..TASKS {
        assert_eq!(published(&place, id), 1, "{id}");
    }
    assert_eq!(place.left_behind(), Vec::<String>::new());
}
