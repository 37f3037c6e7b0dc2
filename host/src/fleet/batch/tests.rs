//! Tests against AWS Batch as its documentation describes it.

use serde_json::{Value, json};

use super::*;
use crate::fleet::aws::fake::{Fake, spec};

const ROLE: (&str, &str) = ("execution-role", "arn:aws:iam::1:role/execution");

async fn batch(fake: &Fake) -> Batch {
    Batch::of(fake.aws("batch://spot").await, "spot")
}

/// A queue with one compute environment.
fn with_room(fake: &Fake, environment: &Value) {
    fake.says(
        "DescribeJobQueues",
        json!({"jobQueues": [{
            "jobQueueName": "spot", "state": "ENABLED", "status": "VALID",
            "computeEnvironmentOrder": [{"order": 1, "computeEnvironment": "arn:spot"}],
        }]}),
    );
    let mut all = json!({
        "computeEnvironmentName": "spot", "state": "ENABLED", "status": "VALID", "type": "MANAGED",
        "computeResources": {"type": "FARGATE_SPOT", "maxvCpus": 10},
    });
    for (name, value) in environment.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    fake.says("DescribeComputeEnvironments", json!({"computeEnvironments": [all]}));
}

fn array(states: &Value) -> Value {
    json!({
        "jobId": "a", "jobName": "task-host-night", "status": "SUBMITTED", "createdAt": 1_000,
        "jobQueue": "spot", "jobDefinition": "night", "startedAt": 0,
        "tags": {"task-host.digest": "0123"},
        "arrayProperties": {"size": 10, "statusSummary": states},
        "container": {
            "environment": [
                {"name": "HOST_QUEUE", "value": "sqs://tasks"}, {"name": "PATH", "value": "/"},
            ],
            "resourceRequirements": [{"type": "VCPU", "value": "4"}],
        },
    })
}

fn knows(fake: &Fake, jobs: &[Value]) {
    let summary = |job: &Value| json!({"jobId": job["jobId"], "jobName": job["jobName"]});
    let summaries: Vec<Value> = jobs.iter().map(summary).collect();
    fake.says("ListJobs", json!({"jobSummaryList": summaries}));
    fake.says("DescribeJobs", json!({"jobs": jobs}));
}

/// The rendered script, without the digest of all options.
fn shown(batch: &Batch, spec: &Spec, workers: u32) -> String {
    batch.render(spec, workers).expect("a script").replace(&spec.digest(), "DIGEST")
}

fn fleet() -> FleetName {
    "night".parse().expect("a name")
}

#[tokio::test]
async fn what_is_asked_for_is_shown_in_the_language_of_aws() {
    let batch = batch(&Fake::default()).await;
    let mut spec = spec(&[ROLE, ("job-role", "arn:aws:iam::1:role/worker"), ("log-group", "/lab")]);
    spec.walltime = Some(Duration::from_secs(3600));
    insta::assert_snapshot!(shown(&batch, &spec, 10_001));
}

#[tokio::test]
async fn a_definition_of_the_user_gets_the_settings_with_each_job() {
    let batch = batch(&Fake::default()).await;
    insta::assert_snapshot!(shown(&batch, &spec(&[("definition", "mine:3")]), 2));
}

#[tokio::test]
async fn options_that_do_not_fit_are_refused_with_a_cure() {
    let batch = batch(&Fake::default()).await;
    let check = |options: &[(&str, &str)], problem: &str, cure: &str| {
        let error = batch.render(&spec(options), 1).expect_err(problem);
        assert!(error.to_string().contains(problem), "{error}");
        assert!(error.cure().is_some_and(|text| text.contains(cure)), "{:?}", error.cure());
    };
    check(
        &[("partition", "main")],
        "there is no option partition",
        "the options are assign-public-ip",
    );
    check(&[], "jobs on Fargate need a role", "-o execution-role=ARN");
    check(&[("platform", "LAMBDA")], "unknown value LAMBDA", "FARGATE or EC2");
    check(&[ROLE, ("ephemeral-storage", "5")], "unknown value 5", "21 to 200");
    check(&[("platform", "EC2"), ("assign-public-ip", "true")], "for jobs on Fargate", "leave");
    check(
        &[ROLE, ("definition", "mine")],
        "your own job definition already sets it",
        "leave it out",
    );
}

