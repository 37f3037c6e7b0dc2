//! Compute Engine: the metadata server announces the end of a spot machine 30 seconds in advance,
//! by changing a value. A request can wait for the change.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::{Notice, PATIENCE, Problem, SHORTEST, Seen, Service, get};
use crate::ask::Question;
use crate::environment::Environment;

/// How long one request waits for a change.
const CHANGE: Duration = Duration::from_secs(60);

/// The metadata server, and the version of the last value.
pub(super) struct Metadata {
    url: String,
    tag: Option<String>,
}

impl Metadata {
    pub(super) fn of(environment: &Environment) -> Self {
        let host = environment.get("GCE_METADATA_HOST").unwrap_or("169.254.169.254");
        Self { url: format!("http://{host}"), tag: None }
    }
}

#[async_trait]
impl Service for Metadata {
    async fn look(&mut self) -> Result<Seen, Problem> {
        let what = "a question for a notice";
        let mut url = format!("{}/computeMetadata/v1/instance/preempted", self.url);
        let mut patience = PATIENCE;
        // If this request fails, the tag is lost, and the next request is answered at once.
        if let Some(tag) = self.tag.take() {
            let seconds = CHANGE.as_secs();
            url += &format!("?wait_for_change=true&timeout_sec={seconds}&last_etag={tag}");
            patience += CHANGE;
        }
        let headers = [("metadata-flavor", "Google")];
        let question = Question { url: &url, headers: &headers, ..Question::default() };
        let answer = get(what, &question, patience).await?;
        let answer = answer.ok_or(Problem::Status { what, status: 404 })?;
        match answer.text.trim() {
            "TRUE" => Ok(Seen::Notice(Notice {
                text: "Google will stop this machine within 30 s".to_owned(),
                left: SHORTEST,
            })),
            "FALSE" => {
                self.tag = answer.tag;
                Ok(Seen::Nothing)
            }
            _ => Err(Problem::text(what, &answer)),
        }
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the metadata server of Google at {}", self.url)
    }
}
