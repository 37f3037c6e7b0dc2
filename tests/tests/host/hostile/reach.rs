//! Attacks on the limits of what a guest can see and change: only its inputs and its outputs.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;

use misbehave::{Action, Call};
use serde_json::{Value, json};
use task_host_tests::{Finished, Place, files, misbehaviour};

use super::calls::raw;
use super::trial::{Case, Trial};

attacks! {
    /// Tries to change its inputs in every way.
    Inputs => inputs_can_not_be_changed_by_any_way_in,
    /// Tries to get out of its two directories.
    Escape => there_is_no_way_out_of_the_two_directories,
    /// Looks for environment variables and arguments.
    Environment => the_environment_is_empty,
    /// Tries TCP, UDP and name lookups.
    Network => there_is_no_network,
    /// Creates sockets with direct calls of the host's interfaces.
    Sockets => no_socket_is_ever_made,
    /// Reads standard input.
    Stdin => standard_input_is_empty,
    /// Looks at the times, inode numbers and link counts of files.
    Stat => an_input_tells_nothing_of_other_tasks,
}

pub(super) fn case(attack: Attack) -> Case {
    match attack {
        Attack::Inputs => Case::done(Action::WriteInput)
            .input("0_input/a.txt", "an input\n")
            .input("0_input/deep/b.txt", "another\n")
            // A large input in a file that the guest reads directly.
            .input("0_input/large.dat", vec![7; 1 << 20])
            .reports("changed", json!([]))
            .also(|trial, report| {
                assert_eq!(worked(report), NONE);
                inputs_are_as_they_were(trial);
            }),
        Attack::Escape => Case::done(Action::Escape).also(|trial, report| {
            // The current directory is one of the two directories.
            let is_out = |what: &&str| !matches!(*what, "list ." | "list /");
            let out: Vec<&str> = worked(report).into_iter().filter(is_out).collect();
            assert_eq!(out, NONE);
            for escaped in ["escaped", "bucket/escaped", "home/escaped"] {
                assert!(!trial.place.path().join(escaped).exists());
            }
            let cached = files(&trial.place.cache());
            assert!(!cached.iter().any(|name| name.contains("escaped")));
        }),
        Attack::Environment => {
            Case::done(Action::Env).reports("vars", json!({})).also(|trial, report| {
                assert!(report["args"].as_array().unwrap().len() <= 1, "{report}");
                let place = trial.place.path().to_str().unwrap();
                assert!(!report.to_string().contains(place), "{report}");
            })
        }
        Attack::Network => {
            // A real server listens at this address, so that a connection could succeed.
            let server = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = server.local_addr().unwrap().to_string();
            server.set_nonblocking(true).unwrap();
            Case::done(Action::Net { address }).also(move |_, report| {
                assert_eq!(worked(report), NONE);
                assert!(server.accept().is_err(), "somebody connected");
            })
        }
        Attack::Sockets => Case::done(raw(Call::Sockets { count: 5_000 }))
            .reports("tcp", "access-denied")
            .reports("udp", "access-denied")
            .reports("name", "permanent-resolver-failure"),
        Attack::Stdin => Case::done(Action::Stdin)
            .also(|_, report| assert!(report["bytes"] == 0 || report["error"].is_string())),
        Attack::Stat => Case::done(raw(Call::Stat))
            .input("0_input/a.txt", "an input\n")
            .input("0_input/b.txt", "an input\n")
            .also(|trial, first| {
                let second = trial.does(&["0_input/a.txt", "0_input/b.txt"], raw(Call::Stat));
                tells_nothing_of_other_tasks(first, &second);
            }),
    }
}

const NONE: [&str; 0] = [];

/// The actions that succeeded, of all that were tried.
fn worked(report: &Value) -> Vec<&str> {
    let tried = report["tried"].as_array().expect("what was tried");
    assert!(tried.len() > 3, "hardly anything was tried: {report:#}");
    tried.iter().filter(|t| t["ok"] == true).map(|t| t["what"].as_str().unwrap()).collect()
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| std::fs::read(dir.join(&name)).ok().map(|bytes| (name, bytes));
    files(dir).into_iter().filter_map(read).collect()
}

