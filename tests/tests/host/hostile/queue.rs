//! A queue directory that other programs write to, and malicious messages. The host continues,
//! reports the problem, loses nothing, and stops when it is told to.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Place, Running, eventually, python};

/// How many bytes of memory a message may cost a host.
const MORE: u64 = 300 << 20;

/// Puts a message with this body into the queue, under this id.
fn put(place: &Place, id: &str, body: impl AsRef<[u8]>) {
    let queue = place.path().join("queue");
    fs::write(queue.join(format!("movement/{id}")), format!("0--{id}.json\n")).expect("a file");
    fs::write(queue.join(format!(".{id}")), body).expect("a message");
    fs::rename(queue.join(format!(".{id}")), queue.join(format!("queue/0--{id}.json")))
        .expect("a message in its place");
}

fn fifo(path: &Path) {
    let _ = fs::remove_file(path);
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).expect("a pipe");
}

/// The peak memory of a host so far, in bytes.
fn most_memory(host: &Running) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a figure");
    let kilobytes = line.trim().split(' ').next().expect("a number");
    kilobytes.parse::<u64>().expect("a number") << 10
}

/// A host that has finished one task, and its peak memory until then.
fn working_host(place: &Place, args: &[&str]) -> (Running, u64) {
    place.submit(&place.innocent(1));
    let host = place.start(&[&["--max-attempts", "1"], args].concat());
    eventually("a first task", || place.object("data/0_output/0.dat"));
    let memory = most_memory(&host);
    (host, memory)
}

fn exceptions(place: &Place) -> Vec<String> {
    let text = |report: Value| report["exception"].as_str().expect("a text").to_owned();
    place.errors().into_iter().map(text).collect()
}

#[test]
fn pipes_links_and_directories_in_a_queue_hold_up_neither_tasks_nor_the_end() {
    let place = Place::with(&["NO_OP"]);
    place.submit(&place.innocent(6));
    let queue = place.path().join("queue");
    let secret = place.path().join("secret");
    fs::write(&secret, "a secret").expect("a file");
    let put: [&dyn Fn(&Path); 4] = [
        &fifo,
        &|path| fs::create_dir(path).expect("a directory"),
        &|path| symlink(&secret, path).expect("a link"),
        &|path| drop(std::os::unix::net::UnixListener::bind(path).expect("a socket")),
    ];
    let ids = task_host_tests::files(&queue.join("movement"));
    for (id, put) in ids.iter().zip(put) {
        // A host ignores a message without a movement file until the message is old.
        let message = File::options().write(true).open(queue.join(format!("queue/0--{id}.json")));
        let then = SystemTime::now() - Duration::from_secs(3600);
        message.and_then(|file| file.set_modified(then)).expect("an older message");
        fs::remove_file(queue.join("movement").join(id)).expect("no movement file");
        put(&queue.join("movement").join(id));
    }
    for (n, put) in put.iter().enumerate() {
        put(&queue.join(format!("queue/0--evil-{n}.json")));
    }
    fifo(&queue.join("insertions"));
    fifo(&queue.join("completions"));
    fifo(&queue.join("host/attempts/a"));
    fifo(&queue.join("host/tmp/.lock"));
    fifo(&queue.join("host/tmp/process/.lock"));
    let host = place.start(&[]);
    for id in 0..6 {
        eventually("an output", || place.object(&format!("data/0_output/{id}.dat")));
    }
    host.signal(Signal::TERM);
    let ended = host.wait().good();
    assert!(ended.stderr.contains("host/refused/"), "{}", ended.stderr);
    assert_eq!(fs::read_to_string(&secret).expect("the secret"), "a secret");
    let status = place.host(&["queue", "status", "./queue", "--json"]).good();
    let status: Value = serde_json::from_str(&status.stdout).expect("a status");
    assert_eq!((&status["enqueued"], &status["completed"]), (&json!(0), &json!(6)), "{status}");
    for command in ["ls", "release", "rezero", "purge"] {
        let yes: &[&str] = if command == "ls" { &[] } else { &["--yes"] };
        place.host(&[&["queue", command, "./queue"], yes].concat()).good();
    }
    assert!(queue.join("queue/0--evil-0.json").exists(), "it is not the host's");
}

