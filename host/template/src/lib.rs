//! Counts the words of each input and writes the most frequent ones, as a table, to
//! `1_words/NAME.tsv`.
//!
//! This is what `host new` wrote, for you to replace. `docs/writing-a-task.md` of Task Host is the
//! guide; `cargo doc -p task-host-sdk --open` has every detail.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Deserialize;
use task_host_sdk::{Error, Guest, Outcome, Result, Task, info};

/// The task's own parameters: `payload_info` of its message, `{"top": 10}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// How many words to list.
    #[serde(default = "ten")]
    top: usize,
}

fn ten() -> usize {
    10
}

/// What should live from one call to the next goes in here.
#[derive(Default)]
struct Words;

impl Guest for Words {
    type Payload = Options;

    /// Look at the payload before any work is done.
    fn prepare(&mut self, task: &Task<Options>) -> Result<()> {
        if task.payload().top == 0 {
            // `reject`: another try would end the same way. `Error::retry` asks for one.
            return Err(Error::reject(
                "the payload's top is 0: there is nothing to list",
            ));
        }
        Ok(())
    }

    /// Read the inputs, write the outputs. `?` takes any error.
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

/// The words in small letters, the most frequent first, equally frequent ones by the alphabet.
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

/// `cargo test` runs these on your machine, without WebAssembly.
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
