//! A guest with a `main`: the world `wasi:cli/command`.
//!
//! The program receives its task on standard input, and its exit code is its result. Files, limits
//! and log work as for every guest.

use wasmtime::Store;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi::{I32Exit, WasiCtxBuilder};

use super::bindings::task_host::guest::types::{Failure, Outcome};
use super::log::Sink;
use super::progress::Progress;
use super::{Ended, MAX_REASON, Phase, State};
use crate::fault::{self, Step};
use crate::message::{self, Task};

/// The task is done.
const DONE: i32 = 0;
/// A retry can't help.
const REJECT: i32 = 1;
/// A retry may succeed: `EX_TEMPFAIL` of `sysexits.h`.
const RETRY: i32 = 75;

/// The variable with the number of the attempt.
const ATTEMPT: &str = "TASK_ATTEMPT";

/// The end of a program's standard error.
pub(super) struct Errors(Sink);

impl Default for Errors {
    fn default() -> Self {
        Self(Sink::new(MAX_REASON, None))
    }
}

impl Errors {
    /// Gives a program its task, and copies its standard error, which also goes to `log`.
    pub(super) fn begin(&self, wasi: &mut WasiCtxBuilder, task: &Task, attempt: u32, log: &Sink) {
        wasi.stderr(log.with_copy(&self.0))
            .stdin(MemoryInputPipe::new(message::of_task(task)))
            .arg(task.name.as_str())
            .env(ATTEMPT, attempt.to_string());
    }

    /// The last line of the standard error, which is the program's reason for its failure.
    fn last_line(&self) -> Option<String> {
        self.0.last_line(MAX_REASON)
    }

    /// The reason for the failure of a program whose exit code is not 0, 1 or 75.
    pub(super) fn exited(&self, code: i32, cause: Option<String>) -> String {
        match cause.or_else(|| self.last_line()) {
            Some(cause) => format!("exit code {code}: {cause}"),
            None => format!("exit code {code}, and nothing on standard error"),
        }
    }
}

/// Runs a program to its end.
pub(super) async fn run(
    store: &mut Store<State>,
    pre: &CommandPre<State>,
    errors: &Errors,
    progress: &mut Progress<'_>,
) -> Result<Outcome, Ended> {
    let instance = pre.instantiate_async(&mut *store).await?;
    progress.enter(Phase::Execute);
    fault::point(Step::Execute);
    let code = match instance.wasi_cli_run().call_run(&mut *store).await {
        Ok(Ok(())) => DONE,
        Ok(Err(())) => REJECT,
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(code @ (DONE | REJECT | RETRY))) => *code,
            _ => return Err(error.into()),
        },
    };
    fault::point(Step::Finalized);
    let reason = || errors.last_line().unwrap_or_else(|| errors.exited(code, None));
    match code {
        DONE => Ok(Outcome { success: true, outputs: Vec::new() }),
        RETRY => Err(Failure::Retry(reason()).into()),
        _ => Err(Failure::Reject(reason()).into()),
    }
}
