//! The same tasks on all kinds of queues and buckets.

use std::collections::BTreeSet;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::http::{self, Answer};
use task_host_tests::{Cloud, eventually};

fn task(id: u64, inputs: &[String]) -> Value {
    json!({
        "basic_info": {"id": id, "name": "digest", "base_directory": "data", "inputs": inputs},
    })
}

/// Submits `tasks` tasks with one input each. Some inputs are large, and some are empty.
fn fill(cloud: &Cloud, tasks: u64) {
    cloud.push("digest");
    let mut submitted = Vec::new();
    for id in 0..tasks {
        let input = format!("0_input/{id:03}.dat");
        let size = if id % 20 == 0 { id as usize * 9_000 } else { id as usize };
        cloud.put(&format!("data/{input}"), &vec![id as u8; size]);
        submitted.push(task(id, &[input]));
    }
    cloud.submit(&submitted);
}

#[track_caller]
fn check(cloud: &Cloud, tasks: u64) {
    for id in 0..tasks {
        let key = format!("data/0_digest/{id:03}.dat.sha256");
        assert!(cloud.object(&key).is_some(), "{key} is missing");
    }
}

fn work(cloud: &Cloud) {
    const TASKS: u64 = 60;
    fill(cloud, TASKS);
    let run = cloud.host(&["run", "--exit-when-empty", "--progress", "never", "--json"]).good();
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    assert_eq!((&summary["done"], &summary["failed"]), (&json!(TASKS), &json!(0)), "{summary}");
    check(cloud, TASKS);
}

#[test]
fn on_sqs_and_s3() {
    let cloud = Cloud::aws();
    work(&cloud);
    assert_eq!(cloud.status(&cloud.queue)["enqueued"], 0);
}

#[test]
fn on_sqs_with_data_in_gcs() {
    work(&Cloud::hybrid());
}

#[test]
fn on_pubsub_and_gcs() {
    work(&Cloud::google());
}

#[test]
fn what_fails_is_reported_and_can_be_put_back() {
    for cloud in [Cloud::aws(), Cloud::google()] {
        cloud.put("data/0_input/1", b"one");
        cloud.submit(&[task(1, &["0_input/1".to_owned()])]);
        let args = ["run", "--max-tasks", "1", "--max-attempts", "2", "--retry-after", "10ms"];
        let run = cloud.host(&args).code(3);
        assert!(run.stdout.contains("1 rejected"), "{}", run.stdout);
        let errors = cloud.errors();
        let listed = cloud.host(&["queue", "ls", &errors, "--json"]).good();
        let report: Value = serde_json::from_str(listed.stdout.trim()).expect("a report");
        let exception = report["message"]["exception"].as_str().expect("an exception");
        assert!(exception.contains("no component for tasks named `digest`"), "{exception}");

        cloud.push("digest");
        cloud.host(&["queue", "redrive", "--dry-run"]).good();
        cloud.host(&["queue", "redrive"]).good();
        cloud.host(&["run", "--max-tasks", "1"]).good();
        assert!(cloud.object("data/0_digest/1.sha256").is_some());
    }
}

#[test]
fn killed_hosts_lose_nothing() {
    const TASKS: u64 = 60;
    let cloud = Cloud::aws();
    fill(&cloud, TASKS);
    let args = ["run", "--lease", "4s", "--exit-when-empty", "--max-attempts", "100"];
    for _ in 0..3 {
        let host = cloud.start(&args);
        let done = || -> BTreeSet<u64> {
            let key = |id: &u64| format!("data/0_digest/{id:03}.dat.sha256");
            (0..TASKS).filter(|id| cloud.object(&key(id)).is_some()).collect()
        };
        let before = done().len();
        eventually("some work", || (done().len() > before || before as u64 == TASKS).then_some(()));
        host.signal(Signal::KILL);
    }
    cloud.host(&args).good();
    check(&cloud, TASKS);
}

#[test]
fn an_idle_host_that_is_told_to_stop_strands_nothing() {
    for cloud in [Cloud::aws(), Cloud::google()] {
        cloud.push("digest");
        cloud.submit(&[]);
        let host = cloud.start(&["run", "--lease", "10m"]);
        eventually("a start", || host.stderr().contains("lease").then_some(()));
        // The host is in a long poll, or about to begin one.
        host.signal(Signal::TERM);
        cloud.put("data/0_input/1", b"one");
        cloud.submit(&[task(1, &["0_input/1".to_owned()])]);
        host.wait().good();
        // No host holds the message, so another host gets it at once, not after ten minutes.
        cloud.host(&["run", "--max-tasks", "1", "--for", "60s"]).good();
        assert!(cloud.object("data/0_digest/1.sha256").is_some());
    }
}

