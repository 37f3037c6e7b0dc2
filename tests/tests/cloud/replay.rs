//! Running the task of a message again leaves the message in the service's queue.

use serde_json::{Value, json};
use task_host_tests::{Cloud, no_op};

#[track_caller]
fn a_message_is_read_and_given_back(cloud: &Cloud) {
    cloud.push("NO_OP");
    cloud.put("data/0_input/a.dat", b"an input");
    cloud.submit(&[no_op(1, &["0_input/a.dat".to_owned()]), no_op(2, &[])]);
    for _ in 0..2 {
        // The second time works at once, because the first released all messages.
        let ended = cloud.host(&["try", "--from", &cloud.queue, "--id", "1"]).good();
        assert!(ended.stderr.contains("NO_OP 1 in \"data\", attempt 1"), "{}", ended.stderr);
    }
    assert!(cloud.object("data/0_output/a.dat").is_none());
    let summary = cloud.host(&["run", "--exit-when-empty", "--json"]).good();
    let summary: Value = serde_json::from_str(&summary.stdout).expect("a summary");
    assert_eq!((&summary["done"], &summary["retried"]), (&json!(2), &json!(0)), "{summary}");
}

#[test]
fn a_message_of_sqs_is_read_and_given_back() {
    a_message_is_read_and_given_back(&Cloud::aws());
}

#[test]
fn a_message_of_pubsub_is_read_and_given_back() {
    a_message_is_read_and_given_back(&Cloud::google());
}
