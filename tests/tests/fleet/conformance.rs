//! Tests of the promises of `host fleet` that hold for every engine.
//!
//! An engine's own file implements [`Subject`] and calls [`suite!`].

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use task_host_tests::{Cloud, Finished, Place, Running, eventually, misbehaviour, no_op};

/// An engine, and a queue and a bucket that workers of this engine can reach. Each test has its
/// own.
pub(crate) trait Subject: Sized {
    /// Whether the engine can run out of room, so that workers wait.
    const CAN_BE_FULL: bool;
    /// The command line tool that controls the engine, as errors name it. None if there is no tool.
    const TOOL: Option<&'static str>;
    /// An option for `up` that this engine does not accept.
    const WRONG_OPTION: &'static str;

    /// An engine with room for this many workers at the same time. `None` means plenty.
    fn with_room(room: Option<u32>) -> Self;

    /// The queue and the bucket.
    fn work(&self) -> &Work;

    /// The engine's URL.
    fn url(&self) -> String;

    /// The other options that each `up` needs, such as the image under test.
    fn options(&self) -> Vec<String>;

    /// Sets up a command to find the engine.
    fn lead(&self, command: &mut Command);

    /// Sets up a command to find an engine that does not answer.
    fn lead_astray(&self, command: &mut Command);

    /// The engine's reason why workers wait for room.
    fn no_room(&self) -> &'static str;

    /// Ends one running worker without `host`, as a crash would.
    fn kill_one(&self, fleet: &str);

    /// The number of workers of a fleet that wait or run, according to the engine's own tools.
    fn alive(&self, fleet: &str) -> usize;

    /// Submits the document that `render` printed to the engine, without `host`.
    fn accept(&self, document: &str);

    /// Options that lead workers to a queue and a bucket whose names contain shell syntax.
    fn hostile(&self) -> Vec<String>;

    /// Stops all workers of a fleet at once, without `host`, so that a test leaves nothing behind.
    fn clear(&self, fleet: &str);
}

/// A queue and a bucket.
pub(crate) enum Work {
    /// Directories that this machine and the engine share.
    Here(Place),
    /// A queue and a bucket of a cloud.
    There(Box<Cloud>),
}

impl Work {
    fn command(&self, args: &[&str]) -> Command {
        match self {
            Self::Here(place) => {
                let mut command = place.command(args);
                command.env("HOST_QUEUE", "fq://./queue").env("HOST_BUCKET", "./bucket");
                command
            }
            Self::There(cloud) => cloud.command(args),
        }
    }

    pub(crate) fn place(&self) -> &Place {
        match self {
            Self::Here(place) => place,
            Self::There(cloud) => &cloud.place,
        }
    }

    fn push(&self, guest: &str) {
        match self {
            Self::Here(place) => place.push(guest),
            Self::There(cloud) => cloud.push(guest),
        }
    }

    fn submit(&self, tasks: &[Value]) {
        match self {
            Self::Here(place) => place.submit(tasks),
            Self::There(cloud) => cloud.submit(tasks),
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        match self {
            Self::Here(place) => place.put(key, bytes),
            Self::There(cloud) => cloud.put(key, bytes),
        }
    }

    fn object(&self, key: &str) -> Option<Vec<u8>> {
        match self {
            Self::Here(place) => place.object(key),
            Self::There(cloud) => cloud.object(key),
        }
    }

    /// Submits tasks that copy a few bytes each.
    fn fill(&self, tasks: usize) {
        self.push("NO_OP");
        let task = |id: usize| {
            let input = format!("0_input/{id}.dat");
            self.put(&format!("data/{input}"), &bytes(id));
            no_op(id, &[input])
        };
        let tasks: Vec<Value> = (0..tasks).map(task).collect();
        self.submit(&tasks);
    }

    /// Checks that each of those tasks has left its output.
    #[track_caller]
    fn is_done(&self, tasks: usize) {
        for id in 0..tasks {
            let output = self.object(&format!("data/0_output/{id}.dat"));
            assert!(output == Some(bytes(id)), "the output of task {id} is not right");
        }
    }

    /// The number of messages in the queue, and how many of them are leased.
    #[track_caller]
    fn counts(&self) -> (u64, u64) {
        let queue = match self {
            Self::Here(_) => "fq://./queue".to_owned(),
            Self::There(cloud) => cloud.queue.clone(),
        };
        let status = Finished::run(&mut self.command(&["queue", "status", &queue, "--json"]));
        let status: Value = serde_json::from_str(&status.good().stdout).expect("JSON");
        let count =
            |name: &str| status[name].as_u64().unwrap_or_else(|| panic!("{name}: {status}"));
        (count("enqueued"), count("leased"))
    }
}

fn bytes(id: usize) -> Vec<u8> {
    format!("content {id};").repeat(100).into_bytes()
}

/// The fleet of one test. Dropping this stops its workers.
pub(crate) struct Fleet<S: Subject> {
    pub(crate) subject: S,
    name: String,
}

impl<S: Subject> Drop for Fleet<S> {
    fn drop(&mut self) {
        self.subject.clear(&self.name);
    }
}

/// Options for workers that stay when they are idle, so that a test can count them.
const STAYS: [&str; 2] = ["--for", "1h"];
/// Options for workers that end when the queue is empty.
pub(crate) const ENDS: [&str; 1] = ["--exit-when-empty"];
/// Does not wait until the workers run.
const AT_ONCE: [&str; 2] = ["--wait", "0s"];

impl<S: Subject> Fleet<S> {
    pub(crate) fn new() -> Self {
        Self::of(S::with_room(None))
    }

