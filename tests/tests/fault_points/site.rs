//! The environment of a scenario: a queue with tasks, a bucket with their inputs, and the expected
//! results.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use task_host_tests::{
    Cloud, Finished, Place, Running, eventually, guest, host, host_with_fault_points,
};

use crate::plan::{On, Plan, Work};

/// The number of tasks that copy their inputs.
const COPIES: usize = 4;
/// The number of inputs of each task.
const INPUTS: usize = 3;
/// The id of the task that does not copy its inputs.
const OTHER: usize = 100;

/// A queue with tasks, and a bucket.
pub(crate) struct Site {
    kind: Kind,
    work: Work,
    tasks: Vec<Value>,
    /// The number of tasks that were put into the queue.
    submitted: usize,
    has_receipts: bool,
}

enum Kind {
    Directory(Place),
    Service(Cloud),
}

/// After a failure, prints the logs of the hosts.
impl Drop for Site {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let logs = self.place().path().join("logs");
        for entry in fs::read_dir(logs).into_iter().flatten().flatten() {
            let said = fs::read_to_string(entry.path()).unwrap_or_default();
            eprintln!("{}:\n{said}", entry.path().display());
        }
    }
}

impl Site {
    pub(crate) fn new(on: On, plan: &Plan, has_receipts: bool) -> Self {
        let kind = match on {
            On::Directory => Kind::Directory(Place::new()),
            On::Aws => Kind::Service(Cloud::aws()),
            On::Google => Kind::Service(Cloud::google()),
        };
        let mut site =
            Self { kind, work: plan.work, tasks: Vec::new(), submitted: 0, has_receipts };
        for name in ["NO_OP", "misbehave", "planner"] {
            site.put(&format!("components/{name}.wasm"), &fs::read(guest(name)).unwrap());
        }
        for id in 0..COPIES {
            let names: Vec<String> = (0..INPUTS).map(|n| format!("{id}-{n}.dat")).collect();
            for name in &names {
                site.put(&format!("data/0_input/{name}"), &site.content(name));
            }
            let inputs: Vec<String> = names.iter().map(|name| format!("0_input/{name}")).collect();
            site.tasks.push(task_host_tests::no_op(id, &inputs));
        }
        let other = match plan.work {
            Work::Copies | Work::Large => None,
            Work::OneFails => Some(json!({"do": "fail-until", "attempt": 2})),
            Work::OneIsLong => Some(json!({"do": "sleep", "secs": 2.5})),
            Work::OnePlans => Some(json!({"do": "ask", "optional": ["missing"]})),
        };
        let mut other =
            other.map(|payload| task_host_tests::misbehaviour(OTHER as i64, &[], payload));
        if let (Some(other), Work::OnePlans) = (&mut other, plan.work) {
            other["basic_info"]["name"] = json!("planner");
        }
        // This task comes first, so that a host with several tasks holds it while it runs the
        // others.
        site.tasks.splice(0..0, other);
        let lines: String = site.tasks.iter().map(|task| format!("{task}\n")).collect();
        fs::write(site.lines(), lines).unwrap();
        if !plan.cold {
            site.warm(&site.place().cache());
        }
        site
    }

    /// Submits the task that does not copy its inputs. If there is no such task, submits all.
    pub(crate) fn submit_first(&mut self) {
        let has_other = self.tasks.len() > COPIES;
        self.submit(if has_other { 1 } else { self.tasks.len() });
    }

    /// Submits all tasks that are not submitted yet.
    pub(crate) fn submit_rest(&mut self) {
        self.submit(self.tasks.len());
    }

    /// Submits the tasks up to number `count`, except those that are submitted already.
    fn submit(&mut self, count: usize) {
        let tasks = &self.tasks[std::mem::replace(&mut self.submitted, count)..count];
        if tasks.is_empty() {
            return;
        }
        let lines: String = tasks.iter().map(|task| format!("{task}\n")).collect();
        fs::write(self.place().path().join("next.jsonl"), lines).unwrap();
        let args = ["submit", "--queue", &self.queue(), "next.jsonl"];
        Finished::run(&mut self.command(&args)).good();
    }

    pub(crate) fn place(&self) -> &Place {
        match &self.kind {
            Kind::Directory(place) => place,
            Kind::Service(cloud) => &cloud.place,
        }
    }

