//! The status page in a browser: `tests/browser` has the checks.

use serde_json::json;
use task_host_tests::{Place, check_page, misbehaviour};

/// Runs a check with the page of a host that has nothing to do.
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
    // More than end while the browser looks.
    let mut tasks = vec![misbehaviour(1, &[], json!({"do": "reject", "text": markup}))];
    tasks.extend((2..2_000).map(|id| misbehaviour(id, &[], json!({"do": "all", "steps": steps}))));
    place.submit(&tasks);
    let host = place.watch(&["--parallel", "2"]);
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
