//! Several hosts on one queue. No host holds a task that another host could run.

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, eventually, misbehaviour};

/// A place with tasks that sleep for `secs` seconds. The component is compiled already, so that all
/// hosts start their tasks at about the same time.
fn place_with(tasks: i64, secs: f64) -> Place {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "sleep", "secs": 0}));
    place.run_until_empty(&[]).good();
    let task = |id| misbehaviour(id, &[], json!({"do": "sleep", "secs": secs}));
    place.submit(&(0..tasks).map(task).collect::<Vec<_>>());
    place
}

#[test]
fn a_task_that_a_busy_host_can_not_start_goes_to_a_host_that_can() {
    let place = place_with(4, 3600.0);
    // Two hosts hold a task ahead at first, because they do not know yet how long tasks take.
    let hosts = [(); 3].map(|()| place.start(&["--parallel", "1", "--grace", "0s"]));
    eventually("one task on each host, and one in the queue", || {
        (place.counts() == (4, 3)).then_some(())
    });
    for (rest, host) in (0..hosts.len()).rev().zip(hosts) {
        host.signal(Signal::TERM);
        eventually("one task less", || (place.counts() == (4, rest)).then_some(()));
        host.wait();
    }
    assert!(place.errors().is_empty());
}

#[test]
fn three_hosts_share_six_tasks() {
    let place = place_with(6, 6.0);
    let args = ["-x", "--json", "--parallel", "1", "--max-attempts", "1"];
    let hosts = [(); 3].map(|()| place.start(&args));
    let done = hosts.map(|host| {
        let summary: Value = serde_json::from_str(&host.wait().good().stdout).expect("a summary");
        summary["done"].as_u64().expect("a count")
    });
    // Each host runs two tasks, unless one starts much later than the others.
    assert!(
        done.iter().sum::<u64>() == 6 && done.iter().all(|done| (1..=3).contains(done)),
        "{done:?}"
    );
}
