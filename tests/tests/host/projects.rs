//! Projects in C, JavaScript and Python, from `host new` to outputs from a queue, with the real tools.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use task_host_tests::{Finished, Place, target};

/// The summary of `sample/stars.csv`.
fn summary() -> Value {
    let magnitude = json!({"count": 8, "min": -1.46, "max": 0.5, "mean": -0.14625000000000002});
    let parallax = json!({"count": 7, "min": 3.78, "max": 379.21, "mean": 139.05142857142854});
    json!({"in/stars.csv": {"magnitude": magnitude, "parallax_mas": parallax}})
}

/// Creates a project in this place, builds it, runs it once, and pushes its component.
#[track_caller]
fn project(place: &Place, lang: &str) -> PathBuf {
    let dir = new(place, lang);
    let sample = std::fs::read(dir.join("sample/stars.csv")).unwrap();
    place.put("data/in/stars.csv", sample);
    place.put("data/in/empty.csv", "star,magnitude\n");
    let input = "in/stars.csv=csv-summary/sample/stars.csv";
    let tried = try_it(place, &["--input", input, "--json"]);
    let tried: Value = serde_json::from_str(&tried.stdout).unwrap();
    assert_eq!((&tried["success"], &tried["kind"]), (&json!(true), &json!("task")));
    let written = std::fs::read(place.path().join("out/summary.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), summary());
    push(place);
    dir
}

/// Creates a project, with the packages that its tools would install.
#[track_caller]
fn new(place: &Place, lang: &str) -> PathBuf {
    place.host(&["new", "csv-summary", "--lang", lang]).good();
    let dir = place.path().join("csv-summary");
    let (packages, directory) = match lang {
        "js" => ("componentize-qjs", "node_modules"),
        "python" => ("componentize-py", ".venv"),
        _ => return dir,
    };
    std::os::unix::fs::symlink(target().join(packages), dir.join(directory)).unwrap();
    dir
}

/// Builds the project and runs it once.
#[track_caller]
fn try_it(place: &Place, args: &[&str]) -> Finished {
    let mut tried = place.command(&[&["try", "csv-summary"][..], args].concat());
    tried.env("CC", "clang-14").env("PYTHONPATH", place.path().join("csv-summary/sdk/src"));
    Finished::run(&mut tried).good()
}

/// Pushes the project's component.
#[track_caller]
fn push(place: &Place) {
    let file = "csv-summary/build/csv_summary.wasm";
    place.host(&["component", "push", file, "--name", "csv", "--bucket", "./bucket"]).good();
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
    let dir = project(&place, "c");
    runs_from_a_queue(&place);

    // The project's bindings are those that `wit-bindgen` generates from the interface.
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
    let dir = project(&place, "js");
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
    let mut build = Command::new("npm");
    build.args(["run", "--silent", "build"]).current_dir(&dir);
    assert!(build.status().unwrap().success());
    push(&place);
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

/// A grey picture with edges, slopes and noise, without its header.
fn pixels(width: usize, height: usize) -> Vec<u8> {
    let pixel = |(x, y): (usize, usize)| match (x / 8 + y / 8) % 3 {
        0 => 255 * ((x + y) % 2),
        1 => x * 255 / width,
        _ => (x * 7919 + y * 104_729) % 251,
    };
    (0..height).flat_map(|y| (0..width).map(move |x| pixel((x, y)) as u8)).collect()
}

/// Each pixel becomes the mean of the pixels around it.
fn blurred(pixels: &[u8], width: usize, radius: usize) -> Vec<u8> {
    let height = pixels.len() / width;
    let range = |at: usize, end: usize| at.saturating_sub(radius)..=(at + radius).min(end - 1);
    let mean = |(x, y): (usize, usize)| {
        let near = range(y, height).flat_map(|v| range(x, width).map(move |u| v * width + u));
        let near: Vec<usize> = near.map(|at| usize::from(pixels[at])).collect();
        (near.iter().sum::<usize>() / near.len()) as u8
    };
    (0..height).flat_map(|y| (0..width).map(move |x| mean((x, y)))).collect()
}

/// Replaces a new project's task with an image filter, and runs the filter from a queue.
#[track_caller]
fn blurs_pictures(lang: &str, source: &str, filter: &str) {
    const WIDTH: usize = 97;
    const HEIGHT: usize = 61;
    let place = Place::new();
    let dir = new(&place, lang);
    std::fs::write(dir.join(source), filter).unwrap();
    let header = format!("P5\n{WIDTH} {HEIGHT}\n255\n");
    let picture = |pixels: &[u8]| [header.as_bytes(), pixels].concat();
    let sharp = pixels(WIDTH, HEIGHT);
    place.put("data/0_sharp/a.pgm", picture(&sharp));
    place.put("data/0_sharp/b.pgm", "P2\n1 1\n255\n7\n");
    let input = "0_sharp/a.pgm=bucket/data/0_sharp/a.pgm";
    try_it(&place, &["--input", input]);
    push(&place);
    place.submit(&[
        task(1, &["0_sharp/a.pgm"], json!({"radius": 3})),
        task(2, &["0_sharp/b.pgm"], json!({})),
    ]);
    place.run_until_empty(&[]).code(3);
    let written = place.object("data/1_blurred/0_sharp/a.pgm").unwrap();
    assert!(written == picture(&blurred(&sharp, WIDTH, 3)), "the picture is not right");
    let exception = &place.the_error()["exception"];
    assert_eq!(exception, "input 0_sharp/b.pgm is not a grey picture");
}

#[test]
fn a_project_in_c_filters_pictures() {
    blurs_pictures("c", "src/summary.c", include_str!("projects/blur.c"));
}

#[test]
fn a_project_in_javascript_filters_pictures() {
    blurs_pictures("js", "app.js", include_str!("projects/blur.js"));
}

#[test]
fn a_project_in_python_filters_pictures() {
    blurs_pictures("python", "app.py", include_str!("projects/blur.py"));
}
