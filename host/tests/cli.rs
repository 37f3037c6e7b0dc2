//! Tests of the real program, as people and scripts use it.

#[path = "cli/compiling.rs"]
mod compiling;
#[path = "cli/guest.rs"]
mod guest;
#[path = "cli/slips.rs"]
mod slips;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use guest::{End, component};

/// A temporary working directory, with its own cache.
struct Place {
    dir: tempfile::TempDir,
}

/// The result of a command.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn host(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host"));
        command.args(line.split_whitespace()).current_dir(self.dir.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HOST_") {
                command.env_remove(name);
            }
        }
        command.env("XDG_CACHE_HOME", self.path(".cache")).env("HOST_LOG_FORMAT", "human");
        command
    }

    fn run(&self, line: &str) -> Ended {
        Ended::of(self.host(line).output().unwrap())
    }

    fn feed(&self, line: &str, stdin: &[u8]) -> Ended {
        let mut child = self
            .host(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        Ended::of(child.wait_with_output().unwrap())
    }

    /// The number of messages in a queue.
    fn enqueued(&self, queue: &str) -> u64 {
        let status = self.run(&format!("queue status {queue} --json")).ok();
        let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
        status["enqueued"].as_u64().unwrap()
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }
}

impl Ended {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "\n{}\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn ok(self) -> Self {
        self.exits(0)
    }

    #[track_caller]
    fn says(self, text: &str) -> Self {
        let all = format!("{}{}", self.stdout, self.stderr);
        assert!(all.contains(text), "no {text:?} in\n{all}");
        self
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

fn task(id: i64) -> String {
    format!(r#"{{"basic_info": {{"id": {id}, "name": "NO_OP", "base_directory": "d"}}}}"#)
}

fn lines(ids: std::ops::Range<i64>) -> String {
    ids.map(|id| task(id) + "\n").collect()
}

#[test]
fn one_command_works_in_an_empty_directory() {
    let place = Place::new();
    let ended = place.run("run --fq ./queue -x").ok();
    let ended = ended.says("queue       fq://./queue (created)");
    let ended = ended.says("bucket      ./bucket (created)");
    ended.says("errors to   fq://./queue-errors (created)").says("0 done");
    for made in ["queue", "queue-errors", "bucket", ".cache/task-host"] {
        assert!(place.has(made), "{made}");
    }
    // The second time, nothing is created.
    let again = place.run("run --fq ./queue -x").ok();
    assert!(!again.stderr.contains("created"), "{}", again.stderr);
}

#[test]
fn tasks_are_run_and_what_came_of_them_is_said() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.write("bad.wasm", component(End::Reject));
    place.run("component push good.wasm --name NO_OP").ok().says("pushed NO_OP");
    place.run("component push bad.wasm --name BAD --bucket ./bucket").ok();
    place.feed("submit --fq ./queue", lines(0..5).as_bytes()).ok().says("5 tasks sent");
    let done = place.run("run --fq ./queue -x --json").ok().json();
    assert_eq!((&done["done"], &done["failed"]), (&5.into(), &0.into()), "{done}");
    assert_eq!(done["stopped"], "finished");
    assert_eq!(done["queue_counts"]["enqueued"], 0);
    assert!(done["steps"]["run"].as_f64().unwrap() > 0.0);

    place.run("submit --fq ./queue --name BAD --base-directory d").ok();
    let ended = place.run("run --fq ./queue -x").exits(3);
    ended.says("1 rejected").says("host queue errors fq://./queue");
    place.run("queue ls ./queue-errors").ok().says("no good");

    // The component is fixed, and the task sent back.
    place.run("component push good.wasm --name BAD").ok().says("replaced BAD");
    place.run("submit --fq ./queue --from-errors ./queue-errors").ok().says("1 task sent");
    assert_eq!(place.enqueued("queue-errors"), 0);
    place.run("run --fq ./queue -x").ok().says("1 done");
}

#[test]
fn a_damaged_cache_is_found_put_right_and_fetched_again() {
    let place = Place::new();
    place.run("cache verify").ok().says("there is no cache yet");
    place.write("good.wasm", component(End::Done));
    place.write("bucket/d/a", "an input");
    place.run("component push good.wasm --name NO_OP").ok();
    let submit = "submit --fq ./queue --name NO_OP --base-directory d --input a";
    place.run(submit).ok();
    place.run("run --fq ./queue -x").ok().says("1 done");
    place.run("cache verify").ok().says("1 file").says("nothing is damaged");

    let cache = place.path(".cache/task-host");
    let mut files = Vec::new();
    for part in ["blobs", "compiled"] {
        for folder in fs::read_dir(cache.join(part)).unwrap() {
            files.extend(fs::read_dir(folder.unwrap().path()).unwrap().map(|f| f.unwrap().path()));
        }
    }
    assert_eq!(files.len(), 2);
    for file in &files {
        let mut bytes = fs::read(file).unwrap();
        let half = bytes.len() / 2;
        bytes[half] ^= 1;
        fs::remove_file(file).unwrap();
        fs::write(file, bytes).unwrap();
    }
    // A run finds the damage by itself, and so does `cache verify`.
    place.run(submit).ok();
    place
        .run("run --fq ./queue -x")
        .ok()
        .says("1 done")
        .says("is not usable and is compiled again");
    place.run("cache verify --json").ok();

    fs::write(&files[0], "other bytes").unwrap();
    let found = place.run("cache verify --json").exits(3).json();
    assert_eq!((&found["blobs"], &found["damaged_blobs"]), (&1.into(), &1.into()), "{found}");
    assert_eq!((&found["compiled"], &found["damaged_compiled"]), (&1.into(), &0.into()));
    place.run("cache verify --cache-dir .cache/task-host").ok().says("0 files");
}

#[test]
fn a_host_without_a_queue_says_how_to_give_one() {
    Place::new()
        .run("run")
        .exits(2)
        .says("no queue is given")
        .says("hint: give a directory with --fq");
}

#[test]
fn a_bucket_that_was_named_wrongly_is_not_made() {
    let place = Place::new();
    place.run("run --fq ./queue -x --bucket ./bukcet").exits(1).says("bukcet");
    assert!(!place.has("bukcet"));
}

#[test]
fn inputs_come_from_a_bucket_of_their_own() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.run("component push good.wasm --name NO_OP").ok();
    place.write("inputs/d/a", "A");
    let submit = "submit --fq ./queue --name NO_OP --base-directory d --input a";
    place.run(submit).ok();
    let run = "run --fq ./queue -x --input-bucket";
    place.run(&format!("{run} ./inputs")).ok().says("1 done");
    // If the input bucket lacks an input, no other bucket is used.
    place.run(submit).ok();
    let ended = place.run(&format!("{run} ./bucket --max-attempts 1")).exits(3);
    ended.says("has no object `d/a`");
}

