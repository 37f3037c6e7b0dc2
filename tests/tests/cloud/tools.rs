//! What people do to queues, between queues of all kinds.

use serde_json::{Value, json};
use task_host_tests::Cloud;

fn lines(tasks: usize) -> String {
    let task = |id| json!({"basic_info": {"id": id, "name": "A", "base_directory": "d"}});
    (0..tasks).map(|id| format!("{}\n", task(id))).collect()
}

#[test]
fn tasks_go_to_sqs_and_back_with_nothing_lost() {
    let cloud = Cloud::aws();
    std::fs::write(cloud.file("tasks.jsonl"), lines(500)).unwrap();
    cloud.host(&["submit", "tasks.jsonl"]).good();
    assert_eq!(cloud.status(&cloud.queue)["enqueued"], 500);
    let other = format!("{}-other", cloud.queue);
    cloud.host(&["queue", "mv", &cloud.queue, &other]).good();
    assert_eq!(cloud.status(&cloud.queue)["enqueued"], 0);

    cloud.host(&["queue", "cp", &other, "copy"]).good();
    cloud.host(&["queue", "mv", &other, "fq://moved"]).good();
    assert_eq!(cloud.status(&other)["enqueued"], 0);
    for queue in ["copy", "moved"] {
        let mut ids: Vec<i64> = cloud
            .place
            .messages(queue)
            .iter()
            .filter_map(|message| message["basic_info"]["id"].as_i64())
            .collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..500), "{queue}");
    }
    cloud.host(&["queue", "cp", "copy", &cloud.queue]).good();
    assert_eq!(cloud.status(&cloud.queue)["enqueued"], 500);
    cloud.host(&["queue", "purge", "--yes"]).good();
    assert_eq!(cloud.status(&cloud.queue)["enqueued"], 0);
}

#[test]
fn looking_into_sqs_gives_back_what_it_leases() {
    let cloud = Cloud::aws();
    std::fs::write(cloud.file("tasks.jsonl"), lines(120)).unwrap();
    cloud.host(&["submit", "tasks.jsonl"]).good();
    for (args, shown) in [(&["-n", "3"][..], 3), (&[], 100), (&["-n", "1000"], 120)] {
        let listed = cloud.host(&[&["queue", "ls", "--json"], args].concat()).good();
        assert_eq!(listed.stdout.lines().count(), shown, "{args:?}");
        assert!(listed.stderr.contains("given back"), "{}", listed.stderr);
        let status = cloud.status(&cloud.queue);
        assert_eq!((&status["enqueued"], &status["leased"]), (&json!(120), &json!(0)), "{args:?}");
    }
    let refused = cloud.host(&["queue", "release"]).code(1).stderr;
    assert!(refused.contains("can't end the leases of others"), "{refused}");
}

#[test]
fn dead_letters_that_are_plain_tasks_are_put_back() {
    let cloud = Cloud::aws();
    let dead = format!("{}-dead", cloud.queue);
    std::fs::write(cloud.file("tasks.jsonl"), lines(30)).unwrap();
    cloud.host(&["submit", "--queue", &dead, "tasks.jsonl"]).good();
    let redrive = |args: &[&str]| -> Value {
        let all = [&["queue", "redrive", "--from", &dead, "--json"], args].concat();
        serde_json::from_str(&cloud.host(&all).good().stdout).unwrap()
    };
    assert_eq!(redrive(&["--dry-run"])["sent"], 30);
    assert_eq!(redrive(&["--id", "7"])["sent"], 1);
    assert_eq!(redrive(&["--id", "7"])["left"], 29);
    assert_eq!(redrive(&[])["sent"], 29);
    assert_eq!(cloud.status(&cloud.queue)["enqueued"], 30);
    assert_eq!(cloud.status(&dead)["enqueued"], 0);
}

#[test]
fn the_doctor_says_which_queue_is_not_there() {
    let cloud = Cloud::aws();
    let missing = |create: &str| {
        let mut command = cloud.command(&["doctor", "--json"]);
        let output = command.env("HOST_CREATE_QUEUES", create).output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = found["findings"].as_array().unwrap().clone();
        let of_queues = |finding: &&Value| {
            let subject = finding["subject"].as_str().unwrap();
            subject.starts_with("queue ") || subject.starts_with("errors ")
        };
        findings.iter().filter(of_queues).map(|f| f["level"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(missing("false"), ["problem", "problem"]);
    assert_eq!(missing("true"), ["note", "note"]);
    assert_eq!(cloud.host(&["queue", "status"]).code(1).stdout, "", "the doctor makes none");
}
