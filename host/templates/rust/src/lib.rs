//! Counts the words of each input and writes a table of the most frequent ones to
//! `1_words/NAME.tsv`.
//!
//! Replace this example with your own task. The guide is Task Host's `docs/writing-a-task.md`; see
//! also `cargo doc -p task-host-sdk --open`. A task that names its own inputs also implements
//! `Plan`.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Deserialize;
use task_host_sdk::{Error, Guest, Outcome, Result, Task, info};

/// The task's parameters: `payload_info` in its message, such as `{"top": 10}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The number of words to list.
    #[serde(default = "ten")]
    top: usize,
}

fn ten() -> usize {
    10
}

/// Fields keep values from one call to the next. This task has no fields.
#[derive(Default)]
struct Words;

impl Guest for Words {
    type Payload = Options;

    /// Checks the payload before any work.
    fn prepare(&mut self, task: &Task<Options>) -> Result<()> {
        if task.payload().top == 0 {
            // A retry would fail the same way. Otherwise, use `Error::retry`.
            return Err(Error::reject(
                "the payload's top is 0: there is nothing to list",
            ));
        }
        Ok(())
    }

    /// Reads the inputs and writes the outputs. `?` accepts any error.
    fn execute(&mut self, task: &Task<Options>) -> Result<Outcome> {
        for input in task.inputs() {
            let text = input.read_to_string()?;
            let mut table = task.output(&format!("1_words/{}.tsv", input.file_stem()))?;
            for (word, count) in count(&text).into_iter().take(task.payload().top) {
                writeln!(table, "{count}\t{word}")?;
            }
            table.finish()?;
            info!("{input}: {} bytes of text", text.len());
        }
        Ok(task.done())
    }
}

task_host_sdk::export!(Words);

/// Words in lower case and their counts, sorted by descending count, then alphabetically.
fn count(text: &str) -> Vec<(String, usize)> {
    let mut counts = BTreeMap::new();
    for word in text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        *counts.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    counts
}

/// `cargo test` runs these tests natively, without WebAssembly.
#[cfg(test)]
mod tests {
    use super::*;
    use task_host_sdk::testing::Sandbox;

    #[test]
    fn the_most_frequent_words_come_first() -> Result<()> {
        let mut sandbox = Sandbox::new()?;
        sandbox
            .input("0_input/tyger.txt", "Tyger Tyger, burning bright")?
            .payload(r#"{"top": 2}"#);
        let outcome = sandbox.run::<Words>()?;
        assert_eq!(outcome.outputs(), ["1_words/tyger.tsv"]);
        assert_eq!(
            sandbox.output("1_words/tyger.tsv")?,
            b"2\ttyger\n1\tbright\n"
        );
        Ok(())
    }

    #[test]
    fn nothing_to_list_is_rejected() {
        let error = Sandbox::new()
            .unwrap()
            .payload(r#"{"top": 0}"#)
            .run::<Words>()
            .unwrap_err();
        assert!(!error.is_retry());
    }
}
