//! Receipts on S3: the number of requests, and failures of these requests.

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::faults::{Fault, Proxy};
use task_host_tests::{Cloud, eventually, misbehaviour, no_op, server};

const TASKS: usize = 20;

/// A directory queue, and a bucket behind a proxy.
fn place() -> (Cloud, Proxy) {
    let proxy = Proxy::to(&server("TASK_HOST_TEST_AWS"));
    (Cloud::s3_at(&proxy.url()), proxy)
}

/// The number of requests with this method for an object with these words in its key.
fn count(requests: &[String], method: &str, words: &str) -> usize {
    let is_it = |request: &&String| request.starts_with(method) && request.contains(words);
    requests.iter().filter(is_it).count()
}

fn tasks(cloud: &Cloud) -> Vec<Value> {
    let task = |id| {
        let input = format!("0_input/{id}");
        cloud.put(&format!("data/{input}"), format!("input {id}").as_bytes());
        no_op(id, &[input])
    };
    (0..TASKS).map(task).collect()
}

/// Runs the submitted tasks. Returns the requests, and the number of tasks that were done before.
#[track_caller]
fn run(cloud: &Cloud, proxy: &Proxy, args: &[&str]) -> (Vec<String>, u64) {
    let before = proxy.requests().len();
    let run = cloud.host(&[&["run", "-x", "--json"], args].concat()).good();
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    let done_before = summary["done_before"].as_u64().expect("a count");
    (proxy.requests().split_off(before), done_before)
}

#[test]
fn a_receipt_costs_two_gets_and_a_put_and_a_task_that_is_done_one_get() {
    let (cloud, proxy) = place();
    cloud.push("NO_OP");
    let tasks = tasks(&cloud);
    cloud.submit(&tasks);
    let (plain, _) = run(&cloud, &proxy, &[]);
    assert_eq!(count(&plain, "", "/_receipts/"), 0);
    cloud.submit(&tasks);
    let (with, _) = run(&cloud, &proxy, &["--receipts"]);
    assert_eq!(count(&with, "GET", "/_receipts/"), 2 * TASKS, "{with:#?}");
    // The first start writes one more object, and each start writes one.
    assert_eq!(count(&with, "PUT", "/_receipts/"), TASKS + 2, "{with:#?}");
    assert_eq!(count(&with, "", "/_receipts/"), 3 * TASKS + 2, "{with:#?}");
    // All other requests are the same.
    for (method, words) in [("GET", "/0_input/"), ("PUT", "/0_output/")] {
        assert_eq!(count(&with, method, words), count(&plain, method, words), "{words}");
    }
    cloud.submit(&tasks);
    let (again, before) = run(&cloud, &proxy, &["--receipts"]);
    assert_eq!(before, TASKS as u64);
    assert_eq!(count(&again, "GET", "/_receipts/"), TASKS, "{again:#?}");
    assert_eq!(count(&again, "PUT", ""), 1, "{again:#?}");
    assert_eq!(count(&again, "", "/data/"), 0, "{again:#?}");
    // Each input takes one more request.
    cloud.submit(&tasks);
    let (skipped, before) = run(&cloud, &proxy, &["--skip-unchanged"]);
    assert_eq!(before, TASKS as u64);
    assert_eq!(count(&skipped, "GET", "/_receipts/"), TASKS, "{skipped:#?}");
    assert_eq!(count(&skipped, "HEAD", "/0_input/"), TASKS, "{skipped:#?}");
    assert_eq!(count(&skipped, "GET", "/0_input/"), 0, "{skipped:#?}");
    // A new version with the same bytes is not a change. Other bytes are a change.
    cloud.put("data/0_input/0", b"input 0");
    cloud.put("data/0_input/1", b"changed");
    cloud.submit(&tasks);
    let (_, before) = run(&cloud, &proxy, &["--skip-unchanged"]);
    assert_eq!(before, TASKS as u64 - 1);
    assert_eq!(cloud.object("data/0_output/1"), Some(b"changed".to_vec()));
}

#[test]
fn tasks_on_s3_are_verified_and_shown() {
    let (cloud, proxy) = place();
    cloud.push("NO_OP");
    cloud.submit(&tasks(&cloud));
    let large = vec![b'x'; 17 << 20];
    cloud.put("data/0_input/large", &large);
    run(&cloud, &proxy, &["--receipts"]);
    let lines = cloud.file("tasks.jsonl");
    let lines = lines.to_str().expect("a path that is text");
    let verify = |args: &[&str]| cloud.host(&[&["receipts", "verify", lines], args].concat());
    let before = proxy.requests().len();
    verify(&["--quick"]).good();
    let quick = proxy.requests().split_off(before);
    assert_eq!(count(&quick, "GET", "/_receipts/"), TASKS, "{quick:#?}");
    assert_eq!(count(&quick, "HEAD", "/0_output/"), TASKS, "{quick:#?}");
    verify(&[]).good();
    cloud.put("data/0_output/3", b"INPUT 3");
    for args in [&[][..], &["--quick"]] {
        let found = verify(args).code(3);
        assert_eq!(found.stdout.lines().count(), 1, "{}", found.stdout);
        assert!(found.stdout.contains("0_input/3\""), "{}", found.stdout);
    }
    let shown = cloud.host(&["receipts", "show", "data/0_output/3", "--json"]).good().stdout;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["matches"], false);
    assert_eq!(shown["receipt"]["inputs"][0]["key"], "data/0_input/3");
    let told = cloud.host(&["submit", lines, "--skip-done", "--json"]).good().stdout;
    assert!(told.contains("\"sent\":0,\"skipped\":20"), "{told}");
}

