//! A directory with its own queue, bucket and cache, and the hosts that run in it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::built;
use crate::process::{Finished, Running};
use crate::watched::Watched;
use task_host_test_network::wait::eventually;

/// The environment of a test. Hosts run in it as a user's hosts would: `host run --fq ./queue`,
/// with the bucket `./bucket`, the error queue `./queue-errors`, and an empty home directory.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// An empty place.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("task-host-test-").tempdir().expect("a place");
        for part in ["home", "logs"] {
            fs::create_dir(dir.path().join(part)).expect("a part of a place");
        }
        Self { dir }
    }

    /// A place whose bucket has these guests.
    pub fn with(guests: &[&str]) -> Self {
        let place = Self::new();
        for name in guests {
            place.push(name);
        }
        place
    }

    /// A new place with copies of the bucket and the cache.
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        for part in ["bucket", "home"] {
            copy_dir(&self.path().join(part), &copy.path().join(part));
        }
        copy
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The default cache directory of the host.
    pub fn cache(&self) -> PathBuf {
        self.path().join("home/.cache/task-host")
    }

    /// The command `host ARGS…` in this place, with the same environment on all machines.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_by(&[], args)
    }

    /// The command `PROGRAM… host ARGS…`, in which another program starts the host.
    pub fn command_by(&self, program: &[&str], args: &[&str]) -> Command {
        let host = built::host();
        let mut command = match program {
            [] => Command::new(host),
            [program, first @ ..] => {
                let mut command = Command::new(program);
                command.args(first).arg(host);
                command
            }
        };
        command.args(args).current_dir(self.path());
        command.env_clear().env("HOME", self.path().join("home")).env("USER", "tester");
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        // Otherwise, the host would send requests to a cloud's metadata service.
        command.env("HOST_NOTICE", "none");
        command
    }

    /// Runs `host ARGS…`, and waits for its end.
    pub fn host(&self, args: &[&str]) -> Finished {
        Finished::run(&mut self.command(args))
    }

    /// Runs `host run --fq ./queue ARGS…`, and waits for its end.
    pub fn run(&self, args: &[&str]) -> Finished {
        self.host(&[&["run", "--fq", "./queue"], args].concat())
    }

    /// Runs the queue until it is empty, with almost no wait between attempts.
    pub fn run_until_empty(&self, args: &[&str]) -> Finished {
        self.run(&[&["--exit-when-empty", "--retry-after", "10ms"], args].concat())
    }

    /// Starts `host run --fq ./queue ARGS…`.
    pub fn start(&self, args: &[&str]) -> Running {
        let command = self.command(&[&["run", "--fq", "./queue"], args].concat());
        Running::start(command, &self.path().join("logs"))
    }

    /// Starts `host run --fq ./queue ARGS…` as a [`Watched`] host.
    #[track_caller]
    pub fn watch(&self, args: &[&str]) -> Watched {
        Watched::new(self.start(&[&Watched::FLAGS, args].concat()))
    }

    /// Pushes a guest under its own name.
    #[track_caller]
    pub fn push(&self, name: &str) {
        let guest = built::guest(name);
        let guest = guest.to_str().expect("a path that is text");
        self.host(&["component", "push", guest, "--name", name, "--bucket", "./bucket"]).good();
    }

    /// Puts an object into the bucket.
    pub fn put(&self, key: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path().join("bucket").join(key);
        fs::create_dir_all(path.parent().expect("a key has a directory")).expect("a prefix");
        fs::write(path, bytes).expect("an object");
    }

    /// The content of an object in the bucket, if the object exists.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        fs::read(self.path().join("bucket").join(key)).ok()
    }

    /// The keys of all objects in the bucket, without the versions of components that
    /// `host component push` keeps.
    pub fn keys(&self) -> BTreeSet<String> {
        let is_version = |key: &String| key.starts_with("components/") && key.contains('@');
        files(&self.path().join("bucket")).into_iter().filter(|key| !is_version(key)).collect()
    }

    /// Tasks of `NO_OP` that do nothing wrong. Puts their inputs into the bucket.
    pub fn innocent(&self, count: usize) -> Vec<Value> {
        let task = |id| {
            let input = format!("0_input/{id}.dat");
            self.put(&format!("data/{input}"), innocent_bytes(id));
            no_op(id, &[input])
        };
        (0..count).map(task).collect()
    }

    /// Waits until all of these tasks have left the queue, and checks their outputs.
    #[track_caller]
    pub fn innocent_are_done(&self, count: usize) {
        eventually("an empty queue", || (self.counts() == (0, 0)).then_some(()));
        for id in 0..count {
            let output = self.object(&format!("data/0_output/{id}.dat"));
            assert!(output == Some(innocent_bytes(id)), "the output of task {id} is not right");
        }
        assert_eq!(self.errors(), [Value::Null; 0], "a task was given up");
    }

    /// Submits messages without changing them.
    #[track_caller]
    pub fn submit_text(&self, lines: &str) {
        let mut child = self
            .command(&["submit", "--fq", "./queue", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("host submit");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(lines.as_bytes()).expect("host submit reads its standard input");
        drop(stdin);
        let output = child.wait_with_output().expect("host submit");
        assert!(
            output.status.success(),
            "host submit: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Submits tasks.
    #[track_caller]
    pub fn submit(&self, tasks: &[Value]) {
        let lines: Vec<String> = tasks.iter().map(|task| format!("{task}\n")).collect();
        self.submit_text(&lines.concat());
    }

    /// Submits one task for the guest `misbehave`, with no inputs.
    #[track_caller]
    pub fn submit_misbehaviour(&self, payload: Value) {
        self.submit(&[misbehaviour(1, &[], payload)]);
    }

    /// The messages of the queue in this directory, in the order of their file names.
    pub fn messages(&self, queue: &str) -> Vec<Value> {
        let dir = self.path().join(queue).join("queue");
        let bodies = files(&dir).into_iter().filter_map(|name| fs::read(dir.join(name)).ok());
        bodies.map(|body| serde_json::from_slice(&body).expect("a message that is JSON")).collect()
    }

    /// The reports of rejected tasks.
    pub fn errors(&self) -> Vec<Value> {
        self.messages("queue-errors")
    }

    /// The only report of a rejected task.
    #[track_caller]
    pub fn the_error(&self) -> Value {
        let mut errors = self.errors();
        assert_eq!(errors.len(), 1, "one report was expected: {errors:#?}");
        errors.remove(0)
    }

    /// The number of messages in the queue, and how many of them are leased or delayed.
    pub fn counts(&self) -> (usize, usize) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let names = files(&self.path().join("queue/queue"));
        let due = |name: &String| name.split("--").next().and_then(|due| due.parse::<u64>().ok());
        (names.len(), names.iter().filter(|name| due(name) > Some(now)).count())
    }

    /// Whether the queue has the record of a task that was started and has not ended.
    pub fn a_task_has_started(&self) -> bool {
        let records = fs::read_dir(self.path().join("queue/movement")).into_iter().flatten();
        records.flatten().any(|record| {
            fs::read_to_string(record.path()).is_ok_and(|lines| lines.contains("\n\n"))
        })
    }

    /// Temporary files that should be gone: partly written or partly moved files in the queue, the
    /// bucket or the cache.
    pub fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        // The lock file of the process directories stays.
        let is_lock = |name: &str| name == "tmp/.lock" || name == "work/.lock";
        for queue in ["queue", "queue-errors", "queue-done"] {
            let names = files(&self.path().join(queue));
            let has_message =
                |id: &str| names.iter().any(|name| name.starts_with("queue/") && name.contains(id));
            for name in &names {
                let is_left = match name.split_once('/') {
                    Some(("movement", id)) => !has_message(id),
                    Some(("host", part)) => !is_lock(part),
                    _ => false,
                };
                if is_left {
                    left.push(format!("{queue}/{name}"));
                }
            }
        }
        let is_temporary = |name: &&String| {
            let parts = name.split('/');
            parts.clone().any(|part| part.contains("tmp") || part.starts_with('.'))
        };
        left.extend(self.keys().iter().filter(is_temporary).map(|key| format!("bucket/{key}")));
        let cached = files(&self.cache());
        let is_work =
            |name: &&String| !is_lock(name) && (is_temporary(name) || name.starts_with("work/"));
        left.extend(cached.iter().filter(is_work).map(|name| format!("cache/{name}")));
        left
    }
}

/// Copies a directory. The target may exist already.
fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    fs::set_permissions(to, fs::metadata(from).expect("a directory").permissions())
        .expect("a mode");
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        let to = to.join(entry.file_name());
        match entry.file_type().expect("a kind of file").is_dir() {
            true => copy_dir(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).expect("a file")),
        }
    }
}

/// A content that is large enough to need space on a disk, and different for each task.
fn innocent_bytes(id: usize) -> Vec<u8> {
    format!("content {id};").repeat(4_000).into_bytes()
}

/// A task for the guest `NO_OP`, which copies its inputs.
pub fn no_op(id: usize, inputs: &[String]) -> Value {
    json!({
        "basic_info": {"id": id, "name": "NO_OP", "base_directory": "data", "inputs": inputs},
    })
}

/// A task for the guest `misbehave`.
pub fn misbehaviour(id: i64, inputs: &[&str], payload: Value) -> Value {
    json!({
        "basic_info": {
            "id": id, "name": "misbehave", "base_directory": "tests", "inputs": inputs,
        },
        "payload_info": payload,
    })
}

/// The paths of all files below a directory, relative to it.
pub fn files(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(entry.path());
            } else if let Ok(path) = entry.path().strip_prefix(dir) {
                found.insert(path.to_string_lossy().into_owned());
            }
        }
    }
    found
}
