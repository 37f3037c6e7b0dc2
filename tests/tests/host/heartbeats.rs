//! Heartbeats in the directory of the queue, and `host top`, which shows them.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, Running, eventually, http, misbehaviour};

/// A host with frequent heartbeats and without a grace period.
fn start(place: &Place) -> Running {
    let args = ["--parallel", "1", "--prefetch", "0", "--grace", "0s", "--heartbeat", "200ms"];
    place.start(&args)
}

/// The heartbeat files in the queue.
fn heartbeats(place: &Place) -> Vec<String> {
    let names = task_host_tests::files(&place.path().join("queue/hosts"));
    names.into_iter().filter(|name| name.ends_with(".json")).collect()
}

/// The output of `host top --once --json`.
#[track_caller]
fn top(place: &Place) -> Value {
    let said = place.host(&["top", "--fq", "./queue", "--once", "--json"]).good();
    serde_json::from_str(&said.stdout).expect("one line of JSON")
}

/// The running tasks of all hosts that are not silent: each task's id and its host's id.
fn running(seen: &Value) -> Vec<(String, String)> {
    let hosts = seen["hosts"].as_array().expect("hosts").iter();
    let alive = hosts.filter(|host| host["is_silent"] == false);
    let tasks = alive.flat_map(|host| {
        let id = host["snapshot"]["host"]["id"].as_str().expect("an id");
        let tasks = host["snapshot"]["running"].as_array().expect("tasks").iter();
        tasks.map(move |task| (task["id"].as_str().expect("an id").to_owned(), id.to_owned()))
    });
    let mut tasks: Vec<_> = tasks.collect();
    tasks.sort();
    tasks
}

#[test]
fn what_runs_where_and_since_when_how_long_it_takes_and_why_tasks_failed() {
    let place = Place::with(&["misbehave"]);
    let reject = |id| {
        let text = format!("tile {id} is damaged");
        misbehaviour(id, &[], json!({"do": "reject", "text": text}))
    };
    place.submit(&(10..13).map(reject).collect::<Vec<_>>());
    place.run_until_empty(&[]).code(3);
    let sleep = |id| misbehaviour(id, &[], json!({"do": "sleep", "secs": 3600}));
    place.submit(&[sleep(1), sleep(2), sleep(3)]);
    let hosts = [start(&place), start(&place)];
    let seen = eventually("a task on each of two hosts", || {
        let seen = top(&place);
        (running(&seen).len() == 2).then_some(seen)
    });
    let tasks = running(&seen);
    assert_ne!(tasks[0].1, tasks[1].1, "{tasks:?}");
    for host in seen["hosts"].as_array().unwrap() {
        let snapshot = &host["snapshot"];
        let task = &snapshot["running"][0];
        assert_eq!((&task["name"], &task["attempt"]), (&json!("misbehave"), &json!(1)));
        let (since, time) = (task["since"].as_f64().unwrap(), snapshot["time"].as_f64().unwrap());
        assert!(since > 1e9 && since <= time, "{task}");
        assert!(host["age_seconds"].as_f64().unwrap() < 3600.0, "{host}");
        assert_eq!(snapshot["host"]["slots"], 1);
    }
    let queue = &seen["queue"];
    let counts = ["waiting", "held", "errors"].map(|name| queue[name].as_u64());
    assert_eq!(counts, [Some(1), Some(2), Some(3)], "{queue}");
    assert!(seen["rate"]["per_second"].is_number() && seen.get("eta_seconds").is_some(), "{seen}");
    // The failures include reports of a host that has ended.
    let failures = seen["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 1, "{failures:#?}");
    assert_eq!(failures[0]["given_up"], 3);
    assert_eq!(failures[0]["names"], json!(["misbehave"]));
    let text = failures[0]["example"]["text"].as_str().unwrap();
    assert!(text.contains("is damaged"), "{text}");
    assert_eq!(seen["problems"], json!([]));

    // Kills one host.
    let [killed, other] = hosts;
    let pid = killed.pid().as_raw_nonzero().to_string();
    killed.signal(Signal::KILL);
    killed.wait();
    // On a busy machine, the other host's heartbeat may be late.
    let seen = eventually("a silent host beside one that lives", || {
        let seen = top(&place);
        let is_silent = |n: usize| seen["hosts"][n]["is_silent"].as_bool();
        ([is_silent(0), is_silent(1)] == [Some(true), Some(false)]).then_some(seen)
    });
    let first = &seen["hosts"][0];
    let id = first["snapshot"]["host"]["id"].as_str().unwrap();
    assert!(id.ends_with(&format!(".{pid}")), "{first}");
    let ran = first["snapshot"]["running"][0]["id"].as_str().expect("what it ran");
    let text = place.host(&["top", "--fq", "./queue", "--once"]).good().stdout;
    let line = text.lines().find(|line| line.starts_with(id)).expect("the host");
    assert!(line.contains("silent for "), "{text}");
    assert!(text.contains("is damaged") && text.contains(&format!("misbehave {ran}")), "{text}");
    other.signal(Signal::TERM);
    other.wait().code(4);
    assert_eq!(heartbeats(&place).len(), 1, "that of the killed host");
}

#[test]
fn a_host_that_ends_removes_its_heartbeat_and_one_without_writes_none() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "sleep", "secs": 3600}));
    let host = start(&place);
    eventually("a heartbeat of a host with a task", || {
        (running(&top(&place)).len() == 1).then_some(())
    });
    assert_eq!(heartbeats(&place).len(), 1);
    host.signal(Signal::TERM);
    host.wait().code(4);
    assert_eq!(heartbeats(&place), [""; 0]);
    let names = task_host_tests::files(&place.path().join("queue/hosts"));
    assert!(names.is_empty(), "{names:?}");
    fs::remove_dir(place.path().join("queue/hosts")).unwrap();
    place.host(&["queue", "purge", "./queue", "--yes"]).good();
    place.submit_misbehaviour(json!({"do": "mark", "dir": "marks"}));
    place.run(&["--max-tasks", "1", "--heartbeat", "0"]);
    assert!(!place.path().join("queue/hosts").exists());
}

