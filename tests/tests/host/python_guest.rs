//! Tasks written with the Python package `task_host_guest`, as components in the real host, and the
//! package's own tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use task_host_tests::{Finished, Place, target};

const GUEST: &str = "python_guest";
const PLANNER: &str = "python_planner";

/// Tasks with these payloads, and with ids from 1.
fn tasks(name: &str, payloads: &[Value]) -> Vec<Value> {
    let task = |(id, payload): (usize, &Value)| {
        json!({"basic_info": {"id": id + 1, "name": name, "base_directory": "tests", "inputs": []},
            "payload_info": payload})
    };
    payloads.iter().enumerate().map(task).collect()
}

/// The reports on the error queue, by the id of the task.
fn reports(place: &Place) -> BTreeMap<usize, Value> {
    let id = |report: &Value| report["task"]["basic_info"]["id"].as_u64();
    let errors = place.errors().into_iter();
    errors.map(|report| (id(&report).expect("an id") as usize, report)).collect()
}

/// All checks are in one test, because compiling the component takes most of the time.
#[test]
fn tasks_in_python_succeed_and_fail_as_their_authors_expect() {
    let place = Place::with(&[GUEST]);
    the_first_line_of_each_report_names_the_cause(&place);
    limits_end_what_python_does_not(&place.copy());
    what_may_pass_is_tried_again_and_state_lives_from_call_to_call(&place.copy());
}

fn the_first_line_of_each_report_names_the_cause(place: &Place) {
    let cases = [
        (json!({"do": "look_up"}), "KeyError: 'min_size' (app.py:", ", in look_up)"),
        (json!({"do": 7}), "the payload does not fit this task, at do: 7 is not a string", ""),
        (json!({"d": ""}), "the payload does not fit this task: unknown field `d`", ""),
        (Value::Null, "the payload does not fit this task: null is not an object", ""),
        (
            json!({"do": "import_late"}),
            "ModuleNotFoundError: No module named 'colorsys' (app.py:",
            ", in import_late)",
        ),
        (json!({"do": "recurse"}), "RecursionError: ", ", in recurse)"),
        (json!({"do": "leave"}), "SystemExit: the task called sys.exit(3) (app.py:", ", in leave)"),
        (json!({"do": "reject"}), "there is nothing to do", ""),
        (
            json!({"do": "allocate"}),
            "MemoryError: the task needs more memory than its limit; ",
            ", in allocate)",
        ),
    ];
    place.submit(&tasks(GUEST, &cases.clone().map(|(payload, ..)| payload)));
    place.run_until_empty(&["--memory", "256MiB"]).code(3);
    let reports = reports(place);
    assert_eq!(reports.len(), cases.len(), "{reports:#?}");
    for ((payload, begin, end), (id, report)) in cases.iter().zip(&reports) {
        let exception = report["exception"].as_str().unwrap_or_default();
        let first = exception.lines().next().unwrap_or_default();
        assert!(first.starts_with(begin) && first.ends_with(end), "{payload}: {exception}");
        assert_eq!(report["attempt"], 1, "{id} was tried again: {report:#}");
        assert!(!exception.contains("wasm"), "{payload}: {exception}");
    }
    let log = reports[&1]["log"].as_str().unwrap();
    assert!(log.contains("Traceback (most recent call last):\n"), "{log}");
    assert!(!log.contains("task_host_guest"), "calls of the package are in {log}");
    let published = place.keys().into_iter().find(|key| !key.starts_with("components/"));
    assert_eq!(published, None, "it was published");
}

fn limits_end_what_python_does_not(place: &Place) {
    let cases = [
        (json!({"do": "loop"}), "the guest ran into its limit of 2s of processor time"),
        (
            json!({"do": "nest", "depth": 1_000_000}),
            "the guest's call stack overflowed its limit of 512.0 KiB",
        ),
    ];
    place.submit(&tasks(GUEST, &cases.clone().map(|(payload, _)| payload)));
    place.run_until_empty(&["--cpu-time", "2s", "--max-attempts", "1"]).code(3);
    for ((payload, begin), (_, report)) in cases.iter().zip(reports(place)) {
        let exception = report["exception"].as_str().unwrap_or_default();
        assert!(exception.starts_with(begin), "{payload}: {exception}");
    }
}

