//! Running programs and finished programs.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal};

use task_host_test_network::wait::eventually;

/// A running program. Dropping this kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// The result and the output of a finished program.
#[derive(Debug)]
pub struct Finished {
    /// The command, for messages.
    pub what: String,
    /// The exit status.
    pub status: ExitStatus,
    /// The standard output.
    pub stdout: String,
    /// The standard error.
    pub stderr: String,
}

impl Running {
    /// Starts a program, and writes its output to files below `logs`.
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

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal)
            .unwrap_or_else(|error| panic!("{} can't be sent a signal: {error}", self.what));
    }

    /// Sends another signal to a host that has handled one already. A host counts signals within
    /// half a second as one, so this waits longer first.
    pub fn signal_again(&self, signal: Signal) {
        std::thread::sleep(std::time::Duration::from_millis(501));
        self.signal(signal);
    }

    /// The standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// The standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Whether the program has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the state of a child").is_some()
    }

    /// Waits until the program ends.
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
        // The program may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Runs a program, and waits for its end.
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

    /// Checks the exit code.
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

    /// Checks that the program succeeded.
    #[track_caller]
    pub fn good(self) -> Self {
        self.code(0)
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
