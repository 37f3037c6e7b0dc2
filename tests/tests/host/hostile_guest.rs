//! Guests and components that are made to harm: each ends alone, with a report that says why, and
//! the host is what it was before.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use task_host_tests::components;
use task_host_tests::{Place, Running, Watched, eventually, files, misbehaviour, no_op};

/// What a hostile task may cost its host, beyond what an innocent one costs: bytes of memory.
const MOST_MEMORY: u64 = 200 << 20;
/// The longest exception in a report, in bytes.
const MOST_WORDS: usize = 17 << 10;

/// A host at work, and what it was like before anything bad came.
struct Trial {
    place: Place,
    host: Watched,
    innocent: usize,
}

impl Trial {
    fn new(settings: &[&str]) -> Self {
        let place = Place::with(&["misbehave", "NO_OP"]);
        let host = place.watch(&[&["--retry-after", "10ms", "--parallel", "2"], settings].concat());
        let mut trial = Self { place, host, innocent: 0 };
        // Both guests are compiled then.
        trial.place.submit_misbehaviour(json!({"do": "output", "key": "first", "text": ""}));
        trial.works();
        trial
    }

    /// Runs a task with these words to its end, which is a failure at the first attempt whose
    /// exception has all of `expected`. Returns the report.
    #[track_caller]
    fn fails(&mut self, payload: Value, expected: &[&str]) -> Value {
        self.fails_as("misbehave", payload, expected)
    }

    /// The same by a component that is made on the spot.
    #[track_caller]
    fn fails_by(&mut self, component: &[u8], expected: &[&str]) -> Value {
        let name = format!("made-{}", self.innocent);
        self.place.put(&format!("components/{name}.wasm"), component);
        self.fails_as(&name, json!(null), expected)
    }

    #[track_caller]
    fn fails_as(&mut self, name: &str, payload: Value, expected: &[&str]) -> Value {
        let mut task = misbehaviour(1, &[], payload);
        task["basic_info"]["name"] = json!(name);
        let before = self.place.errors();
        let report = self.unharmed(|place| {
            place.submit(&[task]);
            let is_new = |report: &Value| !before.contains(report);
            eventually("a report", || place.errors().into_iter().find(is_new))
        });
        let exception = report["exception"].as_str().unwrap_or_default();
        assert!(exception.len() <= MOST_WORDS, "{} bytes of words", exception.len());
        for words in expected {
            assert!(exception.contains(words), "{words:?} is not in {exception:?}");
        }
        let is_control = |c: char| c.is_control() && c != '\n';
        assert!(!exception.contains(is_control), "{exception:?}");
        report
    }

    /// Runs a task to its good end. Returns the report that the guest wrote.
    #[track_caller]
    fn does(&mut self, inputs: &[&str], call: Value) -> Value {
        let before = self.place.errors();
        self.unharmed(|place| {
            let payload = json!({"do": "raw", "call": call});
            place.submit(&[misbehaviour(1, inputs, payload)]);
            let report = eventually("a report of the guest", || {
                assert_eq!(place.errors(), before);
                place.object("tests/report.json")
            });
            std::fs::remove_file(place.path().join("bucket/tests/report.json")).unwrap();
            serde_json::from_slice(&report).expect("a report that is JSON")
        })
    }

    /// Does something, and checks what it cost the host: memory, files, the cache, and the next
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
        acted
    }

    fn cached(&self) -> BTreeMap<String, Vec<u8>> {
        let blobs = self.place.cache().join("blobs");
        let read = |name: String| Some((name.clone(), std::fs::read(blobs.join(name)).ok()?));
        files(&blobs).into_iter().filter_map(read).collect()
    }

    /// The next task is done, and nothing is left in the queue.
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

    /// Stops the host, which has tried no task twice.
    #[track_caller]
    fn ends(self) {
        let summary = self.host.stop();
        assert_eq!(summary["retried"], 0, "{summary:#}");
    }
}

/// A figure of `/proc/PID/status`, in bytes.
fn figure(process: &str, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("{process}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the figure");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") << 10
}

#[test]
fn names_of_functions_are_cut_and_escaped_and_never_made_longer() {
    let mut trial = Trial::new(&["--max-attempts", "1"]);
    let bomb = components::endless_name();
    trial.fails_by(
        &components::with_execute(&bomb, "(unreachable)"),
        &[
            "the guest panicked or aborted",
            "the guest's stack:",
            "!_Z1f1AIiiiiiiiiiiE",
            "bytes cut",
        ],
    );
    let long = "x".repeat(100_000);
    trial.fails_by(
        &components::with_execute(&long, "(unreachable)"),
        &["!xxxxxxxx", "(99800 bytes cut)"],
    );
    trial.fails_by(
        &components::with_execute("red\\1b[31m\\0aline\\e2\\80\\aegpj", "(unreachable)"),
        &["!red\\u{1b}[31m\\nline\\u{202e}gpj"],
    );
    trial.ends();
}

