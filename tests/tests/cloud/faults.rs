//! Typical failures of services. The host keeps running, reports each problem once, is not ready
//! meanwhile, and loses no task.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::faults::{Fault, Proxy};
use task_host_tests::{Cloud, Running, eventually, files, http, server};

fn task(id: u64) -> Value {
    json!({
        "basic_info": {
            "id": id, "name": "digest", "base_directory": "data", "inputs": [format!("0_input/{id}")],
        },
    })
}

/// A cloud behind a proxy, with `tasks` submitted tasks and their inputs.
fn behind_a_proxy(tasks: u64) -> (Cloud, Proxy) {
    let proxy = Proxy::to(&server("TASK_HOST_TEST_AWS"));
    let cloud = Cloud::of_aws(&proxy.url());
    fill(&cloud, tasks);
    (cloud, proxy)
}

fn fill(cloud: &Cloud, tasks: u64) {
    cloud.push("digest");
    for id in 0..tasks {
        cloud.put(&format!("data/0_input/{id}"), format!("input {id}").as_bytes());
    }
    cloud.submit(&(0..tasks).map(task).collect::<Vec<_>>());
    cloud.host(&["submit", "--queue", &cloud.errors(), "/dev/null"]).good();
}

/// A host that answers probes, and the address of its probes.
fn start(cloud: &Cloud, args: &[&str]) -> (Running, String) {
    let fixed =
        ["run", "--listen", "127.0.0.1:0", "--log-format", "json", "--retry-after", "100ms"];
    let host = cloud.start(&[&fixed, args].concat());
    let address = eventually("a host that listens", || {
        let said = host.stderr();
        let rest = said.split("listening at http://").nth(1)?;
        rest.split('/').next().map(str::to_owned)
    });
    (host, address)
}

