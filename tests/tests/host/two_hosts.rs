//! Two hosts on one queue and one cache. Each task is done exactly once.

use serde_json::json;
use task_host_tests::Place;

#[test]
fn each_task_is_done_once() {
    const TASKS: usize = 300;
    let place = Place::with(&["NO_OP"]);
    // Few different contents, so that both hosts fetch the same content at the same time.
    let tasks: Vec<_> = (0..TASKS)
        .map(|id| {
            let input = format!("0_input/{id}.dat");
            place.put(&format!("data/{input}"), format!("content {}", id % 7));
            json!({"basic_info": {"id": id, "name": "NO_OP", "base_directory": "data", "inputs": [input]}})
        })
        .collect();
    place.submit(&tasks);
    let args = ["-x", "--parallel", "2", "--done-queue", "fq://./queue-done"];
    let hosts = [place.start(&args), place.start(&args)];
    for host in hosts {
        host.wait().good();
    }
    let mut done: Vec<u64> = place
        .messages("queue-done")
        .iter()
        .map(|report| report["task"]["basic_info"]["id"].as_u64().unwrap())
        .collect();
    done.sort_unstable();
    assert_eq!(done, Vec::from_iter(0..TASKS as u64));
    for id in 0..TASKS {
        let output = place.object(&format!("data/0_output/{id}.dat")).expect("an output");
        assert_eq!(output, format!("content {}", id % 7).as_bytes());
    }
    assert_eq!(place.counts(), (0, 0));
    assert!(place.errors().is_empty());
}
