//! Programs with a `main` and without code for Task Host: components of WASI 0.2, and modules of
//! WASI preview 1.

use serde_json::{Value, json};
use task_host_tests::{Place, guest};

/// The same program in Rust, for WASI 0.2 and for preview 1.
const PROGRAMS: [&str; 2] = ["rust_program", "rust_program_preview1"];

fn task(id: i64, name: &str, action: Value) -> Value {
    json!({
        "basic_info": {"id": id, "name": name, "base_directory": "data", "inputs": ["in/a.dat"]},
        "payload_info": {"do": action},
    })
}

/// A place with a program and an input.
fn place_with(program: &str) -> Place {
    let place = Place::with(&[program]);
    place.put("data/in/a.dat", "an input");
    place
}

/// Runs one task, and returns its report.
#[track_caller]
fn report(place: &Place, program: &str, action: &str, args: &[&str]) -> Value {
    place.submit(&[task(1, program, json!(action))]);
    place.run_until_empty(args).code(3);
    let report = place.the_error();
    std::fs::remove_dir_all(place.path().join("queue-errors")).unwrap();
    report
}

#[test]
fn a_program_sees_its_task_and_its_files_and_no_more() {
    for program in PROGRAMS {
        let place = place_with(program);
        let sent = task(7, program, json!("describe"));
        place.submit(std::slice::from_ref(&sent));
        place.run_until_empty(&[]).good();
        let text = |key: &str| String::from_utf8(place.object(key).unwrap()).unwrap();
        let message: Value = serde_json::from_str(&text("data/seen/message.json")).unwrap();
        assert_eq!(message, sent);
        assert_eq!(text("data/seen/in/a.dat"), "an input");
        let seen = format!("arguments: [{program:?}]\nenvironment: [(\"TASK_ATTEMPT\", \"1\")]\n");
        assert_eq!(text("data/seen/seen.txt"), seen);
    }
}

#[test]
fn the_exit_code_is_the_result() {
    for program in PROGRAMS {
        let place = place_with(program);
        let exits = |code: &str| report(&place, program, code, &["--max-attempts", "2"]);
        let rejected = exits("1");
        assert_eq!(
            (&rejected["exception"], &rejected["attempt"]),
            (&json!("the reason is 1"), &json!(1))
        );
        // The other lines of its output are in the log.
        let log = rejected["log"].as_str().unwrap();
        assert!(log.contains("not the reason") && log.contains("first"), "{log}");
        // The C library that Rust uses for WASI 0.2 reports only success or failure, not the exit
        // code.
        let has_codes = program != "rust_program";
        let check = |code: &str, exception: &str| {
            let report = exits(code);
            let (exception, attempt) = match has_codes {
                true => (exception.to_owned(), 2),
                false => (format!("the reason is {code}"), 1),
            };
            assert_eq!(
                (&report["exception"], &report["attempt"]),
                (&json!(exception), &json!(attempt))
            );
        };
        check("75", "the reason is 75");
        check("2", "exit code 2: the reason is 2");
        assert_eq!(exits("fail")["exception"], "Error: \"the file is empty\"");
        assert_eq!(exits("silent")["exception"], "exit code 1, and nothing on standard error");
        let missing = exits("unwrap");
        let exception = missing["exception"].as_str().unwrap();
        assert!(exception.contains("No such file or directory"), "{exception}");
        let panicked = exits("panic");
        let exception = panicked["exception"].as_str().unwrap();
        assert!(exception.starts_with("panicked at ") && exception.ends_with("no such tile"));
        assert!(place.object("data/half.txt").is_none(), "an output of a failed task");

        place.submit(&[task(1, program, json!("0"))]);
        place.run_until_empty(&[]).good();
        assert_eq!(place.object("data/half.txt").unwrap(), b"half");
    }
}

#[test]
fn a_program_that_misbehaves_meets_the_limits_of_every_task() {
    for program in PROGRAMS {
        let place = place_with(program);
        let once = ["--max-attempts", "1", "--timeout", "1s"];
        for action in ["loop", "print"] {
            let report = report(&place, program, action, &once);
            let exception = report["exception"].as_str().unwrap();
            assert!(exception.contains("1s"), "{exception}");
        }
        let full = report(&place, program, "fill", &["--max-output", "1MiB"]);
        assert!(full["exception"].as_str().unwrap().contains("1.0 MiB"), "{full}");
    }
}

