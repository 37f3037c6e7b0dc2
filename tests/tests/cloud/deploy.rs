//! The files in `deploy` that the pages about clouds tell users to install.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use task_host_tests::http::{self, Answer, Request};
use task_host_tests::{Cloud, Finished, files, fleet_tool, host, server};

pub(crate) fn deployed(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a clone");
    root.join("deploy").join(name)
}

pub(crate) fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The pages contain the unit and the policies, and link to the start-up script.
#[test]
fn pages_show_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a clone");
    let page = |name: &str| text(&root.join("docs").join(name));
    for (file, page) in [
        ("task-host.service", page("operating.md")),
        ("aws/worker-policy.json", page("cloud/aws.md")),
        ("aws/producer-policy.json", page("cloud/aws.md")),
    ] {
        let text = text(&deployed(file));
        assert!(
            page.contains(text.trim_end()),
            "the page about deploy/{file} shows something else"
        );
    }
}

#[test]
fn scripts_have_no_traps() {
    let scripts = files(&deployed("")).into_iter().filter(|name| name.ends_with(".sh"));
    let scripts: Vec<PathBuf> = scripts.map(|name| deployed(&name)).collect();
    assert!(scripts.len() > 3, "hardly any: {scripts:?}");
    let checked = Finished::run(Command::new(fleet_tool("shellcheck")).args(&scripts)).good();
    assert_eq!(checked.stdout, "");
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let dir = tempfile::tempdir().expect("a directory");
    // Replaces the path of the program with the path of the program under test.
    let unit = text(&deployed("task-host.service"));
    let here = unit.replace("/usr/local/bin/host", host().to_str().expect("a path that is text"));
    assert_ne!(here, unit);
    let path = dir.path().join("task-host.service");
    fs::write(&path, here).expect("a unit");
    let verified = Finished::run(Command::new("systemd-analyze").arg("verify").arg(&path)).good();
    assert_eq!(verified.stderr, "", "systemd has something to say");
}

/// A metadata server with the contents that a Google machine finds.
fn metadata(attributes: BTreeMap<&'static str, String>) -> String {
    let address = http::serve(move |request: &Request| {
        let not_found = Answer::new(404, "not found");
        if request.header("metadata-flavor") != Some("Google") {
            return Answer::new(403, "");
        }
        let path = request.path.strip_prefix("/computeMetadata/v1/").unwrap_or_default();
        let found = match path {
            "instance/service-accounts/default/token" => {
                Some(json!({"access_token": "a-token", "expires_in": 3599}).to_string())
            }
            "instance/service-accounts/default/identity?audience=sts.amazonaws.com&format=full" => {
                Some("an-identity".to_owned())
            }
            "instance/name" => Some("worker-1".to_owned()),
            "instance/zone" => Some("projects/123/zones/us-east1-b".to_owned()),
            _ => attributes.get(path).cloned(),
        };
        found.map_or(not_found, |text| Answer::new(200, text))
    });
    address.to_string()
}