#[test]
fn a_deep_stack_of_long_names_has_a_bound() {
    let mut trial = Trial::new(&["--max-attempts", "1"]);
    let deep = "(call $execute (local.get 0) (local.get 1) (local.get 2) (local.get 3) \
                (local.get 4) (local.get 5) (local.get 6) (local.get 7) (local.get 8) \
                (local.get 9) (local.get 10))";
    let component = components::with_execute(&"y".repeat(90_000), deep);
    let report = trial.fails_by(&component, &["call stack overflowed", "no more than 32 frames"]);
    let lines = report["exception"].as_str().unwrap().lines().count();
    assert!((30..40).contains(&lines), "{report:#}");
    trial.ends();
}

#[test]
fn names_of_outputs_and_of_imports_are_cut() {
    let mut trial = Trial::new(&["--max-attempts", "1"]);
    trial.fails(
        json!({"do": "big-result", "outputs": 1, "bytes": 60_000}),
        &["the guest listed the output \"00000", "(59700 bytes cut)", "has no such file"],
    );
    trial.fails_by(
        &components::listing(1, 4_000_000),
        &["the guest listed the output \"xxx", "(3999700 bytes cut)"],
    );
    let import = format!("(import \"{}\" (func))", "a".repeat(90_000));
    let report = trial.fails_by(&components::composed(&import), &["can't be run", "aaaa", "(cut)"]);
    assert!(report["exception"].as_str().unwrap().len() < 4_000);
    trial.ends();
}

#[test]
fn handles_have_a_limit_that_is_named_and_not_tried_again() {
    let mut trial = Trial::new(&[]);
    let expected = ["execute: the guest ran into the limit of 10000 handles"];
    for call in [json!({"handles": {"count": 1_000_000}}), json!({"timers": {"count": 1_000_000}})]
    {
        trial.fails(json!({"do": "raw", "call": call}), &expected);
    }
    assert_eq!(trial.does(&[], json!({"handles": {"count": 5_000}}))["made"], 5_000);
    // Handles on what a component makes itself.
    let resource = r#"(core module $d (func (export "dtor") (param i32)))
        (core instance $d (instantiate $d))
        (alias core export $d "dtor" (core func $dtor))
        (type $thing (resource (rep i32) (dtor (core func $dtor))))
        (core func $new (canon resource.new $thing))
        (core instance $things (export "new" (func $new)))"#;
    let import = r#"(import "things" "new" (func $new (param i32) (result i32)))"#;
    let component = components::composed_of(
        resource,
        import,
        r#"(with "things" (instance $things))"#,
        "(loop $more (drop (call $new (i32.const 1))) (br $more)) (i32.const 1040)",
    );
    trial.fails_by(&component, &["handles", "100000 with its own"]);
    trial.ends();
}

#[test]
fn what_crosses_in_one_call_has_a_limit_that_is_named_and_not_tried_again() {
    let mut trial = Trial::new(&["--memory", "256MiB"]);
    let expected = ["the guest ran into the limit of 16.0 MiB that may be handed over"];
    for call in [
        json!({"random": {"bytes": 1_u64 << 62}}),
        json!({"random": {"bytes": 64 << 20}}),
        json!({"insecure-random": {"bytes": 64 << 20}}),
        json!({"write-at-once": {"bytes": 100 << 20}}),
        json!({"long-paths": {"bytes": 100 << 20, "piece": "./"}}),
    ] {
        trial.fails(json!({"do": "raw", "call": call}), &expected);
    }
    // What is listed as left, too.
    trial.fails_by(&components::listing(200_000, 1000), &expected);
    trial.fails_by(&components::listing(100_000, 100), &["limit of 10000 output files"]);

    assert_eq!(trial.does(&[], json!({"random": {"bytes": 8 << 20}}))["bytes"], 8 << 20);
    let written = trial.does(&[], json!({"write-at-once": {"bytes": 8 << 20}}));
    assert_eq!(written["written"], 8 << 20);
    assert_eq!(trial.does(&[], json!({"read-at-once": {"bytes": 1_u64 << 30}}))["read"], 65536);
    trial.ends();
}

#[test]
fn a_list_of_as_many_outputs_as_there_may_be_is_taken() {
    let mut trial = Trial::new(&["--max-output-files", "1000000"]);
    let component = components::listing(150_000, 100);
    trial.fails_by(&component, &["the guest listed the output \"xxx", "has no such file"]);
    trial.ends();
}