#[tokio::test]
async fn directories_secrets_and_relays_are_refused() {
    let batch = batch(&Fake::default()).await;
    let check = |spec: Spec, problem: &str| {
        let error = batch.render(&spec, 1).expect_err(problem).to_string();
        assert!(error.contains(problem), "{error}");
    };
    let usual = || spec(&[ROLE]);
    check(Spec { paths: ["/lab/queue".into()].into(), ..usual() }, "can't reach /lab/queue");
    check(Spec { pass: ["SECRET".to_owned()].into(), ..usual() }, "--pass-env SECRET");
    check(Spec { relay: 2, ..usual() }, "--relay is not supported");
    check(
        Spec { walltime: Some(Duration::from_secs(59)), ..usual() },
        "shorter than the minimum of one minute",
    );
    check(Spec { cpus: 17, ..usual() }, "Fargate has no size with 17 vCPUs");
}

#[tokio::test]
async fn the_capacity_is_that_of_the_usable_compute_environments() {
    let fake = Fake::default();
    with_room(&fake, &json!({}));
    let capacity = batch(&fake).await.check(&spec(&[ROLE])).await.expect("room").expect("a limit");
    assert_eq!(capacity.workers, 2);
    assert!(capacity.limit.contains("at most 10 vCPUs (maxvCpus)"), "{}", capacity.limit);

    let fake = Fake::default();
    with_room(&fake, &json!({"type": "UNMANAGED", "computeResources": null}));
    let options = spec(&[("platform", "EC2")]);
    assert_eq!(batch(&fake).await.check(&options).await.expect("room"), None);
}