    pub(crate) fn with_room(room: u32) -> Self {
        Self::of(S::with_room(Some(room)))
    }

    fn of(subject: S) -> Self {
        let name = task_host_tests::unique("f");
        // Only the end of the name differs between tests, and a name may have at most 40
        // characters.
        let name = format!("f{}", name.split('-').skip(1).collect::<Vec<_>>().join("-"));
        subject.work().put("there", b"");
        Self { subject, name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `host fleet COMMAND NAME --on URL ARGS…`.
    fn command(&self, command: &str, args: &[&str]) -> Command {
        let url = self.subject.url();
        let mut all = vec!["fleet", command, &self.name, "--on", &url];
        all.extend(args);
        let mut command = self.subject.work().command(&all);
        self.subject.lead(&mut command);
        command
    }

    /// Runs `host fleet COMMAND NAME ARGS…`, and waits for its end.
    pub(crate) fn run(&self, command: &str, args: &[&str]) -> Finished {
        Finished::run(&mut self.command(command, args))
    }

    /// `host fleet up NAME --workers N ARGS…`.
    pub(crate) fn up_command(&self, workers: &str, args: &[&[&str]]) -> Command {
        self.starting("up", workers, args)
    }

    fn starting(&self, command: &str, workers: &str, args: &[&[&str]]) -> Command {
        let options = self.subject.options();
        let mut all = vec!["--workers", workers, "--parallel", "1", "--memory", "64MiB"];
        all.extend(options.iter().map(String::as_str));
        all.extend(args.concat());
        self.command(command, &all)
    }

    pub(crate) fn up(&self, workers: &str, args: &[&[&str]]) -> Finished {
        Finished::run(&mut self.up_command(workers, args))
    }

    /// Starts a command that runs in the background.
    fn begin(&self, command: Command) -> Running {
        Running::start(command, &self.subject.work().place().path().join("logs"))
    }

    /// The output of `status`, if the engine knows the fleet.
    #[track_caller]
    fn status(&self) -> Option<Value> {
        let status = self.run("status", &["--json"]);
        if status.status.code() == Some(1) && status.stderr.contains("has no fleet") {
            return None;
        }
        Some(serde_json::from_str(&status.good().stdout).expect("a status that is JSON"))
    }

    /// The number of workers in this state.
    #[track_caller]
    pub(crate) fn count(&self, state: &str) -> u64 {
        let Some(status) = self.status() else { return 0 };
        let count = &status["counts"][state];
        count.as_u64().unwrap_or_else(|| panic!("{state}: {status}"))
    }

    /// Waits until this many workers are in this state.
    #[track_caller]
    pub(crate) fn has(&self, count: u64, state: &str) {
        let what = format!("{count} {state} of {:?}", self.status());
        eventually(&what, || (self.count(state) == count).then_some(()));
    }

    /// Waits until the engine has no worker of the fleet.
    #[track_caller]
    pub(crate) fn is_gone(&self) {
        eventually("no worker", || (self.subject.alive(&self.name) == 0).then_some(()));
    }
}

/// Returns the error line. Checks that there is only one, besides hints.
#[track_caller]
fn one_error(finished: &Finished) -> String {
    let lines: Vec<&str> = finished.stderr.lines().collect();
    let errors: Vec<&&str> = lines.iter().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{}", finished.stderr);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    errors[0].to_string()
}

pub(crate) fn workers_drain_a_queue<S: Subject>() {
    let fleet = Fleet::<S>::new();
    fleet.subject.work().fill(12);
    fleet.up("3", &[&ENDS]).good();
    let waited = fleet.run("wait", &["--for", "done"]).good();
    assert!(waited.stderr.contains("is empty, without reports"), "{}", waited.stderr);
    fleet.subject.work().is_done(12);
    fleet.run("wait", &["--for", "idle"]).good();
    fleet.is_gone();
}

pub(crate) fn a_task_that_fails_is_told_by_wait<S: Subject>() {
    let fleet = Fleet::<S>::new();
    fleet.subject.work().push("misbehave");
    let panics = serde_json::json!({"do": "panic"});
    fleet.subject.work().submit(&[misbehaviour(1, &[], panics)]);
    fleet.up("1", &[&ENDS, &["--max-attempts", "1"]]).good();
    let waited = fleet.run("wait", &["--for", "done"]).code(3);
    assert!(waited.stderr.contains("with 1 report in"), "{}", waited.stderr);
}

pub(crate) fn up_again_starts_only_what_is_missing<S: Subject>() {
    let fleet = Fleet::<S>::new();
    fleet.up("3", &[&STAYS]).good();
    assert_eq!(fleet.count("running"), 3);
    let again = fleet.up("3", &[&STAYS]).good();
    assert!(again.stderr.contains("3 workers of this fleet already"), "{}", again.stderr);
    assert!(!again.stderr.contains("asked"), "{}", again.stderr);
    fleet.subject.kill_one(&fleet.name);
    fleet.has(2, "running");
    fleet.up("3", &[&STAYS]).good();
    assert_eq!(fleet.count("running"), 3);
    fleet.run("down", &[]).good();
    fleet.is_gone();
}

pub(crate) fn enough_workers_are_a_warning<S: Subject>() {
    if !S::CAN_BE_FULL {
        return;
    }
    let fleet = Fleet::<S>::with_room(1);
    fleet.up("1", &[&STAYS]).good();
    let up = fleet.up("1..3", &[&STAYS, &["--wait", "1s"]]).good();
    let warning = format!("warning: {}: only 1 of 3 workers have started", fleet.name);
    assert!(up.stderr.contains(&warning), "{}", up.stderr);
    assert!(up.stderr.contains(fleet.subject.no_room()), "{}", up.stderr);
    // Waiting workers may start later.
    assert_eq!(fleet.subject.alive(&fleet.name), 3);
}

pub(crate) fn too_few_workers_are_an_error_and_are_stopped<S: Subject>() {
    if !S::CAN_BE_FULL {
        return;
    }
    let fleet = Fleet::<S>::with_room(1);
    let up = fleet.up("2..3", &[&STAYS, &["--wait", "2s"]]).code(5);
    assert!(one_error(&up).contains(fleet.subject.no_room()), "{}", up.stderr);
    fleet.is_gone();
    let kept = fleet.up("2..3", &[&STAYS, &["--wait", "1s", "--keep"]]).code(5);
    assert!(one_error(&kept).contains("they are kept"), "{}", kept.stderr);
    assert_eq!(fleet.subject.alive(&fleet.name), 3);
}

pub(crate) fn status_says_why_workers_wait<S: Subject>() {
    if !S::CAN_BE_FULL {
        return;
    }
    let fleet = Fleet::<S>::with_room(1);
    fleet.up("3", &[&STAYS, &AT_ONCE]).good();
    eventually("a reason", || {
        let status = fleet.status()?;
        let why = &status["reasons"][0];
        let reason = why["reason"].as_str()?;
        let is_it = why["state"] == "waiting" && reason.contains(fleet.subject.no_room());
        is_it.then_some(())
    });
    fleet.has(1, "running");
    assert_eq!(fleet.count("waiting"), 2);
    let told = fleet.run("status", &[]).good();
    assert!(told.stdout.contains("2 wait: "), "{}", told.stdout);
    fleet.run("down", &["--waiting"]).good();
    fleet.has(0, "waiting");
    assert_eq!(fleet.count("running"), 1);
    assert_eq!(fleet.subject.alive(&fleet.name), 1);
}

pub(crate) fn logs_are_of_one_worker_or_of_all<S: Subject>() {
    let fleet = Fleet::<S>::new();
    fleet.up("2", &[&STAYS, &["--listen", "127.0.0.1:0"]]).good();
    let listening = "listening at http://";
    let said = |args: &[&str]| fleet.run("logs", args).good().stdout;
    eventually("the logs of both", || (said(&[]).matches(listening).count() == 2).then_some(()));
    let each = ["0", "1"].map(|worker| said(&["--worker", worker]));
    assert!(each.iter().all(|log| log.matches(listening).count() == 1), "{each:#?}");
    assert_ne!(each[0], each[1]);
    // `logs --follow` ends when the worker has ended, after it has printed the whole log.
    let mut follow = fleet.begin(fleet.command("logs", &["--worker", "1", "--follow"]));
    // On Kubernetes, a pod's log disappears with the pod, so the test must follow the log before
    // the pod ends.
    eventually("a log that is followed", || follow.stdout().contains(listening).then_some(()));
    assert!(!follow.has_ended());
    fleet.run("down", &[]).good();
    let followed = follow.wait().good().stdout;
    assert!(followed.starts_with(&each[1]), "{followed}");
    assert!(followed.len() > each[1].len(), "{followed}");
}

pub(crate) fn down_loses_no_attempt_and_no_lease<S: Subject>() {
    const TASKS: i64 = 4;
    let fleet = Fleet::<S>::new();
    let work = fleet.subject.work();
    work.push("misbehave");
    let sleep = serde_json::json!({"do": "sleep", "secs": 3});
    let tasks: Vec<Value> = (0..TASKS).map(|id| misbehaviour(id, &[], sleep.clone())).collect();
    work.submit(&tasks);
    // With one attempt, a counted interruption would cause an error report.
    let options: &[&str] = &["--max-attempts", "1", "--grace", "0s", "--exit-when-empty"];
    fleet.up("2", &[options]).good();
    eventually("a leased task", || (work.counts().1 > 0).then_some(()));
    fleet.run("down", &[]).good();
    // A released task can be leased at the next full second.
    eventually("no lease", || (work.counts().1 == 0).then_some(()));
    fleet.is_gone();
    fleet.up("2", &[options]).good();
    fleet.run("wait", &["--for", "done"]).good();
}

pub(crate) fn a_name_with_other_options_is_in_use<S: Subject>() {
    let fleet = Fleet::<S>::new();
    fleet.up("1", &[&STAYS]).good();
    let other = fleet.up("2", &[&["--for", "2h"]]).code(2);
    assert!(one_error(&other).contains("with other options"), "{}", other.stderr);
    assert_eq!(fleet.subject.alive(&fleet.name), 1);
}

pub(crate) fn an_engine_that_does_not_answer_is_one_clear_error<S: Subject>() {
    let fleet = Fleet::<S>::new();
    let up = || fleet.up_command("1", &[&STAYS]);
    let status = || fleet.command("status", &[]);
    for mut command in [up(), status()] {
        fleet.subject.lead_astray(&mut command);
        let failed = Finished::run(&mut command).code(1);
        assert!(one_error(&failed).contains(&fleet.subject.url()), "{}", failed.stderr);
    }
    let Some(tool) = S::TOOL else { return };
    for mut command in [up(), status()] {
        command.env("PATH", fleet.subject.work().place().path());
        let failed = Finished::run(&mut command).code(1);
        let error = one_error(&failed);
        assert!(error.contains(tool) && error.contains("can't be started"), "{}", failed.stderr);
        assert!(failed.stderr.contains("\nhint: "), "{}", failed.stderr);
    }
}

pub(crate) fn wrong_options_are_refused_before_anything_is_started<S: Subject>() {
    let fleet = Fleet::<S>::new();
    let wrong: [&[&str]; 5] = [
        &["--max-attempts", "0"],
        &["--mem", "1MiB"],
        &["--done-queue", "nonsense://x"],
        &["--on", "lsf://night"],
        &[S::WRONG_OPTION],
    ];
    for args in wrong {
        let refused = fleet.up("1", &[args]).code(2);
        assert!(refused.stderr.contains("error: "), "{args:?}: {}", refused.stderr);
    }
    fleet.up("3..2", &[]).code(2);
    assert_eq!(fleet.subject.alive(&fleet.name), 0);
    assert_eq!(fleet.status(), None);
}

pub(crate) fn a_launcher_that_is_killed_leaves_nothing_unknown<S: Subject>() {
    let fleet = Fleet::<S>::new();
    for delay in [0, 50, 200, 800] {
        let up = fleet.begin(fleet.up_command("3", &[&STAYS]));
        std::thread::sleep(Duration::from_millis(delay));
        // Dropping kills the process.
        drop(up);
        // A second launcher completes the work of the first.
        fleet.up("3", &[&STAYS]).good();
        assert_eq!(fleet.count("running"), 3, "after {delay} ms");
        assert_eq!(fleet.subject.alive(&fleet.name), 3, "after {delay} ms");
        fleet.run("down", &[]).good();
        fleet.is_gone();
        let up = fleet.begin(fleet.up_command("3", &[&STAYS]));
        std::thread::sleep(Duration::from_millis(delay));
        // Dropping kills the process.
        drop(up);
        // `down` finds and stops the workers. A tool that the launcher started may still start
        // more.
        eventually("no worker", || {
            if fleet.subject.alive(&fleet.name) == 0 {
                return Some(());
            }
            fleet.status()?;
            fleet.run("down", &[]).good();
            None
        });
    }
}

pub(crate) fn two_launchers_at_once_start_each_worker_once<S: Subject>() {
    let fleet = Fleet::<S>::new();
    let both = [(); 2].map(|()| fleet.begin(fleet.up_command("3", &[&STAYS])));
    for up in both {
        up.wait().good();
    }
    fleet.has(3, "running");
    assert_eq!(fleet.subject.alive(&fleet.name), 3);
}

pub(crate) fn names_that_a_shell_would_obey_reach_workers_unchanged<S: Subject>() {
    let fleet = Fleet::<S>::new();
    let work = fleet.subject.work();
    work.fill(3);
    let hostile = fleet.subject.hostile();
    let hostile: Vec<&str> = hostile.iter().map(String::as_str).collect();
    fleet.up("1", &[&ENDS, &hostile]).good();
    fleet.run("wait", &["--for", "done"]).good();
    work.is_done(3);
    assert!(!work.place().path().join("pwned").exists(), "a shell has obeyed a name");
}

pub(crate) fn render_prints_what_up_asks_for<S: Subject>() {
    let fleet = Fleet::<S>::new();
    let document = Finished::run(&mut fleet.starting("render", "2", &[&STAYS])).good().stdout;
    assert_eq!(fleet.subject.alive(&fleet.name), 0);
    fleet.subject.accept(&document);
    fleet.has(2, "running");
    // This is the same fleet as the one of `up`.
    let up = fleet.up("2", &[&STAYS]).good();
    assert!(up.stderr.contains("2 workers of this fleet already"), "{}", up.stderr);
    assert_eq!(fleet.subject.alive(&fleet.name), 2);
}

pub(crate) fn fleets_are_listed<S: Subject>() {
    let fleet = Fleet::<S>::new();
    fleet.up("1", &[&STAYS]).good();
    let url = fleet.subject.url();
    let mut list = fleet.subject.work().command(&["fleet", "status", "--on", &url]);
    fleet.subject.lead(&mut list);
    let listed = Finished::run(&mut list).good().stdout;
    assert!(listed.contains(&fleet.name), "{listed}");
    fleet.run("down", &[]).good();
}

/// Defines the tests of an engine.
macro_rules! suite {
    ($subject:ident) => {
        $crate::conformance::suite!(@ $subject
            workers_drain_a_queue
            a_task_that_fails_is_told_by_wait
            up_again_starts_only_what_is_missing
            enough_workers_are_a_warning
            too_few_workers_are_an_error_and_are_stopped
            status_says_why_workers_wait
            logs_are_of_one_worker_or_of_all
            down_loses_no_attempt_and_no_lease
            a_name_with_other_options_is_in_use
            an_engine_that_does_not_answer_is_one_clear_error
            wrong_options_are_refused_before_anything_is_started
            a_launcher_that_is_killed_leaves_nothing_unknown
            two_launchers_at_once_start_each_worker_once
            names_that_a_shell_would_obey_reach_workers_unchanged
            render_prints_what_up_asks_for
            fleets_are_listed
        );
    };
    (@ $subject:ident $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                $crate::conformance::$promise::<$subject>();
            }
        )*
    };
}

pub(crate) use suite;
