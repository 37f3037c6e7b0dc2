//! A guest whose plan does what the payload says: `{"do": "ask", "keys": ["a"]}`. Its execution
//! reports the files in `/inputs`.

use std::fs;

use serde::Deserialize;
use serde_json::json;
use task_host_sdk::{Error, Guest, Needs, Outcome, Plan, Result, Task};

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum What {
    /// Asks for these inputs.
    Ask {
        #[serde(default)]
        keys: Vec<String>,
        #[serde(default)]
        optional: Vec<String>,
        #[serde(default)]
        prefixes: Vec<String>,
    },
    /// First asks for an input, and then for the keys in its lines.
    Index {
        key: String,
    },
    /// Asks for this many keys.
    Many {
        count: usize,
    },
    /// Asks for this many keys of 100 KB.
    Long {
        count: usize,
    },
    /// Asks to be called again, without end.
    Again,
    /// Asks for a different key at each attempt, and fails at the first attempt.
    Change,
    /// Computes without end.
    Loop,
    /// Waits without end.
    Sleep,
    /// Allocates memory without end.
    Allocate,
    Panic,
    Retry,
    Reject,
    /// Writes an output.
    Write,
    /// Changes its own memory. The execution reports whether it sees the change.
    Remember,
}

#[derive(Default)]
struct Planner;

static MEMORY: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

impl Plan for Planner {
    fn plan(task: &Task<What>) -> Result<Needs> {
        let mut needs = Needs::new();
        match task.payload() {
            What::Ask { keys, optional, prefixes } => {
                for key in keys {
                    needs.key(key);
                }
                for key in optional {
                    needs.optional_key(key);
                }
                for prefix in prefixes {
                    needs.prefix(prefix);
                }
            }
            What::Index { key } => match task.input(key) {
                None => {
                    needs.key(key).and_more();
                }
                Some(index) => {
                    for line in index.read_to_string()?.lines() {
                        needs.key(line);
                    }
                }
            },
            What::Many { count } => {
                for n in 0..*count {
                    needs.key(n.to_string());
                }
            }
            What::Long { count } => {
                for _ in 0..*count {
                    needs.key("x".repeat(100_000));
                }
            }
            What::Again => {
                needs.and_more();
            }
            What::Change => {
                needs.key(format!("{}.dat", task.attempt()));
            }
            What::Loop => loop {
                std::hint::black_box(0);
            },
            What::Sleep => std::thread::sleep(std::time::Duration::from_secs(100_000)),
            What::Allocate => {
                let mut all = Vec::new();
                loop {
                    all.push(vec![1_u8; 1 << 20]);
                    std::hint::black_box(&all);
                }
            }
            What::Panic => panic!("in the plan"),
            What::Retry => return Err(Error::retry("the plan can't be made yet")),
            What::Reject => return Err(Error::reject("the plan can't be made")),
            What::Write => task.write("planned.txt", "by a plan")?,
            What::Remember => MEMORY.store(1, std::sync::atomic::Ordering::Relaxed),
        }
        Ok(needs)
    }
}

impl Guest for Planner {
    type Payload = What;

    fn execute(&mut self, task: &Task<What>) -> Result<Outcome> {
        if let (What::Change, 1) = (task.payload(), task.attempt()) {
            return Err(Error::retry("at the first attempt"));
        }
        let inputs: Vec<String> = task.inputs().map(|input| input.key().to_owned()).collect();
        let texts: Vec<String> = inputs
            .iter()
            .map(|key| fs::read_to_string(task.inputs_dir().join(key)))
            .collect::<std::io::Result<_>>()?;
        let memory = MEMORY.load(std::sync::atomic::Ordering::Relaxed);
        let report = json!({"inputs": inputs, "texts": texts, "memory": memory});
        task.write("report.json", report.to_string())?;
        Ok(task.done())
    }
}

task_host_sdk::export!(Planner, plan);
