//! A host that is told to stop finishes the running tasks, and releases the others at once.

use rustix::process::{Pid, Signal};
use serde_json::json;
use task_host_tests::{Place, Running, eventually, misbehaviour};

/// A host with one slot. It runs the first of six tasks, which each take `secs` seconds, and holds
/// three others ahead.
fn busy(place: &Place, secs: f64, args: &[&str]) -> Running {
    let tasks: Vec<_> = (0..6)
        .map(|id| {
            let mut task = misbehaviour(
                id,
                &[],
                json!({"do": "all", "steps": [
                {"do": "sleep", "secs": secs}, {"do": "output", "key": "done.txt", "text": "x"}]}),
            );
            task["basic_info"]["base_directory"] = json!(format!("tests-{id}"));
            task
        })
        .collect();
    place.submit(&tasks);
    let args = [&["--parallel", "1", "--prefetch", "3"], args].concat();
    let host = place.start(&args);
    eventually("one task that runs and three that are held ready", || {
        (place.counts() == (6, 4)).then_some(())
    });
    eventually("a start that is recorded", || place.a_task_has_started().then_some(()));
    host
}

#[test]
fn sigterm_lets_the_running_task_finish_and_gives_the_others_back_at_once() {
    let place = Place::with(&["misbehave"]);
    let host = busy(&place, 3.0, &[]);
    host.signal(Signal::TERM);
    // The first task is still sleeping at this moment.
    eventually("the tasks that were held ready", || (place.counts() == (6, 1)).then_some(()));
    host.wait().good();
    assert_eq!(place.counts(), (5, 0));
    assert_eq!(place.keys().iter().filter(|key| key.ends_with("done.txt")).count(), 1);
    assert!(place.errors().is_empty());

    // A drain is not an attempt, so each released task still has its only attempt.
    place.run_until_empty(&["--max-attempts", "1", "--parallel", "5"]).good();
    assert_eq!(place.keys().iter().filter(|key| key.ends_with("done.txt")).count(), 6);
}

/// The kernel delivers a signal to any thread that does not block it.
#[test]
fn a_signal_for_the_thread_of_a_task_reaches_the_host() {
    let place = Place::with(&["misbehave"]);
    let host = busy(&place, 3.0, &[]);
    let threads = format!("/proc/{}/task", host.pid().as_raw_nonzero());
    let name = |id: &str| std::fs::read_to_string(format!("{threads}/{id}/comm")).ok();
    let ids = std::fs::read_dir(&threads).expect("the host's threads").flatten();
    let ids = ids.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let guests: Vec<String> =
        ids.filter(|id| name(id).is_some_and(|name| name.starts_with("guest-"))).collect();
    let [guest] = &*guests else { panic!("a thread for the task: {guests:?}") };
    let guest = guest.parse().ok().and_then(Pid::from_raw).expect("the id of a thread");
    // The signal is for the process, but the kernel prefers this thread if it does not block
    // signals.
    rustix::process::kill_process(guest, Signal::TERM).expect("a signal");
    eventually("the tasks that were held ready", || (place.counts() == (6, 1)).then_some(()));
    host.wait().good();
    assert_eq!(place.counts(), (5, 0));
}

#[test]
fn a_second_signal_gives_everything_back() {
    let place = Place::with(&["misbehave"]);
    let host = busy(&place, 3600.0, &[]);
    host.signal(Signal::TERM);
    // `timeout` signals the host and then its process group, so the host gets two signals.
    host.signal(Signal::TERM);
    eventually("the tasks that were held ready", || (place.counts() == (6, 1)).then_some(()));
    host.signal_again(Signal::TERM);
    host.wait().code(143);
    assert_eq!(place.counts(), (6, 0));
    assert!(!place.keys().iter().any(|key| key.ends_with("done.txt")));
    assert!(place.errors().is_empty());
}

#[test]
fn ctrl_c_twice_has_its_own_exit_code() {
    let place = Place::with(&["misbehave"]);
    let host = busy(&place, 3600.0, &[]);
    host.signal(Signal::INT);
    eventually("the tasks that were held ready", || (place.counts() == (6, 1)).then_some(()));
    host.signal_again(Signal::INT);
    host.wait().code(130);
    assert_eq!(place.counts(), (6, 0));
}

#[test]
fn after_the_grace_period_the_running_task_is_given_back_too() {
    let place = Place::with(&["misbehave"]);
    let host = busy(&place, 3600.0, &["--grace", "200ms"]);
    host.signal(Signal::TERM);
    host.wait().code(4);
    assert_eq!(place.counts(), (6, 0));
}
