//! Runs the command line tools of engines.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::{EngineError, Line};

/// The time limit of one call of a tool.
const PATIENCE: Duration = Duration::from_secs(120);

/// A command line tool of an engine. It is started without a shell.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The engine's address, for errors.
    pub(super) engine: String,
    /// The tool's name, which is looked up in PATH.
    pub(super) name: &'static str,
    /// What to do if the tool is missing.
    pub(super) install: &'static str,
}

/// The result of a call of a tool.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) success: bool,
}

impl Answer {
    /// Why the tool failed, as the tool states it.
    pub(super) fn words(&self) -> &str {
        let words = [self.stderr.trim(), self.stdout.trim()];
        words.into_iter().find(|words| !words.is_empty()).unwrap_or("it failed without a message")
    }
}

impl Program {
    /// An error of the engine.
    pub(super) fn failed(
        &self,
        doing: &str,
        problem: impl Into<String>,
        cure: Option<&str>,
    ) -> EngineError {
        EngineError::Failed {
            engine: self.engine.clone(),
            doing: doing.to_owned(),
            problem: problem.into(),
            cure: cure.map(str::to_owned),
        }
    }

    /// Runs the tool and returns its standard output. Errors name the operation with `doing`.
    ///
    /// # Errors
    /// If the tool is missing, does not answer, or fails. The error contains the tool's own
    /// message.
    pub(super) async fn run<S: AsRef<OsStr>>(
        &self,
        doing: &str,
        args: &[S],
        input: &str,
    ) -> Result<String, EngineError> {
        let answer = self.ask(doing, args, input).await?;
        if answer.success {
            return Ok(answer.stdout);
        }
        Err(self.failed(doing, answer.words(), None))
    }

    /// Like [`Program::run`], for calls whose failure is also an answer.
    pub(super) async fn ask<S: AsRef<OsStr>>(
        &self,
        doing: &str,
        args: &[S],
        input: &str,
    ) -> Result<Answer, EngineError> {
        self.ask_with(doing, args, input, None).await
    }

    /// Like [`Program::ask`], but replaces the environment with `variables` if there are any.
    pub(super) async fn ask_with<S: AsRef<OsStr>>(
        &self,
        doing: &str,
        args: &[S],
        input: &str,
        variables: Option<&BTreeMap<String, String>>,
    ) -> Result<Answer, EngineError> {
        let mut command = self.command(args);
        if let Some(variables) = variables {
            command.env_clear().envs(variables);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(doing, command)?;
        let stdin = child.stdin.take();
        let talk = async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // A tool that fails early may not read its input.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            let ((), output) = tokio::join!(write, child.wait_with_output());
            output
        };
        let answer = tokio::time::timeout(PATIENCE, talk).await;
        let output = answer
            .map_err(|_| {
                let silent = format!("{} did not answer in {} s", self.name, PATIENCE.as_secs());
                self.failed(doing, silent, None)
            })?
            .map_err(|error| self.failed(doing, error.to_string(), None))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Ok(Answer { stdout, stderr, success: output.status.success() })
    }

    /// Runs the tool and returns the lines of its standard output as they arrive. Dropping the
    /// stream ends the tool.
    pub(super) fn lines<S: AsRef<OsStr>>(
        &self,
        doing: &str,
        worker: &str,
        args: &[S],
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError> {
        self.lines_from(doing, worker, args, [Stdio::piped(), Stdio::null()])
    }

    /// Like [`Program::lines`], for the tool's standard error.
    pub(super) fn error_lines<S: AsRef<OsStr>>(
        &self,
        doing: &str,
        worker: &str,
        args: &[S],
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError> {
        self.lines_from(doing, worker, args, [Stdio::null(), Stdio::piped()])
    }

    fn lines_from<S: AsRef<OsStr>>(
        &self,
        doing: &str,
        worker: &str,
        args: &[S],
        [stdout, stderr]: [Stdio; 2],
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError> {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let mut child = self.spawn(doing, command)?;
        Ok(match (child.stdout.take(), child.stderr.take()) {
            (Some(stdout), _) => self.lines_of(doing, worker, child, stdout),
            (_, Some(stderr)) => self.lines_of(doing, worker, child, stderr),
            (None, None) => stream::empty().boxed(),
        })
    }

    fn lines_of(
        &self,
        doing: &str,
        worker: &str,
        child: Child,
        output: impl AsyncRead + Send + Unpin + 'static,
    ) -> BoxStream<'static, Result<Line, EngineError>> {
        let worker = worker.to_owned();
        let (program, doing) = (self.clone(), doing.to_owned());
        let lines = BufReader::new(output).split(b'\n');
        let state = (lines, child);
        let lines = stream::unfold(state, move |(mut lines, child)| {
            let (worker, program, doing) = (worker.clone(), program.clone(), doing.clone());
            async move {
                let line = match lines.next_segment().await {
                    Ok(None) => return None,
                    Ok(Some(bytes)) => {
                        Ok(Line { worker, text: String::from_utf8_lossy(&bytes).into_owned() })
                    }
                    Err(error) => Err(program.failed(&doing, error.to_string(), None)),
                };
                Some((line, (lines, child)))
            }
        });
        lines.boxed()
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(self.name);
        command.args(args).kill_on_drop(true);
        command
    }

    fn spawn(&self, doing: &str, mut command: Command) -> Result<Child, EngineError> {
        command.spawn().map_err(|error| {
            let cure = (error.kind() == io::ErrorKind::NotFound).then_some(self.install);
            self.failed(doing, format!("{} can't be started: {error}", self.name), cure)
        })
    }
}
