//! What a host costs in requests.

use serde_json::{Value, json};
use task_host_tests::Cloud;

#[test]
fn a_host_at_work_makes_a_third_of_a_request_a_task() {
    const TASKS: u64 = 2_000;
    let cloud = Cloud::aws();
    cloud.push("NO_OP");
    let task = |id| json!({"basic_info": {"id": id, "name": "NO_OP", "base_directory": "d"}});
    cloud.submit(&(0..TASKS).map(task).collect::<Vec<_>>());
    let run = cloud.host(&["run", "--max-tasks", "2000", "--json"]).good();
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    assert_eq!(summary["done"], TASKS);
    let requests: u64 = summary["queue_requests"]
        .as_object()
        .expect("requests are counted")
        .values()
        .map(|count| count.as_u64().expect("a number"))
        .sum();
    let each = requests as f64 / TASKS as f64;
    println!("{each:.3} requests a task: {}", summary["queue_requests"]);
    assert!(each <= 0.35, "{each} requests a task: {summary}");
}
