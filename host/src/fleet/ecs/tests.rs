//! Tests against AWS ECS as its documentation describes it.

use serde_json::json;

use super::*;
use crate::fleet::aws::fake::{Fake, spec};

const ROLE: (&str, &str) = ("execution-role", "arn:aws:iam::1:role/execution");
const SUBNETS: (&str, &str) = ("subnets", "subnet-1, subnet-2");

async fn ecs(fake: &Fake) -> Ecs {
    Ecs::of(fake.aws("ecs://lab").await, "lab")
}

/// The rendered script, without the digest of all options.
fn shown(ecs: &Ecs, spec: &Spec, workers: u32) -> String {
    ecs.render(spec, workers).expect("a script").replace(&spec.digest(), "DIGEST")
}

fn fleet() -> FleetName {
    "night".parse().expect("a name")
}

fn task(arn: &str, worker: u32, more: &Value) -> Value {
    let mut task = json!({
        "taskArn": arn, "createdAt": 1_000, "lastStatus": "RUNNING", "desiredStatus": "RUNNING",
        "startedBy": "task-host/night/0123", "taskDefinitionArn": "arn:d/task-host-night:1",
        "overrides": {"containerOverrides": [{
            "name": "host",
            "environment": [{"name": "HOST_WORKER_INDEX", "value": worker.to_string()}],
        }]},
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        task[name] = value.clone();
    }
    task
}

/// The running and stopped tasks that ECS reports.
fn knows(fake: &Fake, running: &[Value], stopped: &[Value]) {
    for tasks in [running, stopped] {
        let arns: Vec<&Value> = tasks.iter().map(|task| &task["taskArn"]).collect();
        fake.says("ListTasks", json!({"taskArns": arns}));
        if !tasks.is_empty() {
            fake.says("DescribeTasks", json!({"tasks": tasks}));
        }
    }
}

fn knows_definition(fake: &Fake) {
    let container = json!({"name": "host", "environment": [
        {"name": "HOST_QUEUE", "value": "sqs://tasks"}, {"name": "PATH", "value": "/"},
    ]});
    let definition = json!({
        "taskDefinitionArn": "arn:d/task-host-night:1", "containerDefinitions": [container],
    });
    fake.says("DescribeTaskDefinition", json!({"taskDefinition": definition}));
    fake.says("RegisterTaskDefinition", json!({"taskDefinition": definition}));
    fake.refuses("CreateLogGroup", 400, "ResourceAlreadyExistsException", "it is there");
}

#[tokio::test]
async fn what_is_asked_for_is_shown_in_the_language_of_aws() {
    let ecs = ecs(&Fake::default()).await;
    let options = [
        ROLE,
        SUBNETS,
        ("security-groups", "sg-1"),
        ("capacity-provider", "FARGATE_SPOT"),
        ("task-role", "arn:aws:iam::1:role/worker"),
    ];
    insta::assert_snapshot!(shown(&ecs, &spec(&options), 2));
}

#[tokio::test]
async fn tasks_on_machines_of_the_user_share_the_network_of_the_machine() {
    let ecs = ecs(&Fake::default()).await;
    let options = [("launch-type", "ec2"), ("network-mode", "host")];
    insta::assert_snapshot!(shown(&ecs, &spec(&options), 1));
}

#[tokio::test]
async fn options_that_do_not_fit_are_refused_with_a_cure() {
    let ecs = ecs(&Fake::default()).await;
    let check = |options: &[(&str, &str)], problem: &str, cure: &str| {
        let error = ecs.render(&spec(options), 1).expect_err(problem);
        assert!(error.to_string().contains(problem), "{error}");
        assert!(error.cure().is_some_and(|text| text.contains(cure)), "{:?}", error.cure());
    };
    check(
        &[("partition", "main")],
        "there is no option partition",
        "the options are assign-public-ip",
    );
    check(&[SUBNETS], "tasks on Fargate need a role", "-o execution-role=ARN");
    check(&[ROLE], "need subnets", "-o subnets=SUBNET,SUBNET");
    check(&[("launch-type", "EC2"), SUBNETS, ("network-mode", "host")], "awsvpc", "leave it out");
    let both = [ROLE, SUBNETS, ("launch-type", "FARGATE"), ("capacity-provider", "FARGATE_SPOT")];
    check(&both, "the capacity provider already determines it", "leave it out");
    check(&[ROLE, SUBNETS, ("network-mode", "host")], "on Fargate have the network mode", "leave");
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_named() {
    let fake = Fake::default();
    fake.says("DescribeClusters", json!({"clusters": [], "failures": [{"reason": "MISSING"}]}));
    fake.refuses("ListTasks", 400, "ClusterNotFoundException", "Cluster not found.");
    let ecs = ecs(&fake).await;
    let errors = [
        ecs.check(&spec(&[ROLE, SUBNETS])).await.expect_err("a cluster"),
        ecs.status(&fleet()).await.expect_err("a cluster"),
    ];
    for error in errors {
        let text = "ecs://lab: there is no active cluster lab in eu-west-1";
        assert_eq!(error.to_string(), text);
        assert!(error.cure().is_some_and(|cure| cure.contains("list-clusters")));
    }
}

#[tokio::test]
async fn tasks_are_workers_with_their_reasons() {
    let fake = Fake::default();
    let waiting = task("t/1", 0, &json!({"lastStatus": "PROVISIONING"}));
    let running = task("t/2", 1, &json!({}));
    let draining = task("t/3", 2, &json!({"lastStatus": "STOPPING", "desiredStatus": "STOPPED"}));
    let exited = |code: i32| json!([{"name": "host", "exitCode": code}]);
    let ended = json!({"lastStatus": "STOPPED", "containers": exited(0)});
    let killed = json!({
        "lastStatus": "STOPPED", "containers": exited(137),
        "stopCode": "EssentialContainerExited", "stoppedReason": "Essential container in task exited",
    });
    let lost = json!({
        "lastStatus": "STOPPED", "stopCode": "SpotInterruption",
        "stoppedReason": "Your Spot Task was interrupted.",
    });
    let stopped =
        [draining, task("t/4", 3, &ended), task("t/5", 4, &killed), task("t/6", 5, &lost)];
    knows(&fake, &[waiting, running], &stopped);
    knows_definition(&fake);
    let status = ecs(&fake).await.status(&fleet()).await.expect("an answer").expect("a fleet");
    let counts = status.counts;
    assert_eq!((counts.waiting, counts.running, counts.ended, counts.failed), (1, 2, 1, 2));
    assert_eq!(status.digest, "0123");
    assert_eq!(status.environment.keys().collect::<Vec<_>>(), ["HOST_QUEUE"]);
    let said: Vec<&str> = status.reasons.iter().map(|it| it.reason.as_str()).collect();
    let killed = "exit code 137 (killed: out of memory, or too slow to stop?)";
    assert!(said.contains(&killed), "{said:?}");
    assert!(said.contains(&"Your Spot Task was interrupted."), "{said:?}");
    assert!(said.iter().any(|it| it.starts_with("PROVISIONING")), "{said:?}");
}

#[tokio::test]
async fn workers_that_ecs_refuses_count_as_failed() {
    let fake = Fake::default();
    let placed = task("t/1", 0, &json!({}));
    knows(&fake, std::slice::from_ref(&placed), &[]);
    fake.says("RunTask", json!({"tasks": [placed], "failures": []}));
    fake.says("RunTask", json!({"tasks": [], "failures": [{"reason": "RESOURCE:MEMORY"}]}));
    knows_definition(&fake);
    let ecs = ecs(&fake).await;
    let said = ecs.start(&spec(&[ROLE, SUBNETS]), 3).await.expect("a worker");
    assert_eq!(said, "1 task; 2 refused: RESOURCE:MEMORY");
    let refused = ecs.refused.lock().clone();
    assert_eq!(refused, ["RESOURCE:MEMORY", "RESOURCE:MEMORY"]);
}

#[tokio::test]
async fn launchers_ask_for_the_same_worker_with_the_same_token() {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let spec = spec(&[ROLE, SUBNETS]);
    let token_of = |worker| token(&spec, worker, &[], now);
    assert_eq!(token_of(0), token_of(0));
    assert_ne!(token_of(0), token_of(1));
    assert!(token_of(0).len() <= 64);
    // A worker that has ended is replaced.
    let index = aws_sdk_ecs::types::KeyValuePair::builder().name(aws::WORKER_INDEX).value("0");
    let container = aws_sdk_ecs::types::ContainerOverride::builder().environment(index.build());
    let overrides =
        aws_sdk_ecs::types::TaskOverride::builder().container_overrides(container.build()).build();
    let earlier = Task::builder().task_arn("t/1").overrides(overrides).build();
    assert_ne!(token(&spec, 0, std::slice::from_ref(&earlier), now), token_of(0));
    assert_eq!(token(&spec, 1, &[earlier], now), token_of(1));
    assert_ne!(token(&spec, 0, &[], now + Duration::from_secs(HOUR)), token_of(0));
}

#[tokio::test]
async fn of_two_tasks_of_one_worker_one_is_stopped() {
    let fake = Fake::default();
    let tasks =
        [task("t/9", 0, &json!({})), task("t/3", 0, &json!({})), task("t/5", 1, &json!({}))];
    knows(&fake, &tasks, &[]);
    fake.says("StopTask", json!({}));
    assert_eq!(ecs(&fake).await.stop_doubles(&fleet()).await, Ok(1));
    let stopped = fake.asked("StopTask");
    assert_eq!((stopped.len(), &stopped[0]["task"]), (1, &json!("t/9")));
}

#[tokio::test]
async fn only_tasks_that_wait_are_cancelled() {
    let fake = Fake::default();
    let waiting = task("t/1", 0, &json!({"lastStatus": "PENDING"}));
    knows(&fake, &[waiting, task("t/2", 1, &json!({}))], &[]);
    // The task has ended meanwhile.
    fake.refuses(
        "StopTask",
        400,
        "InvalidParameterException",
        "The referenced task was not found.",
    );
    ecs(&fake).await.stop(&fleet(), Stop::Waiting).await.expect("a cancelled task");
    let stopped = fake.asked("StopTask");
    assert_eq!((stopped.len(), &stopped[0]["task"]), (1, &json!("t/1")));
}