/// Programs that record their calls, in place of programs that would change this machine.
fn stand_ins(dir: &Path) {
    let record = "#!/bin/bash\nprintf '%s\\n' \"$(basename \"$0\") $*\" >> \"$RECORD\"\n";
    // Runs the command that systemd-run would run, with the same environment.
    let run = format!(
        "{record}
case \"$*\" in *--on-active=*) exit 0 ;; esac
after=
while [[ $1 == -* ]]; do
    if [[ $1 == -p ]]; then
        case $2 in
        EnvironmentFile=*) set -a; source \"${{2#*=}}\"; set +a ;;
        ExecStopPost=+*) after=${{2#*+}} ;;
        esac
        shift
    fi
    shift
done
code=0
\"$@\" || code=$?
EXIT_STATUS=$code $after
exit $code
"
    );
    let install = format!(
        "{record}
args=()
while (( $# )); do
    if [[ $1 == -o ]]; then shift; else args+=(\"$1\"); fi
    shift
done
exec /usr/bin/install \"${{args[@]}}\"
"
    );
    let programs = [
        ("systemd-run", &*run),
        ("systemctl", "#!/bin/bash\necho \"${SYSTEM:-running}\"\n"),
        ("install", &*install),
        ("useradd", record),
        ("id", record),
    ];
    for (name, program) in programs {
        let path = dir.join(name);
        fs::write(&path, program).expect("a program");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
    }
}

/// Runs the start-up script in the place of `cloud`. Returns its result, and the recorded calls of
/// other programs.
fn start_up(
    cloud: &Cloud,
    attributes: &[(&'static str, &str)],
    program: &Path,
) -> (Finished, String) {
    let attributes = attributes.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let bin = cloud.file("bin");
    fs::create_dir_all(&bin).expect("a directory");
    stand_ins(&bin);
    let path = std::env::var("PATH").expect("a PATH");
    let mut bash = Command::new("bash");
    bash.arg(deployed("google/startup.sh")).current_dir(cloud.place.path());
    bash.env_clear().env("PATH", format!("{}:{path}", bin.display()));
    bash.env("HOME", cloud.file("home")).env("RECORD", cloud.file("record"));
    bash.env("GCE_METADATA_HOST", metadata(attributes)).env("RUN", cloud.file("run"));
    bash.env("PROGRAM", program);
    // The addresses of the test servers, which a Google machine does not need.
    for (name, value) in cloud.variables() {
        if !name.starts_with("AWS_ACCESS") && !name.starts_with("AWS_SECRET") {
            bash.env(name, value);
        }
    }
    let finished = Finished::run(&mut bash);
    (finished, fs::read_to_string(cloud.file("record")).unwrap_or_default())
}

fn one_task(cloud: &Cloud) {
    cloud.push("digest");
    cloud.put("data/0_input/1", b"one");
    cloud.submit(&[json!({
        "basic_info": {"id": 1, "name": "digest", "base_directory": "data", "inputs": ["0_input/1"]},
    })]);
    cloud.host(&["submit", "--queue", &cloud.errors(), "/dev/null"]).good();
}

#[test]
fn a_machine_of_googles_works_on_what_its_metadata_says() {
    let cloud = Cloud::hybrid();
    one_task(&cloud);
    let (queue, bucket) = (cloud.queue.replace("sqs://", ""), cloud.bucket.replace("gs://", ""));
    let cache = cloud.file("cache");
    let attributes = [
        ("project/attributes/aws-sqs-access-id", "test"),
        ("project/attributes/aws-sqs-secret-access-key", "a-secret"),
        ("project/attributes/aws-region", "us-east-1"),
        ("instance/attributes/task-queue", &*queue),
        ("instance/attributes/bucket-name", &*bucket),
        ("instance/attributes/cache-directory", cache.to_str().expect("text")),
        ("instance/attributes/host-flags", "--max-tasks 1 --progress never"),
    ];
    let (finished, told) = start_up(&cloud, &attributes, &host());
    let finished = finished.good();
    assert!(finished.stdout.contains("1 done"), "{}\n{}", finished.stdout, finished.stderr);
    assert!(cloud.object("data/0_digest/1.sha256").is_some());
    // No other program got a secret in its arguments, and other users cannot read the secret.
    assert!(!told.contains("a-secret"), "{told}");
    let environment = cloud.file("run/environment");
    assert!(text(&environment).contains("AWS_SECRET_ACCESS_KEY=a-secret"));
    let mode = fs::metadata(&environment).expect("the file").permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

#[test]
fn a_machine_of_googles_may_have_a_role_instead_of_a_secret() {
    let cloud = Cloud::hybrid();
    let queue = cloud.queue.clone();
    let attributes = [
        ("instance/attributes/task-queue", &*queue),
        ("instance/attributes/bucket-name", &*cloud.bucket),
        ("instance/attributes/cache-directory", cloud.file("cache").to_str().expect("text")),
        ("instance/attributes/aws-role-arn", "arn:aws:iam::123456789012:role/worker"),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    let attributes: Vec<(&str, &str)> =
        attributes.iter().map(|(name, value)| (*name, &**value)).collect();
    let (finished, told) = start_up(&cloud, &attributes, Path::new("/bin/true"));
    finished.good();
    assert_eq!(text(&cloud.file("run/token")), "an-identity");
    let environment = text(&cloud.file("run/environment"));
    for line in [
        "AWS_ROLE_ARN=arn:aws:iam::123456789012:role/worker".to_owned(),
        "AWS_ROLE_SESSION_NAME=worker-1".to_owned(),
        format!("AWS_WEB_IDENTITY_TOKEN_FILE={}", cloud.file("run/token").display()),
    ] {
        assert!(environment.lines().any(|l| l == line), "{line} is not in\n{environment}");
    }
    assert!(told.contains("--on-unit-active=30min"), "{told}");
}

#[test]
fn a_machine_without_what_it_needs_says_so() {
    let cloud = Cloud::hybrid();
    let (finished, _) = start_up(&cloud, &[], &host());
    let finished = finished.code(1);
    assert!(finished.stderr.contains("task-queue and bucket-name have to be set"));
    let (finished, _) = start_up(&cloud, &[], Path::new("/no/such/program"));
    let finished = finished.code(1);
    assert!(finished.stderr.contains("no attribute host-program"), "{}", finished.stderr);
}

#[test]
fn the_program_may_come_from_a_bucket() {
    let cloud = Cloud::hybrid();
    cloud.put("bin/host", b"#!/bin/sh\necho \"fetched $*\"\n");
    let source = format!("{}/bin/host", cloud.bucket);
    let (queue, bucket) = (cloud.queue.clone(), cloud.bucket.clone());
    let cache = cloud.file("cache");
    let program = cloud.file("host");
    let cloud = cloud.with("STORAGE_EMULATOR_HOST", &server("TASK_HOST_TEST_GCS"));
    let attributes = [
        ("instance/attributes/task-queue", &*queue),
        ("instance/attributes/bucket-name", &*bucket),
        ("instance/attributes/cache-directory", cache.to_str().expect("text")),
        ("instance/attributes/host-program", &*source),
        ("instance/attributes/host-flags", "--parallel 8"),
    ];
    let (finished, _) = start_up(&cloud, &attributes, &program);
    assert_eq!(finished.good().stdout, "fetched run --parallel 8\n");
}

/// The requests that a machine sent to Google's Compute Engine after its host ended. `program`
/// replaces the host.
fn asked_at_the_end(
    attributes: &[(&'static str, &str)],
    program: &str,
    system: &str,
) -> Vec<String> {
    let cloud = Cloud::hybrid();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = asked.clone();
    let compute = http::serve(move |request: &Request| {
        assert_eq!(request.header("authorization"), Some("Bearer a-token"));
        let body = String::from_utf8_lossy(&request.body);
        let asked = format!("{} {} {body}", request.method, request.path);
        record.lock().expect("no panic").push(asked.trim().to_owned());
        Answer::new(200, "{}")
    });
    let (queue, bucket) = (cloud.queue.clone(), cloud.bucket.clone());
    let cache = cloud.file("cache");
    let of_all = [
        ("instance/attributes/task-queue", &*queue),
        ("instance/attributes/bucket-name", &*bucket),
        ("instance/attributes/cache-directory", cache.to_str().expect("text")),
    ];
    let attributes = [&of_all[..], attributes].concat();
    let host = cloud.file("program");
    fs::write(&host, format!("#!/bin/bash\n{program}\n")).expect("a program");
    fs::set_permissions(&host, fs::Permissions::from_mode(0o755)).expect("its mode");
    let cloud = cloud.with("COMPUTE_API", &format!("http://{compute}")).with("SYSTEM", system);
    start_up(&cloud, &attributes, &host);
    asked.lock().expect("no panic").clone()
}

const DELETE_WHEN_DONE: (&str, &str) = ("instance/attributes/delete-when-done", "true");
const GROUP: (&str, &str) = (
    "instance/attributes/created-by",
    "projects/123/zones/us-east1-b/instanceGroupManagers/workers",
);
const IN_USE: (&str, &str) = ("instance/preempted", "FALSE");

#[test]
fn a_machine_deletes_itself_when_its_host_has_ended() {
    let attributes = [DELETE_WHEN_DONE, IN_USE];
    assert_eq!(
        asked_at_the_end(&attributes, "exit 0", "running"),
        ["DELETE /compute/v1/projects/123/zones/us-east1-b/instances/worker-1"]
    );
    let attributes = [DELETE_WHEN_DONE, IN_USE, GROUP];
    assert_eq!(
        asked_at_the_end(&attributes, "exit 0", "running"),
        [
            "POST /compute/v1/projects/123/zones/us-east1-b/instanceGroupManagers/workers/deleteInstances \
          {\"instances\": [\"zones/us-east1-b/instances/worker-1\"]}"
        ]
    );
}

#[test]
fn a_machine_that_is_not_done_does_not_delete_itself() {
    let none: [String; 0] = [];
    // Nothing requests the deletion.
    assert_eq!(asked_at_the_end(&[IN_USE, GROUP], "exit 0", "running"), none);
    let attributes = [DELETE_WHEN_DONE, IN_USE, GROUP];
    // The host released tasks, or a setting is wrong.
    assert_eq!(asked_at_the_end(&attributes, "exit 4", "running"), none);
    assert_eq!(asked_at_the_end(&attributes, "exit 2", "running"), none);
    // The machine is shutting down or is preempted. Its group starts another one.
    assert_eq!(asked_at_the_end(&attributes, "exit 0", "stopping"), none);
    let preempted = [DELETE_WHEN_DONE, ("instance/preempted", "TRUE"), GROUP];
    assert_eq!(asked_at_the_end(&preempted, "exit 0", "running"), none);
}

/// The actions that a policy allows, by the name of the resource.
fn allowed(policy: &str) -> BTreeMap<String, BTreeSet<String>> {
    let policy: Value = serde_json::from_str(&text(&deployed(policy))).expect("JSON");
    let mut allowed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for statement in policy["Statement"].as_array().expect("statements") {
        assert_eq!(statement["Effect"], "Allow");
        let resource = statement["Resource"].as_str().expect("one resource");
        let resource = resource.rsplit(':').next().expect("a name");
        let actions = statement["Action"].as_array().expect("actions");
        let actions = actions.iter().map(|action| action.as_str().expect("text").to_owned());
        allowed.entry(resource.to_owned()).or_default().extend(actions);
    }
    allowed
}

/// The permission that a request needs: the resource as the policies name it, and the action.
fn needed(request: &Request, name: &str) -> Option<(String, String)> {
    if let Some(target) = request.header("x-amz-target") {
        let action = target.strip_prefix("AmazonSQS.")?.trim_end_matches("Batch");
        let body = String::from_utf8_lossy(&request.body);
        let queue = if body.contains("-errors") { "my-tasks-errors" } else { "my-tasks" };
        return Some((queue.to_owned(), format!("sqs:{action}")));
    }
    let key = request.path.strip_prefix(&format!("/{name}"))?;
    let (key, query) = key.split_once('?').unwrap_or((key, ""));
    let key = key.trim_start_matches('/');
    if key.is_empty() {
        return Some(("my-bucket".to_owned(), "s3:ListBucket".to_owned()));
    }
    let action = match &*request.method {
        "GET" | "HEAD" => "s3:GetObject",
        "DELETE" if query.contains("uploadId") => "s3:AbortMultipartUpload",
        "DELETE" => "s3:DeleteObject",
        "PUT" | "POST" => "s3:PutObject",
        other => panic!("{other} {}", request.path),
    };
    Some((format!("my-bucket/{key}"), action.to_owned()))
}

/// Pairs of a resource, as the policies name it, and an action.
type Needed = Arc<Mutex<BTreeSet<(String, String)>>>;

/// A server in front of the AWS server. It records the permission that each request for the bucket
/// `name` or for a queue needs.
fn recording(name: String) -> (String, Needed) {
    let seen = Needed::new(Mutex::new(BTreeSet::new()));
    let record = seen.clone();
    let aws = server("TASK_HOST_TEST_AWS");
    let address = http::serve(move |request: &Request| {
        let kept = ["host", "content-length", "connection", "transfer-encoding"];
        let headers: Vec<(&str, &str)> = request
            .headers
            .iter()
            .filter(|(name, _)| !kept.contains(&&**name))
            .map(|(name, value)| (&**name, &**value))
            .collect();
        record.lock().expect("no panic").extend(needed(request, &name));
        http::send(&aws, &request.method, &request.path, &headers, &request.body)
    });
    (format!("http://{address}"), seen)
}

/// The policies allow every request that hosts and producers make, and nothing else.
#[test]
fn the_policies_allow_what_is_needed_and_no_more() {
    let direct = Cloud::aws();
    let name = direct.queue.replace("sqs://", "");
    let (endpoint, seen) = recording(name);
    direct.push("misbehave");
    direct.push("digest");
    direct.put("datasets/a/0_input/1", b"one");
    direct.host(&["submit", "--queue", &direct.errors(), "/dev/null"]).good();
    direct.submit(&[]);
    let cloud = direct.with("AWS_ENDPOINT_URL", &endpoint).with("HOST_CREATE_QUEUES", "false");

    let task = |id: u64, name: &str, inputs: &[&str], payload: Value| {
        json!({
            "basic_info": {"id": id, "name": name, "base_directory": "datasets/a", "inputs": inputs},
            "payload_info": payload,
        })
    };
    cloud.submit(&[
        task(1, "digest", &["0_input/1"], Value::Null),
        // The host uploads its output in parts.
        task(2, "misbehave", &[], json!({"do": "write", "bytes": 20_000_000})),
        task(3, "misbehave", &[], json!({"do": "reject"})),
        // The host renews its lease, and the task is sent again.
        task(4, "misbehave", &[], json!({"do": "sleep", "secs": 3})),
        task(5, "misbehave", &[], json!({"do": "fail-until", "attempt": 2})),
    ]);
    cloud.host(&["queue", "status"]).good();
    let producer = std::mem::take(&mut *seen.lock().expect("no panic"));
    cloud.host(&["run", "--max-tasks", "5", "--lease", "2s"]).code(3);
    let worker = std::mem::take(&mut *seen.lock().expect("no panic"));

    compare("aws/producer-policy.json", &producer, &[]);
    // A host that is stopped during an upload aborts the upload.
    compare("aws/worker-policy.json", &worker, &["s3:AbortMultipartUpload"]);
}

#[track_caller]
fn compare(policy: &str, asked: &BTreeSet<(String, String)>, at_times: &[&str]) {
    let allowed = allowed(policy);
    let covers = |pattern: &str, resource: &str| match pattern.strip_suffix('*') {
        Some(prefix) => resource.starts_with(prefix),
        None => pattern == resource,
    };
    for (resource, action) in asked {
        let is_allowed = allowed
            .iter()
            .any(|(pattern, actions)| covers(pattern, resource) && actions.contains(action));
        assert!(is_allowed, "{policy} does not allow {action} on {resource}: {asked:#?}");
    }
    for (pattern, actions) in &allowed {
        for action in actions.iter().filter(|action| !at_times.contains(&&***action)) {
            let is_asked = asked.iter().any(|(r, a)| covers(pattern, r) && a == action);
            assert!(is_asked, "{policy} allows {action} on {pattern}, and nobody asks: {asked:#?}");
        }
    }
}
