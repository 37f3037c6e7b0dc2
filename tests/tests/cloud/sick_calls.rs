//! A bucket on a file system that hangs, with tasks from a cloud service. The connections to the
//! service keep working.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::faults::Proxy;
use task_host_tests::{Cloud, FaultyDisk, Watched, eventually, server};

/// More tasks than threads that a call can hang in.
const TASKS: i64 = 6;

#[test]
fn leases_of_a_service_are_renewed_while_files_hang() {
    let proxy = Proxy::to(&server("TASK_HOST_TEST_AWS"));
    let cloud = Cloud::of_aws(&proxy.url()).with("HOST_BUCKET", "./disk");
    let disk = FaultyDisk::mount(cloud.file("disk"));
    cloud.push("NO_OP");
    fs::create_dir_all(cloud.file("disk/d/0_input")).expect("a directory");
    let tasks: Vec<Value> = (0..TASKS)
        .map(|id| {
            let input = format!("0_input/{id}.dat");
            fs::write(cloud.file("disk/d").join(&input), "x").expect("an input");
            json!({"basic_info": {
                "id": id, "name": "NO_OP", "base_directory": "d", "inputs": [input],
            }})
        })
        .collect();
    let host =
        Watched::new(cloud.start(&[&["run", "--lease", "4s"], &Watched::FLAGS[..]].concat()));
    host.in_one_moment(|| {
        cloud.submit(&tasks);
        disk.fail("hang", "all");
    });
    host.is_out("do not return");
    let renewals = || {
        let is_renewal = |request: &&String| request.contains("ChangeMessageVisibility");
        proxy.requests().iter().filter(is_renewal).count()
    };
    let before = renewals();
    eventually("renewals", || (renewals() >= before + 4).then_some(()));
    disk.mend();
    let outputs = cloud.file("disk/d/0_output");
    eventually("outputs", || {
        let found = fs::read_dir(&outputs).ok()?.count();
        (found == usize::try_from(TASKS).expect("a few")).then_some(())
    });
    host.is_ready_again();
    host.host().signal(Signal::TERM);
    let run = host.into_host().wait().good();
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    let ends = ["done", "lost", "retried", "failed"].map(|name| summary[name].as_i64());
    assert_eq!(ends, [Some(TASKS), Some(0), Some(0), Some(0)], "{summary:#}");
}
