//! Fleets on AWS Batch. The test server runs real containers.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use task_host_tests::{Cloud, Finished, Stacks, engines, eventually, no_op, server, unique};

use crate::aws;
use crate::conformance::{Fleet, Subject, Work, suite};

pub(crate) struct Batch {
    work: Work,
    queue: String,
}

suite!(Batch);

/// The states of jobs that are running or may start.
const ALIVE: [&str; 5] = ["SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING"];

/// The number of vCPUs of a queue.
const VCPUS: u32 = 1_000;

fn url() -> String {
    server("TASK_HOST_TEST_BATCH")
}

fn ask(operation: &str, body: &Value) -> Value {
    aws::ask(&url(), "batch", &format!("/v1/{operation}"), &[], &body.to_string())
}

fn endpoints() -> [(&'static str, String); 2] {
    [("AWS_ENDPOINT_URL_BATCH", url()), ("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", url())]
}

impl Batch {
    /// The workers of a fleet: jobs, or elements of array jobs.
    fn workers(&self, fleet: &str) -> Vec<Value> {
        let name = format!("task-host-{fleet}");
        let filter = json!([{"name": "JOB_NAME", "values": [name]}]);
        let jobs = ask("listjobs", &json!({"jobQueue": self.queue, "filters": filter}));
        let jobs = jobs["jobSummaryList"].as_array().expect("jobs").clone();
        let id = |job: &Value| job["jobId"].as_str().expect("an id").to_owned();
        let elements: Vec<String> = jobs.iter().map(id).filter(|id| id.contains(':')).collect();
        let is_array = |id: &str| elements.iter().any(|element| element.starts_with(id));
        jobs.into_iter().filter(|job| id(job).contains(':') || !is_array(&id(job))).collect()
    }

    fn alive_workers(&self, fleet: &str) -> Vec<String> {
        let is_alive = |job: &Value| ALIVE.iter().any(|state| job["status"] == *state);
        let workers = self.workers(fleet).into_iter().filter(is_alive);
        workers.map(|job| job["jobId"].as_str().expect("an id").to_owned()).collect()
    }
}

impl Subject for Batch {
    const CAN_BE_FULL: bool = true;
    const TOOL: Option<&'static str> = None;
    const WRONG_OPTION: &'static str = "--option=partition=main";

    fn with_room(room: Option<u32>) -> Self {
        let queue = unique("queue");
        let role = format!(
            "Action=CreateRole&Version=2010-05-08&RoleName={queue}&AssumeRolePolicyDocument={{}}"
        );
        let form = [("content-type", "application/x-www-form-urlencoded")];
        aws::ask(&url(), "iam", "/", &form, &role);
        // The queue has more vCPUs, but other jobs use them.
        let used = VCPUS - room.unwrap_or(VCPUS);
        let environment = json!({
            "computeEnvironmentName": queue, "type": "MANAGED", "state": "ENABLED",
            "serviceRole": format!("arn:aws:iam::123456789012:role/{queue}"),
            "computeResources": {
                "type": "FARGATE", "maxvCpus": VCPUS, "subnets": [], "securityGroupIds": [],
                "tags": {"vCPUs used by others": used.to_string()},
            },
        });
        let environment = ask("createcomputeenvironment", &environment);
        let order = json!([
            {"order": 1, "computeEnvironment": environment["computeEnvironmentArn"]},
        ]);
        let created = json!({
            "jobQueueName": queue, "state": "ENABLED", "priority": 1,
            "computeEnvironmentOrder": order,
        });
        ask("createjobqueue", &created);
        Self { work: Work::There(Box::new(Cloud::aws())), queue }
    }

    fn work(&self) -> &Work {
        &self.work
    }

    fn url(&self) -> String {
        format!("batch://{}", self.queue)
    }

    fn options(&self) -> Vec<String> {
        let role = "execution-role=arn:aws:iam::123456789012:role/execution";
        ["--image", aws::image(), "--option", role].map(str::to_owned).to_vec()
    }

    fn lead(&self, command: &mut Command) {
        command.envs(endpoints());
    }

    fn lead_astray(&self, command: &mut Command) {
        command.env("AWS_ENDPOINT_URL_BATCH", "http://127.0.0.1:1");
    }

    fn no_room(&self) -> &'static str {
        "the compute environments have no room for it yet"
    }

    fn kill_one(&self, fleet: &str) {
        let label = format!("label=batch.name=task-host-{fleet}");
        let ids = engines::docker(&["ps", "--quiet", "--filter", &label]).good().stdout;
        let id = ids.split_whitespace().next().expect("a container");
        engines::docker(&["kill", id]).good();
    }

    fn alive(&self, fleet: &str) -> usize {
        self.alive_workers(fleet).len()
    }

    fn accept(&self, document: &str) {
        aws::accept(&self.work, document, &endpoints());
    }

    fn hostile(&self) -> Vec<String> {
        // AWS allows only harmless names of queues and buckets.
        Vec::new()
    }

    fn clear(&self, fleet: &str) {
        for id in self.alive_workers(fleet) {
            ask("terminatejob", &json!({"jobId": id, "reason": "the test is over"}));
        }
    }
}

