//! Watches for notices that the cloud will take this machine away, because it reclaims a spot
//! machine or stops the machine.
//!
//! Each cloud announces this through its own metadata service, at an address without TLS that only
//! the machine can reach. The machine's firmware tells which cloud it is. On a machine outside
//! these clouds, no request is sent.

mod aws;
mod azure;
mod google;
mod machine;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::ask::{Answer, AskError, Question, ask};
use crate::environment::Environment;
use crate::identity::Engine;

pub use machine::Machine;

/// The wait between two requests: the usual one, and the longest one after failures.
const OFTEN: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(60);
/// The time limit for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The time until the end, if a notice does not tell it.
const SHORTEST: Duration = Duration::from_secs(30);
/// The part of that time that a host needs after its tasks end: to release messages, and for a last
/// poll.
const TO_RELEASE: Duration = Duration::from_secs(15);
/// The minimum time for running tasks.
const LEAST: Duration = Duration::from_secs(3);

/// The notices that a host reacts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notices {
    /// Notices of the cloud that runs this machine.
    Auto,
    /// Notices of this cloud.
    Of(Cloud),
    /// No notices.
    Off,
}

/// A cloud with notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon EC2.
    Aws,
    /// Google Compute Engine.
    Google,
    /// Azure.
    Azure,
}

/// The cloud will take the machine away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What will happen, as text for people.
    pub text: String,
    /// The time until it happens.
    pub left: Duration,
}

impl Notice {
    /// A notice for this time, or for [`SHORTEST`] from now if the time is unknown. `most` is how
    /// early such notices come at most; it limits the effect of a clock that differs.
    fn at(text: String, time: Option<SystemTime>, most: Duration) -> Self {
        let left = time.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let seconds = left.unwrap_or(SHORTEST).min(most).as_secs();
        Self { text, left: Duration::from_secs(seconds) }
    }

    /// How long running tasks may take to finish.
    pub fn grace(&self) -> Duration {
        self.left.saturating_sub(TO_RELEASE).max(LEAST)
    }
}

/// The answer of a metadata service.
enum Seen {
    /// No notice.
    Nothing,
    Notice(Notice),
    /// This machine will never get a notice, for this reason.
    Never(&'static str),
}

/// The metadata service of one cloud.
#[async_trait]
trait Service: fmt::Display + Send {
    /// Looks for a notice. May wait for one.
    async fn look(&mut self) -> Result<Seen, Problem>;
}

/// Why a metadata service could not be read.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("answers {what} with status {status}")]
    Status { what: &'static str, status: u16 },
    #[error("answers {what} with {text:?}, which is not valid")]
    Text { what: &'static str, text: String },
}

impl Problem {
    fn text(what: &'static str, answer: &Answer) -> Self {
        Self::Text { what, text: answer.text.chars().take(100).collect() }
    }
}

/// The answer to `what` if its status is 200, or `None` if it is 404.
async fn get(
    what: &'static str,
    question: &Question<'_>,
    patience: Duration,
) -> Result<Option<Answer>, Problem> {
    let answer = ask(question, patience).await?;
    match answer.status {
        200 => Ok(Some(answer)),
        404 => Ok(None),
        status => Err(Problem::Status { what, status }),
    }
}

/// Waits for a notice.
pub struct Watcher {
    service: Box<dyn Service>,
    /// The user did not request these notices, so a missing service is not a problem.
    is_auto: bool,
}

impl Watcher {
    /// The watcher for these notices, if there can be any. `engine` is the engine that started this
    /// host.
    pub fn find(
        notices: Notices,
        environment: &Environment,
        engine: Option<Engine>,
        machine: &Machine,
    ) -> Option<Self> {
        let cloud = match notices {
            Notices::Of(cloud) => Some(cloud),
            Notices::Off => None,
            // Kubernetes and Fargate announce the end of a container with a signal in time.
            Notices::Auto if engine == Some(Engine::K8s) => None,
            Notices::Auto if environment.get("AWS_EXECUTION_ENV") == Some("AWS_ECS_FARGATE") => {
                None
            }
            Notices::Auto if environment.is_on("AWS_EC2_METADATA_DISABLED") => {
                machine.cloud().filter(|cloud| *cloud != Cloud::Aws)
            }
            Notices::Auto => machine.cloud(),
        };
        let service: Box<dyn Service> = match cloud? {
            Cloud::Aws => Box::new(aws::Metadata::of(environment)),
            Cloud::Google => Box::new(google::Metadata::of(environment)),
            Cloud::Azure => Box::new(azure::Metadata::of(environment)),
        };
        Some(Self { service, is_auto: notices == Notices::Auto })
    }

    /// Returns when there is a notice. After failures, the wait between requests grows.
    pub async fn notice(&mut self) -> Notice {
        let mut failures = 0;
        loop {
            match self.service.look().await {
                Ok(Seen::Notice(notice)) => return notice,
                Ok(Seen::Nothing) => {
                    if failures > 0 {
                        tracing::info!("{} answers again", self.service);
                    }
                    failures = 0;
                }
                Ok(Seen::Never(reason)) => {
                    tracing::debug!("{}: {reason}", self.service);
                    return std::future::pending().await;
                }
                Err(problem) => {
                    self.tell(failures, &problem);
                    failures += 1;
                }
            }
            tokio::time::sleep(OFTEN.saturating_mul(1 << failures.min(8)).min(SELDOM)).await;
        }
    }

    fn tell(&self, failures: u32, problem: &Problem) {
        let service = &self.service;
        match (failures, self.is_auto) {
            (0, true) => tracing::info!("{service}: {problem}; the host would not see a notice"),
            (0, false) => tracing::warn!("{service}: {problem}; the host would not see a notice"),
            _ => tracing::debug!("{service}: {problem}"),
        }
    }
}

impl fmt::Display for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)
    }
}