#[test]
fn a_place_that_takes_no_heartbeat_is_one_warning_and_costs_no_task() {
    let place = Place::new();
    place.push("NO_OP");
    let tasks = place.innocent(20);
    place.submit(&tasks);
    fs::write(place.path().join("queue/hosts"), "in the way").unwrap();
    let run = place.run(&["--heartbeat", "100ms", "--exit-when-idle", "1s"]).good();
    place.innocent_are_done(20);
    let warnings: Vec<_> =
        run.stderr.lines().filter(|line| line.contains("heartbeats can't be written")).collect();
    assert_eq!(warnings.len(), 1, "{}", run.stderr);
    assert!(
        warnings[0].contains("WARN") && warnings[0].contains("Not a directory"),
        "{warnings:?}"
    );
    let top = place.host(&["top", "--fq", "./queue", "--once"]).code(1);
    assert!(top.stdout.contains("heartbeats of hosts can't be read"), "{}", top.stdout);
}

#[test]
fn nothing_in_a_heartbeat_or_report_reaches_the_terminal_as_it_is() {
    let place = Place::new();
    let odd = "a\u{1b}[2J\u{1b}]0;title\u{7}\u{202e}\u{9b}31m\r\nHOST b";
    place.submit(&[misbehaviour(1, &[], Value::Null)]);
    let hosts = place.path().join("queue/hosts");
    fs::create_dir_all(&hosts).unwrap();
    let failures = json!({
        "cause": odd, "count": 3, "given_up": 1, "names": [odd],
        "example": {"name": odd, "id": odd, "text": odd},
    });
    let heartbeat = json!({
        "host": {"id": odd, "hostname": odd, "queue": odd, "worker": {"engine": "docker", "name": odd}},
        "time": 1e300, "state": "working", "outages": [odd], "failures": [failures],
        "running": [{"name": odd, "id": odd, "since": -1e300, "last_line": odd}],
        "rate": {"per_second": 1e300}, "every_seconds": -7,
    });
    fs::write(hosts.join("odd.json"), heartbeat.to_string()).unwrap();
    for (name, text) in [("empty", ""), ("broken", "{"), ("other", "[1, 2]")] {
        fs::write(hosts.join(format!("{name}.json")), text).unwrap();
    }
    fs::write(hosts.join("huge.json"), vec![b' '; 1 << 20]).unwrap();
    let report = json!({"host_info": {}, "task": odd, "exception": odd});
    let errors = place.path().join("queue-errors");
    for part in ["queue", "movement"] {
        fs::create_dir_all(errors.join(part)).unwrap();
    }
    fs::write(errors.join("queue/0--a.json"), report.to_string()).unwrap();
    for args in [&["--once"][..], &["--once", "--json"], &[]] {
        let said = place.host(&[&["top", "--fq", "./queue"], args].concat()).good();
        for text in [&said.stdout, &said.stderr] {
            let obeyed = text.chars().find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
            assert_eq!(obeyed, None, "{text:?}");
        }
        assert!(said.stdout.matches("]0;title").count() >= 6, "{}", said.stdout);
        assert!(!said.stdout.lines().any(|line| line.starts_with("HOST b")), "{}", said.stdout);
    }
}