#[test]
fn large_and_compressed_outputs_match_their_receipts() {
    let (cloud, proxy) = place();
    cloud.push("NO_OP");
    cloud.put("data/0_input/large", &vec![b'x'; 17 << 20]);
    cloud.put("data/0_input/a.json", &[b'{'; 4000]);
    cloud.submit(&[no_op(1, &["0_input/large".to_owned(), "0_input/a.json".to_owned()])]);
    run(&cloud, &proxy, &["--receipts", "--gzip-outputs", "**/*.json"]);
    assert!(cloud.object("data/0_output/a.json").is_some_and(|bytes| bytes.len() < 1000));
    let lines = cloud.file("tasks.jsonl");
    let lines = lines.to_str().expect("a path that is text");
    cloud.host(&["receipts", "verify", lines, "--quick"]).good();
    cloud.host(&["receipts", "verify", lines]).good();
}

#[test]
fn a_host_waits_until_receipts_can_be_written_and_a_killed_one_loses_nothing() {
    let (cloud, proxy) = place();
    cloud.push("misbehave");
    let marks = || cloud.keys("tests/marks/").len();
    let receipts = || cloud.keys("_receipts/").len();
    // The first host writes the readme.
    run(&cloud, &proxy, &["--receipts"]);
    let body = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>".to_owned();
    let denied = Fault::Answer { status: 403, body };
    let bucket = cloud.bucket.trim_start_matches("s3://").to_owned();
    let of = format!("PUT /{bucket}/_receipts/");
    let args = ["run", "--receipts", "--lease", "1h"];
    let host = cloud.start(&args);
    eventually("a host that has started", || {
        (count(&proxy.requests(), "PUT", "/_receipts/") >= 3).then_some(())
    });
    proxy.fail_some(denied, &of, usize::MAX);
    cloud.submit(&[misbehaviour(1, &[], json!({"do": "mark", "dir": "marks"}))]);
    eventually("outputs", || (marks() == 1).then_some(()));
    eventually("a host that says why it waits", || {
        host.stderr().contains("need s3:PutObject").then_some(())
    });
    assert_eq!((receipts(), cloud.place.counts().0), (1, 1));
    // Kills the host after it published outputs, and before it wrote the receipt.
    host.signal(Signal::KILL);
    drop(host);
    proxy.mend();
    cloud.host(&["queue", "release", "./queue", "--yes"]).good();
    let (_, before) = run(&cloud, &proxy, &["--receipts"]);
    assert_eq!((before, marks(), receipts()), (0, 2, 2));
    // Cuts a receipt in half.
    let key = cloud.keys("_receipts/").into_iter().find(|key| key.ends_with(".json")).unwrap();
    let bytes = cloud.object(&key).unwrap();
    cloud.put(&key, &bytes[..bytes.len() / 2]);
    cloud.submit(&[misbehaviour(1, &[], json!({"do": "mark", "dir": "marks"}))]);
    let (_, before) = run(&cloud, &proxy, &["--receipts"]);
    assert_eq!((before, marks(), receipts()), (0, 3, 2));
    assert_ne!(cloud.object(&key), Some(bytes[..bytes.len() / 2].to_vec()));
}

#[test]
fn of_two_attempts_on_s3_the_later_publishes_nothing() {
    let (cloud, proxy) = place();
    cloud.push("misbehave");
    let steps = json!([{"do": "sleep", "secs": 2}, {"do": "mark", "dir": "marks"}]);
    let task = misbehaviour(1, &[], json!({"do": "all", "steps": steps}));
    cloud.submit(&[task.clone(), task]);
    let args = ["run", "--receipts", "--parallel", "1", "--prefetch", "0", "--lease", "1h"];
    let stalled = cloud.start(&args);
    eventually("a task that runs", || {
        (count(&proxy.requests(), "GET", "/_receipts/") >= 1).then_some(())
    });
    // The guest is sleeping or is about to sleep.
    stalled.signal(Signal::STOP);
    cloud.host(&["run", "--receipts", "--max-tasks", "1"]).good();
    stalled.signal(Signal::CONT);
    eventually("an empty queue", || (cloud.place.counts().0 == 0).then_some(()));
    stalled.signal(Signal::TERM);
    let said = stalled.wait().good().stderr;
    assert!(said.contains("another attempt has finished the task"), "{said}");
    assert_eq!(cloud.keys("tests/marks/").len(), 1);
}

#[test]
fn a_store_without_conditional_puts_is_refused_at_the_start() {
    let (cloud, proxy) = place();
    cloud.push("NO_OP");
    let body = "<Error><Code>NotImplemented</Code><Message>If-None-Match</Message></Error>";
    let fault = Fault::Answer { status: 501, body: body.to_owned() };
    proxy.fail_some(fault, "/_receipts/", usize::MAX);
    let said = cloud.host(&["run", "-x", "--receipts"]).code(1).stderr;
    assert!(said.contains("receipts can't be kept"), "{said}");
    cloud.host(&["run", "-x"]).good();
}
