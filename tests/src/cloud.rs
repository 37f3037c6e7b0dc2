//! A place whose queue or bucket is a cloud service. `cargo xtask test` starts the servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::http;
use crate::place::Place;
use crate::process::{Finished, Running};

/// The environment of a test, with its own queue and bucket.
#[derive(Debug)]
pub struct Cloud {
    /// The directory in which hosts run, with the local files.
    pub place: Place,
    /// URL of the queue.
    pub queue: String,
    /// URL of the bucket.
    pub bucket: String,
    /// The location of the bucket's objects: the server, and the path of the bucket.
    objects: Option<(String, String)>,
    /// Additional environment variables of hosts.
    variables: Vec<(String, String)>,
}

/// The address of a server, from this environment variable.
pub fn server(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: tests are run by `cargo xtask test`"))
}

/// A name that no other test uses.
pub fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_nanos();
    format!("{what}-{}-{now:x}-{count}", std::process::id())
}

impl Cloud {
    /// SQS and S3.
    pub fn aws() -> Self {
        Self::of_aws(&server("TASK_HOST_TEST_AWS"))
    }

    /// SQS and S3 at another address, which leads to the same server.
    pub fn of_aws(endpoint: &str) -> Self {
        let name = unique("work");
        let s3 = server("TASK_HOST_TEST_AWS");
        let created = http::send(&s3, "PUT", &format!("/{name}"), &[], b"");
        assert_eq!(created.status, 200, "{}", String::from_utf8_lossy(&created.body));
        Self {
            place: Place::new(),
            queue: format!("sqs://{name}"),
            bucket: format!("s3://{name}"),
            objects: Some((s3, format!("/{name}"))),
            variables: aws_variables(endpoint),
        }
    }

    /// SQS for tasks, and Google Cloud Storage for data.
    pub fn hybrid() -> Self {
        let mut cloud = Self::aws();
        cloud.use_gcs();
        cloud
    }

    /// Pub/Sub and Google Cloud Storage.
    pub fn google() -> Self {
        let mut cloud = Self::hybrid();
        let name = unique("work");
        cloud.queue = format!("pubsub://projects/test/topics/{name}/subscriptions/{name}");
        let server = server("TASK_HOST_TEST_PUBSUB");
        cloud.variables.push(("PUBSUB_EMULATOR_HOST".to_owned(), server));
        cloud
    }

    /// A directory queue, and S3 at an address that leads to the server.
    pub fn s3_at(endpoint: &str) -> Self {
        let mut cloud = Self::of_aws(endpoint);
        cloud.queue = "fq://./queue".to_owned();
        cloud
    }

    fn use_gcs(&mut self) {
        let (_, name) = self.objects.clone().expect("a bucket");
        let gcs = server("TASK_HOST_TEST_GCS");
        self.bucket = format!("gs:/{name}");
        let key = google_key(&self.place.path().join("home"));
        let key = key.to_str().expect("a path that is text").to_owned();
        self.variables.push(("GOOGLE_APPLICATION_CREDENTIALS".to_owned(), key));
        self.objects = Some((gcs, name));
    }

    /// Sets an environment variable for hosts.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The environment variables for the same services, for programs other than the host.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The command `host ARGS…`, with queue and bucket in its environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.place.command(args);
        command.env("HOST_QUEUE", &self.queue).env("HOST_BUCKET", &self.bucket);
        command.env("HOST_CREATE_QUEUES", "true").envs(self.variables());
        command
    }

    /// Runs `host ARGS…`, and waits for its end.
    pub fn host(&self, args: &[&str]) -> Finished {
        Finished::run(&mut self.command(args))
    }

    /// Starts `host ARGS…`.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args), &self.place.path().join("logs"))
    }

    /// Pushes a guest under its own name.
    #[track_caller]
    pub fn push(&self, name: &str) {
        let guest = crate::built::guest(name);
        let guest = guest.to_str().expect("a path that is text");
        self.host(&["component", "push", guest, "--name", name]).good();
    }

    /// Puts an object into the bucket.
    #[track_caller]
    pub fn put(&self, key: &str, bytes: &[u8]) {
        self.put_with(key, &[], bytes);
    }

    /// Puts an object into the bucket, with these headers.
    #[track_caller]
    pub fn put_with(&self, key: &str, headers: &[(&str, &str)], bytes: &[u8]) {
        let (server, path) = self.objects();
        let put = http::send(server, "PUT", &format!("{path}/{key}"), headers, bytes);
        assert_eq!(put.status, 200, "{key}: {}", String::from_utf8_lossy(&put.body));
    }

    /// The content of an object in the bucket, if the object exists.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        let (server, path) = self.objects();
        let got = http::send(server, "GET", &format!("{path}/{key}"), &[], b"");
        (got.status == 200).then_some(got.body)
    }

    /// The keys below a prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let (server, path) = self.objects();
        let listed = http::send(server, "GET", &format!("{path}?prefix={prefix}"), &[], b"");
        let listed = String::from_utf8_lossy(&listed.body).into_owned();
        let keys = listed.split("<Key>").skip(1);
        keys.filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned())).collect()
    }

    fn objects(&self) -> (&str, &str) {
        let (server, path) = self.objects.as_ref().expect("a bucket that tests can write");
        (server, path)
    }

    /// Submits tasks.
    #[track_caller]
    pub fn submit(&self, tasks: &[serde_json::Value]) {
        let file = self.file("tasks.jsonl");
        let lines: String = tasks.iter().map(|task| format!("{task}\n")).collect();
        std::fs::write(&file, lines).expect("a file of tasks");
        self.host(&["submit", file.to_str().expect("a path that is text")]).good();
    }

    /// The path of a file in this place.
    pub fn file(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// The output of `host queue status` for a queue.
    #[track_caller]
    pub fn status(&self, queue: &str) -> serde_json::Value {
        let status = self.host(&["queue", "status", queue, "--json"]).good();
        serde_json::from_str(&status.stdout).expect("a status that is JSON")
    }

    /// The URL of the error queue.
    pub fn errors(&self) -> String {
        match self.queue.split_once("/subscriptions/") {
            Some((topic, name)) => format!("{topic}-errors/subscriptions/{name}-errors"),
            None => format!("{}-errors", self.queue),
        }
    }
}

/// The environment variables for a server that simulates AWS.
pub fn aws_variables(endpoint: &str) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        // No metadata service is available for credentials.
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// Writes a service account's key to a directory. The key leads to the server for Google Cloud
/// Storage.
pub fn google_key(dir: &Path) -> PathBuf {
    let key = dir.join("google.json");
    let account = json!({
        "gcs_base_url": server("TASK_HOST_TEST_GCS"), "disable_oauth": true, "client_email": "",
        "private_key": "", "private_key_id": "",
    });
    std::fs::write(&key, account.to_string()).expect("a key");
    key
}
