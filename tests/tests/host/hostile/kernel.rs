//! The kernel's rules for the threads of tasks. They apply if the kernel supports them, the host
//! reports them, and tasks lose nothing that they need.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use task_host_tests::{Place, Watched, eventually, misbehaviour};

/// The fields of a thread's status in `/proc`, by thread name.
fn threads(host: &Watched) -> Vec<(String, BTreeMap<String, String>)> {
    let dir = format!("/proc/{}/task", host.host().pid().as_raw_nonzero());
    let thread = |dir: fs::DirEntry| {
        let name = fs::read_to_string(dir.path().join("comm")).ok()?;
        let status = fs::read_to_string(dir.path().join("status")).ok()?;
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        Some((name.trim().to_owned(), status.lines().filter_map(field).collect()))
    };
    fs::read_dir(dir).expect("threads").flatten().filter_map(thread).collect()
}

/// Whether a thread runs tasks or plans.
fn is_of_tasks(thread: &str) -> bool {
    thread.starts_with("guest-") || thread.starts_with("plan-")
}

/// The part of the first log line that describes the kernel's rules.
fn said(host: &Watched) -> String {
    eventually("a log line about the kernel", || {
        let lines = host.host().stderr();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| line["kernel"].as_str().map(str::to_owned)).next()
    })
}

#[test]
fn the_threads_of_tasks_are_filtered_wherever_the_kernel_can_and_no_others() {
    let has_filters = fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp_filters:");
    let place = Place::new();
    let host = place.watch(&["--parallel", "3"]);
    let threads = threads(&host);
    let (guests, others): (Vec<_>, Vec<_>) =
        threads.into_iter().partition(|(name, _)| is_of_tasks(name));
    // One thread per slot, and one for plans.
    assert_eq!(guests.len(), 3 + 1);
    let field = |of: &BTreeMap<String, String>, name: &str| of.get(name).cloned();
    for (name, status) in &guests {
        let filters = field(status, "Seccomp_filters").unwrap_or_default();
        // The process has two filters, and these threads have one more.
        assert_eq!(filters, if has_filters { "3" } else { "" }, "{name}");
        if has_filters {
            assert_eq!(field(status, "Seccomp").as_deref(), Some("2"), "{name}");
            assert_eq!(field(status, "NoNewPrivs").as_deref(), Some("1"), "{name}");
        }
    }
    assert!(!others.is_empty());
    for (name, status) in &others {
        let filters = field(status, "Seccomp_filters").unwrap_or_default();
        assert_eq!(filters, if has_filters { "2" } else { "" }, "{name}");
    }
    assert_eq!(said(&host).contains("to the system calls they need (seccomp)"), has_filters);
    let doctor = place.host(&["doctor", "--fq", "./queue"]);
    let line = format!(" kernel: {}\n", said(&host));
    assert!(doctor.stdout.contains(&line), "{}", doctor.stdout);
    host.stop();
}

#[test]
fn a_task_sets_the_times_of_its_outputs_as_ever() {
    let place = Place::with(&["misbehave"]);
    place.put("tests/0_input/a.txt", "a");
    let times = |id| misbehaviour(id, &["0_input/a.txt"], json!({"do": "set-times"}));
    for id in 1..=2 {
        place.submit(&[times(id)]);
        place.run_until_empty(&["--parallel", "1", "--max-attempts", "1"]).good();
        let report = place.object("tests/report.json").expect("a report");
        let report: Value = serde_json::from_slice(&report).expect("a report that is JSON");
        let tried = report["tried"].as_array().expect("what was tried");
        let failed: Vec<&Value> = tried.iter().filter(|tried| tried["ok"] != true).collect();
        assert!(failed.is_empty(), "{report:#}");
        assert_eq!(tried.len(), 6);
    }
    assert_eq!(place.object("tests/dir/in-it.txt").unwrap(), b"another");
}
