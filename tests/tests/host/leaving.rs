//! How workers leave a fleet: when they are idle, within the time that their engine allows, with an
//! exit code that the engine understands, and with their names in heartbeats and reports.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::http::{self, Answer};
use task_host_tests::{Finished, Place, Running, eventually, misbehaviour};

const IDLE: [&str; 4] = ["--exit-when-idle", "1s", "--json", "--prefetch"];

/// Runs `host run --fq ./queue ARGS…` with these environment variables.
fn start(place: &Place, args: &[&str], variables: &[(&str, &str)]) -> Running {
    let mut command = place.command(&[&["run", "--fq", "./queue"], args].concat());
    command.envs(variables.iter().copied());
    Running::start(command, &place.path().join("logs"))
}

fn summary(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}\n{}", finished.stdout, finished.stderr))
}

/// Suspends a host that holds the only task of the queue. The task takes `secs` seconds.
fn stuck(place: &Place, secs: f64) -> Running {
    place.submit_misbehaviour(json!({"do": "sleep", "secs": secs}));
    let host = place.start(&["--parallel", "1"]);
    eventually("a task that is held", || (place.counts() == (1, 1)).then_some(()));
    host.signal(Signal::STOP);
    host
}

#[test]
fn an_idle_worker_leaves_although_another_holds_a_task_and_the_first_stays_for_it() {
    let place = Place::with(&["misbehave"]);
    let other = stuck(&place, 5.0);
    let args = [&IDLE[..], &["0"]].concat();
    let mut first = start(&place, &args, &[("HOST_WORKER_INDEX", "0")]);
    // Each engine has its own variable for the number of a worker.
    for variable in ["HOST_WORKER_INDEX", "AWS_BATCH_JOB_ARRAY_INDEX", "JOB_COMPLETION_INDEX"] {
        let left = start(&place, &args, &[(variable, "7")]).wait().good();
        let summary = summary(&left);
        assert_eq!((&summary["stopped"], &summary["cause"]), (&json!("finished"), &json!("idle")));
        assert_eq!((&summary["done"], &summary["worker"]["index"]), (&json!(0), &json!(7)));
    }
    // A worker that does not belong to a fleet.
    start(&place, &args, &[]).wait().good();
    assert!(!first.has_ended(), "it left while a task was held: {}", first.stderr());
    assert_eq!(place.counts(), (1, 1));
    drop(other);
    place.host(&["queue", "release", "--fq", "./queue", "--yes"]).good();
    let left = first.wait().good();
    assert_eq!(summary(&left)["done"], 1, "{}", left.stderr);
    assert!(left.stderr.contains("no task could be leased for 1s and the queue is empty"));
}

#[test]
fn a_worker_with_a_task_of_its_own_is_not_idle() {
    let place = Place::with(&["misbehave"]);
    place.submit(&[
        misbehaviour(1, &[], json!({"do": "sleep", "secs": 3.0})),
        // The second attempt starts after the host has been without work for longer than its idle
        // time.
        misbehaviour(2, &[], json!({"do": "fail-until", "attempt": 2})),
    ]);
    let args = [&IDLE[..], &["0", "--parallel", "2", "--retry-after", "6s"]].concat();
    let left = place.start(&args).wait().good();
    let summary = summary(&left);
    assert_eq!((&summary["done"], &summary["retried"]), (&json!(2), &json!(1)), "{}", left.stderr);
    assert_eq!(place.counts(), (0, 0));
}

#[test]
fn a_worker_is_not_idle_while_its_queue_is_out() {
    let place = Place::new();
    fs::create_dir(place.path().join("bucket")).expect("a bucket");
    let host = place.watch(&["--exit-when-idle", "3s"]);
    host.in_one_moment(|| {
        fs::rename(place.path().join("queue"), place.path().join("away")).expect("it is moved");
        fs::write(place.path().join("queue"), "in the way").expect("a file");
    });
    host.is_out("queue");
    // Waits for more than three seconds: the waits start at a quarter of a second, and double.
    host.has_tried(5);
    fs::remove_file(place.path().join("queue")).expect("it is removed");
    fs::rename(place.path().join("away"), place.path().join("queue")).expect("it is moved back");
    let left = host.into_host().wait().good();
    assert_eq!(summary(&left)["cause"], "idle", "{}", left.stderr);
}