#[test]
fn a_queue_that_is_not_there_is_named_with_its_region() {
    let fleet = Fleet::<Batch>::new();
    let up = ["fleet", "up", fleet.name(), "--on", "batch://nowhere"];
    let up = aws::host(&fleet.subject, &up).code(2);
    let text = "batch://nowhere: there is no job queue nowhere in us-east-1";
    assert!(up.stderr.contains(text), "{}", up.stderr);
}

#[test]
fn more_workers_than_the_queue_has_vcpus_for_are_refused() {
    let fleet = Fleet::<Batch>::new();
    let up = fleet.up("1001", &[&["--for", "1h"]]).code(2);
    assert!(up.stderr.contains("have at most 1000 vCPUs (maxvCpus)"), "{}", up.stderr);
    assert_eq!(fleet.subject.alive(fleet.name()), 0);
}

#[test]
fn a_definition_that_says_the_same_is_used_again() {
    let fleet = Fleet::<Batch>::new();
    let revisions = || {
        let name = format!("task-host-{}", fleet.name());
        let all = ask("describejobdefinitions", &json!({"jobDefinitionName": name}));
        all["jobDefinitions"].as_array().expect("definitions").len()
    };
    fleet.up("1", &[&["--for", "1h"]]).good();
    fleet.up("3", &[&["--for", "1h"]]).good();
    assert_eq!((fleet.count("running"), revisions()), (3, 1));
    fleet.run("down", &[]).good();
    fleet.is_gone();
    fleet.up("1", &[&["--for", "2h"]]).good();
    assert_eq!(revisions(), 2);
}

#[test]
fn a_definition_of_the_user_is_taken_as_it_is() {
    let fleet = Fleet::<Batch>::new();
    let name = unique("mine");
    ask(
        "registerjobdefinition",
        &json!({
            "jobDefinitionName": name, "type": "container", "tags": {"made-by": "hand"},
            "containerProperties": {
                "image": aws::image(), "command": ["run", "--for", "1h"],
                "resourceRequirements": [
                    {"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "2048"},
                ],
            },
        }),
    );
    let queue = fleet.subject.url();
    let own = format!("definition={name}");
    let up = ["fleet", "up", fleet.name(), "--on", &queue, "--option", &own, "--parallel", "1"];
    aws::host(&fleet.subject, &up).good();
    eventually("a worker that drains the queue", || (fleet.count("running") == 1).then_some(()));
}

/// The outputs of the stack are all options that `up` needs, except for the image under test.
#[test]
fn workers_start_with_the_outputs_of_the_stack() {
    let (cloud, name) = (Cloud::aws(), unique("stack"));
    let stacks = Stacks { address: &url(), region: "us-east-1", home: cloud.place.path() };
    let role = stacks.service_role(&name);
    let queue = cloud.queue.trim_start_matches("sqs://");
    let bucket = cloud.bucket.trim_start_matches("s3://");
    let parameters = [
        ("TaskQueue", queue),
        ("Bucket", bucket),
        ("OutputPrefix", "data/"),
        ("ServiceRole", &role),
    ];
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/aws/batch.yml");
    let outputs = stacks.create(&template, &name, &parameters);
    let options = outputs["Fleet"].as_str().expect("options");

    let options: Vec<&str> = options.split(' ').collect();
    assert_eq!(options[0], "--on", "{options:?}");

    let fleet = |command: &str, args: &[&str]| {
        let mut command = cloud.command(&[&["fleet", command, "of-the-stack"], args].concat());
        command.env_remove("HOST_QUEUE").env_remove("HOST_BUCKET").envs(endpoints());
        Finished::run(&mut command)
    };
    cloud.push("NO_OP");
    cloud.put("data/0_input/1.dat", b"some bytes");
    cloud.submit(&[no_op(1, &["0_input/1.dat".to_owned()])]);
    let own = ["--workers", "1", "--exit-when-empty", "--image", aws::image()];
    fleet("up", &[&options[..], &own].concat()).good();
    fleet("wait", &options[..2]).good();
    assert_eq!(cloud.object("data/0_output/1.dat").as_deref(), Some(&b"some bytes"[..]));
}
