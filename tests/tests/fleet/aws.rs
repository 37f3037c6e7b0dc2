//! Code that the tests of AWS Batch and AWS ECS share.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use task_host_tests::{Finished, aws_variables, engines, http, server, target};

use crate::conformance::{Subject, Work};

/// An image with the host under test. Its environment variables lead the workers to the test
/// servers for queues and buckets. On AWS, workers need no such variables.
pub(crate) fn image() -> &'static str {
    const NAME: &str = "task-host:aws";
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let created = engines::docker(&["create", engines::image(), "run"]).good().stdout;
        let container = created.trim();
        let variables = aws_variables(&server("TASK_HOST_TEST_AWS"));
        let changes = variables.iter().map(|(name, value)| format!("--change=ENV {name}={value}"));
        let changes: Vec<String> = changes.collect();
        let mut commit = vec!["commit"];
        commit.extend(changes.iter().map(String::as_str));
        commit.extend([container, NAME]);
        engines::docker(&commit).good();
        engines::docker(&["rm", container]).good();
    });
    NAME
}

/// Sends a request to an AWS server without AWS's own tools, which take a second to start.
pub(crate) fn ask(
    url: &str,
    service: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Value {
    let credential = format!("test/20260101/us-east-1/{service}/aws4_request");
    let signed =
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0");
    let headers = [&[("authorization", signed.as_str())], headers].concat();
    let answer = http::send(url, "POST", path, &headers, body.as_bytes());
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, 200, "{service} {path}: {text}");
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

/// Runs the commands that `render` has printed, with the real AWS command line.
pub(crate) fn accept(work: &Work, document: &str, endpoints: &[(&str, String)]) {
    let place = work.place();
    let script = place.path().join("script");
    fs::write(&script, document).expect("a script");
    let tools = target().join("aws/bin");
    let path = std::env::var("PATH").expect("PATH");
    let mut sh = Command::new("sh");
    sh.arg("-e").arg(script).current_dir(place.path()).env("HOME", place.path());
    sh.env("PATH", format!("{}:{path}", tools.display()));
    sh.envs(aws_variables(&server("TASK_HOST_TEST_AWS")));
    sh.envs(endpoints.iter().map(|(name, value)| (name, value)));
    Finished::run(&mut sh).good();
}

/// Runs `host ARGS…` without the options that the suite adds.
pub(crate) fn host<S: Subject>(subject: &S, args: &[&str]) -> Finished {
    let mut command = match subject.work() {
        Work::There(cloud) => cloud.command(args),
        Work::Here(_) => unreachable!("it works in a cloud"),
    };
    subject.lead(&mut command);
    Finished::run(&mut command)
}