#[test]
fn files_of_8_gib_are_not_read_and_the_message_is_reported_and_kept() {
    const LONG: u64 = 8 << 30;
    let place = Place::with(&["NO_OP"]);
    let (host, before) = working_host(&place, &[]);
    let queue = place.path().join("queue");
    let long = |name: &str| {
        let file = File::create(queue.join(name)).expect("a file");
        file.set_len(LONG).expect("a file that takes no room");
    };
    long("movement/of-a-task");
    fs::write(queue.join(".of-a-task"), place.innocent(2)[1].to_string()).expect("a message");
    long("movement/long");
    long(".long");
    for id in ["of-a-task", "long"] {
        fs::rename(queue.join(format!(".{id}")), queue.join(format!("queue/0--{id}.json")))
            .expect("a message in its place");
    }
    eventually("an output", || place.object("data/0_output/1.dat"));
    let report = eventually("a report", || place.errors().pop());
    let exception = report["exception"].as_str().expect("a text");
    assert!(exception.contains("0--long.json has 8589934592 bytes"), "{exception}");
    assert!(exception.contains("host/refused/long.json"), "{exception}");
    assert_eq!(report["task"], "");
    let kept = queue.join("host/refused/long.json");
    let size = eventually("the kept file", || Some(fs::metadata(&kept).ok()?.len()));
    assert_eq!(size, LONG, "it is lost");
    eventually("an empty queue", || (place.counts() == (0, 0)).then_some(()));
    let memory = most_memory(&host);
    assert!(memory < before + MORE, "{memory} after {before}");
    host.signal(Signal::TERM);
    host.wait().good();
    // A message without text cannot be redriven, and stays.
    let redriven = place.host(&["queue", "redrive", "./queue"]).code(3);
    assert!(redriven.stderr.contains("not a task"), "{}", redriven.stderr);
    assert_eq!(place.errors().len(), 1);
}

