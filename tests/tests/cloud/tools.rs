//! Commands for queues, between queues of all kinds.

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

    cloud.host(&["queue", "cp", &other, "./copy"]).good();
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
        assert!(listed.stderr.contains("released"), "{}", listed.stderr);
        let status = cloud.status(&cloud.queue);
        assert_eq!((&status["enqueued"], &status["leased"]), (&json!(120), &json!(0)), "{args:?}");
    }
    let refused = cloud.host(&["queue", "release", "--yes"]).code(1).stderr;
    assert!(refused.contains("can't end the leases of other processes"), "{refused}");
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

#[test]
fn tasks_go_to_pubsub_and_back_with_nothing_lost() {
    let cloud = Cloud::google();
    std::fs::write(cloud.file("tasks.jsonl"), lines(300)).unwrap();
    cloud.host(&["submit", "tasks.jsonl"]).good();
    let status = cloud.host(&["queue", "status"]).good().stdout;
    assert!(status.contains("Enqueued: can't be counted"), "{status}");
    let listed = cloud.host(&["queue", "ls", "-n", "3"]).good();
    assert_eq!(listed.stdout.lines().count(), 1 + 3, "a header, and the messages");
    assert!(listed.stderr.contains("released"), "{}", listed.stderr);
    cloud.host(&["queue", "mv", &cloud.queue, "./moved"]).good();
    let mut ids: Vec<i64> = cloud
        .place
        .messages("moved")
        .iter()
        .filter_map(|message| message["basic_info"]["id"].as_i64())
        .collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..300));
    assert_eq!(cloud.host(&["queue", "ls", "--json"]).good().stdout, "", "all are gone from there");
}

#[test]
fn a_message_that_a_queue_refuses_keeps_no_other_out_whatever_the_command() {
    let cloud = Cloud::aws();
    for position in [0, 5, 12, 24] {
        // A directory queue accepts any character. SQS does not.
        let payload = |id| if id == position { "\u{ffff}" } else { "" };
        let task = |id| json!({"basic_info": {"id": id, "name": "A", "base_directory": "d"}, "payload_info": payload(id)});
        let tasks: String = (0..25).map(|id| format!("{}\n", task(id))).collect();
        std::fs::write(cloud.file("tasks.jsonl"), tasks).unwrap();
        let to = |what: &str| format!("{}-{what}-{position}", cloud.queue);
        let local = |what: &str| {
            let queue = format!("fq://{what}-{position}");
            cloud.host(&["submit", "--queue", &queue, "tasks.jsonl"]).good();
            queue
        };

        let (sent, rejects) = (to("submit"), format!("rejects-{position}"));
        let submit = ["submit", "--queue", &sent, "tasks.jsonl", "--rejects", &rejects];
        let said = cloud.host(&submit).code(3).stderr;
        assert!(said.contains(&format!("tasks.jsonl, line {}: ", position + 1)), "{said}");
        let kept = std::fs::read_to_string(cloud.file(&rejects)).unwrap();
        assert_eq!(kept, format!("{}\n", task(position)));

        let (copied, moved, back) = (to("cp"), to("mv"), to("redrive"));
        cloud.host(&["queue", "cp", &local("cp"), &copied]).code(3);
        cloud.host(&["queue", "mv", &local("mv"), &moved]).code(3);
        cloud.host(&["queue", "redrive", &back, "--from", &local("redrive")]).code(3);
        for queue in [sent, copied, moved, back] {
            assert_eq!(cloud.status(&queue)["enqueued"], 24, "{queue}");
        }
        for (queue, left) in [("cp", 25), ("mv", 1), ("redrive", 1)] {
            assert_eq!(cloud.place.messages(&format!("{queue}-{position}")).len(), left, "{queue}");
        }
    }
}