#[test]
fn a_component_that_needs_more_than_its_limits_is_not_tried_again() {
    let mut trial = Trial::new(&["--memory", "4MiB"]);
    trial.fails_by(
        &components::with_fields(100, ""),
        &["instantiate: the guest ran into its memory limit of 4.0 MiB; `--memory` raises it"],
    );
    let memory = |n| format!("(core module $m{n} (memory 25)) (core instance (instantiate $m{n}))");
    let three: String = (0..3).map(memory).collect();
    trial.fails_by(
        &components::composed(&three),
        &["instantiate: the guest ran into its memory limit of 4.0 MiB"],
    );
    let parts = "the component is made of more than 32 core modules, 4 memories or 32 tables";
    let small = |n| format!("(core module $m{n} (memory 1)) (core instance (instantiate $m{n}))");
    let five: String = (0..5).map(small).collect();
    trial.fails_by(&components::composed(&five), &[parts]);
    let many = "(core instance (instantiate $e))".repeat(40);
    trial.fails_by(&components::composed(&format!("(core module $e){many}")), &[parts]);
    let two = "(table 1 funcref) (table 1 funcref)";
    trial.fails_by(&components::with_fields(2, two), &["can't be run", "limit of 1"]);

    let elements = "the limit of 1000000 elements of its tables";
    let table = "(core module $t (table 600000 funcref))".to_owned()
        + &"(core instance (instantiate $t))".repeat(2);
    trial.fails_by(&components::composed(&table), &[elements]);
    trial.fails_by(
        &components::with_fields(2, "(table 2000000 funcref)"),
        &["can't be run", "exceeds the limit of 1000000"],
    );
    trial.ends();
}

#[test]
fn open_files_have_a_limit_that_is_named_when_it_ends_a_guest() {
    let mut trial = Trial::new(&[]);
    let refused = trial.does(&[], json!({"open-files": {"count": 100_000}}));
    assert_eq!((&refused["made"], &refused["error"]), (&json!(1000), &json!("quota")));
    let payload = json!({"do": "raw", "call": {"open-files-or-reject": {"count": 100_000}}});
    trial.fails(payload, &["limit of 1000 files and directories", "`--max-open-files` raises it"]);
    let in_turn = trial.does(&[], json!({"open-files-in-turn": {"count": 3_000}}));
    assert_eq!(in_turn["made"], 3_000, "{in_turn:#}");
    trial.ends();
}

#[test]
fn directory_streams_count_as_open_files_and_hold_little() {
    let mut trial = Trial::new(&[]);
    let call = json!({"directory-streams": {"count": 100_000, "files": 3_000}});
    let refused = trial.does(&[], call);
    assert_eq!((&refused["made"], &refused["error"]), (&json!(1000), &json!("quota")));
    trial.ends();
}

#[test]
fn a_neighbour_of_a_guest_that_opens_all_it_can_finds_files_to_open() {
    let place = Place::with(&["misbehave", "NO_OP"]);
    let args = ["run", "--fq", "./queue", "--parallel", "2", "--prefetch", "2", "--grace", "0s"];
    let args = [&args[..], &Watched::FLAGS].concat();
    let command = place.command_by(&["prlimit", "--nofile=256:256"], &args);
    let host = Watched::new(Running::start(command, &place.path().join("logs")));
    let process = format!("/proc/{}/fd", host.host().pid().as_raw_nonzero());
    let open = || std::fs::read_dir(&process).expect("a process").count();
    let before = open();
    let hog = json!({"open-files-and-wait": {"count": 100_000}});
    place.submit_misbehaviour(json!({"do": "raw", "call": hog}));
    let tasks = place.innocent(20);
    place.submit(&tasks);
    for id in 0..20 {
        let output = format!("data/0_output/{id}.dat");
        eventually("an innocent task", || place.object(&output));
    }
    assert_eq!((place.errors(), place.counts().0), (vec![], 1), "the guest is still there");
    // However often a file is open, it is one file of the process.
    assert!(open() <= before + 16, "{} more", open() - before);
    let said = host.host().stderr();
    assert!(!said.contains("Too many open files") && !said.contains("os error 24"), "{said}");
    assert_eq!(host.lines("ERROR"), [""; 0]);
}

#[test]
fn paths_that_the_system_would_refuse_are_refused_before_they_are_taken_apart() {
    let mut trial = Trial::new(&[]);
    for (bytes, piece) in [(4096, "./"), (15 << 20, "./"), (15 << 20, "d/../"), (15 << 20, "x")] {
        let report = trial.does(&[], json!({"long-paths": {"bytes": bytes, "piece": piece}}));
        for (call, code) in report.as_object().unwrap() {
            assert_eq!(code, "name-too-long", "{call} with {bytes} bytes of {piece:?}");
        }
    }
    trial.ends();
}

