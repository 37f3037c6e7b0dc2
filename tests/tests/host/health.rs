//! `host health`, as the health check of a container calls it.

use std::net::TcpListener;

use serde_json::{Value, json};
use task_host_tests::http::{self, Answer};
use task_host_tests::{Finished, Place, eventually};

/// Checks that the command exits with 1 and prints one line that contains `why`.
#[track_caller]
fn is_sick(finished: Finished, why: &str) {
    let finished = finished.code(1);
    let lines: Vec<&str> = finished.stderr.lines().filter(|l| !l.starts_with("hint: ")).collect();
    assert!(lines.len() == 1 && lines[0].contains(why), "{why}: {}", finished.stderr);
    assert_eq!(finished.stdout, "");
}

#[test]
fn a_host_that_works_is_healthy_and_one_that_can_not_work_is_not_ready() {
    let place = Place::with(&["NO_OP"]);
    let host = place.watch(&[]);
    let address = host.address().to_owned();
    let ask = |args: &[&str]| place.host(&[&["health"], args].concat());
    assert_eq!(ask(&[&address]).good().stdout, "ok\n");
    assert_eq!(ask(&[&address, "--ready"]).good().stdout, "ok\n");
    let ok = format!("{{\"address\":\"{address}\",\"ok\":true,\"problem\":null}}\n");
    assert_eq!(ask(&[&address, "--ready", "--json"]).good().stdout, ok);
    // A host that listens on all addresses has a setting like this.
    let everywhere = address.replace("127.0.0.1", "0.0.0.0");
    let mut command = place.command(&["health", "--ready"]);
    Finished::run(command.env("HOST_LISTEN", &everywhere)).good();
    std::fs::write(place.path().join("host.toml"), format!("listen = \"{address}\"\n")).unwrap();
    ask(&[]).good();
    std::fs::remove_file(place.path().join("host.toml")).unwrap();

    let queue = place.path().join("queue");
    host.in_one_moment(|| {
        std::fs::rename(&queue, place.path().join("away")).unwrap();
        std::fs::write(&queue, "in the way").unwrap();
    });
    host.is_out("queue");
    is_sick(ask(&[&address, "--ready"]), "not ready: fq://./queue");
    ask(&[&address]).good();
    let said = ask(&[&address, "--ready", "--json"]).code(1);
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&said["address"], &said["ok"]), (&json!(address), &json!(false)));
    let problem = said["problem"].as_str().unwrap();
    assert!(problem.starts_with("not ready: fq://./queue"), "{problem}");
    std::fs::remove_file(&queue).unwrap();
    std::fs::rename(place.path().join("away"), &queue).unwrap();
    host.is_ready_again();
    host.stop();
    eventually("nobody at its address", || {
        (place.host(&["health", &address]).status.code() == Some(1)).then_some(())
    });
    is_sick(ask(&[&address]), "no connection: ");
}

#[test]
fn what_is_no_host_is_not_healthy() {
    let place = Place::new();
    let ask = |args: &[&str]| place.host(&[&["health"], args].concat());
    let other = http::serve(|_| Answer::new(200, "<html>ok</html>")).to_string();
    is_sick(ask(&[&other]), "another server listens there, not a host");
    is_sick(ask(&[&other, "--ready"]), "another server listens there, not a host");
    let long = http::serve(|_| Answer::new(200, "x".repeat(1 << 20))).to_string();
    is_sick(ask(&[&long]), "no HTTP answer");
    // This server accepts connections, but never answers.
    let hung = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hung.local_addr().unwrap().to_string();
    is_sick(ask(&[&address]), "no answer within 4s");
    is_sick(ask(&[]), "no address with a port is given");
    is_sick(ask(&["127.0.0.1:0"]), "no address with a port is given");
    let mut command = place.command(&["health"]);
    is_sick(Finished::run(command.env("HOST_LISTEN", "everywhere")), "is not an address");
}
