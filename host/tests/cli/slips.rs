//! Slips of people who use the program for the first time.

use super::*;

#[test]
fn a_task_that_is_done_is_not_sent_back_from_a_queue_of_both_kinds_of_reports() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.write("bad.wasm", component(End::Reject));
    place.run("component push good.wasm --name NO_OP").ok();
    place.run("component push bad.wasm --name BAD").ok();
    place.feed("submit --fq ./queue", lines(0..2).as_bytes()).ok();
    place.run("submit --fq ./queue --name BAD --base-directory d").ok();
    place.run("run --fq ./queue -x --done-queue ./queue-errors").exits(3).says("2 done");
    let status = place.run("queue status ./queue").ok();
    status.says("Failed: 1 (reports in fq://./queue-errors, without 2 reports of done tasks)");
    place
        .run("queue errors ./queue")
        .ok()
        .says("1 error report in")
        .says("2 messages that are not");

    let skipped = "2 reports skipped of tasks that are done";
    let dry = place.run("queue redrive ./queue --dry-run").ok();
    dry.says("1 task would be sent back").says(skipped);
    let sent = place.run("queue redrive ./queue --json").ok().json();
    assert_eq!((&sent["sent"], &sent["done"], &sent["left"]), (&1.into(), &2.into(), &0.into()));
    assert_eq!(place.enqueued("queue"), 1);
    assert_eq!(place.enqueued("queue-errors"), 2);
    let ended = place.run("queue redrive ./queue").ok();
    ended.says("0 tasks sent back").says(skipped);
}
