//! Stores what an attempt printed as an object in the bucket, if `--logs` is set.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Attempt;
use crate::bucket::Content;
use crate::key::{BucketKey, Prefix};
use crate::lease::Lease;
use crate::message::Task;
use crate::sandbox::Log;
use crate::services::Services;
use crate::verdict::Verdict;

/// How long an attempt waits for a bucket that does not take its log.
const PATIENCE: Duration = Duration::from_secs(5);

impl Attempt {
    /// Stores the log of an attempt that succeeded or failed. If it can't be stored, logs a
    /// warning; the verdict stays the same.
    pub(super) async fn store_log(&self, services: &Services, lease: &Lease, verdict: &Verdict) {
        let (Some(prefix), Some(task)) = (&services.config.data.logs, &self.task) else { return };
        if !verdict.is_of_the_task() || self.log.text.is_empty() {
            return;
        }
        let problem = match key(prefix, task, &lease.message().id, lease.attempt()) {
            Ok(key) => {
                let content = Content::from(whole(&self.log));
                let put = services.bucket.put(&key, &content, &key);
                match tokio::time::timeout(PATIENCE, put).await {
                    Ok(Ok(_)) => {
                        services.logs_fail.store(false, Relaxed);
                        return;
                    }
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("{}: no answer within {PATIENCE:?}", services.bucket),
                }
            }
            Err(problem) => problem,
        };
        // Warn once: all tasks have the same problem.
        match services.logs_fail.swap(true, Relaxed) {
            false => tracing::warn!("the log of a task could not be stored: {problem}"),
            true => tracing::debug!("the log of a task could not be stored: {problem}"),
        }
    }
}

/// The key of the log of one attempt.
fn key(prefix: &Prefix, task: &Task, message: &str, attempt: u32) -> Result<BucketKey, String> {
    let path = format!("{}/{}/{message}.{attempt}.log", task.name, task.id);
    let relative = BucketKey::of_output(&path);
    let key = relative.and_then(|path| BucketKey::of_output(prefix.join(&path).as_str()));
    key.map_err(|error| format!("its key {path:?} {error}"))
}

/// The text of a log, after a note of how many bytes are missing before it.
fn whole(log: &Log) -> Vec<u8> {
    match log.dropped {
        0 => log.text.clone().into_bytes(),
        dropped => format!("({dropped} bytes before this were not kept)\n{}", log.text).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message;

    #[test]
    fn each_attempt_has_a_log_of_its_own() {
        let task = br#"{"basic_info": {"id": 4, "name": "a.b/C", "base_directory": "d"}}"#;
        let task = message::decode(task).unwrap();
        let prefix = Prefix::new("logs").unwrap();
        let key = |message: &str| key(&prefix, &task, message, 2).map(|key| key.to_string());
        assert_eq!(key("m-1").unwrap(), "logs/a.b/C/4/m-1.2.log");
        assert!(key("../../x").unwrap_err().contains("has a `..` segment"));
        assert!(key(&"x".repeat(300)).unwrap_err().contains("too long"));
    }

    #[test]
    fn a_log_says_how_much_is_missing() {
        let log = |dropped| Log { text: "end\n".to_owned(), dropped };
        assert_eq!(whole(&log(0)), b"end\n");
        assert_eq!(whole(&log(7)), b"(7 bytes before this were not kept)\nend\n");
    }
}
