//! Notices of the clouds, and the agent of ECS.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::http::{self, Answer, Request};
use task_host_tests::{Finished, Place, Running, eventually, misbehaviour};

/// A cloud's metadata service.
#[derive(Clone, Default)]
struct Metadata {
    /// Whether a notice has been given.
    noticed: Arc<Mutex<bool>>,
}

impl Metadata {
    fn serve(&self) -> String {
        let metadata = self.clone();
        http::serve(move |request| {
            let noticed = *metadata.noticed.lock().expect("a flag");
            answer(request, noticed)
        })
        .to_string()
    }

    fn notices(&self) {
        *self.noticed.lock().expect("a flag") = true;
    }
}

/// The answers of the metadata services of the three clouds.
fn answer(request: &Request, noticed: bool) -> Answer {
    let is = |header, value| request.header(header) == Some(value);
    let path = request.path.split('?').next().unwrap_or_default();
    match (&*request.method, path) {
        ("PUT", "/latest/api/token") => Answer::new(200, "a-token"),
        ("GET", "/latest/meta-data/instance-life-cycle") => Answer::new(200, "spot"),
        ("GET", "/latest/meta-data/spot/instance-action")
            if is("x-aws-ec2-metadata-token", "a-token") =>
        {
            let at = SystemTime::now() + Duration::from_secs(120);
            let seconds = at.duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
            let action = json!({"action": "terminate", "time": rfc3339(seconds)});
            if noticed { Answer::new(200, action.to_string()) } else { Answer::new(404, "") }
        }
        ("GET", "/computeMetadata/v1/instance/preempted") if is("metadata-flavor", "Google") => {
            Answer::new(200, if noticed { "TRUE" } else { "FALSE" })
        }
        ("GET", "/metadata/instance/compute/name") if is("metadata", "true") => {
            Answer::new(200, "worker_7")
        }
        ("GET", "/metadata/scheduledevents") if is("metadata", "true") => {
            let ours = json!({
                "EventType": "Preempt", "Resources": ["worker_7"], "NotBefore": "",
            });
            let others = json!({
                "EventType": "Preempt", "Resources": ["worker_8"], "NotBefore": "",
            });
            let events = if noticed { json!([others, ours]) } else { json!([others]) };
            Answer::new(200, json!({"DocumentIncarnation": 1, "Events": events}).to_string())
        }
        _ => Answer::new(403, ""),
    }
}

/// A time in EC2's format. `seconds` counts from 1970.
fn rfc3339(seconds: u64) -> String {
    let text = Finished::run(std::process::Command::new("date").args([
        "-u",
        "-d",
        &format!("@{seconds}"),
        "+%FT%TZ",
    ]));
    text.good().stdout.trim().to_owned()
}

/// A host that watches for notices of this cloud at this address. It runs one task of `secs`
/// seconds, and holds another ahead.
fn busy(place: &Place, cloud: &str, address: &str, secs: f64, args: &[&str]) -> Running {
    let sleep = json!({"do": "all", "steps": [
        {"do": "sleep", "secs": secs}, {"do": "output", "key": "done.txt", "text": "x"}]});
    place.submit(&[misbehaviour(1, &[], sleep.clone()), misbehaviour(2, &[], sleep)]);
    let run = ["run", "--fq", "./queue", "--json", "--parallel", "1", "--prefetch", "1"];
    let mut command = place.command(&[&run[..], &["--notice", cloud], args].concat());
    let url = format!("http://{address}");
    match cloud {
        "aws" => command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", url),
        "google" => command.env("GCE_METADATA_HOST", address),
        _ => command.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", url),
    };
    let host = Running::start(command, &place.path().join("logs"));
    eventually("a task that runs, and one that waits", || {
        (place.counts() == (2, 2) && place.a_task_has_started()).then_some(())
    });
    host
}

/// The host confines itself, so this also tests that it may connect to the metadata service.
#[track_caller]
fn a_notice_drains(cloud: &str, says: &str, within: &[&str]) {
    let place = Place::with(&["misbehave"]);
    let metadata = Metadata::default();
    let host = busy(&place, cloud, &metadata.serve(), 3.0, &["--grace", "1h"]);
    metadata.notices();
    let left = host.wait().good();
    let summary: Value = serde_json::from_str(&left.stdout).expect("a summary");
    assert_eq!((&summary["stopped"], &summary["cause"]), (&json!("drained"), &json!("notice")));
    let told = left.stderr.lines().find(|line| line.contains(says));
    let told = told.unwrap_or_else(|| panic!("{says:?} is not in {}", left.stderr));
    assert!(within.iter().any(|time| told.contains(&format!("finish within {time}"))), "{told}");
    // No task is lost. A task that had started was finished, if the notice came in time.
    let done = summary["done"].as_u64().expect("a count");
    assert_eq!((done as usize) + place.counts().0, 2, "{summary:#}");
    assert_eq!(place.counts().1, 0);
    assert!(place.errors().is_empty());
}

#[test]
fn a_notice_of_ec2_lets_running_tasks_finish() {
    a_notice_drains("aws", "EC2 will terminate this machine at 2", &["1m 4", "1m 3"]);
}

#[test]
fn a_notice_of_googles_lets_running_tasks_finish() {
    a_notice_drains("google", "Google will stop this machine within 30 s; stopping", &["15s"]);
}

#[test]
fn a_notice_of_azures_lets_running_tasks_finish() {
    a_notice_drains("azure", "Azure will take away this machine; stopping", &["15s"]);
}

