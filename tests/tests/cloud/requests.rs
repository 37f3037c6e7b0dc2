//! What a host costs in requests.

use serde_json::{Value, json};
use task_host_tests::Cloud;

/// How many messages a receive brings doesn't depend on how fast the machine is: the host asks
/// when it has room for ten. (How many messages a delete takes does, and is tested in the
/// queue's own tests.)
#[test]
fn a_host_that_takes_tasks_ahead_gets_ten_with_each_request() {
    const TASKS: u64 = 2_000;
    let cloud = Cloud::aws();
    cloud.push("NO_OP");
    let task = |id| json!({"basic_info": {"id": id, "name": "NO_OP", "base_directory": "d"}});
    cloud.submit(&(0..TASKS).map(task).collect::<Vec<_>>());
    let run = cloud.host(&["run", "--prefetch", "40", "--max-tasks", "2000", "--json"]).good();
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    assert_eq!(summary["done"], TASKS);
    let requests = &summary["queue_requests"];
    let receives = requests["receive"].as_u64().expect("receives are counted");
    assert!((TASKS / 10..TASKS / 10 + 10).contains(&receives), "{summary}");
    assert_eq!(requests["send"], 0, "{summary}");
}
