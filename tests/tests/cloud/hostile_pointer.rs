//! Messages that point to an object that is not their body. The host reveals nothing of the object,
//! and does not delete it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use task_host_tests::{Cloud, http, server};

const SECRET: &str = "a secret of somebody else";
const NAME: &str = "0b5e7c9e-6a58-4c3e-9d0a-5d1f0a7f3c11";
const OTHER: &str = "1b5e7c9e-6a58-4c3e-9d0a-5d1f0a7f3c11";

/// A bucket with data below `root/`, and large messages below `messages/`.
fn cloud() -> Cloud {
    let mut cloud = Cloud::aws();
    let messages = format!("{}/messages", cloud.bucket);
    cloud.bucket.push_str("/root");
    cloud.with("HOST_MESSAGE_BUCKET", &messages)
}

fn bucket(cloud: &Cloud) -> &str {
    cloud.bucket.trim_start_matches("s3://").trim_end_matches("/root")
}

/// Sends a request to SQS, as any sender of messages could.
fn ask(operation: &str, input: &Value) -> Value {
    let target = format!("AmazonSQS.{operation}");
    let headers = [("X-Amz-Target", &*target), ("Content-Type", "application/x-amz-json-1.0")];
    let body = input.to_string();
    let answer = http::send(&server("TASK_HOST_TEST_AWS"), "POST", "/", &headers, body.as_bytes());
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, 200, "{operation}: {text}");
    serde_json::from_str(&text).expect("an answer that is JSON")
}

/// Sends a message that points to this key.
fn forge(cloud: &Cloud, bucket: &str, key: &str) {
    let name = cloud.queue.trim_start_matches("sqs://");
    let url = ask("GetQueueUrl", &json!({"QueueName": name}))["QueueUrl"].clone();
    let pointer = json!([
        "software.amazon.payloadoffloading.PayloadS3Pointer",
        {"s3BucketName": bucket, "s3Key": key}
    ]);
    let size = json!({"ExtendedPayloadSize": {"DataType": "Number", "StringValue": "100"}});
    let message = json!({
        "QueueUrl": url, "MessageBody": pointer.to_string(), "MessageAttributes": size,
    });
    ask("SendMessage", &message);
}

fn keys(cloud: &Cloud) -> BTreeSet<String> {
    cloud.keys("").into_iter().collect()
}

#[test]
fn forged_pointers_tell_nothing_and_delete_nothing() {
    let cloud = cloud();
    cloud.push("digest");
    cloud.put("root/data/0_input/1", b"one");
    cloud.put("root/data/precious.dat", SECRET.as_bytes());
    let task = json!({"basic_info": {"name": "digest", "base_directory": "data", "inputs": []}});
    cloud.put("root/data/task.json", task.to_string().as_bytes());
    cloud.put(&format!("root/data/{NAME}"), task.to_string().as_bytes());
    cloud.put(&format!("messages/{NAME}"), SECRET.as_bytes());
    let report = json!({"host_info": {}, "task": {"x": SECRET}, "exception": "x"});
    cloud.put(&format!("messages/{OTHER}"), report.to_string().as_bytes());
    cloud.submit(&[]);
    let before = keys(&cloud);
    let forged = [
        "root/components/digest.wasm".to_owned(),
        "root/data/precious.dat".to_owned(),
        "root/data/task.json".to_owned(),
        format!("root/data/{NAME}"),
        format!("messages/../root/data/{NAME}"),
        format!("messages/{NAME}"),
        format!("messages/{OTHER}"),
        format!("messages/2{}", &NAME[1..]),
    ];
    for key in &forged {
        forge(&cloud, bucket(&cloud), key);
    }
    forge(&cloud, "another-bucket", &format!("messages/{NAME}"));
    let count = (forged.len() + 1).to_string();
    let run = cloud.host(&["run", "--max-tasks", &count, "--max-attempts", "1"]).code(3);
    assert_eq!(keys(&cloud), before);
    let errors = cloud.errors();
    let listed = cloud.host(&["queue", "ls", &errors, "--json"]).good();
    assert_eq!(listed.stdout.lines().count(), forged.len() + 1, "{}", listed.stdout);
    for said in [&listed.stdout, &run.stdout, &run.stderr] {
        assert!(!said.contains(SECRET), "{said}");
    }
    for key in &forged {
        assert!(listed.stdout.contains(key), "{key} is not in {}", listed.stdout);
    }
    // An unreadable message is neither moved nor redriven.
    forge(&cloud, bucket(&cloud), "root/data/precious.dat");
    let moved = cloud.host(&["queue", "mv", &cloud.queue, "./elsewhere"]).code(3);
    assert!(moved.stderr.contains("its pointer names"), "{}", moved.stderr);
    let copied = cloud.host(&["queue", "cp", &cloud.queue, "./elsewhere"]).code(3);
    assert!(copied.stderr.contains("its pointer names"), "{}", copied.stderr);
    let shown = cloud.host(&["queue", "ls", &cloud.queue]).good();
    assert!(shown.stdout.contains("can't be read: its pointer"), "{}", shown.stdout);
    assert_eq!(cloud.place.messages("elsewhere"), [Value::Null; 0]);
    assert_eq!(keys(&cloud), before);

    // Large messages still work, including reports of their tasks.
    let mut large = task.clone();
    large["basic_info"]["inputs"] = json!(["0_input/1"]);
    large["basic_info"]["name"] = json!("missing");
    large["payload_info"] = json!("x".repeat(2_000_000));
    cloud.host(&["queue", "purge", &cloud.queue, "--yes"]);
    cloud.host(&["queue", "mv", &errors, "./old-errors"]);
    cloud.submit(&[large]);
    cloud.host(&["run", "--max-tasks", "1", "--max-attempts", "1"]).code(3);
    cloud.host(&["queue", "redrive", "--name", "missing"]).good();
    let after = keys(&cloud);
    let new: Vec<_> = after.difference(&before).collect();
    assert_eq!(new.len(), 1, "the body of the task, and not of its report: {new:?}");
}

#[test]
fn a_bucket_for_messages_is_apart_from_the_data_and_has_a_prefix() {
    let cloud = Cloud::aws();
    let bucket = cloud.bucket.clone();
    cloud.submit(&[]);
    let refused = |data: &[&str], messages: &str, want: &str| {
        for command in [
            &["run", "--max-tasks", "1"][..],
            &["queue", "ls"],
            &["submit", "--name", "a", "--base-directory", "b"],
        ] {
            let args = [command, &["--message-bucket", messages]].concat();
            let mut host = cloud.command(&args);
            host.env("HOST_BUCKET", data[0])
                .envs(data.get(1).map(|url| ("HOST_INPUT_BUCKET", url)));
            let output = host.output().expect("host");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains(want), "{args:?}: {said}");
        }
    };
    let below = |prefix: &str| format!("{bucket}/{prefix}");
    refused(&[&bucket], &below("messages"), "overlap");
    refused(&[&below("data")], &below("data"), "overlap");
    refused(&[&below("data")], &below("data/messages"), "overlap");
    refused(&[&below("messages/data")], &below("messages"), "overlap");
    refused(&["./bucket", &bucket], &below("messages"), "overlap");
    refused(&[&bucket], &bucket, "s3://BUCKET/PREFIX");
    refused(&["./bucket"], &bucket, "s3://BUCKET/PREFIX");
    refused(&["./bucket"], &format!("{bucket}/"), "s3://BUCKET/PREFIX");
    refused(&["./bucket"], "elsewhere", "s3://BUCKET/PREFIX");
}