#[test]
fn a_bucket_of_a_cloud_that_can_not_be_used_is_said_at_the_start() {
    let place = Place::new();
    let aws = std::env::var("TASK_HOST_TEST_AWS")
        .expect("TASK_HOST_TEST_AWS is not set: this test is run by `cargo xtask test`");
    let run = |endpoint: &str, options: &str| {
        let mut host = place.host(&format!("run --fq ./queue -x {options}"));
        host.env("AWS_ENDPOINT_URL", endpoint).env("AWS_REGION", "us-east-1");
        host.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        Ended::of(host.output().unwrap())
    };
    let ended = run(&aws, "--bucket s3://no-such-bucket-here/data").exits(1);
    ended.says("there is no bucket `no-such-bucket-here`; check its name, or create it");
    let ended = run("http://127.0.0.1:9", "--bucket s3://bucket").exits(1);
    ended.says("no connection to the server").says("check the address or endpoint");
    let ended = run(&aws, "--bucket https://host/data").exits(1);
    ended.says("give it as --input-bucket");
    assert!(!place.has("queue"), "no queue is made for nothing");
}

#[test]
fn credentials_of_aws_are_found_where_its_tools_find_them() {
    let place = Place::new();
    let aws = std::env::var("TASK_HOST_TEST_AWS")
        .expect("TASK_HOST_TEST_AWS is not set: this test is run by `cargo xtask test`");
    let run = |variables: &[(&str, &str)]| {
        let mut host = place.host("component ls --bucket s3://no-such-bucket-here");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                host.env_remove(name);
            }
        }
        host.env("HOME", place.dir.path()).env("AWS_EC2_METADATA_DISABLED", "true");
        Ended::of(host.envs(variables.iter().copied()).output().unwrap()).exits(1)
    };
    let endpoint = ("AWS_ENDPOINT_URL_S3", &*aws);
    let none = run(&[endpoint, ("AWS_REGION", "us-east-1")]);
    none.says("no credentials for AWS were found").says("--anonymous");

    // This answer shows that credentials were found.
    let answer = "there is no bucket `no-such-bucket-here`";
    let program = r#"{"Version": 1, "AccessKeyId": "id", "SecretAccessKey": "key"}"#;
    place.write("credentials.json", program);
    let file = place.path("credentials.json");
    let profile = format!(
        "[profile work]\nregion = eu-west-1\nendpoint_url = {aws}\n\
         credential_process = /bin/cat {}\n",
        file.display()
    );
    place.write(".aws/config", profile);
    run(&[("AWS_PROFILE", "work")]).says(answer);

    let secret = r#"{"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}"#;
    place.write(".cloudvolume/secrets/aws-secret.json", secret);
    run(&[endpoint]).says(answer);
}

#[test]
fn values_that_make_no_sense_say_who_gave_them() {
    let place = Place::new();
    place
        .run("run --fq q --parallel many")
        .exits(2)
        .says("error: --parallel: \"many\" is not a whole number");
    place.run("run --fq q --lease 0s").exits(2).says("--lease: \"0s\" must be from 2s to 12h");
    let mut command = place.host("run --fq q");
    command.env("HOST_MEMORY", "lots");
    Ended::of(command.output().unwrap()).exits(2).says("HOST_MEMORY: \"lots\" is not a size");
    place.write("host.toml", "timeout = \"later\"");
    place.run("run --fq q").exits(2).says("host.toml: timeout: \"later\" is not a time");
    place.write("host.toml", "max-attempt = 3");
    place
        .run("run --fq q")
        .exits(2)
        .says("host.toml: there is no setting `max-attempt`")
        .says("did you mean `max-attempts`?");
    assert!(!place.has("q"), "nothing was begun");
}

