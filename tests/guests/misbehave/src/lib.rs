//! A guest that misbehaves as its payload says: `{"do": "loop"}`. The host's tests use it to run
//! into each limit, and to find out what a guest can see and reach. They build payloads from
//! [`Action`], and need a test for each action: an action without a test does not compile there.
//!
//! Reports are JSON in `/outputs/report.json`. The documentation of each action below names all
//! other outputs.

mod excess;
mod probe;
mod raw;
mod times;

use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

pub use raw::Call;
use serde::{Deserialize, Serialize};
use serde_json::json;
use task_host_sdk::{Context, Error, Guest, Outcome, Result, Task, error, info};

/// The action to perform. Sizes are in bytes unless noted otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Several actions in this order. The outcome is that of the last action.
    All { steps: Vec<Action> },

    // Endings.
    /// Loops forever without a call of the host.
    Loop,
    /// Sleeps in a call of the host.
    Sleep { secs: f64 },
    /// Panics with a message that contains `text`.
    Panic {
        #[serde(default = "Action::a_text")]
        text: String,
    },
    /// Aborts without a message.
    Abort,
    /// Ends the instance.
    Exit { code: i32 },
    Retry {
        #[serde(default = "Action::a_text")]
        text: String,
    },
    Reject {
        #[serde(default = "Action::a_text")]
        text: String,
    },
    /// Returns an outcome without success. Leaves `unsuccessful.txt`.
    Unsuccessful,
    /// Fails in one of the three calls, in this way.
    FailIn { phase: Phase, how: How },
    /// Asks for a retry until this attempt, which leaves `attempt.txt`.
    FailUntil { attempt: u32 },
    /// Lists `missing.txt`, which it did not write.
    MissingOutput,
    /// Returns an outcome with this number of outputs with names of this length, none of which
    /// exists; or, with `how`, fails with a text of this number of bytes.
    BigResult {
        #[serde(default)]
        outputs: usize,
        #[serde(default = "Action::name_bytes")]
        bytes: usize,
        how: Option<How>,
    },

    // Actions that use too much of a resource.
    /// Allocates and touches this number of MiB (by default, all memory). With `gently`, it stops
    /// when an allocation fails, and reports `{"mib"}`. Otherwise, it aborts as Rust does.
    Alloc {
        mib: Option<usize>,
        #[serde(default)]
        gently: bool,
    },
    /// Recurses without end.
    Stack,
    /// Writes `bytes` bytes in total to the files `written/N.dat`.
    Write {
        bytes: u64,
        #[serde(default = "Action::one")]
        files: u64,
        #[serde(default)]
        how: Writing,
        /// Continues after a failed write, and reports `{"failed", "error"}`.
        #[serde(default)]
        ignore_errors: bool,
    },
    /// Creates this number of empty files `many/N`.
    ManyFiles { count: u64 },
    /// Creates nested directories `d/d/d/…`, with `d.txt` in the innermost.
    Mkdirs { depth: u32 },
    /// Creates nested directories `t/t/t/…`, with `dirs` directories and `files` empty files in the
    /// innermost. Lists the files.
    Tree {
        depth: u32,
        #[serde(default)]
        dirs: u64,
        #[serde(default)]
        files: u64,
    },
    /// Writes a text to its log.
    Say { text: String },
    /// Writes lines with this number of bytes to its log.
    Log {
        bytes: u64,
        #[serde(default)]
        to: Stream,
    },

    /// Calls the host's interfaces directly, without the standard library.
    Raw { call: Call },

    // Actions with outputs that must not be published.
    /// Creates a symbolic link in the outputs.
    Symlink { target: String, name: String },
    /// Creates an output, and a hard link to it with another name.
    Hardlink { target: String, name: String },
    /// Creates outputs with these names; by default, names that are legal on Linux and cause
    /// problems elsewhere. Reports `{"written": [names], "failed": {name: error}}`.
    OddNames { names: Option<Vec<String>> },

    // Actions that look around.
    /// Tries to change its inputs in every way. Reports `{"tried": [{"what", "ok", "error"}],
    /// "changed": [keys]}`.
    WriteInput,
    /// Tries to get out of its directories. Reports `{"tried": [{"what", "ok", "error"}]}`. `ok`
    /// means that it got out.
    Escape,
    /// Reports `{"vars": {…}, "args": […], "current_dir"}`.
    Env,
    /// Tries TCP, UDP and name lookups. Reports `{"tried": […]}`.
    Net {
        #[serde(default = "Action::an_address")]
        address: String,
    },
    /// Sets the times of outputs in every way. Reports `{"tried": […]}`. Leaves `file.txt` and
    /// `dir/in-it.txt`.
    SetTimes,
    /// Reads standard input to its end. Reports `{"bytes"}` or `{"error"}`.
    Stdin,
    /// Reports what exists at the start, `{"runs", "inputs": [paths], "outputs": [paths]}`. Leaves
    /// files, targets of links and a changed static variable for the next task to find.
    Leave,

    /// Reads the file at this path, which may be outside of its directories.
    ReadFile { path: String },

    // Actions that behave well.
    /// Copies each input to `out/KEY`. With `ignore_errors`, it reports success although an output
    /// could not be written.
    Copy {
        #[serde(default)]
        ignore_errors: bool,
    },
    /// Writes an output.
    Output { key: String, text: String },
    /// Leaves an empty output `DIR/ID-RANDOM`: one for each published execution.
    Mark { dir: String },
}