#[test]
fn no_task_writes_a_heartbeat() {
    let place = Place::with(&["misbehave"]);
    let reserved = "is in `_receipts` or `_hosts`, which are reserved for the host";
    for base in ["_hosts", "_hosts/abc", "_HOSTS/abc"] {
        let args = ["submit", "--fq", "./queue", "--name", "misbehave", "--base-directory", base];
        let said = place.host(&args).code(2).stderr;
        assert!(said.contains(reserved), "{said}");
    }
    // A message of python-task-queue has the root of the bucket as its base directory.
    let mut payload = json!({"do": "output", "key": "_hosts/abc/def.json", "text": "{}"});
    payload["class"] = json!("misbehave");
    place.submit(&[json!({"payload": payload})]);
    place.run_until_empty(&[]).code(3);
    let error = place.the_error();
    assert!(error["exception"].as_str().unwrap().contains(reserved), "{error}");
    let said = place.run(&["--component-prefix", "_hosts"]).code(2).stderr;
    assert!(said.contains(reserved), "{said}");
    // Uses the directory of the queue's heartbeats as a bucket.
    fs::create_dir_all(place.path().join("queue/hosts")).unwrap();
    let said = place.run(&["--bucket", "./queue/hosts"]).code(2).stderr;
    assert!(said.contains("messages"), "{said}");
}

/// Starts a dashboard that listens on `listen`. Returns the dashboard and its address.
#[track_caller]
fn dashboard(place: &Place, listen: &str) -> (Running, String) {
    let command = place.command(&["dashboard", "--fq", "./queue", "--listen", listen]);
    let mut dashboard = Running::start(command, &place.path().join("logs"));
    let address = eventually("a dashboard", || {
        assert!(!dashboard.has_ended(), "it ended: {}", dashboard.stderr());
        let said = dashboard.stderr();
        let (_, rest) = said.split_once("http://")?;
        rest.split_once("/ (").map(|(address, _)| address.to_owned())
    });
    (dashboard, address)
}

#[test]
fn a_dashboard_shows_the_hosts_and_only_reads() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "sleep", "secs": 3600}));
    let host = start(&place);
    let (dashboard, address) = dashboard(&place, "127.0.0.1:0");
    let get = |path: &str| http::send(&address, "GET", path, &[], b"");
    let seen: Value = eventually("a task in the dashboard", || {
        let answer = get("/api/hosts");
        assert_eq!(answer.status, 200);
        let seen: Value = serde_json::from_slice(&answer.body).expect("JSON");
        (running(&seen).len() == 1).then_some(seen)
    });
    // The dashboard has the same fields as `host top`, but different times.
    let fields = |seen: &Value| seen.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&seen), fields(&top(&place)));
    let page = get("/");
    assert_eq!(page.status, 200);
    assert!(String::from_utf8_lossy(&page.body).starts_with("<!doctype html>"));
    for path in ["/", "/api/hosts", "/api/events"] {
        for method in ["POST", "PUT", "DELETE"] {
            assert_eq!(http::send(&address, method, path, &[], b"").status, 405, "{method} {path}");
        }
    }
    assert!(!dashboard.stderr().contains("no login"), "{}", dashboard.stderr());
    dashboard.signal(Signal::INT);
    dashboard.wait().good();
    host.signal(Signal::TERM);
    host.wait().code(4);
}

#[test]
fn a_dashboard_that_others_can_reach_says_that_there_is_no_login() {
    let place = Place::new();
    place.submit(&[]);
    let (dashboard, _) = dashboard(&place, "0.0.0.0:0");
    eventually("a warning", || dashboard.stderr().contains("there is no login").then_some(()));
    let taken = place.host(&["dashboard", "--fq", "./nothing"]).code(1).stderr;
    assert!(taken.contains("there is no queue here"), "{taken}");
}
