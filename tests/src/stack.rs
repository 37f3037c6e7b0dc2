//! CloudFormation with the real AWS command line, on a server that creates the resources of a
//! stack.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::built::target;
use crate::process::Finished;

/// The trust policy of a role for AWS Batch itself. AWS has such a role already, but the server
/// does not.
const TRUST: &str = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
    "Principal": {"Service": "batch.amazonaws.com"}, "Action": "sts:AssumeRole"}]}"#;

/// A server for CloudFormation, Batch and IAM, and its AWS region.
#[derive(Debug, Clone, Copy)]
pub struct Stacks<'a> {
    /// The server's URL.
    pub address: &'a str,
    /// The region.
    pub region: &'a str,
    /// A directory for the command line's own files.
    pub home: &'a Path,
}

impl Stacks<'_> {
    /// Runs `aws ARGS…`, and returns the answer.
    #[track_caller]
    pub fn aws(&self, args: &[&str]) -> Value {
        let mut aws = Command::new(target().join("aws/bin/aws"));
        aws.args(["--endpoint-url", self.address, "--region", self.region, "--output", "json"]);
        aws.args(args).current_dir(self.home).env("HOME", self.home);
        aws.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        let answer = Finished::run(&mut aws).good().stdout;
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    /// Creates a role with this name for AWS Batch itself, and returns its ARN.
    #[track_caller]
    pub fn service_role(&self, name: &str) -> String {
        let create = ["iam", "create-role", "--role-name", name];
        let role = self.aws(&[&create[..], &["--assume-role-policy-document", TRUST]].concat());
        role["Role"]["Arn"].as_str().expect("an ARN").to_owned()
    }

    /// Creates a stack from a template, and returns its outputs by name.
    #[track_caller]
    pub fn create(&self, template: &Path, name: &str, parameters: &[(&str, &str)]) -> Value {
        let parameters: Vec<Value> = parameters
            .iter()
            .map(|(key, value)| json!({"ParameterKey": key, "ParameterValue": value}))
            .collect();
        self.aws(&[
            "cloudformation",
            "create-stack",
            "--stack-name",
            name,
            "--template-body",
            &format!("file://{}", template.display()),
            "--parameters",
            &Value::from(parameters).to_string(),
            "--capabilities",
            "CAPABILITY_IAM",
        ]);
        let stacks = self.aws(&["cloudformation", "describe-stacks", "--stack-name", name]);
        let stack = &stacks["Stacks"][0];
        assert_eq!(stack["StackStatus"], "CREATE_COMPLETE", "{stack}");
        let outputs = stack["Outputs"].as_array().expect("outputs").iter();
        let output = |output: &Value| {
            let key = output["OutputKey"].as_str().expect("a name");
            (key.to_owned(), output["OutputValue"].clone())
        };
        Value::Object(outputs.map(output).collect())
    }
}
