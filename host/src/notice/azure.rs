//! Azure: the instance metadata service lists scheduled events for all machines of a set. A spot
//! machine is told 30 seconds in advance, other machines some minutes in advance.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use super::{Notice, PATIENCE, Problem, Seen, Service, get};
use crate::ask::Question;
use crate::environment::Environment;

/// The maximum time between the announcement of an event and the event.
const BEFORE: Duration = Duration::from_secs(15 * 60);
/// The first request for events enables them, which may take two minutes.
const FIRST_ANSWER: Duration = Duration::from_secs(130);

/// The metadata service, and the name of this machine in events.
pub(super) struct Metadata {
    url: String,
    name: Option<String>,
    has_answered: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Events {
    events: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    event_type: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    not_before: String,
}

impl Event {
    /// What happens to the machine, if running tasks do not survive it.
    fn ending(&self) -> Option<&'static str> {
        match &*self.event_type {
            "Preempt" => Some("take away"),
            "Terminate" => Some("delete"),
            "Reboot" => Some("restart"),
            "Redeploy" => Some("move and restart"),
            // Other events pause the machine for some seconds.
            _ => None,
        }
    }
}

impl Metadata {
    pub(super) fn of(environment: &Environment) -> Self {
        let default = "http://169.254.169.254";
        // Azure's own libraries use this variable.
        let url = environment.get("AZURE_POD_IDENTITY_AUTHORITY_HOST").unwrap_or(default);
        Self { url: url.trim_end_matches('/').to_owned(), name: None, has_answered: false }
    }

    async fn read(
        &self,
        what: &'static str,
        path: &str,
        patience: Duration,
    ) -> Result<String, Problem> {
        let url = format!("{}/metadata/{path}", self.url);
        let headers = [("metadata", "true")];
        let question = Question { url: &url, headers: &headers, ..Question::default() };
        let answer = get(what, &question, patience).await?;
        Ok(answer.ok_or(Problem::Status { what, status: 404 })?.text)
    }

    async fn name(&mut self) -> Result<String, Problem> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let path = "instance/compute/name?api-version=2021-02-01&format=text";
        let name = self.read("a question for the machine's name", path, PATIENCE).await?;
        let name = name.trim().to_owned();
        self.name = Some(name.clone());
        Ok(name)
    }
}

#[async_trait]
impl Service for Metadata {
    async fn look(&mut self) -> Result<Seen, Problem> {
        let what = "a question for events";
        let name = self.name().await?;
        let patience = if self.has_answered { PATIENCE } else { FIRST_ANSWER };
        let text = self.read(what, "scheduledevents?api-version=2020-07-01", patience).await?;
        self.has_answered = true;
        let Ok(Events { events }) = serde_json::from_str(&text) else {
            let text = text.chars().take(100).collect();
            return Err(Problem::Text { what, text });
        };
        let is_ours = |event: &&Event| {
            event.resources.iter().any(|resource| resource.eq_ignore_ascii_case(&name))
        };
        let notices = events.iter().filter(is_ours).filter_map(|event| {
            let text = format!("Azure will {} this machine", event.ending()?);
            // An event that has started has no time.
            let at = httpdate::parse_http_date(&event.not_before).ok();
            let when = at.map_or(String::new(), |_| format!(" at {}", event.not_before));
            Some(Notice::at(format!("{text}{when}"), at, BEFORE))
        });
        Ok(notices.min_by_key(|notice| notice.left).map_or(Seen::Nothing, Seen::Notice))
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the metadata service of Azure at {}", self.url)
    }
}
