//! `cargo xtask chaos` with few tasks: hosts that are killed and stopped at random beside a
//! Python worker lose nothing and leave nothing behind.

use std::process::Command;

use serde_json::{Value, json};
use task_host_tests::{Finished, target};

const TASKS: u64 = 1_000;

#[test]
fn hosts_that_are_killed_and_stopped_at_random_lose_nothing() {
    let dir = tempfile::tempdir().expect("a place");
    let seed = std::process::id().to_string();
    let mut chaos = Command::new(target().join("debug/xtask"));
    chaos.args(["chaos", "--built", "--profile", "dev", "--json", "--seed", &seed]);
    chaos.args(["--tasks", &TASKS.to_string(), "--hosts", "2", "--every", "400", "--lease", "2"]);
    chaos.arg("--dir").arg(dir.path());
    let run = Finished::run(&mut chaos).good();
    let ledger: Value = serde_json::from_str(&run.stdout).expect("a ledger");
    let count = |name: &str| ledger[name].as_u64().unwrap_or_else(|| panic!("{name}: {ledger}"));
    assert_eq!((count("tasks"), count("done"), count("lost")), (TASKS, TASKS, 0), "{ledger}");
    assert_eq!((count("rejected"), &ledger["left_behind"]), (0, &json!([])), "{ledger}");
    assert!(count("executions") >= TASKS, "{ledger}");
    assert!(count("kills") + count("stops") > 0, "{ledger}");
}