impl Action {
    fn a_text() -> String {
        "as the payload asked".to_owned()
    }

    fn an_address() -> String {
        "127.0.0.1:80".to_owned()
    }

    fn name_bytes() -> usize {
        32
    }

    fn one() -> u64 {
        1
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Prepare,
    Execute,
    Finalize,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    Retry,
    Reject,
    Panic,
}

impl How {
    fn fail(self, text: &str) -> Error {
        match self {
            Self::Retry => Error::retry(text),
            Self::Reject => Error::reject(text),
            Self::Panic => panic!("{text}"),
        }
    }
}

/// How a file gets its size.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writing {
    /// Written from start to end, 64 KiB at a time.
    #[default]
    Plain,
    /// Written a byte at a time.
    Bytewise,
    /// The length is set, and nothing is written.
    SetLen,
    /// Only the last byte is written, after a hole.
    Seek,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    #[default]
    Stderr,
    Stdout,
}

#[derive(Default)]
struct Misbehave;

impl Misbehave {
    fn fail_in(&self, phase: Phase, task: &Task<Action>) -> Result<()> {
        match *task.payload() {
            Action::FailIn { phase: asked, how } if asked == phase => {
                Err(how.fail(&format!("{phase:?} fails, as the payload asked")))
            }
            _ => Ok(()),
        }
    }
}

impl Guest for Misbehave {
    type Payload = Action;

    fn prepare(&mut self, task: &Task<Action>) -> Result<()> {
        info!("{:?}, attempt {}", task.payload(), task.attempt());
        self.fail_in(Phase::Prepare, task)
    }

    fn execute(&mut self, task: &Task<Action>) -> Result<Outcome> {
        self.fail_in(Phase::Execute, task)?;
        perform(task.payload(), task)
    }

    fn finalize(&mut self, task: &Task<Action>, outcome: &Outcome) -> Result<()> {
        info!("finalize, success {}", outcome.is_success());
        self.fail_in(Phase::Finalize, task)
    }
}

task_host_sdk::export!(Misbehave);

