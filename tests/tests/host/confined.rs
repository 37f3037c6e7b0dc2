//! The kernel's rules for the whole process of a host. They apply before a message is read, and to
//! the programs that the host starts. The host reports when the kernel cannot enforce them.
//!
//! These tests need a kernel with Landlock and seccomp filters, and fail without them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::http::{Answer, Request, serve};
use task_host_tests::{Finished, Place, Running, Watched, no_op, python};

/// The words of `host run` and `host doctor` for a fully confined host.
const CONFINED: &str = "keeps this host to its files and TCP ports (Landlock) and from system calls \
    that no host needs (seccomp)";

/// A task of `NO_OP` with this input.
fn task(input: &str) -> Value {
    no_op(1, &[input.to_owned()])
}

/// A place, and a directory that does not belong to the host.
fn place_and_elsewhere() -> (Place, tempfile::TempDir) {
    let elsewhere = tempfile::tempdir_in("/var/tmp").expect("a directory");
    fs::write(elsewhere.path().join("file.dat"), "content").expect("a file");
    (Place::with(&["NO_OP"]), elsewhere)
}

/// Creates a symbolic link in the bucket of a place.
fn link(place: &Place, key: &str, target: &Path) {
    let link = place.path().join("bucket").join(key);
    fs::create_dir_all(link.parent().expect("a directory")).expect("a prefix");
    symlink(target, link).expect("a link");
}

fn kernel(log: &str) -> Option<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| line["kernel"].as_str().map(str::to_owned)).next()
}

#[test]
fn every_thread_of_a_host_is_confined() {
    let place = Place::with(&["NO_OP"]);
    place.submit(&place.innocent(1));
    let host = place.watch(&[]);
    place.innocent_are_done(1);
    let threads = fs::read_dir(format!("/proc/{}/task", host.host().pid().as_raw_nonzero()));
    let mut count = 0;
    for thread in threads.expect("threads").flatten() {
        let status = fs::read_to_string(thread.path().join("status")).expect("a status");
        for line in ["NoNewPrivs:\t1\n", "Seccomp:\t2\n"] {
            assert!(status.contains(line), "{line:?} is not in\n{status}");
        }
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
        let effective = u64::from_str_radix(effective.expect("a line"), 16).expect("a number");
        for (name, number) in [("SYS_PTRACE", 19), ("SYS_ADMIN", 21), ("PERFMON", 38)] {
            assert_eq!(effective >> number & 1, 0, "a thread has CAP_{name}");
        }
        count += 1;
    }
    assert!(count > 5, "{count} threads");
    let said = kernel(&host.host().stderr()).expect("a line about the kernel");
    assert!(said.ends_with(CONFINED), "{said}");
    host.stop();
}

/// Checks the order of the system calls of the real host.
#[test]
fn a_host_confines_itself_before_it_reads_a_message() {
    let place = Place::with(&["NO_OP"]);
    place.submit(&place.innocent(1));
    let trace = place.path().join("trace");
    let strace = ["strace", "-f", "-qq", "-o", trace.to_str().expect("text")];
    let run = ["run", "--fq", "./queue", "--exit-when-empty"];
    Finished::run(&mut place.command_by(&strace, &run)).good();
    let trace = fs::read_to_string(trace).expect("a trace");
    let line = |parts: &[&str]| {
        let has_all = |line: &str| parts.iter().all(|part| line.contains(part));
        let found = trace.lines().position(has_all);
        found.unwrap_or_else(|| panic!("no line of the trace has {parts:?}"))
    };
    let first = |part: &str| line(&[part]);
    // The name of a message's file is `TIME--ID.json`.
    let message = line(&["--", ".json\""]);
    for call in
        ["landlock_restrict_self(", "seccomp(SECCOMP_SET_MODE_FILTER", "PR_SET_NO_NEW_PRIVS"]
    {
        assert!(first(call) < message, "{call} comes after the first message");
    }
    let own = first("landlock_restrict_self(");
    assert!(own < first("CLONE_THREAD"), "a thread was started before");
}

#[test]
fn a_link_near_the_root_of_the_bucket_may_lead_anywhere() {
    let (place, elsewhere) = place_and_elsewhere();
    link(&place, "data/linked", elsewhere.path());
    place.submit(&[task("linked/file.dat")]);
    place.run_until_empty(&[]).good();
    assert_eq!(place.object("data/linked/file.dat").as_deref(), Some(&b"content"[..]));
    assert!(place.errors().is_empty());
}

