//! A program that was started, and one that has ended.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal};

use task_host_test_network::wait::eventually;

/// A program that is running. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    /// What was run, for messages.
    pub what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote there.
    pub stdout: String,
    /// All it wrote there.
    pub stderr: String,
}

impl Running {
    /// Starts a program that keeps its output in files below `logs`.
    pub fn start(mut command: Command, logs: &Path) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let file = |stream: &str| logs.join(format!("{number}.{stream}"));
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        let what = format!("{command:?}");
        let create = |path: &Path| File::create(path).expect("a file for output");
        let child = command
            .stdin(Stdio::null())
            .stdout(create(&stdout))
            .stderr(create(&stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("{what} can't be started: {error}"));
        Self { child, what, stdout, stderr }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal)
            .unwrap_or_else(|error| panic!("{} can't be sent a signal: {error}", self.what));
    }

    /// Sends a signal to a host that has heeded one already. Signals within half a second count as
    /// one, so this waits as long.
    pub fn signal_again(&self, signal: Signal) {
        std::thread::sleep(std::time::Duration::from_millis(501));
        self.signal(signal);
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has said so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// True when it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the state of a child").is_some()
    }

    /// Waits until it ends.
    pub fn wait(mut self) -> Finished {
        let what = format!("the end of {}; it said: {}", self.what, self.stderr());
        let status = eventually(&what, || self.child.try_wait().expect("the state of a child"));
        Finished {
            what: self.what.clone(),
            status,
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Runs a program to its end.
    pub fn run(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        let output = command
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{what} can't be started: {error}"));
        Self {
            what,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Insists on this exit code.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(
            (self.status.code(), self.status.signal()),
            (Some(expected), None),
            "{} ended otherwise than expected\n{}\n{}",
            self.what,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Insists on a good end.
    #[track_caller]
    pub fn good(self) -> Self {
        self.code(0)
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