/// Messages that are too large for SQS go through a bucket, and leave no objects there.
#[test]
fn large_messages_go_through_a_bucket() {
    let mut cloud = Cloud::aws();
    let messages = format!("{}/messages", cloud.bucket);
    cloud.bucket.push_str("/root");
    let cloud = cloud.with("HOST_MESSAGE_BUCKET", &messages);
    cloud.push("digest");
    cloud.put("root/data/0_input/1", b"one");
    let mut large = task(1, &["0_input/1".to_owned()]);
    large["payload_info"] = json!("x".repeat(3_000_000));
    cloud.submit(&[large]);
    assert_eq!(cloud.keys("messages/").len(), 1);
    // A host that does not trust this bucket rejects the pointer, because a pointer is not a task.
    let stranger = ["run", "--max-tasks", "1", "--message-bucket", "s3://other-bucket/messages"];
    let refused = cloud.host(&stranger).code(3);
    assert!(refused.stderr.contains("other-bucket"), "{}", refused.stderr);
    assert_eq!(cloud.keys("messages/").len(), 1, "what it did not follow is still there");

    let mut large = task(2, &["0_input/1".to_owned()]);
    large["payload_info"] = json!("y".repeat(3_000_000));
    cloud.submit(&[large]);
    cloud.host(&["run", "--max-tasks", "1"]).good();
    assert!(cloud.object("root/data/0_digest/1.sha256").is_some());
    assert_eq!(cloud.keys("messages/").len(), 1, "the second message's body is left behind");
}

#[test]
fn inputs_from_the_web_and_outputs_somewhere_else() {
    let web = http::serve(|request| match &*request.path {
        "/set/data/0_input/1" => Answer::new(200, "one"),
        _ => Answer::new(404, ""),
    });
    let cloud = Cloud::aws();
    cloud.push("digest");
    cloud.submit(&[task(1, &["0_input/1".to_owned()])]);
    let inputs = format!("http://{web}/set");
    cloud.host(&["run", "--max-tasks", "1", "--input-bucket", &inputs]).good();
    assert!(cloud.object("data/0_digest/1.sha256").is_some());
    // The host cannot write to this bucket.
    let refused = cloud.host(&["run", "--bucket", &inputs]).code(1);
    assert!(refused.stderr.contains("--input-bucket"), "{}", refused.stderr);
}

#[test]
fn what_is_done_is_reported_where_that_is_wanted() {
    let cloud = Cloud::aws();
    let done = format!("{}-done", cloud.queue);
    cloud.push("digest");
    cloud.put("data/0_input/1", b"one");
    cloud.submit(&[task(1, &["0_input/1".to_owned()])]);
    cloud.host(&["run", "--max-tasks", "1", "--done-queue", &done]).good();
    let listed = cloud.host(&["queue", "ls", &done, "--json"]).good();
    let report: Value = serde_json::from_str(listed.stdout.trim()).expect("a report");
    let outputs = json!(["data/0_digest/1.sha256"]);
    assert_eq!(report["message"]["result"], json!({"success": true, "outputs": outputs}));
}

/// A task reads the uncompressed content of objects that are stored compressed. On request, its
/// outputs are stored compressed.
#[test]
fn objects_that_are_stored_compressed() {
    let content = b"content";
    let stored: &[u8] = &[
        0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0x4b, 0xce, 0xcf, 0x2b, 0x49,
        0xcd, 0x2b, 0x01, 0x00, 0xa9, 0x30, 0xc5, 0xfe, 0x07, 0x00, 0x00, 0x00,
    ];
    for cloud in [Cloud::aws(), Cloud::hybrid()] {
        cloud.push("digest");
        cloud.put("data/0_input/plain", content);
        cloud.put_with("data/0_input/packed", &[("Content-Encoding", "gzip")], stored);
        let inputs = ["0_input/plain", "0_input/packed"].map(str::to_owned);
        let tasks: Vec<_> = inputs
            .iter()
            .zip(0..)
            .map(|(input, id)| task(id, std::slice::from_ref(input)))
            .collect();
        let outputs = |args: &[&str]| {
            cloud.submit(&tasks);
            cloud
                .host(&[&["run", "--max-tasks", "2", "--progress", "never"], args].concat())
                .good();
            // Only the digest, without the name that follows.
            ["plain", "packed"].map(|name| {
                let digest = cloud.object(&format!("data/0_digest/{name}.sha256"));
                digest.expect(name).into_iter().take(64).collect::<Vec<_>>()
            })
        };
        let [plain, packed] = outputs(&[]);
        assert_eq!(packed, plain, "the task has read the content");
        let [again, kept] = outputs(&["--stored-encoding", "keep"]);
        assert_eq!(again, plain);
        assert_ne!(kept, plain, "the task has read what is stored");
        let [compressed, _] = outputs(&["--gzip-outputs", "**/*.sha256"]);
        assert!(compressed.starts_with(&[0x1f, 0x8b]), "{compressed:?}");
    }
    let cloud = Cloud::aws();
    std::fs::create_dir_all(cloud.file("bucket")).expect("a directory for a bucket");
    let args = ["run", "--bucket", "./bucket", "--gzip-outputs", "*"];
    let refused = cloud.host(&args).code(1);
    assert!(refused.stderr.contains("--gzip-outputs needs s3://"));
}
