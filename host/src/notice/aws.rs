//! EC2: version 2 of the instance metadata service announces the end of a spot machine two minutes
//! in advance.
//!
//! See "Spot Instance interruption notices" in the EC2 user guide. A rebalance recommendation is
//! not a notice: the machine may continue to run for hours.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use super::{Notice, PATIENCE, Problem, Seen, Service, get};
use crate::ask::Question;
use crate::environment::Environment;

/// How early notices come.
const BEFORE: Duration = Duration::from_secs(120);
/// How long a token is valid: EC2's maximum.
const TOKEN_SECONDS: &str = "21600";

/// The metadata service and its token.
pub(super) struct Metadata {
    url: String,
    token: Option<String>,
    /// The service has said that this is a spot machine, or could not tell.
    may_come: bool,
}

/// The document `spot/instance-action`.
#[derive(Deserialize)]
struct Action {
    action: String,
    time: Option<String>,
}

impl Metadata {
    pub(super) fn of(environment: &Environment) -> Self {
        let mode = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE").unwrap_or_default();
        let default = match mode.eq_ignore_ascii_case("ipv6") {
            true => "http://[fd00:ec2::254]",
            false => "http://169.254.169.254",
        };
        let url = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or(default);
        Self { url: url.trim_end_matches('/').to_owned(), token: None, may_come: false }
    }

    /// A document. `None` if it does not exist now.
    async fn read(&mut self, what: &'static str, path: &str) -> Result<Option<String>, Problem> {
        let token = match self.token.take() {
            Some(token) => token,
            None => self.new_token().await?,
        };
        let url = format!("{}/latest/meta-data/{path}", self.url);
        let headers = [("x-aws-ec2-metadata-token", &*token)];
        let question = Question { url: &url, headers: &headers, ..Question::default() };
        // A rejected token is dropped.
        let answer = get(what, &question, PATIENCE).await?;
        self.token = Some(token);
        Ok(answer.map(|answer| answer.text))
    }

    async fn new_token(&self) -> Result<String, Problem> {
        let what = "a request for a token";
        let question = Question {
            method: "PUT",
            url: &format!("{}/latest/api/token", self.url),
            headers: &[("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS)],
            json: None,
        };
        let answer = get(what, &question, PATIENCE).await?;
        let answer = answer.ok_or(Problem::Status { what, status: 404 })?;
        let token = answer.text.trim();
        let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        match is_token {
            true => Ok(token.to_owned()),
            false => Err(Problem::text(what, &answer)),
        }
    }
}

#[async_trait]
impl Service for Metadata {
    async fn look(&mut self) -> Result<Seen, Problem> {
        if !self.may_come {
            let kind =
                self.read("a question for the kind of machine", "instance-life-cycle").await?;
            if kind.is_some_and(|kind| kind.trim() == "on-demand") {
                return Ok(Seen::Never("this is not a spot machine"));
            }
            self.may_come = true;
        }
        let what = "a question for a notice";
        let Some(text) = self.read(what, "spot/instance-action").await? else {
            return Ok(Seen::Nothing);
        };
        let Ok(Action { action, time }) = serde_json::from_str(&text) else {
            let text = text.chars().take(100).collect();
            return Err(Problem::Text { what, text });
        };
        let at = time.as_deref().and_then(|time| humantime::parse_rfc3339(time).ok());
        let when = time.map_or(String::new(), |time| format!(" at {time}"));
        let text = format!("EC2 will {action} this machine{when}");
        // Hibernation starts with the notice.
        let most = if action == "hibernate" { Duration::ZERO } else { BEFORE };
        Ok(Seen::Notice(Notice::at(text, at, most)))
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the metadata service of EC2 at {}", self.url)
    }
}