#[test]
fn a_program_need_not_read_its_task() {
    let place = Place::new();
    let file = guest("rust_program_preview1");
    let push = ["component", "push", file.to_str().unwrap(), "--name", "deaf"];
    place.host(&[&push[..], &["--bucket", "./bucket"]].concat()).good();
    let task = |id: i64| {
        let payload = "x".repeat(200_000);
        json!({"basic_info": {"id": id, "name": "deaf", "base_directory": "data"}, "payload_info": payload})
    };
    place.submit(&[task(1), task(2)]);
    place.run_until_empty(&[]).good();
    assert!(place.object("data/deaf.txt").is_some());
}

#[test]
fn a_program_that_was_copied_to_the_bucket_runs() {
    let place = Place::new();
    let program = std::fs::read(guest("rust_program_preview1")).unwrap();
    place.put("components/copied.wasm", program);
    place.put("data/in/a.dat", "an input");
    place.submit(&[task(1, "copied", json!("describe"))]);
    place.run_until_empty(&[]).good();
    assert!(place.object("data/seen/message.json").is_some());
}

#[test]
fn a_deterministic_program_leaves_the_same() {
    let place = place_with("rust_program");
    place.submit(&[task(1, "rust_program", json!("describe"))]);
    place.run_until_empty(&["--deterministic"]).good();
    let first = place.object("data/seen/seen.txt");
    place.submit(&[task(1, "rust_program", json!("describe"))]);
    place.run_until_empty(&["--deterministic"]).good();
    assert_eq!(place.object("data/seen/seen.txt"), first);
}

#[test]
fn what_a_program_imports_and_nobody_offers_is_named() {
    let place = Place::new();
    let inspect = |imports: &str| {
        let wat =
            format!(r#"(module {imports} (memory (export "memory") 1) (func (export "_start")))"#);
        place.put("components/odd.wasm", wat::parse_str(wat).unwrap());
        let shown = place.host(&["component", "inspect", "odd", "--bucket", "./bucket", "--json"]);
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(shown["kind"], "program");
        shown["problem"].clone()
    };
    let import = |module: &str, name: &str| {
        inspect(&format!(r#"(import "{module}" "{name}" (func (param i32)))"#))
    };
    assert_eq!(import("wasi_snapshot_preview1", "proc_exit"), Value::Null);
    let check = |problem: Value, want: &str| {
        assert!(problem.as_str().is_some_and(|problem| problem.contains(want)), "{problem}");
    };
    check(
        import("env", "dlopen"),
        "imports interfaces that hosts do not provide: env.dlopen; the linker leaves",
    );
    check(import("wasi_snapshot_preview1", "fork"), "wasi_snapshot_preview1.fork");
    check(import("wasi_unstable", "proc_exit"), "WASI preview 0");
    check(import("wasi", "thread-spawn"), "without threads");

    // A host reports the same error.
    place.submit(&[json!({"basic_info": {"id": 1, "name": "odd", "base_directory": "data"}})]);
    place.run_until_empty(&["--max-attempts", "1"]).code(3);
    let report = place.the_error();
    check(report["exception"].clone(), "wasi.thread-spawn; a task has one thread");
}

#[test]
fn commands_say_which_kind_a_component_is() {
    let place = Place::with(&["NO_OP"]);
    let kind = |name: &str| {
        let file = guest(name);
        let file = file.to_str().unwrap();
        let push = ["component", "push", file, "--bucket", "./bucket", "--json"];
        let pushed: Value = serde_json::from_str(&place.host(&push).good().stdout).unwrap();
        let inspect = place.host(&["component", "inspect", file, "--json"]).good().stdout;
        let inspected: Value = serde_json::from_str(&inspect).unwrap();
        assert_eq!(pushed["kind"], inspected["kind"]);
        (inspected["kind"].clone(), inspected["format"].clone())
    };
    assert_eq!(kind("NO_OP"), (json!("task"), json!("component")));
    assert_eq!(kind("rust_program"), (json!("program"), json!("component")));
    assert_eq!(kind("rust_program_preview1"), (json!("program"), json!("core module")));
    let file = guest("rust_program_preview1");
    let tried = place.host(&["try", file.to_str().unwrap(), "--payload", r#"{"do":"1"}"#]).code(3);
    for said in ["the component is a program", "error: the reason is 1", "would reject it"] {
        assert!(tried.stderr.contains(said), "no {said:?} in\n{}", tried.stderr);
    }
}

#[test]
fn a_program_in_c_is_a_task_without_any_library() {
    let place = Place::with(&["c_program"]);
    let sent = json!({
        "basic_info": {"id": 3, "name": "c_program", "base_directory": "data", "inputs": []},
        "payload_info": "later",
    });
    place.submit(std::slice::from_ref(&sent));
    let ran = place.run_until_empty(&[]).good();
    assert!(ran.stderr.contains("c_program is not ready at attempt 1"), "{}", ran.stderr);
    let message = place.object("data/task.json").unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&message).unwrap(), sent);
}
