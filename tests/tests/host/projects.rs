//! Projects in C and JavaScript, from `host new` to outputs from a queue, with the real tools.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use task_host_tests::{Place, target};

/// The summary of `sample/stars.csv`.
fn summary() -> Value {
    let magnitude = json!({"count": 8, "min": -1.46, "max": 0.5, "mean": -0.14625000000000002});
    let parallax = json!({"count": 7, "min": 3.78, "max": 379.21, "mean": 139.05142857142854});
    json!({"in/stars.csv": {"magnitude": magnitude, "parallax_mas": parallax}})
}

/// Creates a project in this place, builds it and runs it once, and pushes its component.
#[track_caller]
fn project(place: &Place, lang: &str, prepare: impl FnOnce(&Path)) -> PathBuf {
    place.host(&["new", "csv-summary", "--lang", lang]).good();
    let dir = place.path().join("csv-summary");
    prepare(&dir);
    let sample = std::fs::read(dir.join("sample/stars.csv")).unwrap();
    place.put("data/in/stars.csv", sample);
    place.put("data/in/empty.csv", "star,magnitude\n");
    let input = "in/stars.csv=csv-summary/sample/stars.csv";
    let mut tried = place.command(&["try", "csv-summary", "--input", input, "--json"]);
    let tried = task_host_tests::Finished::run(tried.env("CC", "clang-14")).good();
    let tried: Value = serde_json::from_str(&tried.stdout).unwrap();
    assert_eq!((&tried["success"], &tried["kind"]), (&json!(true), &json!("task")));
    let written = std::fs::read(place.path().join("out/summary.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), summary());
    let component = dir.join("build/csv_summary.wasm");
    let file = component.to_str().unwrap();
    place.host(&["component", "push", file, "--name", "csv", "--bucket", "./bucket"]).good();
    dir
}

fn task(id: i64, inputs: &[&str], payload: Value) -> Value {
    let info = json!({"id": id, "name": "csv", "base_directory": "data", "inputs": inputs});
    json!({"basic_info": info, "payload_info": payload})
}

/// Runs tasks from a queue: one that is done, and three that are rejected.
#[track_caller]
fn runs_from_a_queue(place: &Place) {
    place.submit(&[
        task(1, &["in/stars.csv"], json!({"min_rows": 8})),
        task(2, &["in/stars.csv"], json!({"min_rows": 9})),
        task(3, &["in/empty.csv"], json!({})),
        task(4, &[], json!(null)),
    ]);
    place.run_until_empty(&[]).code(3);
    let written = place.object("data/summary.json").unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), summary());
    let mut reports: Vec<(i64, String)> = place
        .errors()
        .iter()
        .map(|report| {
            assert_eq!(report["attempt"], 1);
            let id = report["task"]["basic_info"]["id"].as_i64().unwrap();
            (id, report["exception"].as_str().unwrap().to_owned())
        })
        .collect();
    reports.sort();
    let want = [
        (2, "input in/stars.csv has 8 rows; min_rows is 9"),
        (3, "input in/empty.csv has 0 rows; min_rows is 1"),
        (4, "the task has no inputs"),
    ];
    assert_eq!(reports, want.map(|(id, text)| (id, text.to_owned())));
}

#[test]
fn a_project_in_c_works_as_it_is() {
    let place = Place::new();
    let dir = project(&place, "c", |_| {});
    runs_from_a_queue(&place);

    // The bindings in the project are those that the tool makes of the interface.
    place.host(&["wit", "--out", "wit"]).good();
    let made = place.path().join("made");
    let tool = target().join("wit-bindgen/wit-bindgen");
    let mut bind = Command::new(tool);
    bind.args(["c", "wit", "--world", "task", "--out-dir"]).arg(&made).current_dir(place.path());
    assert!(bind.status().unwrap().success());
    for file in ["task.c", "task.h", "task_component_type.o"] {
        let [kept, made] =
            [dir.join("bindings"), made.clone()].map(|dir| std::fs::read(dir.join(file)));
        assert!(kept.unwrap() == made.unwrap(), "host/templates/c/bindings/{file} is out of date");
    }
}

#[test]
fn a_project_in_javascript_works_as_it_is_and_tells_what_went_wrong() {
    let place = Place::new();
    // The packages are those that `npm install` would bring.
    let packages = target().join("componentize-qjs");
    let dir = project(&place, "js", |dir| {
        std::os::unix::fs::symlink(&packages, dir.join("node_modules")).unwrap();
    });
    runs_from_a_queue(&place);
    std::fs::remove_dir_all(place.path().join("queue-errors")).unwrap();

    let bad = r#"
import { Retry, task } from "./task-host.js";
function deep(n) {
  return n + deep(n + 1);
}
export const { prepare, execute, finalize } = task((task) => {
  switch (task.payload) {
    case "type": return task.inputs.map((key) => key.cells.length);
    case "stack": return deep(0);
    case "loop": for (;;);
    case "text": throw "just text";
    case "retry": throw new Retry("not yet");
    case "missing": return task.read("nothing.csv");
  }
  task.write("a/b.txt", task.inputs.map((key) => task.readText(key)).join());
});
"#;
    std::fs::write(dir.join("app.js"), bad).unwrap();
    place.put("data/in/text.txt", "größe ✓ 🎉");
    let push = |file: &str| {
        place.host(&["component", "push", file, "--name", "csv", "--bucket", "./bucket"]).good()
    };
    let mut build = Command::new("npm");
    build.args(["run", "--silent", "build"]).current_dir(&dir);
    assert!(build.status().unwrap().success());
    push("csv-summary/build/csv_summary.wasm");
    for (payload, want) in [
        ("type", "TypeError: cannot read property 'length' of undefined (app.js:8"),
        ("stack", "the guest's call stack overflowed"),
        ("loop", "the guest ran into its time limit of 1s"),
        ("text", "uncaught: just text"),
        ("retry", "not yet"),
        ("missing", "/inputs/nothing.csv: no-entry"),
    ] {
        place.submit(&[task(1, &["in/text.txt"], json!(payload))]);
        let limits = match payload {
            "loop" => &["--max-attempts", "1", "--timeout", "1s"][..],
            _ => &["--max-attempts", "2"],
        };
        place.run_until_empty(limits).code(3);
        let report = place.the_error();
        let exception = report["exception"].as_str().unwrap();
        assert!(exception.starts_with(want), "{payload}: {exception}");
        std::fs::remove_dir_all(place.path().join("queue-errors")).unwrap();
    }
    place.submit(&[task(1, &["in/text.txt"], json!(null))]);
    place.run_until_empty(&[]).good();
    assert_eq!(place.object("data/a/b.txt").unwrap(), "größe ✓ 🎉".as_bytes());
}