#[test]
fn other_reasons_to_end_come_first() {
    let place = Place::with(&["NO_OP"]);
    let check = |args: &[&str], cause: &str| {
        place.submit(&place.innocent(1));
        let args = [&["--json", "--exit-when-idle", "1h"], args].concat();
        let left = place.run(&args).good();
        assert_eq!(summary(&left)["cause"], cause, "{args:?}");
    };
    check(&["-x"], "empty");
    check(&["--max-tasks", "1"], "max-tasks");
    check(&["--for", "1s"], "for");
}

#[test]
fn a_worker_that_worked_can_exit_with_0_whatever_became_of_its_tasks() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "reject"}));
    let rejected = place.run_until_empty(&["--exit-zero", "--json"]).good();
    assert_eq!(summary(&rejected)["failed"], 1);
    place.the_error();

    let released = |signals: usize, grace: &str| {
        place.submit_misbehaviour(json!({"do": "sleep", "secs": 3600.0}));
        let host = place.start(&["--exit-zero", "--json", "--grace", grace]);
        eventually("a task that runs", || place.a_task_has_started().then_some(()));
        for _ in 0..signals {
            host.signal_again(Signal::TERM);
            // Waits for an answer, because the kernel merges two pending signals of one kind.
            eventually("an answer", || host.stderr().contains("stopping").then_some(()));
        }
        let left = host.wait().good();
        let summary = summary(&left);
        assert_eq!((&summary["stopped"], &summary["cause"]), (&json!("killed"), &json!("signal")));
        assert_eq!(place.counts(), (1, 0), "{}", left.stderr);
        place.host(&["queue", "purge", "./queue", "--yes"]).good();
    };
    released(1, "100ms");
    released(2, "1h");

    // A worker's own errors still lead to an error code.
    let wrong = ["run", "--fq", "./queue", "--exit-zero", "--bucket", "./no-bucket"];
    place.host(&wrong).code(1);
    place.host(&[&wrong[..4], &["--lease", "1s"]].concat()).code(2);
}

/// `docker stop` kills a container ten seconds after SIGTERM. With a container's default grace
/// period, a host ends before that.
#[test]
fn a_worker_with_the_grace_period_of_a_container_gives_everything_back_and_ends() {
    let place = Place::with(&["misbehave"]);
    let tasks: Vec<Value> =
        (0..4).map(|id| misbehaviour(id, &[], json!({"do": "sleep", "secs": 30.0}))).collect();
    place.submit(&tasks);
    let args = ["--parallel", "2", "--prefetch", "1"];
    let host = start(&place, &args, &[("HOST_GRACE", "5s")]);
    eventually("two tasks that run and one that waits", || {
        (place.counts() == (4, 3) && place.a_task_has_started()).then_some(())
    });
    host.signal(Signal::TERM);
    host.wait().code(4);
    assert_eq!(place.counts(), (4, 0));
    // The executions were neither attempts nor deaths.
    let args = ["-x", "--json", "--max-attempts", "1", "--parallel", "4", "--prefetch", "0"];
    let left = place.run(&args).good();
    assert_eq!(summary(&left)["done"], 4, "{}", left.stderr);
}

#[test]
fn the_grace_period_fits_the_engine() {
    let place = Place::new();
    let check = |variable: &str, grace: &str, want: &str| {
        let mut command = place.command(&["config", "--fq", "./queue"]);
        command.env(variable, "1").env("HOST_GRACE", grace);
        let shown = Finished::run(&mut command).good().stdout;
        let line = shown.lines().find(|line| line.starts_with("grace ")).expect("a line");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1..].join(" "), want, "{variable}");
    };
    check("NOTHING", "", "30s default");
    check("AWS_BATCH_JOB_ID", "", "10s default");
    check("ECS_CONTAINER_METADATA_URI_V4", "", "10s default");
    check("KUBERNETES_SERVICE_HOST", "", "10s default");
    check("SLURM_JOB_ID", "", "10s default");
    check("SLURM_JOB_ID", "2m", "2m HOST_GRACE");
}

