//! SQS and S3 for a soak run, from a server on this machine.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;
use task_host_test_network::faults::Proxy;

use crate::command::capture;
use crate::project::Project;
use crate::servers::{Servers, Which};

pub(super) struct Aws {
    /// Dropping this stops the server.
    _servers: Servers,
    endpoint: String,
    program: std::path::PathBuf,
    /// The proxy through which hosts reach the server.
    pub(super) proxy: Proxy,
    /// The name of the queue and of the bucket.
    pub(super) name: String,
}

impl Aws {
    /// Starts a server with an empty bucket.
    pub(super) fn start(project: &Project) -> anyhow::Result<Self> {
        let servers = Servers::start(project, Which::Clouds)?;
        let found = servers.variables().find(|(name, _)| *name == "TASK_HOST_TEST_AWS");
        let endpoint = found.context("a server of SQS and S3")?.1.to_owned();
        let aws = Self {
            program: project.target.join("aws/bin/aws"),
            proxy: Proxy::to(&endpoint),
            name: format!("soak-{}", std::process::id()),
            endpoint,
            _servers: servers,
        };
        capture(aws.aws().args(["s3", "mb", &aws.bucket()]))?;
        Ok(aws)
    }

    pub(super) fn queue(&self) -> String {
        format!("sqs://{}", self.name)
    }

    pub(super) fn errors(&self) -> String {
        format!("{}-errors", self.queue())
    }

    pub(super) fn bucket(&self) -> String {
        format!("s3://{}", self.name)
    }

    /// Configures a command to reach the server, either through the proxy with faults or directly.
    pub(super) fn lead(&self, command: &mut Command, past_faults: bool) {
        let endpoint = if past_faults { self.endpoint.clone() } else { self.proxy.url() };
        command.env("AWS_ENDPOINT_URL", endpoint);
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("HOST_CREATE_QUEUES", "true"),
        ] {
            command.env(name, value);
        }
    }

    /// The number of messages in a queue, including leased ones.
    pub(super) fn messages(&self, queue: &str) -> anyhow::Result<usize> {
        let name = queue.trim_start_matches("sqs://");
        let url = capture(self.aws().args([
            "sqs",
            "get-queue-url",
            "--queue-name",
            name,
            "--query",
            "QueueUrl",
            "--output",
            "text",
        ]))?;
        let said = capture(self.aws().args([
            "sqs",
            "get-queue-attributes",
            "--queue-url",
            url.trim(),
            "--attribute-names",
            "All",
        ]))?;
        let said: Value = serde_json::from_str(&said)?;
        let count = |name: &str| -> anyhow::Result<usize> {
            let text = said["Attributes"][name].as_str().with_context(|| format!("no {name}"))?;
            Ok(text.parse()?)
        };
        Ok(count("ApproximateNumberOfMessages")?
            + count("ApproximateNumberOfMessagesNotVisible")?
            + count("ApproximateNumberOfMessagesDelayed")?)
    }

    /// Copies the outputs of all tasks to a directory.
    pub(super) fn copy_outputs(&self, to: &Path) -> anyhow::Result<()> {
        let from = format!("{}/data", self.bucket());
        capture(self.aws().args(["s3", "sync", "--only-show-errors", &from]).arg(to)).map(drop)
    }

    fn aws(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Version 1 of `aws` uses AWS's own address without this option.
        command.args(["--endpoint-url", &self.endpoint]);
        self.lead(&mut command, true);
        command
    }
}
