//! The status page in a browser. The checks are in `tests/browser`.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use task_host_tests::{Finished, Place, Running, check_page, eventually, misbehaviour};

/// Runs a check on the page of an idle host.
#[track_caller]
fn check(name: &str) {
    let place = Place::new();
    let host = place.watch(&[]);
    check_page(name, host.address());
    host.stop();
}

#[test]
fn a_host_is_shown_while_it_works_and_markup_of_a_task_is_text() {
    let place = Place::with(&["misbehave"]);
    let markup = "</script><script>window.broken = 1</script>: <img src=x onerror=window.broken=1>";
    let steps = [json!({"do": "log", "bytes": 100}), json!({"do": "sleep", "secs": 0.5})];
    place.submit_misbehaviour(json!({"do": "reject", "text": markup}));
    let host = place.watch(&["--parallel", "2"]);
    eventually("a task that failed", || (place.errors().len() == 1).then_some(()));
    // More tasks than can end while the browser looks.
    let task = |id| misbehaviour(id, &[], json!({"do": "all", "steps": steps}));
    place.submit(&(2..2_000).map(task).collect::<Vec<_>>());
    check_page("real", host.address());
}

#[test]
fn a_host_is_shown_in_light_and_dark_on_a_screen_and_a_phone() {
    check("host");
}

#[test]
fn forty_hosts_are_shown_with_silent_ones_first() {
    check("fleet");
}

#[test]
fn a_dashboard_shows_heartbeats_and_hostile_ones_as_texts() {
    let place = Place::new();
    place.run_until_empty(&[]).good();
    let heartbeats = place.path().join("queue/hosts");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/samples.mjs");
    Finished::run(Command::new("node").arg(script).arg(heartbeats)).good();
    let command = place.command(&["dashboard", "--fq", "./queue", "--listen", "127.0.0.1:0"]);
    let dashboard = Running::start(command, &place.path().join("logs"));
    let address = eventually("the address of the dashboard", || {
        let said = dashboard.stderr();
        let (address, _) = said.split_once("http://")?.1.split_once('/')?;
        Some(address.to_owned())
    });
    check_page("dashboard", &address);
}

#[test]
fn hostile_texts_are_shown_as_texts_in_every_place() {
    check("hostile");
}

#[test]
fn a_keyboard_reaches_everything() {
    check("keyboard");
}

#[test]
fn a_lost_connection_is_said_and_made_again() {
    check("connection");
}
