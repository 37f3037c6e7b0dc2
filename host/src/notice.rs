//! Notices of a cloud that it takes this machine away: a spot machine is needed elsewhere, or the
//! machine is to be stopped.
//!
//! Each cloud tells its machines by a metadata service of its own, at an address without TLS that
//! only the machine reaches. Which cloud this is, the machine's description says; nothing is asked
//! on a machine of no cloud.

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

/// The wait between two questions, and after many that failed.
const OFTEN: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(60);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How much time a notice gives that does not say so.
const SHORTEST: Duration = Duration::from_secs(30);
/// Of that time, what a host needs after its tasks: to release them, and for a last poll.
const TO_RELEASE: Duration = Duration::from_secs(15);
/// How long running tasks have in any case.
const LEAST: Duration = Duration::from_secs(3);

/// Whose notices a host heeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notices {
    /// Those of the cloud that this machine is in.
    Auto,
    /// Those of this cloud.
    Of(Cloud),
    /// None.
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

/// The machine will be taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What will happen, for people.
    pub text: String,
    /// The time until then.
    pub left: Duration,
}

impl Notice {
    /// A notice of something at a time, or soon if there is none. `most` is how long before such
    /// notices come: clocks may differ.
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

/// What a metadata service says now.
enum Seen {
    /// No notice.
    Nothing,
    Notice(Notice),
    /// There will be no notices on this machine, for this reason.
    Never(&'static str),
}

/// The metadata service of one cloud.
#[async_trait]
trait Service: fmt::Display + Send {
    /// Looks for a notice. May wait for one.
    async fn look(&mut self) -> Result<Seen, Problem>;
}

/// Why it is not known whether there is a notice.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("answers {what} with status {status}")]
    Status { what: &'static str, status: u16 },
    #[error("answers {what} with {text:?}, which is not understood")]
    Text { what: &'static str, text: String },
}

impl Problem {
    fn text(what: &'static str, answer: &Answer) -> Self {
        Self::Text { what, text: answer.text.chars().take(100).collect() }
    }
}

/// The answer to `what` if its status is 200, or nothing if it is 404.
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
    /// Nobody asked for these notices, so that it is no problem if there are none.
    is_auto: bool,
}

impl Watcher {
    /// The watcher for these notices, if there can be any. `engine` is what started this host.
    pub fn find(
        notices: Notices,
        environment: &Environment,
        engine: Option<Engine>,
        machine: &Machine,
    ) -> Option<Self> {
        let cloud = match notices {
            Notices::Of(cloud) => Some(cloud),
            Notices::Off => None,
            // Kubernetes and Fargate stop their containers with a signal in time.
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

    /// Returns when there is a notice. A service that fails is asked again, less and less often.
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
            (0, true) => tracing::info!("{service}: {problem}; a notice would not be seen"),
            (0, false) => tracing::warn!("{service}: {problem}; a notice would not be seen"),
            _ => tracing::debug!("{service}: {problem}"),
        }
    }
}

impl fmt::Display for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)
    }
}
