//! Python programs for the real python-task-queue.

use std::path::Path;
use std::process::Command;

use crate::built::python;
use crate::process::{Finished, Running};

/// A Python program with the common imports of all tests. It has its own directory, because Python
/// first looks for modules beside the program.
#[derive(Debug)]
pub struct Script(tempfile::TempDir);

const FILE: &str = "program.py";
const BEGIN: &str = "\
import sys, os, json, time
from taskqueue import TaskQueue, RegisteredTask, MockTask, PrintTask, queueable
from taskqueue.taskqueue import QueueEmptyError
";
const OPEN: &str = "tq = TaskQueue('fq://' + os.path.abspath('queue'), progress=False)\n";

impl Script {
    /// A program with the queue `./queue` opened as `tq`.
    pub fn new(text: &str) -> Self {
        Self::plain(&(OPEN.to_owned() + text))
    }

    /// A program that opens its queue itself.
    pub fn plain(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(FILE), format!("{BEGIN}{text}")).expect("a program");
        Self(dir)
    }

    /// The command that runs the program in a directory.
    pub fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(python("python"));
        command.arg(self.0.path().join(FILE)).current_dir(dir).env("PYTHONUNBUFFERED", "1");
        command
    }

    /// Runs the program, which must succeed.
    #[track_caller]
    pub fn run(&self, dir: &Path) -> Finished {
        Finished::run(&mut self.command(dir)).good()
    }

    /// Starts the program.
    pub fn start(&self, dir: &Path, logs: &Path) -> Running {
        Running::start(self.command(dir), logs)
    }
}