#[test]
fn messages_made_to_exhaust_a_host_are_reported_in_a_few_words() {
    let place = Place::with(&["NO_OP"]);
    let (host, before) = working_host(&place, &[]);
    let info = |inner: &str| {
        let names = r#""name": "NO_OP", "base_directory": "d""#;
        format!(r#"{{"basic_info": {{{names}, {inner}}}}}"#)
    };
    let digits = "9".repeat(2_000_000);
    let bodies = [
        (
            info(&format!(r#""inputs": [{}"a"]"#, r#""a","#.repeat(1_500_000))),
            "more than 100000 keys",
        ),
        (info(&format!(r#""id": {digits}"#)), "basic_info.id: expected a 64-bit integer"),
        (info(&format!(r#""inputs": ["{digits}"]"#)), "basic_info.inputs[0]"),
        (info(&format!(r#""{digits}": 1"#)), "has an unknown field"),
        (format!("{{{}\"\": 1}}", r#""":1,"#.repeat(1_000_000)), "has neither `basic_info`"),
        ("[".repeat(10_000_000), "is not JSON"),
        ("[".repeat(30_000_000), "put large data into an input"),
        ("\0".repeat(2_000_000), "is not JSON"),
    ];
    for (n, (body, _)) in bodies.iter().enumerate() {
        put(&place, &format!("evil-{n}"), body);
    }
    eventually("the reports", || {
        (task_host_tests::files(&place.path().join("queue-errors/queue")).len() == bodies.len())
            .then_some(())
    });
    let exceptions = exceptions(&place);
    for (_, want) in &bodies {
        let found = exceptions.iter().find(|exception| exception.contains(want));
        let found = found.unwrap_or_else(|| panic!("{want} is not in {exceptions:?}"));
        assert!(found.len() < 1000, "{found}");
    }
    place.submit(&place.innocent(1));
    eventually("an empty queue", || (place.counts() == (0, 0)).then_some(()));
    let memory = most_memory(&host);
    assert!(memory < before + MORE, "{memory} after {before}");
    host.signal(Signal::TERM);
    host.wait().good();
}

/// A program that reads each line of standard input, or each file in its arguments, with the
/// standard parser of Python or JavaScript.
const PYTHON: &str = "
import json, sys
texts = [open(f).read() for f in sys.argv[1:]] or [line for line in sys.stdin if line.strip()]
for text in texts:
  json.dumps(json.loads(text)).encode()
print(len(texts))
";
const NODE: &str = "
const fs = require('fs'), files = process.argv.slice(1);
const lines = () => fs.readFileSync(0, 'utf8').split('\\n').filter(line => line.trim());
const texts = files.length ? files.map(f => fs.readFileSync(f, 'utf8')) : lines();
texts.forEach(text => JSON.stringify(JSON.parse(text)));
console.log(texts.length);
";

/// Checks that other programs can read all of these texts.
#[track_caller]
fn others_read(files: &[String], lines: Option<&Path>) {
    let count = match lines {
        Some(lines) => fs::read_to_string(lines).expect("lines").lines().count(),
        None => files.len(),
    };
    let run = |mut command: Command| {
        command.args(files);
        let input = lines.map_or("/dev/null".as_ref(), |lines| lines);
        let output = command.stdin(File::open(input).expect("a file")).output().expect("a reader");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{command:.60?}: {}",
            &said[said.len().saturating_sub(900)..]
        );
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), count.to_string());
    };
    let mut reader = Command::new(python("python"));
    reader.args(["-c", PYTHON]);
    run(reader);
    // Not every machine has Node.js.
    if Command::new("node").arg("--version").output().is_ok() {
        let mut reader = Command::new("node");
        reader.args(["-e", NODE, "--"]);
        run(reader);
    }
}

#[test]
fn whatever_a_message_holds_other_programs_read_its_report_and_it_goes_back_as_it_was() {
    let place = Place::new();
    let task = |payload: &str| {
        let info = r#"{"id": 1, "name": "nothing", "base_directory": "d"}"#;
        format!(r#"{{"basic_info": {info}, "payload_info": {payload}}}"#)
    };
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let tasks = [
        task(&deep(90)),
        task(&deep(100_000)),
        task(&format!("{}1{}", "{\"a\":".repeat(50_000), "}".repeat(50_000))),
        task(&"9".repeat(1_000_000)),
        task(&format!("-{}", "9".repeat(4_301))),
        task(&format!("0.{}", "3".repeat(1_000_000))),
        task("1e999999999"),
        task(&"9".repeat(400)),
        task("[NaN, -Infinity]"),
        task(r#"["\ud800", "\udc00\ud800"]"#),
        task(r#""\u0000 \u001b[31m \uffff""#),
        task(r#"{"a": 1, "a": 2}"#),
        task("\"\u{202e} \u{2028} \u{feff} \u{fffe}\""),
        task(&format!("\"{}\"", "\\u0000".repeat(100_000))),
    ];
    let no_tasks = [
        deep(100_000),
        "9".repeat(1_000_000),
        "\0\u{1}\u{ffff}".to_owned(),
        r#"{"basic_info": {"name": "\ud800"}}"#.to_owned(),
        String::new(),
    ];
    place.submit_text(&tasks.join("\n"));
    for (n, body) in no_tasks.iter().enumerate() {
        put(&place, &format!("evil-{n}"), body);
    }
    let run = place.run_until_empty(&["--max-attempts", "1", "--log-format", "json"]).code(3);
    let reports = place.path().join("queue-errors/queue");
    let files: Vec<String> = task_host_tests::files(&reports)
        .into_iter()
        .map(|name| reports.join(name).to_string_lossy().into_owned())
        .collect();
    assert_eq!(files.len(), tasks.len() + no_tasks.len());
    others_read(&files, None);
    let log = place.path().join("log");
    fs::write(&log, run.stderr).expect("a log");
    others_read(&[], Some(&log));
    let listed = |queue: &str| {
        let lines = place.host(&["queue", "ls", queue, "--json"]).good().stdout;
        let file = place.path().join("lines");
        fs::write(&file, &lines).expect("a file");
        others_read(&[], Some(&file));
    };
    listed("./queue-errors");

    place.host(&["queue", "redrive", "./queue"]).code(3);
    assert_eq!(place.errors().len(), no_tasks.len(), "what is no task stays");
    listed("./queue");
    let queue = place.path().join("queue/queue");
    let mut back: Vec<String> = task_host_tests::files(&queue)
        .into_iter()
        .map(|name| {
            let message = fs::read_to_string(queue.join(name)).expect("a message");
            // The queue adds only its own id.
            let (task, _) = message.rsplit_once(r#","id":""#).expect("an id at the end");
            format!("{task}}}")
        })
        .collect();
    let mut sent = tasks.to_vec();
    back.sort();
    sent.sort();
    assert!(back == sent, "what came back is not what was sent");
}

#[test]
fn inputs_and_components_that_are_no_files_are_said_to_be_none() {
    let place = Place::with(&["NO_OP"]);
    let bucket = place.path().join("bucket");
    fs::create_dir_all(bucket.join("d/dir")).expect("a directory");
    fifo(&bucket.join("d/fifo"));
    drop(std::os::unix::net::UnixListener::bind(bucket.join("d/socket")).expect("a socket"));
    fifo(&bucket.join("components/pipe.wasm"));
    let task = |name: &str, inputs: &[&str]| json!({"basic_info": {"name": name, "base_directory": "d", "inputs": inputs}});
    for inputs in [&["fifo"][..], &["socket"], &["dir"], &["fifo", "socket"]] {
        place.submit(&[task("NO_OP", inputs)]);
    }
    place.submit(&[task("pipe", &[])]);
    place.submit(&place.innocent(3));
    let run = place.start(&["-x", "--max-attempts", "2", "--retry-after", "10ms"]);
    run.wait().code(3);
    for id in 0..3 {
        assert!(place.object(&format!("data/0_output/{id}.dat")).is_some(), "{id}");
    }
    let exceptions = exceptions(&place).join("\n");
    for want in [
        "input `fifo`: ",
        "input `socket`: ",
        "key `d/socket` is not a regular file",
        "key `d/fifo` is not a regular file",
        "key `d/dir` is a directory, not an object",
        "pipe.wasm",
    ] {
        assert!(exceptions.contains(want), "{want} is not in {exceptions}");
    }
}