/// Checks that the inputs are unchanged in the bucket, in the cache, and for the next task that
/// reads them.
fn inputs_are_as_they_were(trial: &mut Trial) {
    let inputs = [
        ("0_input/a.txt", b"an input\n".to_vec()),
        ("0_input/deep/b.txt", b"another\n".to_vec()),
        ("0_input/large.dat", vec![7; 1 << 20]),
    ];
    let cached = contents(&trial.place.cache());
    assert!(!cached.values().any(|bytes| bytes == b"changed"));
    trial.does(&inputs.each_ref().map(|(key, _)| *key), Action::Copy { ignore_errors: false });
    for (key, bytes) in inputs {
        assert!(trial.place.object(&format!("tests/{key}")).unwrap() == bytes, "{key}");
        assert!(trial.place.object(&format!("tests/out/{key}")).unwrap() == bytes, "{key}");
    }
}

/// Two tasks read the same two inputs with equal bytes.
fn tells_nothing_of_other_tasks(first: &Value, second: &Value) {
    for report in [first, second] {
        for input in ["0_input/a.txt", "0_input/b.txt"] {
            let told = &report[input];
            assert_eq!((&told["links"], &told["size"]), (&json!(1), &json!(9)), "{report:#}");
            assert_eq!(told["times"], report["0_input/a.txt"]["times"]);
            assert!(told["times"][0].as_u64() <= report["f"]["times"][1].as_u64(), "{report:#}");
        }
    }
    let made = |report: &Value| report["0_input/a.txt"]["times"][0].as_u64().unwrap();
    assert!(made(first) <= made(second));
    // The file is the same, but its number differs between tasks.
    let number = |report: &Value| report["0_input/a.txt"]["number"].clone();
    assert_ne!(number(first), number(second));
}

#[test]
pub(super) fn an_error_of_a_stream_tells_nothing_of_the_host() {
    let place = Place::with(&["misbehave"]);
    place.submit_misbehaviour(json!(raw(Call::ErrorWords)));
    let mut command = place.command(&["run", "--fq", "./queue", "-x"]);
    Finished::run(command.env("RUST_BACKTRACE", "full")).good();
    let report = place.object("tests/report.json").expect("a report");
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["words"], "Invalid argument (os error 22)", "{report:#}");
}

#[test]
pub(super) fn nothing_of_one_task_is_there_for_the_next() {
    let place = Place::with(&["misbehave"]);
    place.put("tests/0_input/a.txt", "a");
    place.put("tests/0_input/b.txt", "b");
    // All tasks use one slot in turn. Some of them fail.
    let tasks: Vec<Value> = (0..8)
        .map(|id| {
            let input = ["0_input/a.txt", "0_input/b.txt"][id % 2];
            let mut task = misbehaviour(id as i64, &[input], json!({"do": "leave"}));
            if id % 4 == 3 {
                let steps = json!([{"do": "leave"}, {"do": "odd-names"}, {"do": "panic"}]);
                task["payload_info"] = json!({"do": "all", "steps": steps});
            } else {
                // Different base directories give the tasks different report files.
                task["basic_info"]["base_directory"] = json!(format!("tests-{id}"));
                place.put(&format!("tests-{id}/{input}"), input);
            }
            task
        })
        .collect();
    place.submit(&tasks);
    place.run_until_empty(&["--parallel", "1", "--max-attempts", "2"]).code(3);
    for id in (0..8).filter(|id| id % 4 != 3) {
        let report = place.object(&format!("tests-{id}/report.json")).expect("a report");
        let report: Value = serde_json::from_slice(&report).unwrap();
        let input = ["0_input/a.txt", "0_input/b.txt"][id % 2];
        assert_eq!(report["runs"], 1, "the instance is not fresh");
        assert_eq!(report["inputs"], json!(["0_input/", input]), "{report:#}");
        assert_eq!(report["outputs"], json!([]), "{report:#}");
    }
    assert_eq!(place.errors().len(), 2);
}