/// A server for the metadata of an ECS container. Counts the requests.
fn ecs(count: Arc<AtomicUsize>) -> String {
    let address = http::serve(move |request| {
        assert_eq!((&*request.method, &*request.path), ("GET", "/v4/abc"));
        count.fetch_add(1, SeqCst);
        let container = json!({
            "DockerId": "abc", "Name": "host",
            "Labels": {
                "com.amazonaws.ecs.cluster": "arn:aws:ecs:eu-west-1:1:cluster/lab",
                "com.amazonaws.ecs.task-arn": "arn:aws:ecs:eu-west-1:1:task/lab/4f",
            },
            "LogDriver": "awslogs",
            "LogOptions": {"awslogs-group": "/aws/batch/job", "awslogs-stream": "host/default/4f"},
        });
        Answer::new(200, container.to_string())
    });
    format!("http://{address}/v4/abc")
}

#[test]
fn what_a_worker_leaves_says_where_its_log_is() {
    let place = Place::with(&["misbehave"]);
    let asked = Arc::default();
    let metadata = ecs(Arc::clone(&asked));
    let args = [
        "--done-queue",
        "./queue-done",
        "--exit-when-idle",
        "1s",
        "--json",
        "--log-format",
        "json",
    ];
    let host = start(
        &place,
        &args,
        &[
            ("AWS_BATCH_JOB_ID", "4711:3"),
            ("AWS_BATCH_JOB_ARRAY_INDEX", "3"),
            ("AWS_BATCH_JOB_ATTEMPT", "1"),
            ("AWS_BATCH_JQ_NAME", "spot"),
            ("HOST_FLEET", "night"),
            ("ECS_CONTAINER_METADATA_URI_V4", &metadata),
        ],
    );
    eventually("names from ECS", || host.stderr().contains("is a task of ECS").then_some(()));
    place.submit(&[
        misbehaviour(1, &[], json!({"do": "reject"})),
        misbehaviour(2, &[], json!({"do": "fail-until", "attempt": 1})),
    ]);
    let left = host.wait().code(3);
    let want = json!({
        "engine": "batch", "fleet": "night", "index": 3, "job": "4711:3", "job_attempt": 1,
        "job_queue": "spot", "task": "arn:aws:ecs:eu-west-1:1:task/lab/4f",
        "cluster": "arn:aws:ecs:eu-west-1:1:cluster/lab",
        "log_group": "/aws/batch/job", "log_stream": "host/default/4f",
    });
    assert_eq!(summary(&left)["worker"], want);
    assert_eq!(place.the_error()["worker"], want);
    let done = place.messages("queue-done");
    assert_eq!(done[0]["worker"], want, "{done:#?}");
    assert_eq!(asked.load(SeqCst), 1);
    let starting = left.stderr.lines().find(|line| line.contains("\"starting\"")).expect("a line");
    let starting: Value = serde_json::from_str(starting).expect("JSON");
    let known = starting["worker"].as_str().expect("the names that are known at the start");
    assert!(known.contains("fleet=night") && known.contains("job=4711:3"), "{known}");
}

#[test]
fn a_metadata_service_that_fails_neither_delays_nor_breaks_a_worker() {
    let (_asked, never) = mpsc::channel::<()>();
    let never = std::sync::Mutex::new(never);
    let address = http::serve(move |request| match &*request.path {
        "/slow" => {
            let _ = never.lock().expect("no other question").recv();
            Answer::new(200, "{}")
        }
        "/broken" => Answer::new(500, "{}"),
        "/odd" => Answer::new(200, r#"{"Labels": [1, 2]}"#),
        _ => Answer::new(200, "x".repeat(1 << 20)),
    });
    for path in ["slow", "broken", "odd", "long"] {
        let place = Place::with(&["NO_OP"]);
        place.submit(&place.innocent(1));
        let url = format!("http://{address}/{path}");
        let metadata = [("ECS_CONTAINER_METADATA_URI_V4", &*url)];
        let left = start(&place, &["-x", "--json", "--confine", "on"], &metadata).wait().good();
        let summary = summary(&left);
        assert_eq!((&summary["done"], &summary["worker"]), (&json!(1), &json!({"engine": "ecs"})));
    }
}

#[test]
fn variables_of_the_launcher_are_no_slips() {
    let place = Place::new();
    let mut command = place.command(&["run", "--fq", "./queue", "-x"]);
    command.env("HOST_FLEET", "night").env("HOST_WORKER", "night-3");
    command.env("HOST_WORKER_INDEX", "3").env("HOST_WORKER_INDX", "3");
    let said = Finished::run(&mut command).good().stderr;
    assert_eq!(said.matches("has no effect").count(), 1, "{said}");
    assert!(said.contains("HOST_WORKER_INDX has no effect; did you mean HOST_WORKER_INDEX?"));
}