fn perform(action: &Action, task: &Task<Action>) -> Result<Outcome> {
    match action {
        Action::All { steps } => {
            let mut outcome = task.done();
            for step in steps {
                outcome = perform(step, task)?;
            }
            return Ok(outcome);
        }
        Action::Loop => excess::spin(),
        Action::Sleep { secs } => {
            let time = Duration::try_from_secs_f64(*secs).context("secs")?;
            std::thread::sleep(time);
        }
        Action::Panic { text } => panic!("{text}"),
        Action::Abort => std::process::abort(),
        Action::Exit { code } => std::process::exit(*code),
        Action::Retry { text } => return Err(Error::retry(text)),
        Action::Reject { text } => return Err(Error::reject(text)),
        Action::Unsuccessful => {
            task.write("unsuccessful.txt", "never published")?;
            error!("the result is no good, as the payload asked");
            return Ok(Outcome::unsuccessful());
        }
        // `fail_in` makes the call fail. If `finalize` fails, this output must not be published.
        Action::FailIn { .. } => task.write("written.txt", "written by execute")?,
        Action::FailUntil { attempt } if task.attempt() < *attempt => {
            return Err(Error::retry(format!("attempt {} of {attempt}", task.attempt())));
        }
        Action::FailUntil { .. } => task.write("attempt.txt", task.attempt().to_string())?,
        Action::MissingOutput => {
            task.write("there.txt", "there")?;
            return Ok(Outcome::success(["there.txt", "missing.txt"]));
        }
        Action::BigResult { how: Some(how), bytes, .. } => {
            return Err(how.fail(&"x".repeat(*bytes)));
        }
        Action::BigResult { how: None, outputs, bytes } => {
            return Ok(Outcome::success((0..*outputs).map(|n| format!("{n:0>bytes$}"))));
        }
        Action::Alloc { mib, gently: true } => {
            task.write("report.json", json!({"mib": excess::allocate_gently(*mib)}).to_string())?;
        }
        Action::Alloc { mib, gently: false } => excess::allocate(*mib),
        Action::Stack => {
            let deepest = excess::recurse(u64::MAX);
            info!("came back from {deepest}");
        }
        Action::Write { bytes, files, how, ignore_errors } => {
            excess::write(task, *bytes, *files, *how, *ignore_errors)?;
        }
        Action::ManyFiles { count } => excess::many_files(task, *count)?,
        Action::Mkdirs { depth } => excess::mkdirs(task, *depth)?,
        Action::Tree { depth, dirs, files } => {
            return Ok(Outcome::success(excess::tree(task, *depth, *dirs, *files)?));
        }
        Action::Say { text } => eprintln!("{text}"),
        Action::Log { bytes, to } => excess::log(*bytes, *to)?,
        Action::Raw { call } => raw::perform(call, task)?,
        Action::Symlink { target, name } => {
            probe::symlink(target, &task.outputs_dir().join(name)).context("symlink")?;
        }
        Action::Hardlink { target, name } => {
            task.write(target, "linked twice")?;
            let outputs = task.outputs_dir();
            fs::hard_link(outputs.join(target), outputs.join(name)).context("hard link")?;
        }
        Action::ReadFile { path } => drop(fs::read(path)?),
        Action::OddNames { names } => probe::odd_names(task, names.as_deref())?,
        Action::WriteInput => probe::write_input(task)?,
        Action::Escape => probe::escape(task)?,
        Action::Env => probe::environment(task)?,
        Action::Net { address } => probe::network(task, address)?,
        Action::SetTimes => times::set(task)?,
        Action::Stdin => probe::stdin(task)?,
        Action::Leave => probe::leave(task)?,
        Action::Copy { ignore_errors } => {
            for input in task.inputs() {
                match task.write(&format!("out/{}", input.key()), input.read()?) {
                    Err(error) if *ignore_errors => error!("{error}, and nobody will know"),
                    written => written?,
                }
            }
        }
        Action::Output { key, text } => task.write(key, text)?,
        Action::Mark { dir } => {
            let random = std::hash::RandomState::new().build_hasher().finish();
            task.write(&format!("{dir}/{}-{random:016x}", task.id()), "")?;
        }
    }
    Ok(task.done())
}

#[cfg(test)]
mod tests {
    use super::*;
    use task_host_sdk::testing::Sandbox;

    fn run(payload: &str) -> (Sandbox, Result<Outcome>) {
        let mut sandbox = Sandbox::new().unwrap();
        sandbox.input("0_input/a.txt", b"a").unwrap().payload(payload);
        let result = sandbox.run::<Misbehave>();
        (sandbox, result)
    }

    #[test]
    fn actions_that_a_native_process_survives_do_what_they_say() {
        let (sandbox, result) = run(r#"{"do": "all", "steps": [
            {"do": "copy"}, {"do": "write", "bytes": 100000, "files": 3}, {"do": "many-files", "count": 2},
            {"do": "mkdirs", "depth": 2}, {"do": "odd-names"},
            {"do": "tree", "depth": 3, "dirs": 1, "files": 2}]}"#);
        result.unwrap();
        assert_eq!(sandbox.output("out/0_input/a.txt").unwrap(), b"a");
        assert_eq!(sandbox.output("written/0.dat").unwrap().len(), 33_334);
        assert_eq!(sandbox.output("d/d/d.txt").unwrap(), b"deep");
        assert_eq!(sandbox.output("many/1").unwrap(), b"");
        assert_eq!(sandbox.output("t/t/t/1").unwrap(), b"");

        assert!(!run(r#"{"do": "unsuccessful"}"#).1.unwrap().is_success());
        assert!(run(r#"{"do": "missing-output"}"#).1.is_err());
        assert!(run(r#"{"do": "fail-until", "attempt": 2}"#).1.unwrap_err().is_retry());
        for (phase, how) in [("prepare", "retry"), ("execute", "reject"), ("finalize", "retry")] {
            let error = run(&format!(r#"{{"do": "fail-in", "phase": "{phase}", "how": "{how}"}}"#))
                .1
                .unwrap_err();
            assert_eq!(error.is_retry(), how == "retry");
            assert!(error.text().to_lowercase().starts_with(phase), "{error}");
        }
    }

    #[test]
    fn an_unknown_action_is_rejected_with_the_known_ones() {
        let error = run(r#"{"do": "behave"}"#).1.unwrap_err();
        assert!(
            error.text().contains("unknown variant `behave`, expected one of `all`, `loop`"),
            "{error}"
        );
    }
}
