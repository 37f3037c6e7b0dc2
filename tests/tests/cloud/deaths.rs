//! Tasks that a host held ahead when it was killed or stopped. They lose no attempt, and are done
//! in the end.

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Cloud, Running, eventually, http, server};

/// The number of tasks that are held while another task runs.
const HELD: u64 = 8;

/// Submits tasks that never end, until another guest replaces their component. The queue determines
/// which task runs first.
fn submit(cloud: &Cloud) {
    push(cloud, "misbehave");
    let task = |id: u64| {
        cloud.put(&format!("done-{id}/0_input/x.dat"), b"x");
        json!({
            "basic_info": {
                "id": id, "name": "long", "base_directory": format!("done-{id}"),
                "inputs": ["0_input/x.dat"],
            },
            "payload_info": {"do": "sleep", "secs": 3600},
        })
    };
    cloud.submit(&(0..=HELD).map(task).collect::<Vec<_>>());
    cloud.host(&["submit", "--queue", &cloud.errors(), "/dev/null"]).good();
}

/// Pushes this guest as the component of the tasks.
fn push(cloud: &Cloud, guest: &str) {
    let guest = task_host_tests::guest(guest);
    let guest = guest.to_str().expect("a path that is text");
    cloud.host(&["component", "push", guest, "--name", "long"]).good();
}

fn leased(cloud: &Cloud) -> u64 {
    cloud.status(&cloud.queue)["leased"].as_u64().expect("a count")
}

/// A host that runs one task and holds all others ahead.
fn holding(cloud: &Cloud, lease: &str) -> Running {
    eventually("leases that are over", || (leased(cloud) == 0).then_some(()));
    let args = ["--parallel", "1", "--prefetch", "10", "--grace", "100ms", "--lease", lease];
    let host = cloud.start(&[&["run"], &args[..]].concat());
    eventually("a host that holds all", || (leased(cloud) == HELD + 1).then_some(()));
    host
}

/// Lets a host finish all tasks, and checks that none was rejected.
fn finish(cloud: &Cloud) {
    // This guest copies inputs.
    push(cloud, "NO_OP");
    let host = cloud.start(&["run", "--parallel", "2", "--lease", "5s"]);
    let is_done = |id: u64| cloud.object(&format!("done-{id}/0_output/x.dat")).is_some();
    eventually("all tasks", || (0..=HELD).all(is_done).then_some(()));
    eventually("an empty queue", || (cloud.status(&cloud.queue)["enqueued"] == 0).then_some(()));
    host.signal(Signal::TERM);
    let said = host.wait().good().stderr;
    assert!(!said.contains("rejected"), "{said}");
    assert_eq!(cloud.status(&cloud.errors())["enqueued"], 0);
}

#[test]
fn hosts_that_are_killed_use_up_no_attempts_of_what_they_only_held() {
    let cloud = Cloud::aws();
    submit(&cloud);
    for _ in 0..6 {
        let host = holding(&cloud, "2s");
        host.signal(Signal::KILL);
        host.wait();
    }
    finish(&cloud);
}

#[test]
fn hosts_that_stop_use_up_no_receives_of_a_redrive_policy() {
    let cloud = Cloud::aws();
    let name = cloud.queue.trim_start_matches("sqs://").to_owned();
    let dead = format!("{name}-dead");
    ask("CreateQueue", &json!({"QueueName": dead}));
    let policy = json!({
        "deadLetterTargetArn": format!("arn:aws:sqs:us-east-1:000000000000:{dead}"),
        "maxReceiveCount": 3,
    });
    let attributes = json!({"RedrivePolicy": policy.to_string()});
    ask("CreateQueue", &json!({"QueueName": name, "Attributes": attributes}));
    submit(&cloud);
    for _ in 0..6 {
        let host = holding(&cloud, "60s");
        host.signal(Signal::TERM);
        host.wait();
    }
    finish(&cloud);
    assert_eq!(cloud.status(&format!("sqs://{dead}"))["enqueued"], 0);
}

/// Sends a request of the SQS API to the server.
fn ask(action: &str, body: &Value) {
    let target = format!("AmazonSQS.{action}");
    let headers = [("x-amz-target", &*target), ("content-type", "application/x-amz-json-1.0")];
    let body = body.to_string();
    let answer = http::send(&server("TASK_HOST_TEST_AWS"), "POST", "/", &headers, body.as_bytes());
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, 200, "{action}: {said}");
}
