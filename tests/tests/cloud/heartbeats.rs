//! Heartbeats in the bucket, for queues that are cloud services.

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::faults::{Fault, Proxy};
use task_host_tests::{Cloud, eventually, misbehaviour, server};

const TASKS: i64 = 8;

/// The output of `host top --once --json`.
#[track_caller]
fn top(cloud: &Cloud) -> Value {
    let said = cloud.host(&["top", "--once", "--json"]).good();
    serde_json::from_str(&said.stdout).expect("one line of JSON")
}

#[test]
fn hosts_write_and_remove_their_heartbeats_and_a_killed_one_is_silent() {
    let cloud = Cloud::aws();
    cloud.push("misbehave");
    let task = |id| misbehaviour(id, &[], json!({"do": "sleep", "secs": 3600}));
    cloud.submit(&[task(1), task(2)]);
    let args = ["run", "--parallel", "1", "--grace", "0s", "--heartbeat", "300ms"];
    let hosts = [cloud.start(&args), cloud.start(&args)];
    let seen = eventually("a task on each of two hosts", || {
        let seen = top(&cloud);
        let hosts = seen["hosts"].as_array().unwrap();
        let runs = |host: &Value| host["snapshot"]["running"][0]["id"].is_string();
        (hosts.len() == 2 && hosts.iter().all(runs)).then_some(seen)
    });
    assert_eq!(seen["queue"]["held"], 2, "{seen}");
    assert_eq!(cloud.keys("_hosts/").len(), 2);
    let [killed, other] = hosts;
    killed.signal(Signal::KILL);
    killed.wait();
    eventually("a silent host", || {
        let seen = top(&cloud);
        let silent = |n: usize| seen["hosts"][n]["is_silent"].as_bool();
        ([silent(0), silent(1)] == [Some(true), Some(false)]).then_some(())
    });
    other.signal(Signal::TERM);
    other.wait().code(4);
    assert_eq!(cloud.keys("_hosts/").len(), 1, "that of the killed host");
}

/// Checks that the tasks are done although the bucket answers all requests for heartbeats with this
/// fault.
#[track_caller]
fn does_no_harm(fault: Fault, words: &str) {
    let proxy = Proxy::to(&server("TASK_HOST_TEST_AWS"));
    let cloud = Cloud::of_aws(&proxy.url());
    cloud.push("misbehave");
    proxy.fail_some(fault, "/_hosts/", usize::MAX);
    let task = |id| misbehaviour(id, &[], json!({"do": "mark", "dir": "marks"}));
    cloud.submit(&(0..TASKS).map(task).collect::<Vec<_>>());
    let args =
        ["run", "--max-tasks", "8", "--heartbeat", "100ms", "--json", "--log-format", "json"];
    let run = cloud.host(&args).good();
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    let ends = ["done", "failed", "retried"].map(|name| summary[name].as_i64());
    assert_eq!(ends, [Some(TASKS), Some(0), Some(0)], "{summary}");
    let warnings = run.stderr.lines().filter(|line| line.contains("eartbeat")).count();
    assert!(warnings <= 2, "{}", run.stderr);
    assert!(run.stderr.contains(words), "{}", run.stderr);
    assert!(!run.stderr.contains("\"level\":\"ERROR\""), "{}", run.stderr);
}

#[test]
fn a_bucket_that_refuses_or_delays_heartbeats_costs_no_task() {
    let body = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>".to_owned();
    does_no_harm(Fault::Answer { status: 403, body }, "need s3:PutObject");
    // Longer than a host waits at its end.
    does_no_harm(Fault::Slow(std::time::Duration::from_secs(20)), "");
}
