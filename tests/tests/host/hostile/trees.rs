//! Large trees of outputs do not delay other tasks.

use serde_json::json;
use task_host_tests::{Place, Watched, eventually, misbehaviour, no_op};

/// Asks for the host's health until the queue is empty. If one task's files block all threads, the
/// host does not answer, or reports that calls hang.
#[track_caller]
fn answers_until_the_queue_is_empty(place: &Place, host: &Watched) {
    eventually("an empty queue", || {
        assert_eq!(host.ask("/healthz").0, 200);
        assert_eq!(host.ready(), (200, r#"{"ready":true,"problems":[]}"#.to_owned()));
        (place.counts() == (0, 0)).then_some(())
    });
}

#[test]
fn wide_trees_are_fetched_and_published_while_others_have_their_turn() {
    const DIRS: u64 = 1_000;
    const FILES: u64 = 1_000;
    const INPUTS: usize = 500;
    let place = Place::with(&["misbehave", "NO_OP"]);
    let tree = json!({"do": "tree", "depth": 60, "dirs": DIRS, "files": FILES});
    let mut tasks: Vec<_> = (0..4).map(|id| misbehaviour(id, &[], tree.clone())).collect();
    for (id, task) in tasks.iter_mut().enumerate() {
        task["basic_info"]["base_directory"] = json!(format!("tree-{id}"));
    }
    let innocent = place.innocent(50);
    tasks.extend(innocent);
    let inputs: Vec<String> = (0..INPUTS).map(|n| format!("many/{n}/in/{n}.many")).collect();
    for input in &inputs {
        place.put(&format!("data/{input}"), input);
    }
    tasks.push(no_op(1_000, &inputs));
    place.submit(&tasks);
    let host = place.watch(&["--parallel", "4", "--lease", "10s", "--max-attempts", "1"]);
    answers_until_the_queue_is_empty(&place, &host);
    place.innocent_are_done(50);
    let keys = place.keys();
    for id in 0..4 {
        let last = format!("tree-{id}/{}{}", "t/".repeat(60), FILES - 1);
        assert!(keys.contains(&last), "{last}");
    }
    let copied = keys.iter().filter(|k| k.starts_with("data/0_output/") && k.ends_with(".many"));
    assert_eq!(copied.count(), INPUTS);
    let published = keys.iter().filter(|key| key.starts_with("tree-")).count();
    assert_eq!(published as u64, 4 * FILES);
    let summary = host.did_without_harm(55);
    assert_eq!(summary["lost"], 0, "{summary:#}");
}

#[test]
fn trees_that_are_too_deep_are_refused_and_the_host_goes_on() {
    let place = Place::with(&["misbehave", "NO_OP"]);
    let tree = json!({"do": "tree", "depth": 500, "dirs": 3_000});
    let tasks: Vec<_> = (0..4).map(|id| misbehaviour(id, &[], tree.clone())).collect();
    place.submit(&tasks);
    let host = place.watch(&["--parallel", "4", "--lease", "10s"]);
    answers_until_the_queue_is_empty(&place, &host);
    let errors = place.errors();
    assert_eq!(errors.len(), 4, "{errors:#?}");
    for error in errors {
        let exception = error["exception"].as_str().expect("an exception");
        let want = "the guest ran into the limit of 64 levels of directories";
        assert!(exception.starts_with(want), "{exception}");
        assert_eq!(error["attempt"], 1, "{error:#}");
    }
    place.submit(&place.innocent(20));
    eventually("an empty queue", || (place.counts() == (0, 0)).then_some(()));
    let summary = host.stop();
    let ends = ["done", "failed", "retried", "lost"].map(|name| summary[name].as_u64());
    assert_eq!(ends, [Some(20), Some(4), Some(0), Some(0)], "{summary:#}");
    // The next host removes what the first had no time to remove.
    place.run_until_empty(&[]).good();
    assert_eq!(place.left_behind(), Vec::<String>::new());
}