/// A machine sends SIGTERM when it shuts down, soon after its notice.
#[test]
fn the_signal_after_a_notice_is_the_first_one() {
    let place = Place::with(&["misbehave"]);
    let metadata = Metadata::default();
    let host = busy(&place, "aws", &metadata.serve(), 3600.0, &["--grace", "1h"]);
    metadata.notices();
    let says = |text: &str| eventually(text, || host.stderr().contains(text).then_some(()));
    says("EC2 will terminate");
    eventually("a task that was released", || (place.counts() == (2, 1)).then_some(()));
    host.signal(Signal::TERM);
    says("\"1 task running may finish within 1m");
    assert_eq!(place.counts(), (2, 1), "the running task was released");
    host.signal_again(Signal::TERM);
    host.wait().code(143);
    assert_eq!(place.counts(), (2, 0));
}

#[test]
fn a_notice_while_the_host_stops_only_shortens_the_time() {
    let place = Place::with(&["misbehave"]);
    let metadata = Metadata::default();
    let host = busy(&place, "azure", &metadata.serve(), 3600.0, &["--grace", "1h"]);
    host.signal(Signal::TERM);
    eventually("a task that was released", || (place.counts() == (2, 1)).then_some(()));
    metadata.notices();
    let text = "Azure will take away this machine; 1 task running may finish within 15s";
    eventually(text, || host.stderr().contains(text).then_some(()));
    host.signal_again(Signal::TERM);
    let left = host.wait().code(143);
    let summary: Value = serde_json::from_str(&left.stdout).expect("a summary");
    assert_eq!((&summary["stopped"], &summary["cause"]), (&json!("killed"), &json!("signal")));
    assert_eq!(place.counts(), (2, 0));
}

#[test]
fn a_metadata_service_that_fails_keeps_no_host_from_working() {
    let (_asked, never) = mpsc::channel::<()>();
    let never = Mutex::new(never);
    let tried = Arc::new(Mutex::new(Vec::new()));
    let asked = tried.clone();
    let long = "TRUE".repeat(1 << 18);
    let address = http::serve(move |request| {
        let (kind, path) = request.path[1..].split_once('/').unwrap_or_default();
        asked.lock().expect("a list").push(kind.to_owned());
        match (kind, path) {
            ("silent", _) => {
                let _ = never.lock().expect("no other question").recv();
                Answer::new(200, "")
            }
            ("missing", _) => Answer::new(404, ""),
            ("broken", _) => Answer::new(500, "TRUE"),
            (_, "latest/api/token") => Answer::new(200, "a-token"),
            ("garbage", _) => Answer::new(200, "<html>terminate</html>"),
            _ => Answer::new(200, long.clone()),
        }
    });
    for kind in ["silent", "missing", "broken", "garbage", "long"] {
        let place = Place::with(&["NO_OP"]);
        let args = ["run", "--fq", "./queue", "--json", "--notice", "aws", "--max-tasks", "2"];
        let mut command = place.command(&args);
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{address}/{kind}"));
        let host = Running::start(command, &place.path().join("logs"));
        let is_tried = || tried.lock().expect("a list").iter().any(|asked| asked == kind);
        eventually(&format!("a question to the service that is {kind}"), || {
            is_tried().then_some(())
        });
        if kind != "silent" {
            let problem = "the host would not see a notice";
            eventually(problem, || host.stderr().contains(problem).then_some(()));
        }
        place.submit(&place.innocent(2));
        let left = host.wait().good();
        assert!(
            left.stderr.matches("the host would not see a notice").count() <= 1,
            "{}",
            left.stderr
        );
        place.innocent_are_done(2);
    }
}

/// An ECS agent that gives this answer, and the requests that it got.
fn agent(status: u16, says: Value) -> (String, Arc<Mutex<Vec<Value>>>) {
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let list = asked.clone();
    let address = http::serve(move |request| {
        assert_eq!(&*request.method, "PUT");
        assert_eq!(request.path, "/api/abc/task-protection/v1/state");
        let state = serde_json::from_slice(&request.body).expect("JSON");
        list.lock().expect("a list").push(state);
        Answer::new(status, says.to_string())
    });
    (format!("http://{address}/api/abc"), asked)
}

#[test]
fn a_task_of_ecs_is_protected_from_scale_in_while_its_host_holds_tasks() {
    for (status, says, told) in [
        (200, json!({"protection": {"ProtectionEnabled": true}}), false),
        (400, json!({"error": {"Code": "AccessDenied", "Message": "not authorized"}}), true),
        (200, json!({"failure": {"Reason": "TASK_NOT_VALID"}}), true),
    ] {
        let place = Place::with(&["misbehave"]);
        let (agent, asked) = agent(status, says);
        let mut command =
            place.command(&["run", "--fq", "./queue", "--notice", "auto", "--parallel", "2"]);
        command.env("ECS_AGENT_URI", &agent);
        let host = Running::start(command, &place.path().join("logs"));
        let task = |id| misbehaviour(id, &[], json!({"do": "sleep", "secs": 2.5}));
        place.submit(&[task(1), task(2), task(3), task(4)]);
        eventually("an empty queue", || (place.counts() == (0, 0)).then_some(()));
        host.signal(Signal::TERM);
        let left = host.wait().good();
        let asked = asked.lock().expect("a list");
        let want = json!({"ProtectionEnabled": true, "ExpiresInMinutes": 30});
        assert_eq!(*asked, [want], "once, for all tasks");
        let line = "ECS does not protect this task from scale-in";
        assert_eq!(left.stderr.matches(line).count(), usize::from(told), "{}", left.stderr);
    }
}
