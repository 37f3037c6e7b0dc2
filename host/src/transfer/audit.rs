//! Runs a sample of finished tasks again, and compares their outputs with their receipts.
//!
//! Whether a task is in the sample depends on its content and a seed, not on its position. So a
//! sample can be repeated, and a fraction of any number of tasks is chosen in constant memory.

use std::collections::BTreeMap;
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::check::{Check, at_once, unavailable};
use super::rerun::{Rerun, Rerunner};
use crate::digest::Digest;
use crate::message::{self, Task};
use crate::queue::QueueError;
use crate::receipt::{self, Found, Receipts};

/// The maximum size of a sample that is given as a number, because its messages are kept in memory.
const MOST: u64 = 100_000;

/// How many tasks are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sample {
    /// Each task with this probability.
    Part(f64),
    /// This many, or all if there are fewer.
    Count(usize),
}

impl FromStr for Sample {
    type Err = String;

    /// `1%` or `100`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.trim_end().parse::<f64>() {
                Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Self::Part(percent / 100.0)),
                _ => Err("is not a part of all tasks; write for example 1% or 0.5%".to_owned()),
            };
        }
        match text.replace('_', "").parse::<u64>() {
            Ok(count @ 1..=MOST) => Ok(Self::Count(count as usize)),
            Ok(0) => Err("must be 1 or more".to_owned()),
            Ok(_) => Err(format!("is too large; the maximum is {MOST}; give a part, such as 1%")),
            Err(_) => Err("is not a number of tasks; write for example 100 or 1%".to_owned()),
        }
    }
}

/// The result of running a finished task again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audited {
    /// The task left the outputs of its receipt.
    Same,
    /// The task left other outputs. The text says which.
    Differs(String),
    /// The task failed. The text says why.
    Failed(String),
    /// The task can't be run as before, because something has changed since. The text says what.
    Changed(String),
}

/// Called for each task that was run again, with its message and the result.
pub type Told = dyn Fn(&Bytes, &Task, &Audited) + Send + Sync;

/// The key by which tasks are ordered for the choice: the rank, which depends on the seed, and the
/// content.
type Rank = (u64, Digest);

/// Chooses finished tasks and runs them again.
pub struct Auditor {
    receipts: Receipts,
    rerunner: Rerunner,
    sample: Sample,
    seed: u64,
    /// Tasks chosen so far, of a sample that is given as a number.
    chosen: Mutex<BTreeMap<Rank, Bytes>>,
    running: Semaphore,
    told: Box<Told>,
}

impl Auditor {
    /// Runs tasks with these receipts again. Calls `told` with each result.
    pub fn new(
        receipts: Receipts,
        rerunner: Rerunner,
        sample: Sample,
        seed: u64,
        told: impl Fn(&Bytes, &Task, &Audited) + Send + Sync + 'static,
    ) -> Self {
        let running = Semaphore::new(rerunner.parallel());
        let (chosen, told) = (Mutex::default(), Box::new(told));
        Self { receipts, rerunner, sample, seed, chosen, running, told }
    }

    /// Runs the chosen tasks of a sample that is given as a number. Calls `ran` with the number of
    /// tasks that have run so far.
    ///
    /// # Errors
    /// When this machine or a service fails.
    pub async fn run_chosen(&self, mut ran: impl FnMut(u64)) -> Result<(), QueueError> {
        let chosen = std::mem::take(&mut *self.chosen.lock());
        let runs: Vec<_> =
            chosen.into_values().map(|message| self.audit_message(message)).collect();
        let mut runs = stream::iter(runs).buffer_unordered(self.rerunner.parallel());
        let mut count = 0;
        while runs.try_next().await?.is_some() {
            count += 1;
            ran(count);
        }
        Ok(())
    }

    fn rank(&self, content: Digest) -> Rank {
        let mut hasher = Sha256::new();
        hasher.update(self.seed.to_le_bytes());
        hasher.update(content.0);
        let digest: [u8; 32] = hasher.finalize().into();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        (u64::from_be_bytes(first), content)
    }

    async fn audit_message(&self, message: Bytes) -> Result<(), QueueError> {
        // Messages that are not tasks were refused before.
        match message::decode(&message) {
            Ok(task) => self.audit(&message, &task, receipt::content(&task)).await,
            Err(_) => Ok(()),
        }
    }

