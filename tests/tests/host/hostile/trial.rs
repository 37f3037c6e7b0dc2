//! Runs one attack on a working host, and checks the host afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use misbehave::Action;
use serde_json::{Value, json};
use task_host_tests::{Place, Watched, eventually, files, guest, misbehaviour, no_op};

/// How many bytes of memory an attack may cost its host, in addition to an innocent task.
const MOST_MEMORY: u64 = 200 << 20;
/// The maximum length of an exception in a report, in bytes.
const MOST_WORDS: usize = 17 << 10;

/// An attack, and its expected result.
pub(super) struct Case {
    by: By,
    inputs: Vec<(&'static str, Vec<u8>)>,
    settings: Vec<&'static str>,
    ends: Ends,
    says: Vec<String>,
    also: Vec<Check>,
}

/// Gets the trial, and a report: the error report of a failed task, or the report that the guest
/// wrote.
type Check = Box<dyn Fn(&mut Trial, &Value)>;

/// The attacker.
pub(super) enum By {
    /// The guest `misbehave`.
    Guest(Action),
    /// A component that the test creates.
    Component(Vec<u8>),
    /// The guest `planner`, with this payload.
    Plan(Value),
}

impl From<Action> for By {
    fn from(action: Action) -> Self {
        Self::Guest(action)
    }
}

impl From<Vec<u8>> for By {
    fn from(component: Vec<u8>) -> Self {
        Self::Component(component)
    }
}

/// The outcome of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// On the error queue after the first attempt.
    Rejected,
    /// On the error queue after the last of two attempts.
    GivenUp,
    /// Done: the host refused the attack, and the guest continued.
    Done,
}

impl Case {
    fn new(by: impl Into<By>, ends: Ends, says: &[&str]) -> Self {
        let says = says.iter().map(|&words| words.to_owned()).collect();
        Self { by: by.into(), inputs: vec![], settings: vec![], ends, says, also: vec![] }
    }

    /// Expects that the task is rejected after one attempt, with a message that contains these
    /// words.
    pub(super) fn rejected(by: impl Into<By>, says: &[&str]) -> Self {
        Self::new(by, Ends::Rejected, says)
    }

    /// Expects that the task is rejected after retries, with a message that contains these words.
    pub(super) fn given_up(by: impl Into<By>, says: &[&str]) -> Self {
        Self::new(by, Ends::GivenUp, says)
    }

    /// Expects that the task succeeds.
    pub(super) fn done(by: impl Into<By>) -> Self {
        Self::new(by, Ends::Done, &[])
    }

