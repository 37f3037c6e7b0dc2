//! Renders the Helm chart with the real Helm, and checks it against the schemas of Kubernetes and
//! KEDA.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use task_host_tests::{Finished, fleet_tool, helm, host};

use crate::deploy::deployed;

const NEEDED: &[&str] = &["queue=sqs://my-tasks", "bucket=s3://my-data"];
const KEDA: &[&str] = &["keda.region=eu-west-1"];
const JOB: &[&str] = &["mode=job"];

fn run(verb: &[&str], values: &[&[&str]]) -> Finished {
    let home = tempfile::tempdir().expect("a directory");
    let mut helm = Command::new(helm());
    helm.args(verb).env("HOME", home.path());
    for value in values.concat() {
        helm.args(["--set", value]);
    }
    Finished::run(&mut helm)
}

fn chart() -> String {
    deployed("helm/task-host").to_str().expect("a path that is text").to_owned()
}

/// The objects that Helm would send to Kubernetes.
#[track_caller]
fn objects(values: &[&[&str]]) -> Vec<Value> {
    let rendered = run(&["template", "night", &chart(), "--namespace", "jobs"], values).good();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers/manifests.py");
    let mut check = Command::new(fleet_tool("python"));
    check.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().expect("Python");
    let mut stdin = check.stdin.take().expect("an input");
    stdin.write_all(rendered.stdout.as_bytes()).expect("a manifest");
    drop(stdin);
    let answer = check.wait_with_output().expect("an answer");
    let problem = String::from_utf8_lossy(&answer.stderr);
    assert!(answer.status.success(), "{problem}\n{}", rendered.stdout);
    serde_json::from_slice(&answer.stdout).expect("JSON")
}

#[track_caller]
fn the(kind: &str, objects: &[Value]) -> Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind} in {objects:#?}"));
    assert!(found.next().is_none(), "more than one {kind}");
    object.clone()
}

/// The value of an environment variable of the container.
fn variable(pod: &Value, name: &str) -> Value {
    let variables = pod["spec"]["containers"][0]["env"].as_array().expect("variables");
    let found = variables.iter().rfind(|variable| variable["name"] == name);
    found.map_or(Value::Null, |variable| variable["value"].clone())
}

#[test]
fn the_chart_is_a_good_one() {
    for mode in [KEDA, JOB] {
        run(&["lint", "--strict", &chart()], &[NEEDED, mode]).good();
    }
}

#[test]
fn keda_starts_workers_while_tasks_wait() {
    let values = ["keda.workers=100", "keda.tasksPerWorker=640", "settings.timeout=20m"];
    let objects = objects(&[NEEDED, KEDA, &values]);
    let spec = the("ScaledJob", &objects)["spec"].clone();
    assert_eq!((&spec["minReplicaCount"], &spec["maxReplicaCount"]), (&json!(0), &json!(100)));
    let job = &spec["jobTargetRef"];
    // A deadline would end workers in the middle of their tasks.
    assert_eq!(job["activeDeadlineSeconds"], Value::Null);
    let trigger = &spec["triggers"][0];
    assert_eq!(trigger["metadata"]["queueURL"], "my-tasks");
    assert_eq!(trigger["metadata"]["queueLength"], "640");
    let authentication = the("TriggerAuthentication", &objects);
    assert_eq!(authentication["metadata"]["name"], trigger["authenticationRef"]["name"]);
    assert_eq!(variable(&job["template"], "HOST_QUEUE"), "sqs://my-tasks");
    assert_eq!(variable(&job["template"], "HOST_TIMEOUT"), "20m");
}

#[test]
fn a_job_has_a_fixed_number_of_workers() {
    let job = the("Job", &objects(&[NEEDED, JOB, &["job.workers=7"]]))["spec"].clone();
    assert_eq!(job["completionMode"], "Indexed");
    assert_eq!((&job["completions"], &job["parallelism"]), (&json!(7), &json!(7)));
}

#[test]
fn workers_may_do_little_and_are_stopped_in_time() {
    let values =
        ["stopSeconds=25", "serviceAccount.annotations.eks\\.amazonaws\\.com/role-arn=arn"];
    let objects = objects(&[NEEDED, JOB, &values]);
    let account = the("ServiceAccount", &objects);
    assert_eq!(account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"], "arn");
    let pod = the("Job", &objects)["spec"]["template"].clone();
    let spec = &pod["spec"];
    assert_eq!(spec["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(spec["terminationGracePeriodSeconds"], 25);
    assert_eq!(variable(&pod, "HOST_GRACE"), "10s");
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let container = &spec["containers"][0];
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
}

/// Each environment variable in the chart is a setting of this version of the host.
#[test]
fn the_chart_sets_what_the_host_knows() {
    let pod = the("Job", &objects(&[NEEDED, JOB]))["spec"]["template"].clone();
    let mut config = Command::new(host());
    config.arg("config").env_clear();
    let variables = pod["spec"]["containers"][0]["env"].as_array().expect("variables");
    for variable in variables.iter().filter(|variable| variable["value"].is_string()) {
        let text = |field: &str| variable[field].as_str().expect("a text").to_owned();
        config.env(text("name"), text("value"));
    }
    let config = Finished::run(&mut config).good();
    assert_eq!(config.stderr, "", "the host has something to say");
    assert!(config.stdout.contains("HOST_EXIT_WHEN_IDLE"), "{}", config.stdout);
}

#[test]
fn wrong_values_are_refused_before_anything_is_installed() {
    for (values, want) in [
        (&["queue=sqs://my-tasks"][..], "bucket: where the data is"),
        (&["queue=my-tasks", "bucket=s3://my-data"], "queue"),
        (&["queue=sqs://my-tasks", "bucket=s3://my-data", "mode=deployment"], "mode"),
        (&["queue=sqs://my-tasks", "bucket=s3://my-data", "stopSeconds=10"], "stopSeconds"),
        (&["queue=sqs://my-tasks", "bucket=s3://my-data", "workers=10"], "workers"),
        (&["queue=sqs://my-tasks", "bucket=s3://my-data"], "keda.region"),
    ] {
        let refused = run(&["template", "night", &chart()], &[values]).code(1);
        assert!(refused.stderr.contains(want), "{values:?}: {}", refused.stderr);
    }
}
