//! Invariants that hold whatever happens to a host: the number of attempts is limited, no host
//! publishes outputs after it lost the lease, and only an operator can change components.

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, Running, eventually, misbehaviour};

/// A host whose guest runs. Its start is recorded in the queue.
pub(super) fn executing(place: &Place, args: &[&str], starts: usize) -> Running {
    let host = place.start(args);
    eventually("a start that is recorded", || {
        let movements = std::fs::read_dir(place.path().join("queue/movement")).ok()?;
        let started = |text: String| text.matches("\n\n").count() == starts;
        movements
            .flatten()
            .any(|entry| std::fs::read_to_string(entry.path()).is_ok_and(started))
            .then_some(())
    });
    host
}

/// Kills each host after its guest has begun, until the only task is rejected. Returns the report.
pub(super) fn given_up_after_deaths(place: &Place) -> Value {
    // A task may have twice as many deaths as attempts.
    for starts in 1..=4 {
        let host = executing(place, &["--max-attempts", "2"], starts);
        host.signal(Signal::KILL);
        let _killed = host.wait();
        place.host(&["queue", "release", "queue", "--yes"]).good();
    }
    place.run_until_empty(&["--max-attempts", "2"]).code(3);
    let report = place.the_error();
    let exception = report["exception"].as_str().unwrap();
    assert!(exception.starts_with("4 executions of the task did not end"), "{report:#}");
    report
}

#[test]
fn a_task_that_takes_its_hosts_along_is_given_up_in_the_end() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "sleep", "secs": 3600}));
    let report = given_up_after_deaths(&place);
    assert_eq!(report["attempt"], 4);
    assert_eq!(place.counts(), (0, 0));
}

#[test]
fn nothing_is_published_under_a_lease_that_was_lost() {
    let place = Place::with(&["misbehave"]);
    let mut task = misbehaviour(
        1,
        &[],
        json!({"do": "all", "steps": [
        {"do": "sleep", "secs": 3.0}, {"do": "output", "key": "late.txt", "text": "x"}]}),
    );
    task["basic_info"]["base_directory"] = json!("tests");
    place.submit(&[task]);
    // Without prefetch, the host cannot lease the same message again.
    let args = ["--max-attempts", "1", "--parallel", "1", "--prefetch", "0"];
    let host = executing(&place, &args, 1);
    // Another program releases the message and moves it elsewhere.
    place.host(&["queue", "release", "queue", "--yes"]).good();
    place.host(&["queue", "mv", "queue", "./elsewhere"]).good();
    eventually("the lost lease to be noticed", || host.stderr().contains("lease").then_some(()));
    host.signal(Signal::TERM);
    host.wait().good();
    assert!(place.object("tests/late.txt").is_none(), "it was published");
    assert!(place.errors().is_empty());
}

#[test]
fn a_task_cannot_put_a_component_where_components_are_taken_from() {
    let place = Place::with(&["misbehave"]);
    let before = place.object("components/misbehave.wasm").unwrap();
    for args in [&[][..], &["--components", "./bucket/components"]] {
        let mut task = misbehaviour(
            1,
            &[],
            json!({"do": "output", "key": "misbehave.wasm", "text": "not code"}),
        );
        task["basic_info"]["base_directory"] = json!("components");
        place.submit(&[task]);
        place.run_until_empty(args).code(3);
        assert!(place.object("components/misbehave.wasm").unwrap() == before, "it was replaced");
    }
    assert_eq!(place.errors().len(), 2);
}
