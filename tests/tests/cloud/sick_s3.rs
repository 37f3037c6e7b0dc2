//! S3 answers some calls and fails others. The host tries another object to find out whether all
//! objects are unavailable or only one.

use task_host_tests::faults::{Fault, Proxy};
use task_host_tests::{Cloud, Watched, eventually, no_op, server};

const TASKS: usize = 12;

/// A directory queue, a bucket behind a proxy, a host that works on both, and tasks to submit.
struct Sick {
    cloud: Cloud,
    proxy: Proxy,
    host: Watched,
    name: String,
}

fn input(id: usize) -> String {
    format!("input {id}")
}

impl Sick {
    fn new(args: &[&str]) -> Self {
        let proxy = Proxy::to(&server("TASK_HOST_TEST_AWS"));
        let cloud = Cloud::s3_at(&proxy.url());
        cloud.push("NO_OP");
        for id in 0..TASKS {
            cloud.put(&format!("data/0_input/{id}"), input(id).as_bytes());
        }
        let name = cloud.bucket.trim_start_matches("s3://").to_owned();
        let host = Watched::new(cloud.start(&[&["run"], &Watched::FLAGS[..], args].concat()));
        Self { cloud, proxy, host, name }
    }

    fn submit(&self, ids: std::ops::Range<usize>) {
        let tasks: Vec<_> = ids.map(|id| no_op(id, &[format!("0_input/{id}")])).collect();
        self.cloud.submit(&tasks);
    }

    /// From now on, the service answers requests that contain `of` with this status.
    fn fail(&self, of: &str, status: u16) {
        let code = if status == 403 { "AccessDenied" } else { "InternalError" };
        let body = format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
        self.proxy.fail_some(Fault::Answer { status, body }, of, usize::MAX);
    }

    fn is_done(&self, id: usize) -> bool {
        self.cloud.object(&format!("data/0_output/{id}")) == Some(input(id).into_bytes())
    }

    #[track_caller]
    fn are_done(&self, ids: std::ops::Range<usize>) {
        eventually("all outputs", || ids.clone().all(|id| self.is_done(id)).then_some(()));
        eventually("an empty queue", || (self.cloud.place.counts() == (0, 0)).then_some(()));
    }
}

/// Checks that failing calls of one kind are an outage.
fn waits(of: impl Fn(&str) -> String, status: u16, words: &str) {
    let sick = Sick::new(&[]);
    sick.host.in_one_moment(|| {
        sick.submit(0..TASKS);
        sick.fail(&of(&sick.name), status);
    });
    sick.host.is_out(words);
    sick.host.has_tried(2);
    sick.proxy.mend();
    sick.are_done(0..TASKS);
    assert_eq!(sick.cloud.place.errors().len(), 0);
    sick.host.did_without_harm(TASKS);
}

#[test]
fn puts_that_are_denied() {
    waits(|bucket| format!("PUT /{bucket}/"), 403, "writing");
}

#[test]
fn puts_that_fail() {
    waits(|bucket| format!("PUT /{bucket}/"), 500, "writing");
}

#[test]
fn gets_that_are_denied() {
    waits(|bucket| format!("GET /{bucket}/"), 403, "reading");
}

#[test]
fn gets_that_fail() {
    waits(|bucket| format!("GET /{bucket}/"), 500, "reading");
}

/// The host can read the component, but has never read an input.
#[test]
fn inputs_that_are_denied() {
    waits(|bucket| format!("GET /{bucket}/data/"), 403, "reading");
}

/// The host has read inputs before, and can still read the component.
#[test]
fn inputs_that_are_denied_after_a_while() {
    let sick = Sick::new(&[]);
    sick.submit(0..1);
    sick.are_done(0..1);
    sick.host.in_one_moment(|| {
        sick.submit(1..TASKS);
        sick.fail(&format!("GET /{}/data/", sick.name), 403);
    });
    sick.host.is_out("reading");
    sick.host.has_tried(2);
    sick.proxy.mend();
    sick.are_done(0..TASKS);
    assert_eq!(sick.cloud.place.errors().len(), 0);
    sick.host.did_without_harm(TASKS);
}

#[test]
fn one_input_that_is_always_denied_is_its_tasks_own_failure() {
    let sick = Sick::new(&["--max-attempts", "2", "--retry-after", "10ms"]);
    sick.fail(&format!("GET /{}/data/0_input/3", sick.name), 403);
    sick.submit(0..10);
    let done = || (0..10).filter(|id| *id != 3).all(|id| sick.is_done(id));
    eventually("the other outputs", || done().then_some(()));
    eventually("an empty queue", || (sick.cloud.place.counts() == (0, 0)).then_some(()));
    let report = sick.cloud.place.the_error();
    assert_eq!((&report["task"]["basic_info"]["id"], &report["attempt"]), (&3.into(), &2.into()));
    let exception = report["exception"].as_str().expect("an exception");
    assert!(exception.contains("0_input/3"), "{exception}");
    sick.host.is_ready_again();
    let summary = sick.host.stop();
    assert_eq!((&summary["done"], &summary["failed"]), (&9.into(), &1.into()), "{summary:#}");
}

/// With only one task, no other object can show that the bucket works.
#[test]
fn one_input_that_is_denied_and_is_all_there_is_ends_as_well() {
    let sick = Sick::new(&["--max-attempts", "2", "--retry-after", "10ms"]);
    sick.fail(&format!("GET /{}/data/0_input/3", sick.name), 403);
    sick.submit(3..4);
    eventually("a report", || (sick.cloud.place.errors().len() == 1).then_some(()));
    sick.host.is_ready_again();
    sick.host.stop();
}
