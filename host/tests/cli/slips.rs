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

#[test]
fn a_url_with_a_slip_makes_no_directory() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.run("submit --fq ./queue --name A --base-directory d").ok();
    let before = names(&place);
    let slip = "looks like a URL with a slip; write";
    for line in [
        "run -x --queue sqs:/x",
        "run -x --fq sqs:x",
        "run -x --fq ./queue --error-queue sqs:/x",
        "run -x --fq ./queue --bucket s3:/x",
        "run -x --fq ./queue --cache-dir s3:/x",
        "queue cp ./queue sqs:/typo",
        "queue mv ./queue fq:./typo",
        "submit --queue sqs:x --name A --base-directory d",
        "component ls --bucket s3:/x",
        "component rm A --bucket gs:x",
    ] {
        place.run(line).exits(2).says(slip);
        assert_eq!(names(&place), before, "{line}");
    }
    place.run("queue status FQ://./queue").ok().says("Enqueued: 1");
    place.run("queue cp ./queue ./sqs:x").ok();
    assert!(place.has("sqs:x"));
}

/// What is in the directory.
fn names(place: &Place) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> =
        fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}
