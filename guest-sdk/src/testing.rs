//! Runs a task in a unit test: natively, with two directories like in the host, without limits.
//!
//! ```
//! # use task_host_sdk::{Guest, Ignored, Outcome, Result, Task};
//! # #[derive(Default)]
//! # struct Reverse;
//! # impl Guest for Reverse {
//! #     type Payload = Ignored;
//! #     fn execute(&mut self, task: &Task) -> Result<Outcome> {
//! #         let input = task.single_input()?;
//! #         let text: String = input.read_to_string()?.chars().rev().collect();
//! #         task.write(&format!("0_output/{}", input.file_name()), text)?;
//! #         Ok(task.done())
//! #     }
//! # }
//! use task_host_sdk::testing::Sandbox;
//!
//! # fn main() -> Result<()> {
//! let mut sandbox = Sandbox::new()?;
//! sandbox.input("0_input/a.txt", b"stressed")?;
//! sandbox.run::<Reverse>()?;
//! assert_eq!(sandbox.output("0_output/a.txt")?, b"desserts");
//! # Ok(())
//! # }
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::guest::{self, Execution};
use crate::output::locate;
use crate::{Context, Error, Guest, Needs, Outcome, Plan, Result, wire};

/// The message and the two directories of a task. Dropping the value removes the directories.
#[derive(Debug)]
pub struct Sandbox {
    directory: PathBuf,
    task: wire::Task,
}

impl Sandbox {
    /// A task without inputs or payload, on its first attempt.
    ///
    /// # Errors
    /// If the directories cannot be created.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "task-host-sdk-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(name);
        for part in ["inputs", "outputs"] {
            fs::create_dir_all(directory.join(part))
                .with_context(|| format!("directory {}", directory.display()))?;
        }
        let info = wire::Info {
            id: -1,
            name: "test".into(),
            base_directory: "datasets/test".into(),
            inputs: Vec::new(),
        };
        Ok(Self { directory, task: wire::Task { info, payload: None, attempt: 1 } })
    }

    /// Adds an input.
    ///
    /// # Errors
    /// If the input cannot be written.
    pub fn input(&mut self, key: &str, contents: impl AsRef<[u8]>) -> Result<&mut Self> {
        fs::write(locate(&self.inputs_dir(), key)?, contents)
            .with_context(|| format!("input {key}"))?;
        self.task.info.inputs.push(key.to_owned());
        Ok(self)
    }

    /// Sets the payload: JSON, as text or as a [`Value`](crate::Value).
    pub fn payload(&mut self, json: impl ToString) -> &mut Self {
        self.task.payload = Some(json.to_string());
        self
    }

    /// Sets the number of the attempt. The default is 1.
    pub fn attempt(&mut self, attempt: u32) -> &mut Self {
        self.task.attempt = attempt;
        self
    }

    /// Calls the task's plan, which sees the inputs added so far.
    ///
    /// # Errors
    /// The errors of the plan.
    pub fn plan<G: Plan>(&self) -> Result<Needs> {
        guest::plan::<G>(self.task.clone(), self.inputs_dir(), self.outputs_dir())
    }

    /// Runs the task: empties the outputs directory, makes the three calls, and checks that the
    /// listed outputs exist, as the host does.
    ///
    /// # Errors
    /// The errors of the three calls and of the check.
    pub fn run<G: Guest>(&mut self) -> Result<Outcome> {
        fs::remove_dir_all(self.outputs_dir()).context("outputs directory")?;
        fs::create_dir_all(self.outputs_dir()).context("outputs directory")?;
        let mut execution =
            Execution::<G>::prepare(self.task.clone(), self.inputs_dir(), self.outputs_dir())?;
        let outcome = execution.execute()?;
        execution.finalize(&outcome)?;
        if outcome.is_success() {
            for key in outcome.outputs() {
                if !self.outputs_dir().join(key).is_file() {
                    return Err(Error::reject(format!(
                        "output {key} is listed in the outcome but does not exist"
                    )));
                }
            }
        }
        Ok(outcome)
    }

    /// The contents of an output.
    ///
    /// # Errors
    /// If the output does not exist.
    pub fn output(&self, key: &str) -> Result<Vec<u8>> {
        fs::read(self.outputs_dir().join(key)).with_context(|| format!("output {key}"))
    }

    /// The keys of all existing outputs, sorted.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn outputs(&self) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        list(&self.outputs_dir(), "", &mut keys)?;
        keys.sort();
        Ok(keys)
    }

    /// The directory of the inputs.
    pub fn inputs_dir(&self) -> PathBuf {
        self.directory.join("inputs")
    }

    /// The directory for the outputs.
    pub fn outputs_dir(&self) -> PathBuf {
        self.directory.join("outputs")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn list(directory: &Path, prefix: &str, keys: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let key = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{key}/"), keys)?;
        } else {
            keys.push(key);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ignored, Output, Task};

    /// Creates an output in `execute` and finishes it in `finalize` if the payload is true.
    #[derive(Default)]
    struct Late(Option<Output>);

    impl Guest for Late {
        type Payload = bool;

        fn execute(&mut self, task: &Task<bool>) -> Result<Outcome> {
            self.0 = Some(task.output("a/b.txt")?);
            Ok(task.done())
        }

        fn finalize(&mut self, task: &Task<bool>, _: &Outcome) -> Result<()> {
            if *task.payload()
                && let Some(output) = self.0.take()
            {
                output.finish()?;
            }
            Ok(())
        }
    }

    #[test]
    fn an_output_that_was_never_finished_fails_the_task() {
        let mut sandbox = Sandbox::new().unwrap();
        sandbox.payload(true).run::<Late>().unwrap();
        assert_eq!(sandbox.outputs().unwrap(), ["a/b.txt"]);
        let error = sandbox.payload(false).run::<Late>().unwrap_err();
        assert!(error.text().starts_with("output a/b.txt was not finished"), "{error}");
    }

    #[derive(Default)]
    struct Escapes;

    impl Guest for Escapes {
        type Payload = Ignored;

        fn execute(&mut self, task: &Task) -> Result<Outcome> {
            for key in ["", "/a", "../a", "a/../../b", "a//b", "./a", "a/"] {
                assert!(task.write(key, b"x").is_err_and(|error| !error.is_retry()), "{key:?}");
            }
            Ok(Outcome::success(["forgotten.txt"]))
        }
    }

    #[test]
    fn keys_stay_in_the_outputs_directory_and_listed_outputs_must_be_there() {
        let error = Sandbox::new().unwrap().run::<Escapes>().unwrap_err();
        assert_eq!(
            error.text(),
            "output forgotten.txt is listed in the outcome but does not exist"
        );
    }
}