    /// Runs a task again, if it has a receipt.
    async fn audit(&self, message: &Bytes, task: &Task, content: Digest) -> Result<(), QueueError> {
        let Ok(_running) = self.running.acquire().await else { return Ok(()) };
        let found = self.receipts.find(&content).await;
        let found =
            found.map_err(|error| unavailable(&self.receipts, "reading receipts", error))?;
        let Found::Receipt { receipt, .. } = found else { return Ok(()) };
        let rerun = self.rerunner.run(task, &receipt).await;
        let rerun =
            rerun.map_err(|error| unavailable(&self.receipts, "running tasks again", error))?;
        let audited = match rerun {
            Rerun::Left(outputs) => match receipt.first_difference(&outputs) {
                None => Audited::Same,
                Some(key) => {
                    let why = match receipt.deterministic {
                        true => "",
                        false => "; its host ran without --deterministic",
                    };
                    let problem = format!("output {key} does not match the receipt{why}");
                    Audited::Differs(problem)
                }
            },
            Rerun::Failed(problem) => Audited::Failed(problem),
            Rerun::Changed(problem) => Audited::Changed(problem),
        };
        (self.told)(message, task, &audited);
        Ok(())
    }

    /// Runs a task again if it is in the chosen fraction of all tasks.
    async fn audit_part(&self, message: &Bytes, part: f64) -> Result<(), QueueError> {
        let Ok(task) = message::decode(message) else { return Ok(()) };
        let content = receipt::content(&task);
        match is_in(self.rank(content).0, part) {
            true => self.audit(message, &task, content).await,
            false => Ok(()),
        }
    }

    /// Chooses a finished task if its rank is among the lowest so far. Reads few receipts: the more
    /// tasks have passed, the fewer ranks are that low.
    async fn choose(&self, message: &Bytes, count: usize) -> Result<(), QueueError> {
        let Ok(task) = message::decode(message) else { return Ok(()) };
        let content = receipt::content(&task);
        let rank = self.rank(content);
        let is_low = {
            let chosen = self.chosen.lock();
            chosen.len() < count || chosen.last_key_value().is_some_and(|(last, _)| rank < *last)
        };
        if !is_low {
            return Ok(());
        }
        let found = self.receipts.find(&content).await;
        let found =
            found.map_err(|error| unavailable(&self.receipts, "reading receipts", error))?;
        if let Found::Receipt { .. } = found {
            let mut chosen = self.chosen.lock();
            chosen.insert(rank, message.clone());
            if chosen.len() > count {
                chosen.pop_last();
            }
        }
        Ok(())
    }
}

/// True if a rank is in the lowest `part` of all ranks.
fn is_in(rank: u64, part: f64) -> bool {
    // 2^64 does not fit in a `u64`.
    u128::from(rank) < (part * 2_f64.powi(64)) as u128
}

/// Sends nothing, but looks at each task.
#[async_trait]
impl Check for Auditor {
    async fn to_send(&self, messages: &[Bytes]) -> Result<Vec<bool>, QueueError> {
        match self.sample {
            Sample::Part(part) => {
                let audits: Vec<_> =
                    messages.iter().map(|message| self.audit_part(message, part)).collect();
                let audits = stream::iter(audits).buffer_unordered(self.rerunner.parallel());
                audits.try_collect::<()>().await?;
            }
            Sample::Count(count) => {
                let choices: Vec<_> =
                    messages.iter().map(|message| self.choose(message, count)).collect();
                let choices = stream::iter(choices).buffer_unordered(at_once(&self.receipts));
                choices.try_collect::<()>().await?;
            }
        }
        Ok(vec![false; messages.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_part_or_a_number() {
        assert_eq!("1%".parse(), Ok(Sample::Part(0.01)));
        assert_eq!("0.5%".parse(), Ok(Sample::Part(0.005)));
        assert_eq!("1_000".parse(), Ok(Sample::Count(1000)));
        for wrong in ["0", "0%", "101%", "-1", "some", "%", "NaN%", "1000000"] {
            assert!(wrong.parse::<Sample>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_part_holds_its_share_of_the_ranks() {
        for (rank, part, want) in [
            (0, 0.0001, true),
            (u64::MAX / 100, 0.0101, true),
            (u64::MAX / 100, 0.0099, false),
            (u64::MAX, 0.999, false),
            (u64::MAX, 1.0, true),
        ] {
            assert_eq!(is_in(rank, part), want, "{rank} {part}");
        }
    }
}
