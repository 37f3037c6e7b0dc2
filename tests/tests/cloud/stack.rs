//! The CloudFormation stack for AWS Batch, on a server that creates its resources.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;

use serde_json::{Value, json};
use task_host_tests::{Finished, Running, Stacks, eventually, fleet_tool};

use crate::deploy::{deployed, text};

/// A server for CloudFormation, Batch and IAM.
struct Server {
    address: String,
    dir: tempfile::TempDir,
    _process: Running,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("its number").port();
        drop(free);
        let mut moto = Command::new(fleet_tool("moto_server"));
        moto.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let _process = Running::start(moto, dir.path());
        let address = format!("http://127.0.0.1:{port}");
        eventually("a server", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
        Self { address, dir, _process }
    }

    fn stacks(&self) -> Stacks<'_> {
        Stacks { address: &self.address, region: "eu-west-1", home: self.dir.path() }
    }

    /// The policy of the workers' role.
    fn worker_policy(&self, role: &str) -> Value {
        let role = role.rsplit('/').next().expect("a name");
        let get = ["iam", "get-role-policy", "--policy-name", "worker", "--role-name", role];
        let policy = self.stacks().aws(&get)["PolicyDocument"].clone();
        // The server returns the policy of a stack in Python's notation.
        let policy = policy.as_str().expect("a policy").replace('\'', "\"");
        serde_json::from_str(&policy).expect("JSON")
    }
}

#[test]
fn the_stack_is_a_good_template() {
    let template = deployed("aws/batch.yml");
    let checked = Finished::run(Command::new(fleet_tool("cfn-lint")).arg(template)).good();
    assert_eq!(checked.stdout, "");
}

/// cfn-lint knows the actions and resources of AWS.
#[test]
fn policies_name_actions_that_exist() {
    let dir = tempfile::tempdir().expect("a directory");
    for policy in ["worker-policy.json", "producer-policy.json", "launcher-policy.json"] {
        let document: Value =
            serde_json::from_str(&text(&deployed("aws").join(policy))).expect("JSON");
        let template = json!({"Resources": {"Policy": {
            "Type": "AWS::IAM::ManagedPolicy", "Properties": {"PolicyDocument": document},
        }}});
        let path = dir.path().join("template.json");
        std::fs::write(&path, template.to_string()).expect("a template");
        let mut lint = Command::new(fleet_tool("cfn-lint"));
        lint.arg("--template").arg(&path);
        let checked = Finished::run(&mut lint).good();
        assert_eq!(checked.stdout, "", "{policy}");
    }
}

#[test]
fn the_stack_can_be_created() {
    let server = Server::start();
    let stacks = server.stacks();
    let role = stacks.service_role("batch");
    let parameters = [
        ("TaskQueue", "my-tasks"),
        ("Bucket", "my-bucket"),
        ("OutputPrefix", "datasets/"),
        ("ServiceRole", &role),
    ];
    for capacity in ["FARGATE_SPOT", "FARGATE", "SPOT", "EC2"] {
        let parameters = [&parameters[..], &[("Capacity", capacity)]].concat();
        let name = format!("workers-{}", capacity.to_lowercase().replace('_', "-"));
        let outputs = stacks.create(&deployed("aws/batch.yml"), &name, &parameters);

        // The job queue accepts jobs, for machines of the requested kind.
        let options = outputs["Fleet"].as_str().expect("options");
        let queue = options.split(' ').find_map(|word| word.strip_prefix("batch://"));
        let queue = queue.expect("a job queue");
        assert!(!queue.contains([':', '/']), "{queue}");
        assert!(options.contains("--queue sqs://my-tasks --bucket s3://my-bucket"), "{options}");
        let is_fargate = capacity.starts_with("FARGATE");
        assert_eq!(options.contains("--option assign-public-ip=true"), is_fargate, "{options}");
        let queues = stacks.aws(&["batch", "describe-job-queues", "--job-queues", queue]);
        let queue = &queues["jobQueues"][0];
        assert_eq!((&queue["state"], &queue["status"]), (&json!("ENABLED"), &json!("VALID")));
        let environment = &queue["computeEnvironmentOrder"][0]["computeEnvironment"];
        let environments = stacks.aws(&[
            "batch",
            "describe-compute-environments",
            "--compute-environments",
            environment.as_str().expect("an ARN"),
        ]);
        let machines = &environments["computeEnvironments"][0]["computeResources"];
        assert_eq!(machines["type"], capacity);
        assert_eq!(machines["maxvCpus"], 256);
        // Without workers, no machine runs, so there are no costs.
        assert!(matches!(machines["minvCpus"].as_u64(), None | Some(0)), "{machines}");
        assert_eq!(machines["subnets"].as_array().map(Vec::len), Some(2));
        assert_eq!(outputs["LogGroup"], format!("/task-host/{name}"));
        assert!(
            outputs["ExecutionRole"].as_str().is_some_and(|arn| arn.starts_with("arn:aws:iam:"))
        );
        let role = outputs["JobRole"].as_str().expect("an ARN");
        assert_eq!(server.worker_policy(role), workers_may(), "{capacity}");
    }
}

/// The workers' policy as the pages print it, for this account and region.
fn workers_may() -> Value {
    let policy = text(&deployed("aws/worker-policy.json"));
    let here = policy.replace(":sqs:*:*:", ":sqs:eu-west-1:123456789012:");
    serde_json::from_str(&here).expect("JSON")
}
