//! Traces and metrics for OpenTelemetry. The collector of these tests only stores the requests.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::json;
use task_host_tests::http::{self, Answer};
use task_host_tests::{Finished, Place, eventually, misbehaviour};

/// Requests as pairs of path and body. Names are plain text in the binary format.
type Received = Arc<Mutex<Vec<(String, String)>>>;

fn collector(status: u16) -> (String, Received) {
    let received = Received::default();
    let kept = received.clone();
    let address = http::serve(move |request| {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        kept.lock().unwrap().push((request.path.clone(), text));
        Answer::new(status, "")
    });
    (format!("http://{address}"), received)
}

fn texts(received: &Received, path: &str) -> String {
    let received = received.lock().unwrap();
    received.iter().filter(|(at, _)| at == path).map(|(_, text)| text.as_str()).collect()
}

#[test]
fn a_confined_host_sends_traces_and_metrics_where_the_variables_say() {
    let place = Place::with(&["NO_OP", "misbehave"]);
    let mut tasks = place.innocent(2);
    tasks.push(misbehaviour(10, &[], json!({"do": "reject", "text": "out of cheese"})));
    place.submit(&tasks);
    let (endpoint, received) = collector(200);
    let mut command = place.command(&["run", "--fq", "./queue", "-x", "--exit-zero"]);
    command.args(["--confine", "require"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    command.env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=night");
    Finished::run(&mut command).good();
    // The host sends everything before it ends.
    let traces = texts(&received, "/v1/traces");
    for part in ["task-host", "night", "NO_OP", "settle", "rejected", "out of cheese"] {
        assert!(traces.contains(part), "no {part}: {traces}");
    }
    let metrics = texts(&received, "/v1/metrics");
    for part in
        ["taskhost.tasks", "task_name", "NO_OP", "taskhost.step.duration", "taskhost.slots", "By"]
    {
        assert!(metrics.contains(part), "no {part}: {metrics}");
    }
}

#[test]
fn a_collector_that_fails_delays_no_task_and_is_told_of_once() {
    let place = Place::with(&["NO_OP"]);
    place.submit(&place.innocent(3));
    let (endpoint, received) = collector(400);
    let mut command = place.command(&["run", "--fq", "./queue"]);
    command.args(["--log-format", "json"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    let host = task_host_tests::Running::start(command, &place.path().join("logs"));
    place.innocent_are_done(3);
    eventually("a few tries", || (received.lock().unwrap().len() > 3).then_some(()));
    host.signal(rustix::process::Signal::TERM);
    let said = host.wait().stderr;
    let lines = said.lines().filter(|line| line.contains("OpenTelemetry")).count();
    assert_eq!(lines, 1, "{said}");
    assert!(said.contains("answers with 400"), "{said}");
}

#[test]
fn a_collector_that_never_answers_keeps_no_host() {
    let place = Place::with(&["NO_OP"]);
    place.submit(&place.innocent(3));
    // The kernel accepts connections to this port, but nothing answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = place.command(&["run", "--fq", "./queue", "-x"]);
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    Finished::run(&mut command).good();
    place.innocent_are_done(3);
}
