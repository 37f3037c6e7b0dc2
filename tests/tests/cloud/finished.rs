//! A finished task stays finished when its queue fails, and a failure of the queue does not count
//! as an attempt.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::faults::{Fault, Proxy};
use task_host_tests::{Cloud, Running, eventually, http, misbehaviour, server};

/// A cloud with the guest `misbehave`, behind a proxy.
fn behind_a_proxy() -> (Cloud, Proxy) {
    let proxy = Proxy::to(&server("TASK_HOST_TEST_AWS"));
    let cloud = Cloud::of_aws(&proxy.url());
    cloud.push("misbehave");
    cloud.host(&["submit", "--queue", &cloud.errors(), "/dev/null"]).good();
    (cloud, proxy)
}

/// The answer of SQS to a user without the permission.
fn denied() -> Fault {
    let body = r#"{"__type": "AccessDeniedException", "message": "not authorized"}"#;
    Fault::Answer { status: 403, body: body.to_owned() }
}

/// A host that answers probes, and the address of its probes.
fn start(cloud: &Cloud, args: &[&str]) -> (Running, String) {
    let host = cloud.start(&[&["run", "--listen", "127.0.0.1:0", "--json"], args].concat());
    let address = eventually("a host that listens", || {
        let said = host.stderr();
        let rest = said.split("listening at http://").nth(1)?;
        rest.split('/').next().map(str::to_owned)
    });
    (host, address)
}

/// The reasons why a host is not ready; empty if it is ready.
fn problems(address: &str) -> String {
    let answer = http::send(address, "GET", "/readyz", &[], b"");
    match answer.status {
        200 => String::new(),
        _ => String::from_utf8_lossy(&answer.body).into_owned(),
    }
}

/// The number of requests so far that contain these words.
fn requests(proxy: &Proxy, words: &str) -> usize {
    proxy.requests().iter().filter(|request| request.contains(words)).count()
}

fn enqueued(cloud: &Cloud, queue: &str) -> u64 {
    cloud.status(queue)["enqueued"].as_u64().expect("a count")
}

/// A task that takes `secs` seconds, and leaves a mark for each execution that published outputs.
fn task(id: i64, secs: f64) -> Value {
    let steps = json!([{"do": "sleep", "secs": secs}, {"do": "mark", "dir": "marks"}]);
    misbehaviour(id, &[], json!({"do": "all", "steps": steps}))
}

fn marks(cloud: &Cloud) -> usize {
    cloud.keys("tests/marks/").len()
}

/// Stops a host, and returns its summary.
fn summary(host: Running) -> Value {
    host.signal(Signal::TERM);
    serde_json::from_str(&host.wait().stdout).expect("a summary")
}

#[test]
fn tasks_whose_messages_cannot_be_deleted_end_once() {
    const LEASE: &str = "4s";
    let (cloud, proxy) = behind_a_proxy();
    proxy.fail_some(denied(), "DeleteMessage", usize::MAX);
    let rejected = misbehaviour(3, &[], json!({"do": "reject", "text": "no image"}));
    cloud.submit(&[task(1, 0.0), task(2, 0.0), rejected]);
    let (host, address) = start(&cloud, &["--lease", LEASE, "--parallel", "3"]);
    eventually("two results and a report", || {
        (marks(&cloud) == 2 && enqueued(&cloud, &cloud.errors()) == 1).then_some(())
    });
    eventually("a host that is not ready", || {
        problems(&address).contains("deleting").then_some(())
    });
    // The host renews the messages for several lease durations.
    let renewed = requests(&proxy, "ChangeMessageVisibility");
    eventually("renewals", || {
        (requests(&proxy, "ChangeMessageVisibility") > renewed + 4).then_some(())
    });
    proxy.mend();
    eventually("an empty queue", || (enqueued(&cloud, &cloud.queue) == 0).then_some(()));
    eventually("a host that is ready", || problems(&address).is_empty().then_some(()));
    assert_eq!((marks(&cloud), enqueued(&cloud, &cloud.errors())), (2, 1));
    let summary = summary(host);
    let counts = ["done", "failed", "retried"].map(|name| summary[name].as_u64());
    assert_eq!(counts, [Some(2), Some(1), Some(0)], "{summary}");
}

#[test]
fn leases_that_cannot_be_renewed_are_an_outage_and_no_attempt() {
    const TASKS: i64 = 2;
    let (cloud, proxy) = behind_a_proxy();
    // The tasks take longer than a lease lasts.
    cloud.submit(&(0..TASKS).map(|id| task(id, 4.0)).collect::<Vec<_>>());
    let args = ["--lease", "2s", "--parallel", "2", "--max-attempts", "1"];
    proxy.fail_some(denied(), "ChangeMessageVisibility", usize::MAX);
    let (host, address) = start(&cloud, &args);
    eventually("a host that is not ready", || {
        problems(&address).contains("ChangeMessageVisibility").then_some(())
    });
    // The queue delivers every message repeatedly, because no lease is renewed.
    let received = requests(&proxy, "ReceiveMessage");
    eventually("messages that come again", || {
        (requests(&proxy, "ReceiveMessage") > received + 4).then_some(())
    });
    assert_eq!((marks(&cloud), enqueued(&cloud, &cloud.errors())), (0, 0));
    proxy.mend();
    eventually("all tasks", || (marks(&cloud) == TASKS as usize).then_some(()));
    eventually("an empty queue", || (enqueued(&cloud, &cloud.queue) == 0).then_some(()));
    eventually("a host that is ready", || problems(&address).is_empty().then_some(()));
    let summary = summary(host);
    let counts = ["done", "failed", "retried"].map(|name| summary[name].as_u64());
    assert_eq!(counts, [Some(TASKS as u64), Some(0), Some(0)], "{summary}");
    assert_eq!(enqueued(&cloud, &cloud.errors()), 0);
}

#[test]
fn tasks_whose_reports_no_queue_can_carry_whole_end_once() {
    let cloud = Cloud::aws();
    cloud.push("misbehave");
    // The keys have three megabytes together.
    let mut done = misbehaviour(1, &[], json!({"do": "many-files", "count": 5000}));
    done["basic_info"]["base_directory"] = json!("long/".repeat(120).trim_end_matches('/'));
    let large = json!({"do": "big-result", "how": "reject", "bytes": 3_000_000});
    // The text contains characters that SQS does not accept.
    let odd = json!({"do": "reject", "text": "NUL NONE"});
    let lines = [done, misbehaviour(2, &[], large), misbehaviour(3, &[], odd)]
        .map(|task| format!("{task}\n"))
        .concat()
        .replace("NUL", r"\u0000")
        .replace("NONE", r"\uffff");
    let file = cloud.file("tasks.jsonl");
    fs::write(&file, lines).expect("a file of tasks");
    cloud.host(&["submit", file.to_str().expect("a path that is text")]).good();

    let reports = format!("{}-done", cloud.queue);
    let args = ["run", "--max-tasks", "3", "--for", "100s", "--json", "--done-queue", &reports];
    let run = cloud.host(&args).code(3);
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    let counts = ["done", "failed", "retried"].map(|name| summary[name].as_u64());
    assert_eq!(counts, [Some(1), Some(2), Some(0)], "{summary}");
    assert_eq!(enqueued(&cloud, &cloud.queue), 0);
    assert_eq!((enqueued(&cloud, &reports), enqueued(&cloud, &cloud.errors())), (1, 2));
    let listed = cloud.host(&["queue", "ls", &cloud.errors(), "--json"]).good().stdout;
    assert!(listed.contains("\"exception\""), "{listed}");
}