#[test]
fn wrong_numbers_say_what_would_be_right() {
    let place = Place::new();
    place.write("a.wasm", component(End::Done));
    for (line, problem) in [
        ("run --fq q --parallel -1", r#"--parallel: "-1" must be 1 or more"#),
        ("run --fq q --timeout -5s", r#"--timeout: "-5s" is not a time"#),
        ("try a.wasm --memory -5", r#"--memory: "-5" is not a size"#),
        ("try a.wasm --id x", r#"--id: "x" is not a whole number"#),
        ("submit --fq q --name A --id x", "'--id <N>': is not a whole number"),
        ("submit --fq q --from-errors e --limit -1", "'--limit <N>': must be 0 or more"),
        ("queue redrive q --id 99999999999999999999", "'--id <N>': is too large"),
        ("top --fq q --reports 1e3", "'--reports <N>': is not a whole number"),
    ] {
        place.run(line).exits(2).says(problem);
    }
}

#[test]
fn a_table_of_the_file_is_checked_like_other_settings() {
    let place = Place::new();
    place.write("host.toml", "[tasks.shrink]\nmemory = \"lots\"\n");
    for command in ["run --fq q", "doctor --fq q", "config", "config --fq q"] {
        let said = "host.toml: [tasks.shrink]: memory: \"lots\" is not a size";
        place.run(command).exits(2).says(said);
    }
    place.write("host.toml", "[tasks.shrink]\nmax-outputs = 3\n");
    let said = "host.toml: [tasks.shrink]: there is no setting `max-outputs`";
    place.run("config").exits(2).says(said).says("did you mean `max-output`?");
    place.write("host.toml", "[task.shrink]\nmemory = 3\n");
    let said = "host.toml: there is no setting `task`";
    place.run("config").exits(2).says(said).says("did you mean `[tasks.NAME]`?");
    assert!(!place.has("q"), "nothing was begun");
}

#[test]
fn a_table_of_the_file_is_shown_after_the_general_settings() {
    let place = Place::new();
    let text = "[tasks.shrink]\nmemory = \"2GiB\"\n[tasks.\"a.b\"]\ntimeout = 9\n";
    place.write("host.toml", text);
    let shown = place.run("config --memory 3GiB --json").ok().json();
    for (name, value, from) in [
        ("memory", "3GiB", "--memory"),
        ("tasks.shrink.memory", "2GiB", "host.toml"),
        ("tasks.\"a.b\".timeout", "9", "host.toml"),
    ] {
        assert_eq!(shown[name], serde_json::json!({"value": value, "from": from}), "{name}");
    }
}

#[test]
fn a_machine_has_to_have_the_memory_of_the_largest_table() {
    let place = Place::new();
    place.write(
        "host.toml",
        "[tasks.mosaic]\nmemory = \"4GiB\"\n[tasks.edges]\nmemory = \"1MiB\"\n",
    );
    let told = place.run("doctor --fq q --parallel 200").stdout;
    assert!(told.contains("200 tasks of 4.0 GiB (`memory` in [tasks.mosaic]) may use"), "{told}");
}

#[test]
fn flags_come_before_variables_before_the_file_before_defaults() {
    let place = Place::new();
    place.write("host.toml", "queue = \"fq://from-file\"\nlease = \"7m\"\nparallel = 3\n");
    let mut command = place.host("config --parallel 5 --json");
    command.env("HOST_LEASE", "8m").env("HOST_PARALLEL", "4").env("HOST_MEMORY", "");
    let shown = Ended::of(command.output().unwrap()).ok().json();
    let check = |name: &str, value: &str, from: &str| {
        assert_eq!(shown[name]["value"], value, "{name}");
        assert_eq!(shown[name]["from"], from, "{name}");
    };
    check("queue", "fq://from-file", "host.toml");
    check("error-queue", "fq://from-file-errors", "default");
    check("lease", "8m", "HOST_LEASE");
    check("parallel", "5", "--parallel");
    check("prefetch", "(soon)", "default");
    // An empty variable counts as unset.
    check("memory", "1GiB", "default");

    let mut command = place.host("config");
    command.env("HOST_PARALEL", "4");
    Ended::of(command.output().unwrap()).ok().says("did you mean HOST_PARALLEL?");
    place.run("config --config other.toml").exits(2).says("--config: other.toml can't be read");
}

#[test]
fn bad_lines_are_told_by_number_while_the_good_ones_go_in() {
    let place = Place::new();
    let text = format!("{}\n\n{{\"x\": 1}}\n{}\nnonsense\n", task(1), task(2));
    let ended = place.feed("submit --fq ./queue", text.as_bytes()).exits(3);
    ended
        .says("standard input, line 3: message: has neither `basic_info`")
        .says("standard input, line 5: message: is not JSON")
        .says("2 tasks sent to fq://./queue; 2 refused");
    assert_eq!(place.enqueued("queue"), 2);
}

#[test]
fn with_all_or_nothing_a_bad_line_keeps_everything_out() {
    let place = Place::new();
    let bad = lines(0..1000) + "nonsense\n";
    let ended = place.feed("submit --fq ./queue --all-or-nothing", bad.as_bytes()).exits(3);
    ended.says("line 1001").says("nothing is sent");
    assert!(!place.has("queue"));
    place.write("good.jsonl", lines(0..1000));
    place.run("submit --fq ./queue --all-or-nothing good.jsonl").ok().says("1,000 tasks sent");
    place
        .feed("submit --fq ./queue --all-or-nothing", lines(0..10).as_bytes())
        .ok()
        .says("10 tasks sent");
    assert_eq!(place.enqueued("queue"), 1010);
}

#[test]
fn what_is_sent_is_what_was_written() {
    let place = Place::new();
    let line = r#"{ "basic_info": {"name": "A", "base_directory": "d"}, "payload_info": 1.50, "z": 12345678901234567890 }"#;
    place.feed("submit --fq ./queue", line.as_bytes()).ok();
    let listed = place.run("queue ls ./queue --json").ok();
    assert!(listed.stdout.contains(line), "{}", listed.stdout);
}

#[test]
fn who_interrupts_a_submit_learns_where_to_continue() {
    use rustix::process::Signal;
    // The reader waits for more bytes, or for the rest of a line.
    for (sent, code, rest) in [(Signal::INT, 130, ""), (Signal::TERM, 143, "{")] {
        let place = Place::new();
        let mut child = place
            .host("submit --fq ./queue --rejects rejects --json")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        write!(stdin, "{}nonsense\n{}", lines(0..1), lines(1..2)).unwrap();
        while !place.has("queue") || place.enqueued("queue") < 2 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        stdin.write_all(rest.as_bytes()).unwrap();
        signal(&child, sent);
        let ended = Ended::of(child.wait_with_output().unwrap()).exits(code);
        drop(stdin);
        let ended = ended.says("stopped after standard input, line 3; continue with line 4");
        let summary = ended.says("1 line kept in rejects").json();
        assert_eq!((&summary["sent"], &summary["refused"]), (&2.into(), &1.into()), "{summary}");
        assert_eq!(summary["stopped_after"], "standard input, line 3");
        assert_eq!(fs::read_to_string(place.path("rejects")).unwrap(), "nonsense\n");
    }
}

#[test]
fn numbers_of_python_are_kept_byte_for_byte() {
    let place = Place::new();
    let line = r#"{"basic_info": {"name": "BAD", "base_directory": "d"}, "payload_info": [NaN, -Infinity ,1.50], "x": Infinity}"#;
    place.feed("submit --fq ./queue", line.as_bytes()).ok();
    let listed = place.run("queue ls ./queue --json").ok().json();
    assert_eq!((&listed["message"], &listed["text"]), (&serde_json::Value::Null, &line.into()));
    place.write("bad.wasm", component(End::Reject));
    place.run("component push bad.wasm --name BAD").ok();
    place.run("run --fq ./queue -x").exits(3);
    // The report is JSON that every parser accepts.
    let report = place.run("queue ls ./queue-errors --json").ok().json();
    assert_eq!(report["message"]["task"], line);
    place.run("queue ls ./queue-errors").ok().says("BAD -1 in \"d\", 0 inputs: no good");
    place.run("queue redrive ./queue").ok().says("1 task sent back");
    let listed = place.run("queue ls ./queue --json").ok().json();
    assert_eq!(listed["text"], line);

    place.write("good.wasm", component(End::Done));
    let mut command = place.host("try good.wasm --payload");
    Ended::of(command.arg("[NaN]").output().unwrap()).ok();
    let mut command = place.host("submit --fq ./queue --name A --base-directory d --payload");
    Ended::of(command.arg("{\"x\": NaN}").output().unwrap()).ok();
    place.run("queue ls ./queue --json").ok().says(r#"\"payload_info\":{\"x\": NaN}"#);
}

#[test]
fn a_mark_that_an_editor_put_before_a_text_is_no_error() {
    let place = Place::new();
    let marked = |text: &str| format!("\u{feff}{text}");
    place.write("a.jsonl", marked(&lines(0..2)));
    place.write("b.jsonl", marked(&lines(2..4)).replace('\n', "\r\n"));
    place.write("host.toml", marked("queue = \"fq://./from-file\"\n"));
    place.run("submit a.jsonl b.jsonl").ok().says("4 tasks sent to fq://./from-file");
    let listed = place.run("queue ls ./from-file --json").ok().stdout;
    assert_eq!(listed.matches("\"message\":{").count(), 4, "{listed}");
    let utf16: Vec<u8> = marked(&task(1)).encode_utf16().flat_map(u16::to_le_bytes).collect();
    place.feed("submit", &utf16).exits(3).says("is UTF-16 text; it has to be UTF-8");
}

#[test]
fn more_memory_than_a_component_can_use_is_refused_and_why() {
    let place = Place::new();
    let ended = place.run("run --fq q --memory 8GiB").exits(2);
    ended
        .says("--memory: \"8GiB\" is more than a component can address")
        .says("the maximum is 4GiB");
    place.run("run --fq q -x --memory 4GiB").ok();
}

#[test]
fn a_variable_of_another_program_is_not_taken_for_a_slip() {
    let place = Place::new();
    let mut command = place.host("config");
    command.env("HOST_OS", "linux").env("HOST_IP", "::1").env("HOST_NAME", "vm");
    let no_text: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
    command.env("HOST_MOTTO", no_text);
    let ended = Ended::of(command.output().unwrap()).ok();
    assert_eq!(ended.stderr, "");
    let mut command = place.host("config");
    command.env("HOST_QUEUE", no_text);
    Ended::of(command.output().unwrap()).exits(2).says("HOST_QUEUE: is not UTF-8 text");
}

#[test]
fn an_object_that_no_task_can_be_made_of_is_refused_wherever_it_is_listed() {
    for bad in ["a", "m", "z"] {
        let place = Place::new();
        place.write(&format!("bucket/d/{bad}/x.png"), "x");
        for good in ["c", "n", "y"] {
            place.write(&format!("bucket/d/{good}/0_input/x.png"), "x");
        }
        let mut command = place.host("submit --fq ./queue --name A --each");
        let ended = Ended::of(command.arg("d/**/*.png").output().unwrap()).exits(3);
        let ended = ended.says("3 tasks sent to fq://./queue; 1 refused");
        ended.says(&format!("d/{bad}/x.png: has no base directory"));
        assert_eq!(place.enqueued("queue"), 3);
    }
    // If no object can become a task, the command line is wrong. The same holds for a payload that
    // is never JSON.
    let place = Place::new();
    place.write("bucket/d/x.png", "x");
    let mut command = place.host("submit --fq ./queue --name A --each");
    let ended = Ended::of(command.arg("d/*.png").output().unwrap()).exits(2);
    ended.says("hint: give --base-directory");
    let mut command = place.host("submit --fq ./queue --name A --payload [{key}] --each");
    Ended::of(command.arg("d/*.png").output().unwrap()).exits(2).says("--payload is not JSON");
    assert!(!place.has("queue"));
}

#[test]
fn a_file_that_is_not_there_keeps_the_others_out() {
    let place = Place::new();
    place.write("a.jsonl", lines(0..3));
    place.run("submit --fq ./queue a.jsonl b.jsonl").exits(1).says("can't read b.jsonl");
    assert!(!place.has("queue"));
}

#[test]
fn a_dry_run_leaves_nothing() {
    let place = Place::new();
    place
        .feed("submit --fq ./queue --dry-run", lines(0..3).as_bytes())
        .ok()
        .says("3 tasks would be sent");
    assert!(!place.has("queue"));
}

#[test]
fn every_object_that_matches_becomes_a_task() {
    let place = Place::new();
    for name in ["a.png", "b.png", "c.txt", "deep/d.png"] {
        place.write(&format!("bucket/datasets/cells/0_input/{name}"), "x");
    }
    let mut command = place.host("submit --fq ./queue --name EDGES");
    command.args(["--each", "datasets/cells/0_input/*.png"]);
    command.args(["--payload", r#"{"title": "{stem}", "n": {id}}"#, "--id", "7"]);
    Ended::of(command.output().unwrap()).ok().says("2 tasks sent");
    let listed = place.run("queue ls ./queue --json").ok().stdout;
    let mut tasks: Vec<serde_json::Value> = listed
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["message"].take())
        .collect();
    tasks.sort_by_key(|task| task["basic_info"]["id"].as_i64());
    let mut inputs = Vec::new();
    for (task, id) in tasks.iter().zip(7..) {
        let info = &task["basic_info"];
        assert_eq!((&info["id"], &info["base_directory"]), (&id.into(), &"datasets/cells".into()));
        assert_eq!(task["payload_info"]["n"], id);
        let title = task["payload_info"]["title"].as_str().unwrap();
        assert_eq!(info["inputs"][0], format!("0_input/{title}.png"));
        inputs.push(info["inputs"].clone());
    }
    assert_eq!(inputs.len(), 2);
    let mut command = place.host("submit --fq ./none --name EDGES --each nothing/*.png");
    let ended = Ended::of(command.output().unwrap()).exits(1);
    ended.says("no object of");
    assert!(!place.has("none"));
}

#[test]
fn an_option_of_another_kind_of_tasks_is_no_option_that_is_ignored() {
    let place = Place::new();
    place.write("tasks", lines(0..2));
    for (line, first, second) in [
        ("submit --fq q --name A --each d/* --limit 2", "--limit", "--each"),
        ("submit --fq q tasks --limit 2", "--limit", "[FILE]"),
        ("submit --fq q --skip-done --limit 2", "--limit", "--skip-done"),
        ("submit --fq q tasks --id 3", "--id", "[FILE]"),
        ("submit --fq q tasks --payload 3", "--payload", "[FILE]"),
        ("submit --fq q tasks --ids key", "--ids", "[FILE]"),
        ("submit --fq q --all-or-nothing --id 3", "--id", "--all-or-nothing"),
        ("submit --fq q --from-errors e --ids key", "--ids", "--from-errors"),
        ("receipts verify tasks --id 3", "--id", "[FILE]"),
        ("receipts audit tasks --input k", "--input", "[FILE]"),
        ("try a.wasm --input tasks --publish", "--publish", "--input"),
        ("try a.wasm tasks --publish", "--publish", "[INPUT]"),
    ] {
        let ended = place.run(line).exits(2).says(first).says(second);
        assert!(ended.stderr.contains("cannot be used with"), "{}", ended.stderr);
    }
    assert!(!place.has("q"));
    // Options that choose among the tasks of an error queue are accepted.
    place.feed("submit --fq q", lines(0..1).as_bytes()).ok();
    place.run("submit --fq r --from-errors q --name A --limit 2").ok();
}

#[test]
fn a_payload_that_is_no_json_says_about_its_quotes() {
    let place = Place::new();
    place
        .run("submit --fq q --name A --base-directory d --payload text")
        .exits(2)
        .says("--payload is not JSON")
        .says("a text needs its quotes");
    place.run("submit --fq q --name A").exits(2).says("--base-directory is missing");
    place
        .run("submit --fq q --name A --base-directory ../d")
        .exits(2)
        .says("basic_info.base_directory: \"../d\" has a `..` segment");
}

#[test]
fn only_the_wanted_reports_go_back() {
    let place = Place::new();
    let report = |name: &str| {
        format!(
            r#"{{"basic_info": {{"name": "{name}", "base_directory": "d"}}, "task": {{"basic_info": {{"name": "{name}", "base_directory": "d"}}}}, "exception": "x"}}"#
        )
    };
    // Reports that are also valid tasks, so that `submit` accepts them.
    let text = [report("A"), report("B"), report("A")].join("\n");
    place.feed("submit --fq ./errors", text.as_bytes()).ok();
    place.run("submit --fq ./queue --from-errors ./errors --dry-run").ok().says("3 tasks would be");
    assert_eq!(place.enqueued("errors"), 3);
    place
        .run("submit --fq ./queue --from-errors ./errors --name A --limit 1")
        .ok()
        .says("1 task sent");
    place
        .run("submit --fq ./queue --from-errors ./errors --name A")
        .ok()
        .says("1 task sent to fq://./queue; 1 does not match\n");
    assert_eq!((place.enqueued("queue"), place.enqueued("errors")), (2, 1));
    place.run("submit --fq ./queue --from-errors ./queue").exits(2);
    place.run("submit --fq ./queue --from-errors ./missing").exits(1).says("there is no queue");
    assert!(!place.has("missing"));
}

#[test]
fn wrong_files_are_not_pushed() {
    let place = Place::new();
    let check = |name: &str, contents: &[u8], want: &str| {
        place.write(name, contents);
        place.run(&format!("component push {name}")).exits(1).says(want);
    };
    let wat = |text: &str| wat::parse_str(text).unwrap();
    check("core.wasm", &wat("(module)"), "is a core module that is neither a program");
    check(
        "wasi1.wasm",
        &wat(r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))))"#),
        "wasm32-wasip2",
    );
    check("other.wasm", &wat("(component)"), "does not export `prepare`, `execute`, `finalize`");
    check("text.wasm", b"hello", "is a text file");
    let calls = r#"
        (core module $m (func (export "f")))
        (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i "f")))
        (export "prepare" (func $f)) (export "execute" (func $f)) (export "finalize" (func $f))"#;
    // Only the names of the exports are right.
    check("shape.wasm", &wat(&format!("(component {calls})")), "can't be run");
    check(
        "http.wasm",
        &wat(&format!(r#"(component (import "wasi:http/types@0.2.0" (instance)) {calls})"#)),
        "imports interfaces that hosts do not provide: wasi:http/types@0.2.0",
    );
    place.run("component push missing.wasm").exits(1).says("missing.wasm");
    assert!(!place.has("bucket"), "a bucket is not made for what is not pushed");
}

#[test]
fn what_was_pushed_is_listed_and_inspected() {
    let place = Place::new();
    place.write("x/edge_finder.wasm", component(End::Done));
    place
        .run("component push x/edge_finder.wasm --components ./parts")
        .ok()
        .says("created ./parts");
    assert!(place.has("parts/edge_finder.wasm"));
    place.run("component push x/edge_finder.wasm --name edges/v2").ok();
    assert!(place.has("bucket/components/edges/v2.wasm"));
    place.run("component ls").ok().says("edges/v2");
    let pushed = place.run("component inspect edges/v2 --json").ok().json();
    let file = place.run("component inspect x/edge_finder.wasm --json").ok().json();
    assert_eq!(pushed["digest"], file["digest"]);
    assert_eq!(pushed["name"], "edges/v2");
    assert_eq!(file["exports"], serde_json::json!(["prepare", "execute", "finalize"]));
    place.run("component inspect edges/v3").exits(1).says("is neither a file nor a component");
    place.run("component push x/edge_finder.wasm --name ../x").exits(2).says("has a `..` segment");
}

#[test]
fn a_component_has_a_history_and_goes_back_in_it() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.write("bad.wasm", component(End::Reject));
    place.write("trap.wasm", component(End::Trap));
    let digest = |name: &str| {
        let shown = place.run(&format!("component inspect {name} --json")).json();
        shown["digest"].as_str().unwrap().to_owned()
    };
    // A component that an older `host` or `cp` put there.
    place.write("bucket/components/A.wasm", component(End::Trap));
    place.run("component history A").ok().says("did not put there");
    place.run("component push good.wasm --name A").ok().says("replaced A");
    place.run("component push bad.wasm --name A").ok();
    let listed = place.run("component history A --json").ok().stdout;
    let versions: Vec<serde_json::Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let digests: Vec<&str> = versions.iter().filter_map(|v| v["digest"].as_str()).collect();
    assert_eq!(digests, [digest("bad.wasm"), digest("good.wasm"), digest("trap.wasm")], "{listed}");
    assert_eq!(versions[0]["is_current"], true);
    // `A.wasm` is the whole component, and versions are not listed as components.
    assert_eq!(digest("A"), digest("bad.wasm"));
    let shown = place.run("component ls").ok();
    assert_eq!(shown.stdout.lines().count(), 1, "{}", shown.stdout);

    place.run("component rollback A --dry-run").ok().says("would be");
    assert_eq!(digest("A"), digest("bad.wasm"));
    place.run("component rollback A").ok().says(&digest("good.wasm"));
    assert_eq!(digest("A"), digest("good.wasm"));
    place.run("submit --fq ./queue --name A --base-directory d").ok();
    place.run("run --fq ./queue -x").ok().says("1 done");
    place.run("component rollback A").ok();
    assert_eq!(digest("A"), digest("trap.wasm"));
    place.run("component rollback A").exits(1).says("no version before");
    place.run(&format!("component rollback A --to {}", &digest("bad.wasm")[..8])).ok();
    assert_eq!(digest("A"), digest("bad.wasm"));
    place.run("component rollback A --to 0000zz").exits(1).says("no version that begins with");

    place.run("component rm A").exits(2).says("add --yes");
    place.run("component rm A --dry-run").ok().says("would be removed");
    assert!(place.has("bucket/components/A.wasm"));
    place.run("component rm A --yes").ok().says("removed");
    place.run("component history A").ok().says("was removed");
    place.run("component rollback A").ok();
    assert_eq!(digest("A"), digest("bad.wasm"));
    let old = format!("A@{}", digest("trap.wasm"));
    place.run(&format!("component rm {old} --yes")).ok();
    assert!(!place.has(&format!("bucket/components/{old}.wasm")));
    place.run("component rm B --yes").exits(1).says("has no component");
}

#[test]
fn a_try_ends_as_a_run_would() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.write("bad.wasm", component(End::Reject));
    place.write("trap.wasm", component(End::Trap));
    place.write("a.txt", "hello");
    place.run("try good.wasm --input a.txt").ok().says("done in");
    place.run("try bad.wasm").exits(3).says("error: no good").says("`host run` would reject it");
    place
        .run("try trap.wasm --attempt 5")
        .exits(3)
        .says("error: the guest panicked")
        .says("reject it");
    place.run("try trap.wasm").exits(3).says("would try it again");
    place.run("try good.wasm --input missing.txt").exits(1).says("input missing.txt: No such file");
    place
        .run("try good.wasm --input a.txt --input a.txt")
        .exits(1)
        .says("another input has the key a.txt too");
    place.run("try good.wasm --out a.txt").exits(1).says("a.txt: is not a directory");
    place.run("try good.wasm --payload oops").exits(2).says("--payload is not JSON");
}

#[test]
fn a_try_reads_pipes_and_no_devices() {
    let place = Place::new();
    let good = component(End::Done);
    place.write("good.wasm", &good);
    place.feed("try good.wasm --input k=/dev/stdin", b"hello").ok().says("done in");
    place.feed("try - --input k=/dev/stdin", &good).exits(1).says("is read already");
    place.run("try good.wasm --input k=/dev/zero").exits(1).says("input /dev/zero: is a device");
}

#[test]
fn the_second_try_does_not_compile() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.run("try good.wasm").ok();
    let compiled = || {
        let mut files = Vec::new();
        let mut dirs = vec![place.path(".cache/task-host/compiled")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                } else {
                    files.push((entry.path(), entry.metadata().unwrap().modified().unwrap()));
                }
            }
        }
        files
    };
    let before = compiled();
    assert_eq!(before.len(), 1);
    place.run("try good.wasm").ok();
    assert_eq!(compiled(), before);
}

