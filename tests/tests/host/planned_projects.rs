//! Projects in JavaScript and C whose tasks name their own inputs, with the real tools.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use task_host_tests::{Finished, Place, host, target};

/// Changes a file of a project.
#[track_caller]
fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fs::write(file, text.replace(from, to)).unwrap();
}

fn task(id: i64, payload: Value) -> Value {
    let info = json!({"id": id, "name": "tiles", "base_directory": "data", "inputs": ["given"]});
    json!({"basic_info": info, "payload_info": payload})
}

/// The component asks for `index` and a tile. If `index` contains `masks`, the component then asks
/// for the next tile, which may be missing, for all masks, and for a model. It writes the keys of
/// its inputs, and their texts.
fn asks_for_what_it_reads(place: &Place, component: &str) {
    let pushed =
        place.host(&["component", "push", component, "--name", "tiles", "--bucket", "./bucket"]);
    assert!(pushed.good().stdout.contains("task with a plan"));
    for key in ["given", "tiles/1", "tiles/2", "masks/b", "masks/a"] {
        place.put(&format!("data/{key}"), format!("<{key}>"));
    }
    place.put("data/index", "masks/");
    place.put("models/m", "<model>");
    place.submit(&[task(1, json!({"x": 1})), task(2, json!({"x": 2}))]);
    place.run_until_empty(&["--readable", "models"]).good();
    let found = |id: i64| String::from_utf8(place.object(&format!("data/found/{id}")).unwrap());
    let end = "masks/a=<masks/a> masks/b=<masks/b> models/m=<model> ";
    let begin = "given=<given> index=masks/ tiles/";
    assert_eq!(found(1).unwrap(), format!("{begin}1=<tiles/1> tiles/2=<tiles/2> {end}true"));
    assert_eq!(found(2).unwrap(), format!("{begin}2=<tiles/2> {end}false"));

    // A task whose tile is missing, and a task whose payload the plan cannot read.
    place.submit(&[task(3, json!({"x": 3})), task(4, json!({"x": "?"}))]);
    place.run_until_empty(&["--readable", "models", "--max-attempts", "2"]).code(3);
    let mut reports = place.errors();
    reports.sort_by_key(|report| report["task"]["basic_info"]["id"].as_i64());
    let exceptions: Vec<&str> =
        reports.iter().map(|report| report["exception"].as_str().unwrap()).collect();
    assert!(exceptions[0].contains("no object `data/tiles/3`"), "{exceptions:?}");
    assert!(exceptions[1].starts_with("x is not a number"), "{exceptions:?}");
    assert_eq!(reports[1]["phase"], "plan");
    assert_eq!([&reports[0]["attempt"], &reports[1]["attempt"]], [2, 1]);
}

#[test]
fn a_planned_task_in_javascript() {
    let place = Place::new();
    place.host(&["new", "tiles", "--lang", "js"]).good();
    let dir = place.path().join("tiles");
    // These are the packages that `npm install` would install.
    std::os::unix::fs::symlink(target().join("componentize-qjs"), dir.join("node_modules"))
        .unwrap();
    replace(&dir.join("wit/world.wit"), "guest/task@", "guest/task-with-plan@");
    let app = r#"
import { Reject, more, optional, prefix, task } from "./task-host.js";

function run(task) {
  const found = task.inputs.map((key) => `${key}=${task.readText(key)} `).join("");
  if (task.readText("/models/m") !== "<model>" || !task.has("/models/m")) throw new Reject("no model");
  task.write(`found/${task.id}`, `${found}${task.has(`tiles/${task.payload.x + 1}`)}`);
}

function* needs(task) {
  const { x, form } = task.payload;
  if (form === "wrong") yield 7;
  if (form === "late") task.missing();
  if (typeof x !== "number") throw new Reject("x is not a number");
  if (!task.has("index")) {
    yield "index";
    return more(`tiles/${x}`);
  }
  yield optional(`tiles/${x + 1}`);
  yield prefix(task.readText("index"));
  yield "/models/m";
}

export const { prepare, execute, finalize, plan } = task(run, {
  // A plan may return what it needs, too.
  plan: (task) => (task.has("index") ? [...needs(task)] : needs(task)),
});
"#;
    fs::write(dir.join("app.js"), app).unwrap();
    let mut build = Command::new("npm");
    Finished::run(build.args(["run", "--silent", "build"]).current_dir(&dir)).good();
    asks_for_what_it_reads(&place, "tiles/build/tiles.wasm");

    fs::remove_dir_all(place.path().join("queue-errors")).unwrap();
    for (form, want) in [
        ("wrong", "TypeError: a plan asks for keys, optional(key) and prefix(key), not for 7"),
        ("late", "TypeError: not a function (app.js:13, in needs)"),
    ] {
        place.submit(&[task(1, json!({"form": form}))]);
        place.run_until_empty(&[]).code(3);
        let report = place.the_error();
        let exception = report["exception"].as_str().unwrap();
        assert!(exception.starts_with(want), "{form}: {exception}");
        fs::remove_dir_all(place.path().join("queue-errors")).unwrap();
    }
}

#[test]
fn a_planned_task_in_c() {
    let place = Place::new();
    place.host(&["new", "tiles", "--lang", "c"]).good();
    let dir = place.path().join("tiles");
    let task = r#"
#include "task_host.h"

TH_ONLY_EXECUTE

bool exports_task_plan(task_task_record_t *task, task_needs_t *needs, task_failure_t *failure) {
    double x = 0;
    if (!th_payload_number(task, "x", &x)) return th_reject(failure, "x is not a number");
    th_begin_needs(needs);
    if (!th_has(task, "index")) {
        th_need(needs, "index");
        th_need(needs, "tiles/%g", x);
        needs->more = true;
        return true;
    }
    size_t length;
    th_need_optional(needs, "tiles/%g", x + 1);
    th_need_prefix(needs, "%s", th_read("index", &length));
    th_need(needs, "/models/m");
    return true;
}

bool exports_task_execute(task_task_record_t *task, task_outcome_t *outcome,
                          task_failure_t *failure) {
    size_t length;
    if (!th_has(task, "/models/m") || !th_read("/models/m", &length))
        return th_reject(failure, "no model");
    FILE *out = th_create(th_format("found/%d", (int)task->info.id));
    for (size_t i = 0; i < task->info.inputs.len; i++)
        fprintf(out, "%s=%s ", th_key(task, i), th_read(th_key(task, i), &length));
    double x = 0;
    th_payload_number(task, "x", &x);
    fputs(th_has(task, th_format("tiles/%g", x + 1)) ? "true" : "false", out);
    return th_close(out) ? th_done(outcome) : th_retry(failure, "not written");
}
"#;
    fs::write(dir.join("src/summary.c"), task).unwrap();
    let tools = [host().parent().unwrap().to_owned(), target().join("wit-bindgen")];
    let path = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths(tools.into_iter().chain(std::env::split_paths(&path))).unwrap();
    for goals in [&["bindings", "WORLD=task-with-plan"][..], &[]] {
        let mut make = Command::new("make");
        make.args(goals).env("PATH", &path).env("CC", "clang-14").current_dir(&dir);
        let made = Finished::run(&mut make).good();
        assert!(!made.stderr.contains("warning"), "{}", made.stderr);
    }
    asks_for_what_it_reads(&place, "tiles/build/tiles.wasm");
}