#[tokio::test]
async fn a_queue_without_a_usable_compute_environment_says_why() {
    let check = async |environment: Value, problem: &str| {
        let fake = Fake::default();
        with_room(&fake, &environment);
        let error = batch(&fake).await.check(&spec(&[ROLE])).await.expect_err(problem).to_string();
        assert!(error.contains(problem), "{error}");
    };
    check(json!({"state": "DISABLED"}), "compute environment spot is disabled").await;
    let invalid = json!({"status": "INVALID", "statusReason": "no role"});
    check(invalid, "compute environment spot is INVALID: no role").await;
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_named() {
    let fake = Fake::default();
    fake.says("DescribeJobQueues", json!({"jobQueues": []}));
    let missing = "Job queue spot does not exist";
    fake.refuses("ListJobs", 404, "ClientException", missing);
    let batch = batch(&fake).await;
    let errors = [
        batch.check(&spec(&[ROLE])).await.expect_err("a queue"),
        batch.status(&fleet()).await.expect_err("a queue"),
    ];
    for error in errors {
        let text = "batch://spot: there is no job queue spot in eu-west-1";
        assert_eq!(error.to_string(), text);
        assert!(error.cure().is_some_and(|cure| cure.contains("describe-job-queues")));
    }
}

#[tokio::test]
async fn workers_are_counted_by_the_states_of_an_array_and_not_by_its_own() {
    let fake = Fake::default();
    with_room(&fake, &json!({}));
    knows(&fake, &[array(&json!({"RUNNABLE": 3, "RUNNING": 2, "SUCCEEDED": 1, "FAILED": 1}))]);
    // Two answers: the RUNNABLE jobs of the array, then the FAILED ones.
    let waiting = json!([{"jobId": "a:7", "jobName": "n", "statusReason": "MISCONFIGURATION:X"}]);
    fake.says("ListJobs", json!({"jobSummaryList": waiting}));
    let failed = json!([{
        "jobId": "a:9", "jobName": "n", "statusReason": "Essential container in task exited",
        "container": {"exitCode": 137, "reason": "OutOfMemoryError"},
    }]);
    fake.says("ListJobs", json!({"jobSummaryList": failed}));
    let status = batch(&fake).await.status(&fleet()).await.expect("an answer").expect("a fleet");
    let counts = status.counts;
    // Batch has not yet created three jobs of the array.
    assert_eq!((counts.waiting, counts.running, counts.ended, counts.failed), (6, 2, 1, 1));
    assert_eq!(status.digest, "0123");
    assert_eq!(status.environment.keys().collect::<Vec<_>>(), ["HOST_QUEUE"]);
    let said: Vec<String> =
        status.reasons.iter().map(|it| format!("{} {}", it.workers, it.reason)).collect();
    assert!(said.contains(&"1 MISCONFIGURATION:X".to_owned()), "{said:?}");
    assert!(said.contains(&"5 8 of 10 vCPUs in use by this fleet".to_owned()), "{said:?}");
    assert!(
        said.iter().any(|it| it.contains("137") && it.ends_with("OutOfMemoryError")),
        "{said:?}"
    );
}

#[tokio::test]
async fn all_pages_of_jobs_are_read() {
    let fake = Fake::default();
    let page =
        json!({"jobSummaryList": [{"jobId": "1", "jobName": "task-host-a"}], "nextToken": "t"});
    fake.says("ListJobs", page);
    fake.says("ListJobs", json!({"jobSummaryList": [{"jobId": "2", "jobName": "task-host-b"}]}));
    let fleets = batch(&fake).await.fleets().await.expect("fleets");
    assert_eq!(fleets.iter().map(FleetName::as_str).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(fake.asked("ListJobs")[1]["nextToken"], "t");
}

#[tokio::test]
async fn what_is_sent_is_what_is_shown() {
    let fake = Fake::default();
    with_room(&fake, &json!({}));
    fake.says("DescribeJobDefinitions", json!({"jobDefinitions": []}));
    let arn = "arn:aws:batch:eu-west-1:1:job-definition/task-host-night:1";
    let made = json!({
        "jobDefinitionArn": arn, "jobDefinitionName": "task-host-night", "revision": 1,
    });
    fake.says("RegisterJobDefinition", made);
    fake.says("SubmitJob", json!({"jobId": "a", "jobName": "task-host-night"}));
    knows(&fake, &[array(&json!({}))]);
    let batch = batch(&fake).await;
    let spec = spec(&[ROLE]);
    let said = batch.start(&spec, 3).await.expect("workers");
    assert_eq!(said, "3 workers (array job a of 3)");
    let script = batch.render(&spec, 3).expect("a script").replace(r"'\''", "'");
    let shown = |value: &Value| script.contains(&format!("{value:#}"));
    assert!(shown(&fake.asked("RegisterJobDefinition")[0]), "{script}");
    let mut job = fake.asked("SubmitJob")[0].clone();
    assert_eq!(job["jobDefinition"], arn);
    job["jobDefinition"] = json!("task-host-night");
    assert!(shown(&job), "{script}\n{job:#}");
}

#[tokio::test]
async fn of_two_launchers_the_later_one_takes_back_what_it_submitted() {
    let fake = Fake::default();
    with_room(&fake, &json!({}));
    fake.says("SubmitJob", json!({"jobId": "b", "jobName": "task-host-night"}));
    let mut later = array(&json!({}));
    later["jobId"] = json!("b");
    later["createdAt"] = json!(2_000);
    knows(&fake, &[later, array(&json!({}))]);
    fake.says("TerminateJob", json!({}));
    let batch = batch(&fake).await;
    let own = spec(&[("definition", "mine")]);
    let said = batch.start(&own, 10).await.expect("an answer");
    assert_eq!(said, "nothing: another launcher has just submitted job a");
    let stopped = fake.asked("TerminateJob");
    assert_eq!(stopped[0]["jobId"], "b");
}

#[tokio::test]
async fn errors_of_aws_are_told_with_their_cure() {
    let check = async |status, code: &str, cure: &str| {
        let fake = Fake::default();
        fake.refuses("ListJobs", status, code, "it says so");
        let error = batch(&fake).await.status(&fleet()).await.expect_err(code);
        let text = format!("batch://spot: listing jobs failed: {code}: it says so");
        assert_eq!(error.to_string(), text);
        assert!(error.cure().is_some_and(|text| text.contains(cure)), "{:?}", error.cure());
        fake.asked("ListJobs").len()
    };
    let tries = check(403, "AccessDeniedException", "launcher-policy.json").await;
    assert_eq!(tries, 1);
    let tries = check(429, "TooManyRequestsException", "in a minute").await;
    assert_eq!(tries, 4);
    check(403, "UnrecognizedClientException", "aws sts get-caller-identity").await;
}