/// The answer of `/readyz`: the status, and the problems.
fn ready(address: &str) -> (u16, String) {
    let answer = http::send(address, "GET", "/readyz", &[], b"");
    (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
}

fn is_done(cloud: &Cloud, tasks: u64) -> bool {
    (0..tasks).all(|id| cloud.object(&format!("data/0_digest/{id}.sha256")).is_some())
}

/// The log lines with this level.
fn lines(host: &Running, level: &str) -> Vec<String> {
    let is_of = |line: &&str| line.contains(&format!("\"level\":\"{level}\""));
    host.stderr().lines().filter(is_of).map(str::to_owned).collect()
}

/// Checks that a host waits while all requests fail, and continues afterwards.
fn waits_it_out(fault: Fault) {
    let (cloud, proxy) = behind_a_proxy(TASKS);
    let direct = server("TASK_HOST_TEST_AWS");
    goes_on_after(&cloud, &proxy, fault, ("AWS_ENDPOINT_URL", &direct));
}

const TASKS: u64 = 12;

fn goes_on_after(cloud: &Cloud, proxy: &Proxy, fault: Fault, direct: (&str, &str)) {
    let (host, address) = start(cloud, &["--lease", "4s", "--max-attempts", "3"]);
    eventually("a host at work", || cloud.object("data/0_digest/0.sha256").is_some().then_some(()));
    proxy.fail(fault.clone());
    submit_directly(cloud, TASKS, direct);
    eventually("a host that is not ready", || (ready(&address).0 == 503).then_some(()));
    let (_, problems) = ready(&address);
    assert!(problems.contains(&cloud.queue) || problems.contains(&cloud.bucket), "{problems}");
    assert_eq!(http::send(&address, "GET", "/healthz", &[], b"").status, 200);
    std::thread::sleep(Duration::from_secs(5));
    let said = lines(&host, "ERROR");
    // Failures of leasing, renewing, settling, reading and writing are each reported once.
    assert!(!said.is_empty() && said.len() <= 5, "{fault:?}: {said:#?}");

    proxy.mend();
    eventually("all tasks", || is_done(cloud, 2 * TASKS).then_some(()));
    eventually("a host that is ready", || (ready(&address).0 == 200).then_some(()));
    host.signal(Signal::TERM);
    let host_said = host.wait().good().stderr;
    // The count is null if the queue cannot count.
    let errors = &cloud.status(&cloud.errors())["enqueued"];
    assert!(errors.as_u64().unwrap_or(0) == 0, "a task was given up");
    assert!(!host_said.contains("rejected"), "{host_said}");
}

/// Submits more tasks without the proxy.
fn submit_directly(cloud: &Cloud, from: u64, direct: (&str, &str)) {
    let file = cloud.file("more.jsonl");
    let mut lines = String::new();
    for id in from..2 * from {
        cloud.put(&format!("data/0_input/{id}"), format!("input {id}").as_bytes());
        lines += &format!("{}\n", task(id));
    }
    std::fs::write(&file, lines).expect("a file of tasks");
    let mut submit = cloud.command(&["submit", file.to_str().expect("text")]);
    submit.env(direct.0, direct.1);
    task_host_tests::Finished::run(&mut submit).good();
}

#[test]
fn a_service_that_refuses_connections() {
    waits_it_out(Fault::Refused);
}

#[test]
fn a_pubsub_that_refuses_connections() {
    let direct = server("TASK_HOST_TEST_PUBSUB");
    let proxy = Proxy::to(&direct);
    let cloud = Cloud::google().with("PUBSUB_EMULATOR_HOST", &proxy.address());
    fill(&cloud, TASKS);
    goes_on_after(&cloud, &proxy, Fault::Refused, ("PUBSUB_EMULATOR_HOST", &direct));
}

#[test]
fn a_service_that_resets_connections() {
    waits_it_out(Fault::Reset(0));
}

#[test]
fn a_service_that_is_overloaded() {
    waits_it_out(Fault::Answer {
        status: 503,
        body: "<Error><Code>SlowDown</Code></Error>".into(),
    });
}

#[test]
fn a_service_that_forbids() {
    let body = "<Error><Code>AccessDenied</Code></Error>";
    waits_it_out(Fault::Answer { status: 403, body: body.into() });
}

/// A partial file is never used as the whole file, wherever an answer ends early.
#[test]
fn bodies_that_break_off() {
    let proxy = Proxy::to(&server("TASK_HOST_TEST_AWS"));
    let cloud = Cloud::s3_at(&proxy.url());
    cloud.push("digest");
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for (id, at) in [0, 1, 4096, 1_000_000, 2_999_999].into_iter().enumerate() {
        let id = id as u64;
        cloud.put(&format!("data/0_input/{id}"), &input);
        cloud.submit(&[task(id)]);
        for fault in [Fault::Cut(at), Fault::Reset(at)] {
            proxy.fail_some(fault, &format!("0_input/{id}"), 1);
        }
        cloud.host(&["run", "--max-tasks", "1", "--retry-after", "10ms"]).good();
    }
    let first = cloud.object("data/0_digest/0.sha256").expect("a digest");
    let digest = String::from_utf8(first).expect("text");
    let digest = digest.split_whitespace().next().expect("a digest");
    // All inputs are equal, so the cache has one blob, and no partial answers.
    for id in 1..5 {
        let other = cloud.object(&format!("data/0_digest/{id}.sha256")).expect("a digest");
        assert!(String::from_utf8(other).expect("text").starts_with(digest));
    }
    let blobs = files(&cloud.place.cache().join("blobs"));
    let inputs = blobs.iter().filter(|blob| size(&cloud, blob) == input.len() as u64).count();
    assert_eq!((inputs, blobs.len()), (1, 2), "an input and a component: {blobs:?}");
}

fn size(cloud: &Cloud, blob: &str) -> u64 {
    let path = cloud.place.cache().join("blobs").join(blob);
    std::fs::metadata(path).expect("a blob").len()
}

/// The host waits for a slow answer, and keeps its leases meanwhile.
#[test]
fn a_slow_service_is_only_slow() {
    let (cloud, proxy) = behind_a_proxy(3);
    proxy.fail(Fault::Slow(Duration::from_millis(700)));
    let run = cloud.host(&["run", "--max-tasks", "3", "--lease", "60s", "--json"]).good();
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    assert_eq!((&summary["done"], &summary["retried"]), (&json!(3), &json!(0)), "{summary}");
    assert!(is_done(&cloud, 3));
}

/// The host repeats throttled requests with increasing waits, and reports nothing.
#[test]
fn throttled_requests_are_made_again() {
    let (cloud, proxy) = behind_a_proxy(20);
    let throttled =
        || Fault::Answer { status: 503, body: "<Error><Code>SlowDown</Code></Error>".to_owned() };
    proxy.fail_some(throttled(), "0_input/", 5);
    proxy.fail_some(throttled(), "0_digest/", 5);
    let sqs = r#"{"__type":"com.amazonaws.sqs#RequestThrottled","message":"slower"}"#;
    for action in ["ReceiveMessage", "DeleteMessageBatch"] {
        proxy.fail_some(Fault::Answer { status: 400, body: sqs.to_owned() }, action, 1);
    }
    let run = cloud.host(&["run", "--max-tasks", "20", "--json"]).good();
    let summary: Value = serde_json::from_str(&run.stdout).expect("a summary");
    assert_eq!((&summary["done"], &summary["retried"]), (&json!(20), &json!(0)), "{summary}");
}

/// If the start fails, the host explains the problem, and no task begins.
#[test]
fn a_start_that_can_not_go_well() {
    let cloud = Cloud::aws();
    cloud.submit(&[]);
    cloud.host(&["submit", "--queue", &cloud.errors(), "/dev/null"]).good();
    let check = |name: &str, value: &str, code: i32, words: &[&str]| {
        let mut command = cloud.command(&["run", "--for", "30s"]);
        command.env(name, value);
        let failed = task_host_tests::Finished::run(&mut command).code(code);
        for word in words {
            assert!(failed.stderr.contains(word), "{name}={value}: {word}: {}", failed.stderr);
        }
    };
    check("HOST_BUCKET", "s3://no-such-bucket-here", 1, &["no-such-bucket-here"]);
    check("HOST_QUEUE", "sqs://no/such", 2, &["no/such", "letters"]);
    let mut command = cloud.command(&["run", "--for", "30s", "--queue", "sqs://not-there"]);
    command.env("HOST_CREATE_QUEUES", "false");
    let failed = task_host_tests::Finished::run(&mut command).code(1);
    assert!(failed.stderr.contains("not-there") && failed.stderr.contains("--create-queues"));
    let words =
        ["the server name no-such-host.invalid can't be resolved", "check the address or endpoint"];
    check("AWS_ENDPOINT_URL", "http://no-such-host.invalid", 1, &words);
    let words = ["no connection to the server 127.0.0.1:9: "];
    check("AWS_ENDPOINT_URL", "http://127.0.0.1:9", 1, &words);
    check("HOST_GZIP_OUTPUTS", "[", 2, &["HOST_GZIP_OUTPUTS", "is not a pattern"]);
    check("HOST_STORED_ENCODING", "raw", 2, &["is neither decode nor keep"]);
    let mut command = cloud.command(&["run", "--for", "30s", "--queue", "fq://./queue"]);
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    command.env("AWS_PROFILE", "nope").env("AWS_EC2_METADATA_DISABLED", "true");
    let failed = task_host_tests::Finished::run(&mut command).code(1);
    let words = "AWS_PROFILE is `nope`, and there is no such profile in ";
    assert!(failed.stderr.contains(words), "{}", failed.stderr);
}

/// A machine without root certificates can still use services, encrypted or not.
#[test]
fn a_machine_without_certificates() {
    let cloud = Cloud::aws();
    fill(&cloud, 1);
    let mut command = cloud.command(&["run", "--max-tasks", "1", "--for", "60s"]);
    command.env("SSL_CERT_FILE", "/nowhere.pem").env("SSL_CERT_DIR", "/nowhere");
    let run = task_host_tests::Finished::run(&mut command).code(0);
    assert!(is_done(&cloud, 1));
    let words = "SSL_CERT_FILE=/nowhere.pem: found no root certificates there";
    assert_eq!(run.stderr.matches(words).count(), 1, "{}", run.stderr);

    // No server listens at these addresses. The test only checks that a client can be created.
    let login = cloud.file("login.json");
    let text = r#"{"type": "authorized_user", "client_id": "i", "client_secret": "s",
                   "refresh_token": "t"}"#;
    std::fs::write(&login, text).expect("a login");
    let pubsub = "pubsub://projects/p/topics/t/subscriptions/s";
    for (url, variables) in [
        ("s3", [("HOST_BUCKET", "s3://b"), ("AWS_ENDPOINT_URL_S3", "https://127.0.0.1:9")]),
        ("https", [("HOST_INPUT_BUCKET", "https://127.0.0.1:9"), ("HOST_REGION", "us-east-1")]),
        (
            pubsub,
            [
                ("HOST_QUEUE", pubsub),
                ("GOOGLE_APPLICATION_CREDENTIALS", login.to_str().expect("a path")),
            ],
        ),
    ] {
        let command = cloud.command(&["run", "--for", "30s"]);
        let mut alone = std::process::Command::new("unshare");
        // Runs without a network, so that it reaches no real service.
        alone.arg("--net").arg(command.get_program()).args(command.get_args());
        alone.current_dir(command.get_current_dir().expect("a place")).env_clear();
        alone.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        alone.env("SSL_CERT_FILE", "/nowhere.pem").env("SSL_CERT_DIR", "/nowhere");
        let failed = task_host_tests::Finished::run(alone.envs(variables)).code(1);
        for word in ["panicked", "builder error"] {
            assert!(!failed.stderr.contains(word), "{url}: {}", failed.stderr);
        }
    }
}