#[test]
fn a_file_that_no_setting_names_is_refused_and_the_error_says_how_to_name_it() {
    let (place, elsewhere) = place_and_elsewhere();
    link(&place, "data/so/deep/that/nobody/looks", elsewhere.path());
    let run = |args: &[&str]| {
        place.submit(&[task("so/deep/that/nobody/looks/file.dat")]);
        place.run_until_empty(&[&["--max-attempts", "1"], args].concat())
    };
    run(&[]).code(3);
    let error = place.the_error();
    let said = error["exception"].as_str().expect("what went wrong");
    let file = elsewhere.path().join("file.dat");
    let want = format!(
        "{} is not among the directories that this host may use since it confined itself: name its \
         directory with --confine-allow",
        file.display()
    );
    assert!(said.contains(&want), "{said}");

    let named = elsewhere.path().to_str().expect("text");
    run(&["--confine-allow", named]).good();
    run(&["--confine", "off"]).good();
    assert_eq!(place.errors().len(), 1);
}

#[test]
fn a_path_that_is_allowed_has_to_exist() {
    let place = Place::new();
    let ended = place.run(&["--confine-allow", "/tmp:/there/is/none"]).code(2);
    let want = "--confine-allow: \"/tmp:/there/is/none\" has \"/there/is/none\", which does not \
        exist";
    assert!(ended.stderr.contains(want), "{}", ended.stderr);
}

/// A web server's answer cannot send the host to another service on its machine.
#[test]
fn only_ports_that_settings_name_are_connected_to() {
    let place = Place::with(&["NO_OP"]);
    let asked = Arc::new(AtomicUsize::new(0));
    let counts = asked.clone();
    let inner = serve(move |_: &Request| {
        counts.fetch_add(1, Ordering::SeqCst);
        Answer::new(200, "content")
    });
    let outer = serve(move |request: &Request| {
        let mut answer = Answer::new(302, "");
        answer.headers.push(("location".to_owned(), format!("http://{inner}{}", request.path)));
        answer
    });
    let bucket = format!("http://{outer}/");
    let run = |args: &[&str]| {
        place.submit(&[task("a.dat")]);
        let command = ["--input-bucket", &bucket, "--max-tasks", "1", "--for", "2s"];
        place.run(&[&command, args].concat())
    };
    let ended = run(&[]);
    assert_eq!(asked.load(Ordering::SeqCst), 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("this host confines itself"), "{}", ended.stderr);
    run(&["--confine", "off"]);
    assert!(asked.load(Ordering::SeqCst) > 0, "the server is reached by a host that may");
}

/// A program that prints credentials, as an AWS profile may name one, and that also tries forbidden
/// actions.
fn credential_program(place: &Place, tries: &str) {
    let program = place.path().join("helper/credentials");
    fs::create_dir_all(program.parent().expect("a directory")).expect("a directory");
    let answer = json!({"Version": 1, "AccessKeyId": "AKIA", "SecretAccessKey": "secret"});
    let text = format!("#!/bin/sh\n{tries}\necho '{answer}'\n");
    fs::write(&program, text).expect("a program");
    Finished::run(Command::new("chmod").arg("+x").arg(&program)).good();
    let config = place.path().join("home/.aws/config");
    fs::create_dir_all(config.parent().expect("a directory")).expect("a directory");
    let profile =
        format!("[default]\nregion = eu-west-1\ncredential_process = {}\n", program.display());
    fs::write(config, profile).expect("a profile");
}

