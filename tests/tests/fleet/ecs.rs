//! Fleets on AWS ECS. The test server runs real containers.

use std::process::Command;

use serde_json::{Value, json};
use task_host_tests::{Cloud, engines, server, unique};

use crate::aws;
use crate::conformance::{Fleet, Subject, Work, suite};

pub(crate) struct Ecs {
    work: Work,
    cluster: String,
}

suite!(Ecs);

fn ask(operation: &str, body: &Value) -> Value {
    let target = format!("AmazonEC2ContainerServiceV20141113.{operation}");
    let headers = [("x-amz-target", &*target), ("content-type", "application/x-amz-json-1.1")];
    aws::ask(&server("TASK_HOST_TEST_AWS"), "ecs", "/", &headers, &body.to_string())
}

impl Ecs {
    /// The tasks of a fleet that are running or may start.
    fn tasks(&self, fleet: &str) -> Vec<String> {
        let family = format!("task-host-{fleet}");
        let listed = ask("ListTasks", &json!({"cluster": self.cluster, "family": family}));
        let arns = listed["taskArns"].as_array().expect("tasks").iter();
        arns.map(|arn| arn.as_str().expect("an ARN").to_owned()).collect()
    }
}

impl Subject for Ecs {
    // The server places all tasks, without a limit.
    const CAN_BE_FULL: bool = false;
    const TOOL: Option<&'static str> = None;
    const WRONG_OPTION: &'static str = "--option=partition=main";

    fn with_room(_: Option<u32>) -> Self {
        let cluster = unique("cluster");
        ask("CreateCluster", &json!({"clusterName": cluster}));
        Self { work: Work::There(Box::new(Cloud::aws())), cluster }
    }

    fn work(&self) -> &Work {
        &self.work
    }

    fn url(&self) -> String {
        format!("ecs://{}", self.cluster)
    }

    fn options(&self) -> Vec<String> {
        let machines = ["--option", "launch-type=EC2", "--option", "network-mode=host"];
        [&["--image", aws::image()], &machines[..]]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    fn lead(&self, _: &mut Command) {}

    fn lead_astray(&self, command: &mut Command) {
        command.env("AWS_ENDPOINT_URL_ECS", "http://127.0.0.1:1");
    }

    fn no_room(&self) -> &'static str {
        unreachable!("the server places all tasks")
    }

    fn kill_one(&self, fleet: &str) {
        let label = format!("label=com.amazonaws.ecs.task-definition-family=task-host-{fleet}");
        let ids = engines::docker(&["ps", "--quiet", "--filter", &label]).good().stdout;
        let id = ids.split_whitespace().next().expect("a container");
        engines::docker(&["kill", id]).good();
    }

    fn alive(&self, fleet: &str) -> usize {
        self.tasks(fleet).len()
    }

    fn accept(&self, document: &str) {
        aws::accept(&self.work, document, &[]);
    }

    fn hostile(&self) -> Vec<String> {
        // AWS allows only harmless names of queues and buckets.
        Vec::new()
    }

    fn clear(&self, fleet: &str) {
        for task in self.tasks(fleet) {
            ask("StopTask", &json!({"cluster": self.cluster, "task": task}));
        }
    }
}

#[test]
fn a_cluster_that_is_not_there_is_named_with_its_region() {
    let fleet = Fleet::<Ecs>::new();
    let options = ["--option", "launch-type=EC2"];
    let up = ["fleet", "up", fleet.name(), "--on", "ecs://nowhere"];
    let up = aws::host(&fleet.subject, &[&up[..], &options].concat()).code(2);
    let text = "ecs://nowhere: there is no active cluster nowhere in us-east-1";
    assert!(up.stderr.contains(text), "{}", up.stderr);
}

#[test]
fn an_image_that_is_not_there_is_why_workers_fail() {
    let fleet = Fleet::<Ecs>::new();
    let cluster = fleet.subject.url();
    let up = ["fleet", "up", fleet.name(), "--on", &cluster, "--image", "127.0.0.1:1/missing"];
    let options = ["--option", "launch-type=EC2", "--option", "network-mode=host"];
    let up = aws::host(&fleet.subject, &[&up[..], &options].concat()).code(5);
    let why = "1 failed: ResourceInitializationError: unable to pull image";
    assert!(up.stderr.contains(why), "{}", up.stderr);
}