/// If a host cannot settle finished tasks for a while, it neither runs them twice nor loses them.
#[test]
fn answers_that_are_lost_on_the_way() {
    let (cloud, proxy) = behind_a_proxy(10);
    // The service completes the request, but the host does not get the answer.
    for action in ["ReceiveMessage", "DeleteMessageBatch", "SendMessageBatch"] {
        proxy.fail_some(Fault::Cut(0), action, 2);
    }
    cloud.host(&["run", "--lease", "3s", "--max-tasks", "10", "--for", "60s"]).good();
    assert!(is_done(&cloud, 10));
    let left = eventually("an empty queue", || {
        let _ = cloud.host(&["run", "--lease", "3s", "--for", "3s"]);
        (cloud.status(&cloud.queue)["enqueued"] == 0).then_some(0)
    });
    assert_eq!(left, 0);
}

/// Checks from outside that a partial blob never exists in the cache.
#[test]
fn a_host_that_is_killed_in_the_middle_of_a_body() {
    let proxy = Proxy::to(&server("TASK_HOST_TEST_AWS"));
    let cloud = Cloud::s3_at(&proxy.url());
    cloud.push("digest");
    let input = vec![7; 4_000_000];
    cloud.put("data/0_input/0", &input);
    cloud.submit(&[task(0)]);
    proxy.fail(Fault::Slow(Duration::from_millis(300)));
    let host = cloud.start(&["run"]);
    let downloads = cloud.place.cache().join("tmp");
    let began = |dir: &Path| !files(dir).iter().all(|name| name.ends_with(".lock"));
    eventually("a download", || began(&downloads).then_some(()));
    host.signal(Signal::KILL);
    host.wait();
    for blob in files(&cloud.place.cache().join("blobs")) {
        assert!(size(&cloud, &blob) != 0, "{blob}");
        assert!(size(&cloud, &blob) == input.len() as u64 || size(&cloud, &blob) < 1_000_000);
    }
    proxy.mend();
    cloud.host(&["queue", "release", "./queue", "--yes"]).good();
    cloud.host(&["run", "--max-tasks", "1"]).good();
    assert!(cloud.object("data/0_digest/0.sha256").is_some());
}