#[test]
fn files_are_opened_as_the_standard_has_it() {
    let mut trial = Trial::new(&[]);
    trial.place.put("tests/0_input/a.txt", "an input\n");
    let report = trial.does(&["0_input/a.txt"], json!("open"));
    for (what, code) in [
        ("dir none", "ok"),
        ("dir create", "is-directory"),
        ("dir create directory", "invalid"),
        ("dir create exclusive", "exist"),
        ("dir directory", "ok"),
        ("dir directory exclusive", "invalid"),
        ("dir directory truncate", "invalid"),
        ("dir truncate", "is-directory"),
        ("file create", "ok"),
        ("file create directory", "invalid"),
        ("file create exclusive", "exist"),
        ("file directory", "not-directory"),
        ("file truncate", "ok"),
        ("new none", "no-entry"),
        ("new create", "ok"),
        ("new create directory", "invalid"),
        ("new create exclusive", "ok"),
        ("new directory", "no-entry"),
        ("input none", "ok"),
        ("input create", "not-permitted"),
        ("input create directory", "invalid"),
        ("input create exclusive", "not-permitted"),
        ("input truncate", "not-permitted"),
        ("new-input none", "no-entry"),
        ("new-input create", "not-permitted"),
        ("set-size", "invalid"),
        ("write", "bad-descriptor"),
        ("set-size of a writable", "ok"),
        ("set-size of an input", "not-permitted"),
        ("set-size of a directory", "bad-descriptor"),
    ] {
        assert_eq!(report[what], code, "{what}: {report:#}");
    }
    trial.ends();
}

#[test]
fn an_input_tells_nothing_of_other_tasks() {
    let mut trial = Trial::new(&[]);
    trial.place.put("tests/0_input/a.txt", "an input\n");
    trial.place.put("tests/0_input/b.txt", "an input\n");
    let inputs = ["0_input/a.txt", "0_input/b.txt"];
    let first = trial.does(&inputs, json!("stat"));
    let second = trial.does(&inputs, json!("stat"));
    for report in [&first, &second] {
        for input in inputs {
            let told = &report[input];
            assert_eq!((&told["links"], &told["size"]), (&json!(1), &json!(9)), "{report:#}");
            assert_eq!(told["times"], report["0_input/a.txt"]["times"]);
            assert!(told["times"][0].as_u64() <= report["f"]["times"][1].as_u64(), "{report:#}");
        }
    }
    let made = |report: &Value| report["0_input/a.txt"]["times"][0].as_u64().unwrap();
    assert!(made(&first) <= made(&second));
    // The same file all the while, under a number that differs.
    let number = |report: &Value| report["0_input/a.txt"]["number"].clone();
    assert_ne!(number(&first), number(&second));
    trial.ends();
}

#[test]
fn an_error_of_a_stream_tells_nothing_of_the_host() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!({"do": "raw", "call": "error-words"}));
    let mut command = place.command(&["run", "--fq", "./queue", "-x"]);
    task_host_tests::Finished::run(command.env("RUST_BACKTRACE", "full")).good();
    let report = place.object("tests/report.json").expect("a report");
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["words"], "Invalid argument (os error 22)", "{report:#}");
}

#[test]
fn no_socket_is_ever_made() {
    let mut trial = Trial::new(&[]);
    let report = trial.does(&[], json!({"sockets": {"count": 5_000}}));
    let codes = ["tcp", "udp", "name"].map(|kind| report[kind].as_str().unwrap_or("made"));
    assert_eq!(codes, ["access-denied", "access-denied", "permanent-resolver-failure"]);
    trial.ends();
}

#[test]
fn a_quota_that_is_ignored_is_reported_with_the_call_that_ran_into_it() {
    let place = Place::with(&["misbehave"]);
    place.put("tests/0_input/a.dat", vec![1; 2 << 20]);
    // It says that all went well.
    let payload = json!({"do": "copy", "ignore_errors": true});
    place.submit(&[misbehaviour(1, &["0_input/a.dat"], payload)]);
    place.run_until_empty(&["--max-output", "1MiB"]).code(3);
    let report = place.the_error();
    let exception = report["exception"].as_str().unwrap();
    assert!(exception.starts_with("execute: the guest ran into its output limit"), "{exception}");
    assert_eq!((&report["phase"], &report["attempt"]), (&json!("execute"), &json!(1)));
}