#[test]
fn queues_are_counted_copied_moved_and_purged() {
    let place = Place::new();
    place.feed("submit --fq ./a", lines(0..300).as_bytes()).ok();
    place.run("queue status ./a").ok().says("Inserted: 300\nEnqueued: 300 (100.0% left)");
    place.run("queue cp ./a ./b").ok().says("created fq://./b").says("300 messages copied");
    place.run("queue mv ./a ./c").ok().says("300 messages moved");
    assert_eq!((place.enqueued("a"), place.enqueued("b"), place.enqueued("c")), (0, 300, 300));
    place.run("queue mv ./b b").exits(2).says("the same queue");
    place.run("queue purge ./b").exits(2).says("add --yes");
    assert_eq!(place.enqueued("b"), 300);
    place.run("queue purge ./b --yes").ok().says("300 messages deleted");
    place.run("queue status ./b").ok().says("Inserted: 0\nEnqueued: 0 (--% left)");
    place.run("queue rezero ./c").exits(2).says("add --yes");
    place.run("queue rezero ./c --yes").ok();
    place.run("queue status ./c").ok().says("Inserted: 0\nEnqueued: 300");
    place.run("queue release ./c").exits(2).says("add --yes");
    place.run("queue release fq://./c --yes").ok().says("0 messages released");
    place.run("queue purge ./c --dry-run").ok().says("has 300 messages; nothing was changed");
    for command in ["status", "ls", "release --yes", "rezero --yes", "purge --yes"] {
        place.run(&format!("queue {command} ./missing")).exits(1).says("there is no queue");
    }
    place.run("queue cp ./missing ./d").exits(1);
    assert!(!place.has("missing") && !place.has("d"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let place = Place::new();
    place.feed("submit --fq ./a", lines(0..2000).as_bytes()).ok();
    let mut child =
        place.host("queue ls ./a").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    Ended::of(child.wait_with_output().unwrap()).ok();
}

#[test]
fn a_new_project_says_what_to_do_with_it() {
    let place = Place::new();
    place
        .run("new edge-finder")
        .ok()
        .says("created edge-finder")
        .says("host try . --input sample/tyger.txt");
    assert!(place.has("edge-finder/Cargo.toml"));
    place.run("new edge-finder").exits(1).says("is not empty");
    place.run("new 3d").exits(2).says("has to start with a letter");
}

/// Waits for a line with `text` in a child's standard error. Returns all lines up to it.
fn wait_for(stderr: &mut impl std::io::BufRead, text: &str) -> String {
    let mut all = String::new();
    loop {
        let mut line = String::new();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "no {text:?} in\n{all}");
        all.push_str(&line);
        if line.contains(text) {
            return all;
        }
    }
}

/// Starts a host with one task that never ends, and waits until the task has started.
fn stuck(place: &Place, options: &str) -> (std::process::Child, impl std::io::BufRead + use<>) {
    place.write("never.wasm", component(End::Never));
    place.run("component push never.wasm --name NO_OP").ok();
    place.feed("submit --fq ./queue", task(1).as_bytes()).ok();
    let mut command = place.host(&format!("run --fq ./queue {options}"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let began = || {
        fs::read_dir(place.path("queue/movement")).unwrap().any(|file| {
            let history = fs::read_to_string(file.unwrap().path()).unwrap_or_default();
            // An empty line in the history marks a start.
            history.lines().any(str::is_empty)
        })
    };
    while !began() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    (child, stderr)
}

fn signal(child: &std::process::Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_second_signal_gives_everything_back_at_once() {
    let place = Place::new();
    let (mut child, mut stderr) = stuck(&place, "--grace 1h");
    signal(&child, rustix::process::Signal::TERM);
    wait_for(&mut stderr, "may finish within 1h");
    // Two signals within half a second count as one.
    std::thread::sleep(std::time::Duration::from_millis(600));
    signal(&child, rustix::process::Signal::INT);
    wait_for(&mut stderr, "stopping now");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let status = place.run("queue status ./queue --json").ok().json();
    assert_eq!((&status["enqueued"], &status["leased"]), (&1.into(), &0.into()), "{status}");
}

#[test]
fn what_outlives_the_grace_period_is_given_back() {
    let place = Place::new();
    let (mut child, mut stderr) = stuck(&place, "--grace 0s");
    signal(&child, rustix::process::Signal::TERM);
    wait_for(&mut stderr, "the grace period is over");
    assert_eq!(child.wait().unwrap().code(), Some(4));
    assert_eq!(place.enqueued("queue"), 1);
}

#[test]
fn a_host_that_is_told_to_stop_exits_with_zero() {
    let place = Place::new();
    for kind in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut child = place
            .host("run --fq ./queue")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        wait_for(&mut stderr, "until");
        signal(&child, kind);
        wait_for(&mut stderr, "stopping: 0 tasks running");
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

/// A command's help. If the command takes all settings, the help without them: another test
/// compares the settings with the reference.
fn without_settings(help: &str) -> String {
    match help.split_once("\nQueues:\n") {
        Some((before, settings)) if settings.contains("--listen <") => {
            let (_, after) = settings.split_once("--listen").unwrap();
            let (_, after) = after.split_once("\n\n").unwrap();
            format!("{before}\n(settings)\n\n{after}")
        }
        _ => help.to_owned(),
    }
}

#[test]
fn the_short_help_has_the_usual_settings_only() {
    let place = Place::new();
    let (short, long) = (place.run("run -h").ok().stdout, place.run("run --help").ok().stdout);
    assert!(short.contains("--bucket <URL>") && !short.contains("--sync-every"), "{short}");
    assert!(long.contains("--sync-every") && long.contains("Examples:"), "{long}");
    assert!(short.lines().count() < 60, "{short}");
}

#[test]
fn manual_pages_and_completions_know_every_command() {
    let place = Place::new();
    place.run("man pages --name task-host").ok().says("pages written to pages");
    for page in ["task-host", "task-host-run", "task-host-queue-redrive"] {
        assert!(place.has(&format!("pages/{page}.1")), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        place.run(&format!("completions {shell}")).ok().says("redrive");
    }
    let versions = place.run("--version").ok();
    versions.says("wasmtime 48.").says("guest interface task-host:guest@");
}

#[test]
fn quiet_commands_say_nothing_unless_something_is_wrong() {
    let place = Place::new();
    let sent = place.feed("submit --fq ./queue -q", lines(0..3).as_bytes()).ok();
    assert!(sent.stderr.is_empty() && sent.stdout.is_empty(), "{}", sent.stderr);
    place.feed("submit --fq ./queue -q", b"oops\n").exits(3).says("line 1: message");
    // Results are still printed on standard output.
    place.write("good.wasm", component(End::Done));
    for line in [
        "new edge-finder -q",
        "wit --out wit -q",
        "component push good.wasm --name NO_OP --bucket ./bucket -q",
        "component ls --component-prefix none -q",
        "cache ls -q",
        "cache quarantine --clear -q",
    ] {
        let ended = place.run(line).ok();
        assert!(ended.stderr.is_empty(), "{line}: {}", ended.stderr);
    }
}

#[test]
fn settings_of_the_user_come_after_those_of_the_directory() {
    let place = Place::new();
    place.write("config/task-host/host.toml", "lease = \"9m\"\nbucket = \"/users\"\n");
    place.write("host.toml", "bucket = \"/here\"\n");
    let shown = |line: &str| {
        let mut command = place.host(line);
        command.env("XDG_CONFIG_HOME", place.path("config"));
        Ended::of(command.output().unwrap()).ok().json()
    };
    let settings = shown("config --json");
    assert_eq!(
        (&settings["lease"]["value"], &settings["bucket"]["value"]),
        (&"9m".into(), &"/here".into())
    );
    let from = settings["lease"]["from"].as_str().unwrap();
    assert!(from.ends_with("config/task-host/host.toml"), "{from}");
    assert_eq!(shown("config --json --config host.toml")["lease"]["value"], "5m");
}

#[test]
fn names_that_are_probably_wrong_are_told() {
    let place = Place::new();
    place.run("run --queue tasks -x").exits(2).says("write ./tasks for the directory");
    place.run("queue status tasks").exits(2).says("sqs://tasks for SQS");
    assert!(!place.has("tasks"));
    place.run("run --fq ./queue -x").ok().says("is its name right?");
    let again = place.run("run --fq ./queue -x").ok();
    assert!(!again.stderr.contains("right?"), "{}", again.stderr);
    fs::remove_dir(place.path("bucket")).unwrap();
    place.run("component ls").exits(1).says("there is no such directory");
    place.write("bucket/d/a", "x");
    let submit = "submit --fq ./queue --name NOOP --base-directory d --input a --input b --dry-run";
    let warned = place.run(submit).ok().says("no component components/NOOP.wasm");
    let warned =
        warned.says("no object d/b, which is an input").says("the first message: {\"basic");
    assert!(!warned.stderr.contains("no object d/a"), "{}", warned.stderr);
    let mut each = place.host("submit --fq ./queue --name A --each d/*");
    let each = Ended::of(each.args(["--payload", r#"{"t": "{steem}"}"#]).output().unwrap());
    each.exits(2).says("--payload has {steem}, which is not replaced");
    let mut one = place.host("submit --fq ./queue --name A --base-directory d");
    let one = Ended::of(one.args(["--payload", r#"{"t": "{stem}"}"#]).output().unwrap());
    one.exits(2).says("--payload has {stem}, which only --each replaces");
}

#[test]
fn what_was_not_used_is_pruned_from_the_cache() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.run("try good.wasm").ok();
    place.run("component push good.wasm --name NO_OP").ok();
    place.run("submit --fq ./queue --name NO_OP --base-directory d").ok();
    place.run("run --fq ./queue -x").ok();
    let listed = place.run("cache ls --json").ok().stdout;
    let kinds: Vec<String> = listed
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].to_string())
        .collect();
    assert!(kinds.iter().any(|kind| kind.contains("object")), "{listed}");
    assert!(kinds.iter().any(|kind| kind.contains("code")), "{listed}");
    place.run("cache prune --to 0 --dry-run").ok().says("would be removed");
    assert_eq!(place.run("cache ls --json").ok().stdout, listed);
    place.run("cache prune --unused-for 1h").ok().says("0 files of 0 B removed");
    let pruned = place.run("cache prune --to 0 --json").ok().json();
    assert_eq!((&pruned["removed"], &pruned["kept"]), (&kinds.len().into(), &0.into()), "{pruned}");
    place.run("cache ls").ok().says("0 files, 0 B");
    place.run("cache prune").exits(2);
}

#[test]
fn the_help_of_commands_and_settings_is_as_people_read_it() {
    let place = Place::new();
    for (name, line) in [
        ("host", ""),
        ("run", "run"),
        ("submit", "submit"),
        ("queue", "queue"),
        ("queue_status", "queue status"),
        ("queue_ls", "queue ls"),
        ("queue_purge", "queue purge"),
        ("queue_cp", "queue cp"),
        ("queue_redrive", "queue redrive"),
        ("top", "top"),
        ("dashboard", "dashboard"),
        ("component", "component"),
        ("component_push", "component push"),
        ("component_history", "component history"),
        ("component_rollback", "component rollback"),
        ("component_rm", "component rm"),
        ("component_inspect", "component inspect"),
        ("receipts", "receipts"),
        ("receipts_verify", "receipts verify"),
        ("receipts_audit", "receipts audit"),
        ("receipts_show", "receipts show"),
        ("cache", "cache"),
        ("cache_verify", "cache verify"),
        ("cache_quarantine", "cache quarantine"),
        ("cache_ls", "cache ls"),
        ("cache_prune", "cache prune"),
        ("completions", "completions"),
        ("man", "man"),
        ("try", "try"),
        ("new", "new"),
        ("doctor", "doctor"),
        ("config", "config"),
        ("health", "health"),
    ] {
        let mut command = place.host(&format!("{line} --help"));
        let help = Ended::of(command.env("COLUMNS", "100").output().unwrap()).ok().stdout;
        insta::assert_snapshot!(format!("help_{name}"), without_settings(&help));
    }
}

#[test]
fn settings_are_shown_with_their_sources() {
    let place = Place::new();
    place.write("host.toml", "bucket = \"/data\"\n");
    let mut command = place.host("config --fq ./queue --parallel 2 --cache-dir /cache");
    command.env_remove("HOST_LOG_FORMAT").env("HOST_LEASE", "10m");
    let shown = Ended::of(command.output().unwrap()).ok().stdout;
    let rows: Vec<Vec<&str>> =
        shown.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [
        ["queue", "fq://./queue", "--fq"],
        ["error-queue", "fq://./queue-errors", "default"],
        ["bucket", "/data", "host.toml"],
        ["input-bucket", "(none)", "default"],
        ["parallel", "2", "--parallel"],
        ["prefetch", "(soon)", "default"],
        ["lease", "10m", "HOST_LEASE"],
        ["durable", "false", "default"],
        ["cache-dir", "/cache", "--cache-dir"],
        ["log-format", "auto", "default"],
    ] {
        assert!(rows.iter().any(|shown| *shown == row), "{row:?} in\n{shown}");
    }
}

#[test]
fn the_reference_lists_the_exit_codes_of_the_help() {
    let help = Place::new().run("--help").ok().stdout;
    let (_, codes) = help.split_once("Exit codes:\n").unwrap();
    let reference = include_str!("../../docs/reference/command-line.md");
    assert!(reference.contains(codes.trim_end()), "{codes}");
}

#[test]
fn failures_are_listed_and_sent_back_by_cause() {
    let place = Place::new();
    place.write("bad.wasm", component(End::Reject));
    place.run("component push bad.wasm --name BAD").ok();
    place.run("component push bad.wasm --name WORSE").ok();
    place.run("queue errors ./queue").exits(1).says("there is no queue fq://./queue");
    for (name, id) in [("BAD", 1), ("BAD", 2), ("WORSE", 3), ("NONE", 4)] {
        place.run(&format!("submit --fq ./queue --name {name} --base-directory d --id {id}")).ok();
    }
    place.run("queue errors ./queue").ok().says("no error reports in fq://./queue-errors");
    let ended = place.run("run --fq ./queue -x --max-attempts 1").exits(3);
    ended.says("host queue errors fq://./queue");

    let ended = place.run("queue errors ./queue").ok();
    let ended =
        ended.says("4 error reports in fq://./queue-errors, 2 causes\n\n      3  no good\n");
    let ended = ended.says("BAD, WORSE; ").says("no component for tasks named `…`");
    ended.says("host queue redrive fq://./queue --cause 'CAUSE'");
    let listed = place.run("queue errors ./queue-errors --json").ok().stdout;
    let first: serde_json::Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    assert_eq!((&first["cause"], &first["count"]), (&"no good".into(), &3.into()), "{listed}");

    place.run("queue status ./queue").ok().says("Completed: 0 (0.0%)").says("Failed: 4 (reports");
    place
        .run("doctor --fq ./queue")
        .ok()
        .says("has 4 error reports: 3 × no good; 1 × no component");
    let ended = place.run("queue ls ./queue-errors").ok();
    ended.says("REPORTED (UTC)").says("ATTEMPT").says("BAD 1 in \"d\", 0 inputs: no good");

    let mut command = place.host("queue redrive ./queue --cause");
    Ended::of(command.arg("no good").output().unwrap()).ok().says("3 tasks sent back");
    let mut command = place.host("queue redrive ./queue --match");
    Ended::of(command.arg("for tasks named `…`").output().unwrap()).ok().says("1 task sent back");
}

#[test]
fn commands_that_are_suggested_can_be_pasted_into_a_shell() {
    let place = Place::new();
    let host = |args: &[&str]| Ended::of(place.host("").args(args).output().unwrap());
    place.write("bad.wasm", component(End::Reject));
    host(&["component", "push", "bad.wasm", "--name", "Nö Cls"]).ok();
    let queue = "./qu eue";
    host(&["submit", "--fq", queue, "--name", "Nö Cls", "--base-directory", "d"]).ok();
    let run = host(&["run", "--fq", queue, "-x"]).exits(3);
    let run = run.says("host queue errors 'fq://./qu eue'");
    run.says("host queue redrive 'fq://./qu eue'");
    host(&["queue", "errors", queue]).ok().says("host queue redrive 'fq://./qu eue' --cause");

    host(&["submit", "--fq", queue, "--name", "No Cls", "--base-directory", "d"]).ok();
    host(&["run", "--fq", queue, "-x"]).exits(3);
    let reports = host(&["queue", "ls", "./qu eue-errors", "--long"]).ok();
    reports.says("host component push FILE.wasm --name 'No Cls'");
}

#[test]
fn a_name_with_a_line_feed_stays_on_its_line() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.write("in\nputs/a\nb", "");
    place.write("tas\nks", "nonsense\n");
    let check = |args: &[&str], code: i32, want: &str| {
        let ended = Ended::of(place.host("").args(args).output().unwrap()).exits(code).says(want);
        for line in ended.stdout.lines().chain(ended.stderr.lines()) {
            assert!(!line.starts_with(' '), "{line:?} of {args:?}");
        }
    };
    check(&["try", "good.wasm", "--out", "o\nut"], 0, "0 outputs in o\\nut");
    check(&["try", "good.wasm", "--input", "in\nputs"], 1, "in\\nputs/a\\nb: ");
    let queue = ["submit", "--fq", "q\nueue"];
    check(&[&queue[..], &["tas\nks"]].concat(), 3, "tas\\nks, line 1: message");
    place.write("tasks", lines(0..1));
    check(&[&queue[..], &["tasks"]].concat(), 0, "1 task sent to fq://q\\nueue");
    check(&["queue", "purge", "./q\nueue", "--yes"], 0, "1 message deleted from fq://./q\\nueue");
}

#[test]
fn one_of_something_is_not_several() {
    let place = Place::new();
    place.feed("submit --fq ./queue", lines(0..1).as_bytes()).ok();
    let errors = "queue errors ./tasks --from ./queue";
    place.run(errors).ok().says("1 message that is not a report");
    place
        .run("queue redrive ./tasks --from ./queue --name B")
        .ok()
        .says("1 left that does not match");
    place.feed("submit --fq ./queue", lines(0..1).as_bytes()).ok();
    place.run(errors).ok().says("2 messages that are not reports");
    place
        .run("queue redrive ./tasks --from ./queue --name B")
        .ok()
        .says("2 left that do not match");
    let mut few = Command::new("sh");
    let host = place.host("run --fq ./queue -x --parallel 4");
    few.args(["-c", "ulimit -n 120; exec \"$0\" \"$@\""]).arg(host.get_program());
    few.args(host.get_args()).current_dir(place.path("")).env("HOST_LOG_FORMAT", "human");
    few.env("XDG_CACHE_HOME", place.path(".cache")).env("HOST_BUCKET", "./bucket");
    fs::create_dir_all(place.path("bucket")).unwrap();
    let ended = Ended::of(few.stdin(Stdio::null()).output().unwrap());
    ended.says("this process may open 120 files: 1 task runs at a time instead of 4");
}

#[test]
fn nothing_that_a_report_says_is_obeyed_by_a_terminal() {
    let place = Place::new();
    place.run("submit --fq ./queue-errors --name A --base-directory d").ok();
    let odd = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}2J\r\u{202e}\nERROR forged";
    let report = serde_json::json!({
        "host_info": {"hostname": odd, "user": odd},
        "task": {"basic_info": {"id": 7, "name": "A", "base_directory": "d"}},
        "exception": odd, "trace": odd, "log": odd, "attempt": 1, "time": odd,
    });
    place.write("queue-errors/queue/0--odd.json", report.to_string());
    for command in ["ls", "ls -l", "errors", "errors --json"] {
        let ended = place.run(&format!("queue {command} ./queue-errors")).ok().says("title");
        let is_obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t') || c == '\u{202e}';
        assert!(!ended.stdout.contains(is_obeyed), "{command}: {:?}", ended.stdout);
        assert!(!ended.stdout.contains("\nERROR"), "{command}: {}", ended.stdout);
    }
    let ended = place.run("queue redrive ./queue --dry-run").ok();
    assert!(!ended.stdout.contains('\u{1b}'), "{:?}", ended.stdout);
}
