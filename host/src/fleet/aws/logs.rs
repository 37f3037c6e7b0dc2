//! Reads the log lines of workers from CloudWatch Logs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_cloudwatchlogs::Client;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};

use super::Aws;
use crate::fleet::{EngineError, Line, Logs};

/// How often the reader polls a log stream.
const POLL: Duration = Duration::from_secs(1);
/// The number of polls without new lines after which the stream of an ended worker is complete. The
/// last lines arrive late.
const QUIET_POLLS: u32 = 3;

/// A worker: its number, and its id at the engine.
#[derive(Debug, Clone)]
pub(in crate::fleet) struct Worker {
    pub(in crate::fleet) number: u32,
    pub(in crate::fleet) id: String,
}

/// The log stream of a worker, and whether the worker has ended.
#[derive(Debug, Clone, Default)]
pub(in crate::fleet) struct Found {
    /// Log group and log stream. `None` before the worker has started.
    pub(in crate::fleet) place: Option<(String, String)>,
    pub(in crate::fleet) has_ended: bool,
}

/// Looks up a worker by its id at the engine.
pub(in crate::fleet) type Find =
    Arc<dyn Fn(String) -> BoxFuture<'static, Result<Found, EngineError>> + Send + Sync>;

/// The lines of workers: one worker after the other, or as they arrive if `wanted.follow` is set.
pub(in crate::fleet) fn lines(
    aws: &Aws,
    workers: Vec<Worker>,
    wanted: &Logs,
    find: &Find,
) -> BoxStream<'static, Result<Line, EngineError>> {
    let client = Client::new(&aws.config);
    let wanted = wanted.clone();
    let chosen = workers.into_iter().filter(|it| wanted.worker.is_none_or(|n| n == it.number));
    let streams: Vec<_> = chosen
        .map(|worker| {
            let reader = Reader {
                aws: aws.clone(),
                client: client.clone(),
                find: find.clone(),
                wanted: wanted.clone(),
                worker,
                found: Found::default(),
                token: None,
                lines: VecDeque::new(),
                quiet: 0,
                is_done: false,
            };
            let next = |mut reader: Reader| async {
                let line = reader.next().await?;
                Some((line, reader))
            };
            stream::unfold(reader, next).boxed()
        })
        .collect();
    match wanted.follow {
        true => stream::select_all(streams).boxed(),
        false => stream::iter(streams).flatten().boxed(),
    }
}

/// Reads the stream of a worker.
struct Reader {
    aws: Aws,
    client: Client,
    find: Find,
    wanted: Logs,
    worker: Worker,
    found: Found,
    token: Option<String>,
    lines: VecDeque<String>,
    /// Polls without new lines since the worker ended.
    quiet: u32,
    is_done: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Line, EngineError>> {
        loop {
            if let Some(text) = self.lines.pop_front() {
                return Some(Ok(Line { worker: self.worker.number.to_string(), text }));
            }
            if self.is_done {
                return None;
            }
            if let Err(error) = self.read().await {
                self.is_done = true;
                return Some(Err(error));
            }
        }
    }

    /// Reads the available lines, or waits.
    async fn read(&mut self) -> Result<(), EngineError> {
        if self.found.place.is_none() || (self.wanted.follow && !self.found.has_ended) {
            self.found = (self.find)(self.worker.id.clone()).await?;
        }
        let has_ended = self.found.has_ended;
        let has_news = match self.found.place.clone() {
            Some((group, stream)) => self.fetch(group, stream).await?,
            None => false,
        };
        if has_news {
            self.quiet = 0;
            return Ok(());
        }
        if has_ended {
            self.quiet += 1;
        }
        if !self.wanted.follow || self.quiet >= QUIET_POLLS {
            self.is_done = true;
        } else {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Reads a page of lines. Returns whether more may follow at once.
    async fn fetch(&mut self, group: String, stream: String) -> Result<bool, EngineError> {
        let is_first = self.token.is_none();
        // Only the first page has a limit: all later lines are new.
        let tail = self.wanted.tail.filter(|_| is_first);
        if tail == Some(0) && !self.wanted.follow {
            return Ok(false);
        }
        let limit = tail.map(|lines| i32::try_from(lines.clamp(1, 10_000)).unwrap_or(10_000));
        let answer = self
            .client
            .get_log_events()
            .log_group_name(&group)
            .log_stream_name(&stream)
            .start_from_head(tail.is_none())
            .set_limit(limit)
            .set_next_token(self.token.clone())
            .send()
            .await;
        let page = match answer {
            Ok(page) => page,
            // The stream is created with its first line.
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|error| error.is_resource_not_found_exception()) =>
            {
                return Ok(false);
            }
            Err(error) => {
                let doing = format!("reading the log stream {stream} of {group}");
                return Err(self.aws.failed(&doing, &error));
            }
        };
        let events = page.events().iter().filter(|_| tail != Some(0));
        let text = |event: &aws_sdk_cloudwatchlogs::types::OutputLogEvent| {
            event.message().unwrap_or_default().trim_end().to_owned()
        };
        self.lines.extend(events.map(text));
        let is_end = page.next_forward_token() == self.token.as_deref();
        self.token = page.next_forward_token().map(str::to_owned);
        if tail.is_some() && !self.wanted.follow {
            return Ok(false);
        }
        // A page without lines is the end only if its token is the previous one.
        Ok(!page.events().is_empty() || !(is_end || self.token.is_none()))
    }
}
