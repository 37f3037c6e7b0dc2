//! Checks the example in the documentation of SimpleTasks, byte for byte.

use task_host_tests::Place;

/// The message from its README, with escaped slashes as Julia's JSON package writes them.
const MESSAGE: &str = r#"{"basic_info":{"id":4,"name":"NO_OP","base_directory":"datasets\/noop_dataset","inputs":["0_input\/4.dat","0_input\/5.dat"]},"payload_info":"NoOp Task for 4:5"}"#;

#[test]
fn the_documented_message_leads_to_the_documented_files() {
    let place = Place::with(&["NO_OP"]);
    let four: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    place.put("datasets/noop_dataset/0_input/4.dat", &four);
    place.put("datasets/noop_dataset/0_input/5.dat", b"");
    place.submit_text(&format!("{MESSAGE}\n"));
    place.run(&["-x", "--done-queue", "fq://./queue-done"]).good();

    let objects = [
        "components/NO_OP.wasm",
        "datasets/noop_dataset/0_input/4.dat",
        "datasets/noop_dataset/0_input/5.dat",
        "datasets/noop_dataset/0_output/4.dat",
        "datasets/noop_dataset/0_output/5.dat",
    ];
    assert_eq!(Vec::from_iter(place.keys()), objects);
    assert_eq!(place.object("datasets/noop_dataset/0_output/4.dat"), Some(four));
    assert_eq!(place.object("datasets/noop_dataset/0_output/5.dat"), Some(Vec::new()));
    assert_eq!(place.counts(), (0, 0));
    assert!(place.errors().is_empty());

    let done = place.messages("queue-done");
    assert_eq!(done.len(), 1);
    assert!(done[0]["host_info"]["hostname"].is_string());
    assert_eq!(done[0]["host_info"]["user"], "tester");
    let task: serde_json::Value = serde_json::from_str(MESSAGE).unwrap();
    assert_eq!(done[0]["task"], task);
    assert_eq!(done[0]["result"]["success"], true);
    let outputs = ["datasets/noop_dataset/0_output/4.dat", "datasets/noop_dataset/0_output/5.dat"];
    assert_eq!(done[0]["result"]["outputs"], serde_json::json!(outputs));
}

#[test]
fn the_message_is_in_the_report_as_it_was_received() {
    let place = Place::new();
    place.submit_text(&format!("{MESSAGE}\n"));
    place.run_until_empty(&["--max-attempts", "1"]).code(3);
    let errors = place.path().join("queue-errors/queue");
    let report = std::fs::read_dir(errors).unwrap().next().unwrap().unwrap().path();
    let report = std::fs::read_to_string(report).unwrap();
    assert!(report.contains(MESSAGE), "{report}");
    assert!(place.the_error()["exception"].is_string());
}
