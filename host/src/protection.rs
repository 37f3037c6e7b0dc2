//! Protection of an ECS task from scale-in while its host holds tasks of the queue.
//!
//! When a service scales in, ECS stops any of its ECS tasks. The ECS agent accepts a request to
//! protect its own task for some time, and a request to end the protection. See "Task scale-in
//! protection endpoint" in the ECS developer guide.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::ask::{Question, ask};
use crate::environment::Environment;
use crate::stats::Stats;

/// How often the host checks whether it holds tasks.
const LOOK: Duration = Duration::from_secs(1);
/// How long a host must hold no task before it ends its protection, so that a short pause between
/// tasks costs no requests.
const IDLE: Duration = Duration::from_secs(30);
/// How long protection lasts if the host dies before it ends it. ECS counts in minutes.
const LASTS_MINUTES: u64 = 30;
/// The age at which protection is renewed.
const RENEWED: Duration = Duration::from_secs(LASTS_MINUTES * 60 / 2);
/// The timeout of a request to the agent.
const PATIENCE: Duration = Duration::from_secs(5);
/// The wait after a failed request.
const AGAIN: Duration = Duration::from_secs(60);

/// Protects this process's ECS task, if it is one. Never returns.
pub async fn keep(environment: &Environment, stats: Arc<Stats>) {
    let Some(agent) = environment.get("ECS_AGENT_URI") else {
        return std::future::pending().await;
    };
    let url = format!("{}/task-protection/v1/state", agent.trim_end_matches('/'));
    let mut protection = Protection::default();
    loop {
        let now = Instant::now();
        if let Some(wanted) = protection.wanted(now, stats.in_flight.load(Relaxed) > 0) {
            match put(&url, wanted).await {
                Ok(()) => protection.is_set(now, wanted),
                Err(Failure::Refused(reason)) => {
                    tracing::info!("ECS does not protect this task from scale-in: {reason}");
                    return std::future::pending().await;
                }
                Err(Failure::Unknown(problem)) => {
                    tracing::debug!("{url}: {problem}");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The state of the protection.
#[derive(Debug, Default)]
struct Protection {
    /// The time of the last request for protection, if the ECS task is protected.
    since: Option<Instant>,
    /// The last time at which the host held a task.
    busy: Option<Instant>,
}

impl Protection {
    /// The request to send now, if any: true to protect the ECS task, false to end the protection.
    fn wanted(&mut self, now: Instant, is_busy: bool) -> Option<bool> {
        if is_busy {
            self.busy = Some(now);
        }
        let idle = self.busy.map(|busy| now.saturating_duration_since(busy));
        match (self.since, idle) {
            (None, Some(Duration::ZERO)) => Some(true),
            (Some(_), Some(idle)) if idle >= IDLE => Some(false),
            (Some(since), _) if now.saturating_duration_since(since) >= RENEWED => Some(true),
            _ => None,
        }
    }

    fn is_set(&mut self, now: Instant, protected: bool) {
        self.since = protected.then_some(now);
    }
}

enum Failure {
    /// A retry can't help: the ECS task does not belong to a service, or its role does not allow
    /// it.
    Refused(String),
    Unknown(String),
}

async fn put(url: &str, protected: bool) -> Result<(), Failure> {
    let state = match protected {
        true => json!({"ProtectionEnabled": true, "ExpiresInMinutes": LASTS_MINUTES}),
        false => json!({"ProtectionEnabled": false}),
    };
    let question =
        Question { method: "PUT", url, json: Some(state.to_string()), ..Question::default() };
    let answer = ask(&question, PATIENCE).await;
    let answer = answer.map_err(|error| Failure::Unknown(error.to_string()))?;
    let said: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    let reasons = [&said["failure"]["Reason"], &said["error"]["Message"], &said["error"]["Code"]];
    let reason = reasons.iter().find_map(|reason| reason.as_str());
    let is_busy = answer.status == 429
        || said["error"]["Code"].as_str().is_some_and(|code| code.contains("Throttl"));
    match (answer.status, reason) {
        (200, None) => Ok(()),
        (200 | 400..=499, _) if !is_busy => {
            let status = || format!("status {}", answer.status);
            Err(Failure::Refused(reason.map_or_else(status, str::to_owned)))
        }
        (status, _) => Err(Failure::Unknown(format!("status {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_short_tasks_and_a_long_one_cost_few_requests() {
        let start = Instant::now();
        let mut protection = Protection::default();
        let mut asked = Vec::new();
        // Short tasks for one minute, no task for one minute, one task for forty minutes, no task.
        for second in 0..3600_u64 {
            let is_busy = match second {
                0..60 => second % 7 == 3,
                120..2520 => true,
                _ => false,
            };
            let now = start + Duration::from_secs(second);
            if let Some(wanted) = protection.wanted(now, is_busy) {
                asked.push((second, wanted));
                protection.is_set(now, wanted);
            }
        }
        let want = [
            (3, true),
            (59 + 30, false),
            (120, true),
            (120 + 900, true),
            (120 + 1800, true),
            (2519 + 30, false),
        ];
        assert_eq!(asked, want);
    }
}