fn what_may_pass_is_tried_again_and_state_lives_from_call_to_call(place: &Place) {
    let orders = ["succeed", "succeed", "retry_once", "fail_once"];
    place.submit(&tasks(GUEST, &orders.map(|order| json!({"do": order}))));
    let host = place.run_until_empty(&["--log-level", "debug"]).good();
    for id in 1..=orders.len() {
        let calls = place.object(&format!("tests/calls/{id}")).expect("the calls");
        assert_eq!(calls, b"prepare execute finalize", "task {id}");
    }
    let [first, second] = [1, 2].map(|id| place.object(&format!("tests/random/{id}")).unwrap());
    assert_ne!(first, second, "both tasks have the same random numbers");
    for reason in ["not yet", "OSError: I/O error: '/inputs/a' (app.py:"] {
        assert!(host.stderr.contains(reason), "{reason:?} is not in {}", host.stderr);
    }
    let level = |text: &str| {
        let line = host.stderr.lines().find(|line| line.contains(text));
        line.unwrap_or_else(|| panic!("{text} is not in {}", host.stderr)).to_owned()
    };
    assert!(level("careful").contains("WARN"), "{}", level("careful"));
    assert!(level("order 1").contains("INFO"), "{}", level("order 1"));
    assert!(!host.stderr.contains("not shown"), "{}", host.stderr);
}

/// One test with two queues, for the same reason.
#[test]
fn a_task_in_python_names_its_own_data() {
    let place = Place::with(&[PLANNER]);
    let inspected = place.host(&["component", "inspect", PLANNER, "--bucket", "./bucket"]).good();
    assert!(inspected.stdout.contains("task with a plan"), "{}", inspected.stdout);
    place.put("tests/volume/info", r#"{"scale": "8_8", "chunks": ["0", "hole", "1"]}"#);
    place.put("models/m", "model");
    for key in ["8_8/header", "8_8/0", "8_8/1", "8_8/unread", "masks/b", "masks/a/c"] {
        place.put(&format!("tests/volume/{key}"), format!("text of {key}"));
    }
    let volumes = json!([{"path": "volume"}, {"path": "volume", "early": true}]);
    place.submit(&tasks(PLANNER, volumes.as_array().unwrap()));
    let host = place.run_until_empty(&["--readable", "models", "--log-level", "debug"]).good();
    assert!(host.stderr.contains("too early to plan"), "{}", host.stderr);
    for id in [1, 2] {
        let found = place.object(&format!("tests/found/{id}.json")).expect("what was found");
        let found = String::from_utf8(found).unwrap();
        // Compares the text, because a parsed object has no order.
        let places = ["info", "8_8/header", "8_8/0", "8_8/1", "masks/a/c", "masks/b"]
            .map(|key| found.find(&format!("\"volume/{key}\": \"")));
        assert!(places.is_sorted() && places.iter().all(Option::is_some), "{found}");
        assert!(found.contains("\"models/m\": \"model\""), "{found}");
        assert!(!found.contains("8_8/hole") && !found.contains("unread"), "{found}");
    }

    let place = place.copy();
    place.put("tests/old/info", r#"{"chunks": []}"#);
    let bad = json!([{"path": "old"}, {"path": 7}, {"path": "../volume"}]);
    place.submit(&tasks(PLANNER, bad.as_array().unwrap()));
    place.run_until_empty(&["--readable", "models"]).code(3);
    let reports = reports(&place);
    let want = [
        ("KeyError: 'scale' (app.py:", ", in plan)"),
        ("the payload does not fit this task, at path: 7 is not a string", ""),
        ("`plan` asked for \"../volume/info\", which ", ""),
    ];
    assert_eq!(reports.len(), want.len(), "{reports:#?}");
    for ((begin, end), report) in want.iter().zip(reports.values()) {
        let exception = report["exception"].as_str().unwrap_or_default();
        let first = exception.lines().next().unwrap_or_default();
        assert!(first.starts_with(begin) && first.ends_with(end), "{exception}");
        assert_eq!((&report["phase"], &report["attempt"]), (&json!("plan"), &json!(1)));
    }
    let log = reports[&1]["log"].as_str().unwrap();
    assert!(log.contains("plan 1 of 1\n") && log.contains("Traceback (most recent"), "{log}");
    assert!(!log.contains("task_host_guest"), "calls of the package are in {log}");
}

#[test]
fn the_package_passes_its_own_tests() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("guest-python");
    let mut tests = Command::new(target().join("componentize-py/bin/python"));
    tests.args(["-m", "pytest", "-p", "no:cacheprovider", "tests"]).current_dir(&package);
    tests.env("PYTHONPATH", "src").env("PYTHONDONTWRITEBYTECODE", "1");
    Finished::run(&mut tests).good();
}