    /// Starts the host with these settings.
    pub(super) fn with(mut self, settings: &[&'static str]) -> Self {
        self.settings.extend(settings);
        self
    }

    /// Adds an input to the task.
    pub(super) fn input(mut self, key: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        self.inputs.push((key, bytes.into()));
        self
    }

    /// Adds a check.
    pub(super) fn also(mut self, check: impl Fn(&mut Trial, &Value) + 'static) -> Self {
        self.also.push(Box::new(check));
        self
    }

    /// Expects that the guest reports this value under this name.
    pub(super) fn reports(self, name: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.also(move |_, report| assert_eq!(report[name], value, "{name} of {report:#}"))
    }

    /// The action of the guest, if the attacker is the guest `misbehave`.
    pub(super) fn action(&self) -> Option<&Action> {
        match &self.by {
            By::Guest(action) => Some(action),
            By::Component(_) | By::Plan(_) => None,
        }
    }
}

/// Runs an attack and checks the result.
#[track_caller]
pub(super) fn check(case: Case) {
    let mut trial = Trial::new(&case.settings);
    for (key, bytes) in &case.inputs {
        trial.place.put(&format!("tests/{key}"), bytes);
    }
    let keys: Vec<&str> = case.inputs.iter().map(|(key, _)| *key).collect();
    let report = match (case.by, case.ends) {
        (By::Guest(action), Ends::Done) => trial.does(&keys, action),
        (By::Guest(action), ends) => {
            trial.fails(task("misbehave", &keys, action), ends, &case.says)
        }
        (By::Plan(payload), ends) => {
            trial.place.put("components/planner.wasm", std::fs::read(guest("planner")).unwrap());
            trial.fails(task_with("planner", &keys, payload), ends, &case.says)
        }
        (By::Component(component), ends) => {
            trial.place.put("components/made.wasm", component);
            // The component ignores the action.
            let action = Action::Loop;
            match ends {
                Ends::Done => trial.is_done("made", &keys, action),
                ends => trial.fails(task("made", &keys, action), ends, &case.says),
            }
        }
    };
    for also in &case.also {
        also(&mut trial, &report);
    }
    trial.ends(case.ends);
}

/// A working host, and its state before the attack.
pub(super) struct Trial {
    pub(super) place: Place,
    host: Watched,
    innocent: usize,
    _compiled: Arc<Place>,
}

impl Trial {
    fn new(settings: &[&str]) -> Self {
        let compiled = compiled();
        let place = compiled.copy();
        let usual = ["--retry-after", "10ms", "--parallel", "2", "--max-attempts", "2"];
        let host = place.watch(&[&usual, settings].concat());
        let mut trial = Self { place, host, innocent: 0, _compiled: compiled };
        // This task makes the host load both guests.
        let first = Action::Output { key: "first".to_owned(), text: String::new() };
        trial.place.submit(&[task("misbehave", &[], first)]);
        trial.works();
        trial
    }

    /// Runs a task until it fails with a message that contains all of these words. Returns its
    /// report.
    #[track_caller]
    fn fails(&mut self, task: Value, ends: Ends, says: &[String]) -> Value {
        let published = self.published();
        let report = self.unharmed(|place| {
            place.submit(&[task]);
            eventually("a report", || place.errors().pop())
        });
        assert_eq!(self.published(), published, "a failed task published something");
        let exception = report["exception"].as_str().unwrap_or_default();
        let attempt = if ends == Ends::Rejected { 1 } else { 2 };
        assert_eq!(report["attempt"], attempt, "it is not {ends:?}: {exception}");
        assert!(exception.len() <= MOST_WORDS, "{} bytes of words", exception.len());
        let trace = report["trace"].as_str().unwrap_or_default();
        assert!(trace.len() <= MOST_WORDS, "{} bytes of a trace", trace.len());
        for words in says {
            let is_said = exception.contains(words) || trace.contains(words);
            assert!(is_said, "{words:?} is in neither {exception:?} nor {trace:?}");
        }
        let is_control = |c: char| c.is_control() && c != '\n';
        assert!(!exception.contains(is_control), "{exception:?}");
        assert!(!trace.contains(is_control), "{trace:?}");
        report
    }

    /// Runs an action of the guest until it succeeds. Returns the guest's report, or null.
    #[track_caller]
    pub(super) fn does(&mut self, inputs: &[&str], action: Action) -> Value {
        self.is_done("misbehave", inputs, action)
    }

    #[track_caller]
    fn is_done(&mut self, name: &str, inputs: &[&str], action: Action) -> Value {
        let report = self.unharmed(|place| {
            place.submit(&[task(name, inputs, action)]);
            eventually("the end of a task", || {
                let errors = place.errors();
                assert!(errors.is_empty(), "it failed: {errors:#?}");
                (place.counts() == (0, 0)).then_some(())
            });
            place.object("tests/report.json")
        });
        let Some(report) = report else { return Value::Null };
        std::fs::remove_file(self.place.path().join("bucket/tests/report.json")).unwrap();
        serde_json::from_slice(&report).expect("a report that is JSON")
    }

