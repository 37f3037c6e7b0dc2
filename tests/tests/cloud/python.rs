//! The real python-task-queue and the host on one SQS queue.

use std::collections::BTreeSet;

use serde_json::json;
use task_host_tests::{Cloud, Script, aws_variables, server};

/// Python code that opens the queue `tq`, as users open a queue on another server.
fn open(cloud: &Cloud) -> String {
    let endpoint = server("TASK_HOST_TEST_AWS");
    let queue = &cloud.queue;
    format!(
        "tq = TaskQueue('{queue}', region_name='us-east-1', endpoint_url='{endpoint}', progress=False)\n"
    )
}

#[track_caller]
fn python(cloud: &Cloud, text: &str) -> String {
    let script = Script::plain(&(open(cloud) + text));
    let mut command = script.command(cloud.place.path());
    command.env("HOME", cloud.file("home"));
    command.envs(aws_variables(&server("TASK_HOST_TEST_AWS")));
    task_host_tests::Finished::run(&mut command).good().stdout
}

#[test]
fn what_python_sends_runs_here() {
    let cloud = Cloud::aws();
    cloud.push("misbehave");
    let components = cloud.host(&["component", "ls", "--json"]).good();
    assert!(components.stdout.contains("misbehave"), "{}", components.stdout);
    let guest = task_host_tests::guest("NO_OP");
    let guest = guest.to_str().expect("a path that is text");
    cloud.host(&["component", "push", guest, "--name", "PrintTask"]).good();
    cloud.host(&["submit", "--name", "X", "--base-directory", "d", "--dry-run"]).good();
    // The first user of a queue creates it: here, the host.
    cloud.submit(&[]);
    python(&cloud, "assert tq.insert([PrintTask(txt=str(i)) for i in range(25)]) == 25\n");
    let run = cloud.host(&["run", "--exit-when-empty"]).good();
    assert!(run.stdout.contains("25 done"), "{}", run.stdout);
    assert_eq!(python(&cloud, "print(tq.enqueued)\n").trim(), "0");
}

#[test]
fn what_we_send_is_visible_to_python() {
    let cloud = Cloud::aws();
    let task = |id: u64| json!({"basic_info": {"id": id, "name": "A", "base_directory": "d"}});
    cloud.submit(&(0..12).map(task).collect::<Vec<_>>());
    assert_eq!(python(&cloud, "print(tq.enqueued)\n").trim(), "12");
    let text = "\
for _ in range(12):
    task = tq.api.lease(seconds=60, num_tasks=1, wait_sec=1)[0]
    print(task['basic_info']['id'])
    tq.api.delete(task)
print(tq.enqueued)
";
    let printed = python(&cloud, text);
    let mut ids: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(ids.pop(), Some("0"));
    let ids: BTreeSet<u64> = ids.into_iter().map(|id| id.parse().expect("an id")).collect();
    assert_eq!(ids, (0..12).collect());
}

#[test]
fn python_and_a_host_share_a_queue() {
    let cloud = Cloud::aws();
    let guest = task_host_tests::guest("NO_OP");
    let guest = guest.to_str().expect("a path that is text");
    cloud.host(&["component", "push", guest, "--name", "PrintTask"]).good();
    cloud.submit(&[]);
    python(&cloud, "tq.insert([PrintTask(txt='t') for i in range(200)])\n");
    let host = cloud.start(&["run", "--exit-when-empty", "--json"]);
    let text = "\
while True:
    try:
        task = tq.lease(seconds=60, wait_sec=1)
    except QueueEmptyError:
        break
    task.execute()
    tq.delete(task)
";
    python(&cloud, text);
    let summary: serde_json::Value =
        serde_json::from_str(&host.wait().good().stdout).expect("a summary");
    assert!(summary["done"].as_u64() > Some(0), "{summary}");
    assert_eq!(summary["failed"], 0);
    assert_eq!(python(&cloud, "print(tq.enqueued)\n").trim(), "0");
}