    fn queue(&self) -> String {
        match &self.kind {
            Kind::Directory(_) => "fq://./queue".to_owned(),
            Kind::Service(cloud) => cloud.queue.clone(),
        }
    }

    fn lines(&self) -> PathBuf {
        self.place().path().join("tasks.jsonl")
    }

    fn command(&self, args: &[&str]) -> Command {
        match &self.kind {
            Kind::Directory(place) => place.command(args),
            Kind::Service(cloud) => cloud.command(args),
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        match &self.kind {
            Kind::Directory(place) => place.put(key, bytes),
            Kind::Service(cloud) => cloud.put(key, bytes),
        }
    }

    fn object(&self, key: &str) -> Option<Vec<u8>> {
        match &self.kind {
            Kind::Directory(place) => place.object(key),
            Kind::Service(cloud) => cloud.object(key),
        }
    }

    fn content(&self, name: &str) -> Vec<u8> {
        let repeats = if self.work == Work::Large { 40_000 } else { 200 };
        format!("content {name};").repeat(repeats).into_bytes()
    }

    /// Puts the compiled code of the guests into a cache, because compiling takes longer than all
    /// other steps.
    fn warm(&self, cache: &Path) {
        static WARM: OnceLock<Place> = OnceLock::new();
        let warm = WARM.get_or_init(|| {
            let place = Place::with(&["NO_OP", "misbehave", "planner"]);
            let other = json!({"do": "sleep", "secs": 0.0});
            let mut planner = task_host_tests::misbehaviour(1, &[], json!({"do": "ask"}));
            planner["basic_info"]["name"] = json!("planner");
            place.submit(&[
                task_host_tests::no_op(1, &[]),
                task_host_tests::misbehaviour(1, &[], other),
                planner,
            ]);
            place.run_until_empty(&[]).good();
            place
        });
        fs::create_dir_all(cache.parent().unwrap()).unwrap();
        let mut copy = Command::new("cp");
        Finished::run(copy.arg("-a").arg(warm.cache()).arg(cache)).good();
    }

    /// `host run` with short leases.
    fn run(&self) -> Command {
        let mut command = self.command(&["run"]);
        command.args(["--queue", &self.queue(), "--done-queue", "fq://./queue-done"]);
        command.args(["--lease", "2s", "--retry-after", "10ms", "--progress", "never"]);
        if self.has_receipts {
            command.arg("--receipts");
        }
        command.args(match self.work {
            Work::Large => &["--cache-size", "1MiB", "--parallel", "1", "--prefetch", "1"][..],
            _ => &[],
        });
        command.env("HOST_PARALLEL", "2");
        command
    }

    /// Starts a host that gets these faults.
    pub(crate) fn start_faulty(&self, faults: &str, args: &[&str]) -> Running {
        let mut host = self.run();
        host.args(args).env("FAILPOINTS", faults);
        self.start(&host_with_fault_points(), &host)
    }

    /// Starts a host without fault points on the same machine, with the same cache.
    pub(crate) fn start_next(&self) -> Running {
        self.start(&host(), &self.run())
    }

    /// Starts a host without fault points on another machine, with another cache.
    pub(crate) fn start_elsewhere(&self) -> Running {
        let cache = self.place().path().join("other/cache");
        self.warm(&cache);
        self.start(&host(), self.run().env("HOST_CACHE_DIR", cache))
    }

    /// Starts `program` with the arguments and environment of `command`.
    fn start(&self, program: &Path, command: &Command) -> Running {
        let mut other = Command::new(program);
        other.args(command.get_args()).current_dir(self.place().path()).env_clear();
        other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Running::start(other, &self.place().path().join("logs"))
    }

    /// The attempts in the reports, by task id. A task may have several.
    fn reports(&self) -> BTreeMap<u64, BTreeSet<u64>> {
        let mut attempts: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for report in self.place().messages("queue-done") {
            let id = report["task"]["basic_info"]["id"].as_u64().expect("an id");
            let attempt = report["attempt"].as_u64().expect("an attempt");
            attempts.entry(id).or_default().insert(attempt);
        }
        attempts
    }

    /// Waits until all tasks except `but` are done. If `but` is zero, also waits until they have
    /// left the queue.
    pub(crate) fn wait_until_done(&self, but: usize, host: &mut Running) {
        let what = format!("{} tasks that are done", self.tasks.len() - but);
        eventually(&what, || {
            assert!(!host.has_ended(), "the host ended: {}", host.stderr());
            if self.reports().len() + but < self.tasks.len() {
                return None;
            }
            (but > 0 || self.is_empty()).then_some(())
        });
    }

    /// Whether the queue is empty. Returns true for Pub/Sub, which cannot count.
    fn is_empty(&self) -> bool {
        match &self.kind {
            Kind::Directory(place) => place.counts() == (0, 0),
            Kind::Service(cloud) => {
                let left = &cloud.status(&cloud.queue)["enqueued"];
                left == &json!(0) || left.is_null()
            }
        }
    }

    /// Whether a stopped host holds the lock of a message, so that no other host can lease the
    /// message until the stopped host continues.
    pub(crate) fn is_locked_by(&self, stopped: &Running) -> bool {
        let Kind::Directory(place) = &self.kind else { return false };
        let pid = stopped.pid().as_raw_nonzero().to_string();
        // A line is like `1: POSIX  ADVISORY  WRITE 4242 fd:00:133 0 EOF`: the fifth field is the
        // process, and the sixth ends with the file's inode number.
        let locks = fs::read_to_string("/proc/locks").expect("the kernel's locks");
        let ours = locks.lines().map(|lock| lock.split_whitespace().collect::<Vec<_>>());
        let ours = ours.filter(|lock| lock.get(4) == Some(&pid.as_str()));
        let numbers = ours.filter_map(|lock| lock.get(5)?.rsplit(':').next()?.parse().ok());
        let numbers: BTreeSet<u64> = numbers.collect();
        let messages = fs::read_dir(place.path().join("queue/movement")).into_iter().flatten();
        messages.flatten().any(|file| file.metadata().is_ok_and(|of| numbers.contains(&of.ino())))
    }

    /// The keys of the outputs of all copies, and the names of their inputs.
    fn outputs() -> impl Iterator<Item = (String, String)> {
        let names = (0..COPIES).flat_map(|id| (0..INPUTS).map(move |n| format!("{id}-{n}.dat")));
        names.map(|name| (format!("data/0_output/{name}"), name))
    }

    /// For each output, the values that change if the output is written again.
    pub(crate) fn stamps(&self) -> Vec<(String, u64, i64, i64)> {
        let Kind::Directory(place) = &self.kind else { return Vec::new() };
        let stamp = |(key, _): (String, String)| {
            let meta = fs::metadata(place.path().join("bucket").join(&key)).expect(&key);
            (key, meta.ino(), meta.mtime(), meta.mtime_nsec())
        };
        Self::outputs().map(stamp).collect()
    }

    /// Checks the results of the tasks.
    pub(crate) fn check(&self) {
        assert!(self.is_empty(), "messages are left");
        for (key, name) in Self::outputs() {
            let output = self.object(&key);
            assert!(output.as_deref() == Some(&self.content(&name)), "{key} is not right");
        }
        for task in &self.tasks {
            let id = task["basic_info"]["id"].as_u64().expect("an id");
            let attempt = match (id as usize, self.work) {
                (OTHER, Work::OneFails) => 2,
                _ => 1,
            };
            let reported = self.reports().remove(&id).unwrap_or_default();
            assert_eq!(reported, [attempt].into(), "the attempts of task {id}");
        }
        match &self.kind {
            Kind::Directory(place) => {
                assert_eq!(place.errors(), [Value::Null; 0], "a task was given up");
                let completions = fs::metadata(place.path().join("queue/completions"));
                let completed = completions.map_or(0, |file| file.len());
                assert!(completed <= self.tasks.len() as u64, "{completed} tasks were completed");
            }
            Kind::Service(cloud) => {
                let errors = cloud.host(&["queue", "ls", &cloud.errors(), "--json"]).good();
                assert_eq!(errors.stdout, "", "a task was given up");
            }
        }
        assert_eq!(self.place().left_behind(), Vec::<String>::new());
        if self.has_receipts {
            Finished::run(&mut self.command(&["receipts", "verify", "tasks.jsonl"])).good();
        }
    }
}
