//! A network that fails in the middle of answers, or for a moment. No attempt is counted.

use serde_json::Value;
use task_host_tests::faults::{Fault, Proxy};
use task_host_tests::{Place, Watched, http};

const TASKS: usize = 12;
/// A number of bytes smaller than an input.
const BYTES: usize = 20_000;

/// A host that reads inputs through a proxy and has finished the first task. Also returns the other
/// tasks.
fn at_work(place: &Place) -> (Watched, Proxy, Vec<Value>) {
    let proxy = Proxy::to(&http::serve_files(place.path().join("bucket")));
    let inputs = format!("{}/", proxy.url());
    let host = place.watch(&["--input-bucket", &inputs, "--max-attempts", "1"]);
    let mut tasks = place.innocent(TASKS);
    place.submit(&tasks[..1]);
    place.innocent_are_done(1);
    (host, proxy, tasks.split_off(1))
}

#[test]
fn bodies_that_break_off_for_a_while_cost_no_attempt() {
    let place = Place::with(&["NO_OP"]);
    let (host, proxy, tasks) = at_work(&place);
    // The first bytes of each answer still arrive, also when the host reads a known input to test
    // the bucket.
    proxy.fail(Fault::Cut(BYTES));
    place.submit(&tasks);
    host.is_out("http://");
    host.has_tried(2);
    proxy.mend();
    place.innocent_are_done(TASKS);
    host.did_without_harm(TASKS);
}

#[test]
fn an_input_that_fails_for_a_moment_costs_no_attempt() {
    let place = Place::with(&["NO_OP"]);
    let (host, proxy, tasks) = at_work(&place);
    // Only one request fails. When the host tests the bucket with other objects, all of them work.
    let body = "not now".to_owned();
    proxy.fail_some(Fault::Answer { status: 403, body }, "0_input/1.dat", 1);
    place.submit(&tasks);
    place.innocent_are_done(TASKS);
    host.did_without_harm(TASKS);
}
