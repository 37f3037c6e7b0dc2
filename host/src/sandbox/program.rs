//! A guest with a `main`: the world `wasi:cli/command`.
//!
//! It gets its task on standard input, and its exit code is its result. Files, limits and log are
//! those of every guest.

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
/// No retry can help.
const REJECT: i32 = 1;
/// A later try may succeed: `EX_TEMPFAIL` of `sysexits.h`.
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
    /// Gives a program its task, and follows its standard error, which goes to `log` too.
    pub(super) fn begin(&self, wasi: &mut WasiCtxBuilder, task: &Task, attempt: u32, log: &Sink) {
        wasi.stderr(log.with_copy(&self.0))
            .stdin(MemoryInputPipe::new(message::of_task(task)))
            .arg(task.name.as_str())
            .env(ATTEMPT, attempt.to_string());
    }

    /// The program's words for how it ended.
    fn last_line(&self) -> Option<String> {
        self.0.last_line(MAX_REASON)
    }

    /// The reason in the report of a program that ended with another exit code than 0, 1 and 75.
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
