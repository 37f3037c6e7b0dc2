//! Deterministic tasks leave the same bytes in each run, in each language. Ordinary tasks do not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::{Value, json};
use task_host_tests::{Place, misbehaviour};

/// The number of tasks in a run.
const TASKS: i64 = 3;
/// The time at which the clock of a deterministic task starts, in seconds since 1970.
const START: &str = "946684800";

/// The values that a task observed, by name.
type Observed = BTreeMap<String, String>;

/// Runs tasks of a program, and returns the values that each observed. Removes the outputs from the
/// bucket.
#[track_caller]
fn observe(place: &Place, component: &str, args: &[&str]) -> Vec<Observed> {
    let task = |id: i64| {
        json!({"basic_info": {
            "id": id, "name": component, "base_directory": "tests", "inputs": ["in/2", "in/1"],
        }})
    };
    place.submit(&(0..TASKS).map(task).collect::<Vec<Value>>());
    place.run_until_empty(&[args, &["--max-attempts", "1"]].concat()).good();
    let observed = (0..TASKS).map(|id| {
        let key = format!("tests/observed/{id}.txt");
        let text = String::from_utf8(place.object(&key).expect("a report")).expect("UTF-8");
        fs::remove_file(place.path().join("bucket").join(key)).unwrap();
        let lines = text.lines().map(|line| line.split_once(": ").expect("a name and a value"));
        lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    });
    observed.collect()
}

/// The names of the values that differ between two runs.
fn differences(one: &[Observed], other: &[Observed]) -> BTreeSet<String> {
    let pairs = one.iter().zip(other);
    let names = pairs.flat_map(|(one, other)| {
        assert!(one.keys().eq(other.keys()), "{one:#?} {other:#?}");
        one.iter().zip(other).filter(|(one, other)| one != other).map(|(one, _)| one.0.clone())
    });
    names.collect()
}

/// Checks that deterministic runs of a program observe the same values, and that only the values in
/// `varying` vary in ordinary runs.
#[track_caller]
fn check(component: &str, varying: &[&str]) {
    let place = Place::with(&[component]);
    place.put("tests/in/1", "one");
    place.put("tests/in/2", vec![b'2'; 100_000]);
    let one = observe(&place, component, &["--deterministic", "--parallel", "1"]);
    // Another process, another order of the tasks, and outputs on the disk.
    let other = ["--deterministic", "--parallel", "3", "--output-file-memory", "100B"];
    let other = observe(&place, component, &other);
    assert_eq!(one, other);
    assert!(one[0]["time"].starts_with(START), "{:#?}", one[0]);
    assert_ne!(one[0]["random"], one[1]["random"], "each task has its own random numbers");
    for (name, value) in &one[0] {
        if name.starts_with("not a number") {
            let is_canonical = |nan: &str| nan == "7ff8000000000000";
            assert!(value.split(',').all(is_canonical), "{name}: {value}");
        }
    }

    let first = observe(&place, component, &[]);
    let second = observe(&place, component, &[]);
    let varying: BTreeSet<String> = varying.iter().map(|name| (*name).to_owned()).collect();
    let found = differences(&first, &second);
    assert!(found.is_superset(&varying), "these don't vary: {:#?}", varying.difference(&found));
    // These values vary between machines, but not between runs.
    let nans = |observed: &Observed| -> Vec<String> {
        let names = observed.iter().filter(|(name, _)| name.starts_with("not a number"));
        names.map(|(_, value)| value.clone()).collect()
    };
    assert!(!nans(&first[0]).is_empty());
    if component != "javascript_observe" {
        assert_ne!(nans(&first[0]), nans(&one[0]));
    }
}

#[test]
fn a_program_in_rust_observes_the_same_in_each_run() {
    let varying = ["random", "time", "slept", "waited", "hash order", "times of inputs"];
    check("rust_observe", &varying);
}

#[test]
fn a_program_in_c_observes_the_same_in_each_run() {
    let varying = [
        "random",
        "time",
        "slept",
        "waited",
        "times of /inputs/in/1",
        "number of /inputs/in/1",
        "number of /outputs/a",
    ];
    check("c_observe", &varying);
}

#[test]
fn a_program_in_python_observes_the_same_in_each_run() {
    let varying = ["random", "secret", "random of the module", "unique", "time", "slept"];
    check("python_observe", &varying);
}

#[test]
fn a_program_in_javascript_observes_the_same_in_each_run() {
    let varying = ["random", "insecure", "seed", "time", "slept", "number of in/1", "number of a"];
    check("javascript_observe", &varying);
}

#[test]
fn a_deterministic_task_that_sleeps_does_not_wait() {
    let place = Place::with(&["misbehave"]);
    let sleep = |secs: f64| json!({"do": "sleep", "secs": secs});
    let steps = json!([sleep(86_400.0), sleep(1e9), {"do": "mark", "dir": "marks"}]);
    place.submit(&[misbehaviour(1, &[], json!({"do": "all", "steps": steps}))]);
    place.run_until_empty(&["--deterministic", "--max-attempts", "1"]).good();
    // A task that never ends is stopped as well.
    place.submit(&[misbehaviour(2, &[], json!({"do": "loop"}))]);
    let args = ["--deterministic", "--max-attempts", "1", "--timeout", "200ms"];
    place.run_until_empty(&args).code(3);
    let error = place.the_error();
    assert!(error["exception"].as_str().unwrap().contains("time limit"), "{error}");
}

#[test]
fn each_attempt_of_a_deterministic_task_has_the_same_random_numbers() {
    let place = Place::with(&["misbehave"]);
    let marks = || {
        let keys = place.keys().into_iter();
        keys.filter(|key| key.starts_with("tests/marks/")).collect::<Vec<_>>()
    };
    // The name of a mark's file is random.
    let steps = json!([{"do": "mark", "dir": "marks"}, {"do": "fail-until", "attempt": 3}]);
    let task = [misbehaviour(1, &[], json!({"do": "all", "steps": steps}))];
    place.submit(&task);
    place.run_until_empty(&["--deterministic"]).good();
    let first = marks();
    assert_eq!(first.len(), 1);
    place.submit(&task);
    place.run_until_empty(&["--deterministic"]).good();
    assert_eq!(marks(), first);
    place.submit(&task);
    place.run_until_empty(&[]).good();
    assert_eq!(marks().len(), 2);
}

#[test]
fn code_for_deterministic_tasks_is_kept_apart() {
    let place = Place::with(&["NO_OP"]);
    let compiled = || {
        let files = task_host_tests::files(&place.cache().join("compiled"));
        files.into_iter().filter(|file| file.ends_with(".cwasm")).collect::<Vec<_>>()
    };
    let run = |args: &[&str]| {
        place.submit(&place.innocent(1));
        place.run_until_empty(args).good();
    };
    run(&[]);
    let ordinary = compiled();
    assert_eq!(ordinary.len(), 1);
    run(&["--deterministic"]);
    let both = compiled();
    assert_eq!(both.len(), 2, "{both:?}");
    let digest = |file: &String| file.rsplit('/').next().map(str::to_owned);
    assert_eq!(digest(&both[0]), digest(&both[1]));
    run(&[]);
    run(&["--deterministic"]);
    assert_eq!(compiled(), both);
}