#[test]
fn a_program_that_prints_credentials_runs_under_the_same_rules() {
    let (place, elsewhere) = place_and_elsewhere();
    let results = place.path().join("helper/results");
    let tried = [
        ("reads another file", format!("cat {}/file.dat", elsewhere.path().display())),
        ("writes another file", format!("touch {}/new", elsewhere.path().display())),
        ("makes a namespace", "unshare --mount true".to_owned()),
        ("makes a user namespace", "unshare --user true".to_owned()),
        ("mounts", format!("mount -t tmpfs none {}", elsewhere.path().display())),
        ("signals the test", format!("kill -URG {}", std::process::id())),
        ("reads the variables of the test", format!("cat /proc/{}/environ", std::process::id())),
        ("reads a variable of its own", "cat /proc/self/environ".to_owned()),
    ];
    let tries: Vec<String> = tried
        .iter()
        .map(|(what, call)| {
            format!("if {call} >/dev/null 2>&1; then echo '{what}' >> {}; fi", results.display())
        })
        .collect();
    credential_program(&place, &tries.join("\n"));
    // No server listens at this address. The test needs only the request for credentials.
    let run = |args: &[&str]| -> Vec<String> {
        let _ = fs::remove_file(&results);
        let queue = "https://sqs.eu-west-1.amazonaws.com/000000000000/q";
        let error = ["--error-queue", "./queue-errors", "--bucket", "./bucket"];
        let mut host = place.command(&[&["run", "--queue", queue], &error[..], args].concat());
        host.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9").env("TMPDIR", place.path());
        host.env("AWS_EC2_METADATA_DISABLED", "true");
        Finished::run(&mut host);
        let text = fs::read_to_string(&results).expect("the program ran to its end");
        text.lines().map(str::to_owned).collect()
    };
    assert_eq!(run(&["--for", "1s"]), ["reads a variable of its own"]);
    // Without the rules, all these actions work on this machine, so the rules make the difference.
    assert_eq!(run(&["--for", "1s", "--confine", "off"]).len(), tried.len());
    let _ = Command::new("umount").arg("-l").arg(elsewhere.path()).status();
}

/// Runs `host` with a filter that makes some system calls look as if the kernel lacked them.
fn without(place: &Place, calls: &str, args: &[&str]) -> Finished {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/without_calls.py");
    let python = python("python");
    let [script, python] = [&script, &python].map(|path| path.to_str().expect("text"));
    Finished::run(&mut place.command_by(&[python, script, calls], args))
}

/// The numbers of `landlock_create_ruleset` and `seccomp`.
const LANDLOCK: &str = "444";
const SECCOMP: &str = if cfg!(target_arch = "x86_64") { "317" } else { "277" };

#[test]
fn a_kernel_without_the_rules_is_told_of_and_refused_where_they_are_required() {
    let place = Place::with(&["NO_OP"]);
    let run = ["run", "--fq", "./queue", "--exit-when-empty", "--log-format", "json"];
    let check = |calls: &str, says: &str| {
        place.submit(&place.innocent(1));
        let ran = without(&place, calls, &run).good();
        let said = kernel(&ran.stderr).expect("a line about the kernel");
        assert!(said.ends_with(says), "{said}");
        let refused = without(&place, calls, &[&run[..], &["--confine", "require"]].concat());
        let refused = refused.code(2);
        let want = format!("--confine require: the kernel {said}");
        assert!(refused.stderr.contains(&want), "{}", refused.stderr);
        let doctor = without(&place, calls, &["doctor", "--fq", "./queue", "--confine", "require"]);
        let doctor = doctor.code(1);
        assert!(doctor.stdout.contains(&format!("problem  kernel: {said}")), "{}", doctor.stdout);
    };
    check(LANDLOCK, "; keeps this host from system calls that no host needs (seccomp)");
    check(SECCOMP, "; keeps this host to its files and TCP ports (Landlock)");
    check(&format!("{LANDLOCK},{SECCOMP}"), "; does not confine this host");

    place.submit(&place.innocent(1));
    place.run_until_empty(&["--confine", "require"]).good();
}

/// The host runs in its user's home directory. A directory that replaces the queue there is outside
/// the rules.
#[test]
fn a_queue_that_is_replaced_in_the_home_directory_asks_for_a_restart() {
    let place = Place::new();
    fs::create_dir(place.path().join("home/bucket")).expect("a bucket");
    let queue = place.path().join("home/queue");
    let start = || -> Watched {
        let queues = ["--fq", "./home/queue", "--error-queue", "./home/errors"];
        let others = ["--bucket", "./home/bucket", "--cache-dir", "./home/cache"];
        let args = [&["run"], &queues[..], &others, &Watched::FLAGS].concat();
        let command = place.command(&args);
        Watched::new(Running::start(command, &place.path().join("logs")))
    };
    let host = start();
    let moved = place.path().join("moved");
    host.in_one_moment(|| {
        fs::rename(&queue, &moved).expect("it is moved");
        Finished::run(Command::new("cp").arg("-aT").args([&moved, &queue])).good();
    });
    host.is_out("or restart the host, if a directory was replaced");
    host.host().signal(Signal::KILL);
    drop(host);
    let host = start();
    host.stop();
}
