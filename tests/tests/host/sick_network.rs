//! A network that fails in the middle of answers: no task is charged for it.

use task_host_tests::faults::{Fault, Proxy};
use task_host_tests::{Place, http};

const TASKS: usize = 12;
/// Less than an input has.
const BYTES: usize = 20_000;

#[test]
fn bodies_that_break_off_for_a_while_cost_no_attempt() {
    let place = Place::with(&["NO_OP"]);
    let proxy = Proxy::to(&http::serve_files(place.path().join("bucket")));
    let inputs = format!("{}/", proxy.url());
    let host = place.watch(&["--input-bucket", &inputs, "--max-attempts", "1"]);
    let tasks = place.innocent(TASKS);
    place.submit(&tasks[..1]);
    place.innocent_are_done(1);
    // The start of each answer still comes, also when the host tries an input that came before.
    proxy.fail(Fault::Cut(BYTES));
    place.submit(&tasks[1..]);
    host.is_out("http://");
    host.has_tried(2);
    proxy.mend();
    place.innocent_are_done(TASKS);
    host.did_without_harm(TASKS);
}
