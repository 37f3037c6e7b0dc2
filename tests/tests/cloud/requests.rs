//! The number of requests that a host makes.

use serde_json::{Value, json};
use task_host_tests::Cloud;

/// A host with two slots and the default prefetch makes about two requests for ten tasks, on a
/// machine of any speed.
#[test]
fn a_host_makes_at_most_a_quarter_of_a_request_for_each_short_task() {
    const TASKS: u64 = 2_000;
    let cloud = Cloud::aws();
    cloud.push("NO_OP");
    let task = |id| json!({"basic_info": {"id": id, "name": "NO_OP", "base_directory": "d"}});
    cloud.submit(&(0..TASKS).map(task).collect::<Vec<_>>());
    let run = cloud.host(&["run", "--parallel", "2", "--max-tasks", "2000", "--json"]).good();
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    assert_eq!(summary["done"], TASKS);
    let requests = &summary["queue_requests"];
    let count = |kind: &str| requests[kind].as_u64().expect("requests are counted");
    let total = count("receive") + count("delete") + count("send") + count("extend");
    assert!(total <= TASKS / 4, "{summary}");
}