    /// Calls `act`, and checks what it cost the host: memory, open files, the cache, and the next
    /// task.
    #[track_caller]
    fn unharmed<T>(&mut self, act: impl FnOnce(&Place) -> T) -> T {
        let process = format!("/proc/{}", self.host.host().pid().as_raw_nonzero());
        let open = || std::fs::read_dir(format!("{process}/fd")).expect("a process").count();
        std::fs::write(format!("{process}/clear_refs"), "5").expect("a new count");
        let (memory, files) = (figure(&process, "VmRSS"), open());
        let cached = self.cached();
        let acted = act(&self.place);
        let most = figure(&process, "VmHWM");
        assert!(most < memory + MOST_MEMORY, "{} MiB more", (most - memory) >> 20);
        eventually("as few open files as before", || (open() <= files + 8).then_some(()));
        for (name, bytes) in cached {
            let now = std::fs::read(self.place.cache().join("blobs").join(&name)).ok();
            assert!(now == Some(bytes), "the blob {name} was changed");
        }
        self.works();
        assert_eq!(self.host.ready(), (200, r#"{"ready":true,"problems":[]}"#.to_owned()));
        acted
    }

    fn cached(&self) -> BTreeMap<String, Vec<u8>> {
        let blobs = self.place.cache().join("blobs");
        let read = |name: String| Some((name.clone(), std::fs::read(blobs.join(name)).ok()?));
        files(&blobs).into_iter().filter_map(read).collect()
    }

    fn published(&self) -> Vec<String> {
        let keys = self.place.keys().into_iter();
        keys.filter(|key| key.starts_with("tests/")).collect()
    }

    /// Checks that the next task succeeds, and that nothing is left in the queue.
    #[track_caller]
    fn works(&mut self) {
        self.innocent += 1;
        let id = self.innocent;
        let input = format!("0_input/{id}.dat");
        self.place.put(&format!("data/{input}"), "innocent");
        self.place.submit(&[no_op(id, &[input])]);
        let output = format!("data/0_output/{id}.dat");
        eventually("the next task", || self.place.object(&output));
        eventually("an empty queue", || (self.place.counts() == (0, 0)).then_some(()));
    }

    /// Stops the host. Checks that it rejected only the attacker's task, and left nothing behind.
    #[track_caller]
    fn ends(self, ends: Ends) {
        let mut errors = self.host.lines("ERROR");
        // Ignores lines of the guest, which may log as many errors as it likes.
        errors.retain(|line| !line.contains("\"target\":\"guest\""));
        let summary = self.host.stop();
        let counts = ["failed", "retried", "lost"].map(|name| summary[name].as_u64());
        let expected = match ends {
            Ends::Rejected => [1, 0, 0],
            Ends::GivenUp => [1, 1, 0],
            Ends::Done => [0, 0, 0],
        };
        assert_eq!(counts, expected.map(Some), "{summary:#}");
        assert!(errors.len() <= usize::from(ends != Ends::Done), "{errors:#?}");
        assert_eq!(self.place.left_behind(), Vec::<String>::new());
    }
}

/// A place whose bucket and cache have both guests, compiled. Tests that run at the same time share
/// it.
fn compiled() -> Arc<Place> {
    static COMPILED: Mutex<Weak<Place>> = Mutex::new(Weak::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    compiled.upgrade().unwrap_or_else(|| {
        let place = Arc::new(Place::with(&["misbehave", "NO_OP"]));
        *compiled = Arc::downgrade(&place);
        place
    })
}

fn task(name: &str, inputs: &[&str], action: Action) -> Value {
    task_with(name, inputs, serde_json::to_value(action).expect("an action as JSON"))
}

fn task_with(name: &str, inputs: &[&str], payload: Value) -> Value {
    let mut task = misbehaviour(1, inputs, payload);
    task["basic_info"]["name"] = json!(name);
    task
}

/// A value from `/proc/PID/status`, in bytes.
fn figure(process: &str, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("{process}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the figure");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") << 10
}
