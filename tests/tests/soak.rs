//! `cargo xtask soak` with few tasks. Hosts that are killed and stopped at random, together with a
//! Python worker or with failing networks and disks, lose no task and leave no temporary files.

use std::process::Command;

use serde_json::{Value, json};
use task_host_tests::{Finished, target};

/// Runs `tasks` tasks, and checks what must hold after every run. Returns the ledger.
fn soak(tasks: u64, args: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a place");
    let seed = std::process::id().to_string();
    let mut soak = Command::new(target().join("debug/xtask"));
    soak.args(["soak", "--built", "--profile", "dev", "--json", "--seed", &seed]);
    soak.args(["--tasks", &tasks.to_string(), "--parallel", "2"]).args(args);
    soak.arg("--dir").arg(dir.path());
    let run = Finished::run(&mut soak).good();
    let ledger: Value = serde_json::from_str(&run.stdout).expect("a ledger");
    let count = |name: &str| ledger[name].as_u64().unwrap_or_else(|| panic!("{name}: {ledger}"));
    assert_eq!((count("tasks"), count("done"), count("lost")), (tasks, tasks, 0), "{ledger}");
    assert_eq!((count("rejected"), &ledger["left_behind"]), (0, &json!([])), "{ledger}");
    assert!(count("executions") >= tasks, "{ledger}");
    assert!(count("kills") + count("stops") > 0, "{ledger}");
    ledger
}

#[test]
fn hosts_that_are_killed_and_stopped_at_random_lose_nothing() {
    let faults =
        ["--hosts", "2", "--minutes", "0", "--python", "--no-network-faults", "--no-disk-faults"];
    soak(1_000, &[&faults[..], &["--every", "400", "--lease", "2"]].concat());
}

#[test]
fn networks_and_disks_that_fail_lose_nothing_and_every_task_has_its_receipt() {
    let ledger = soak(250, &["--hosts", "2", "--every", "700", "--minutes", "0.1"]);
    assert_eq!(ledger["not_as_in_their_receipt"], json!(0), "{ledger}");
    let count = |name: &str| ledger[name].as_u64().expect("a number");
    assert!(count("network_faults") + count("disk_faults") > 0, "{ledger}");
}

/// Runs a fleet of eight workers that are killed at random and replaced.
fn fleet_soak(engine: &str) {
    let ledger = soak(400, &["--on", engine, "--hosts", "8", "--every", "700", "--minutes", "0.2"]);
    assert_eq!(ledger["not_as_in_their_receipt"], json!(0), "{ledger}");
}

#[test]
fn fleets_on_docker_whose_workers_are_killed_lose_nothing() {
    fleet_soak("docker");
}

#[test]
fn fleets_on_slurm_whose_workers_are_killed_lose_nothing() {
    fleet_soak("slurm");
}
