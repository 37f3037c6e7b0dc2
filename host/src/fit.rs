//! The checks that a host's settings are compatible with its queues. No I/O.
//!
//! `host doctor` shows all findings. `host run` logs the problems as warnings.

use std::fmt;
use std::time::Duration;

use crate::queue::Facts;
use crate::shell;
use serde::Serialize;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// No problem.
    Ok,
    /// Useful information.
    Note,
    /// A run works, but may lose time, money or tasks.
    Warn,
    /// A run does not work.
    Problem,
}

/// A result of a check of a setting, a queue, a bucket or the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The severity.
    pub level: Level,
    /// The subject, such as `queue fq://./queue`.
    pub subject: String,
    /// What was found.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Finding {
    /// A finding without a cure.
    pub fn new(level: Level, subject: &str, text: impl Into<String>) -> Self {
        Self { level, subject: subject.to_owned(), text: text.into(), cure: None }
    }

    /// Adds what to do about the finding.
    pub fn cure(self, cure: impl Into<String>) -> Self {
        Self { cure: Some(cure.into()), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)
    }
}

/// The settings of a host that must be compatible with its queues.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The URL of the task queue.
    pub queue: String,
    /// The URL of the error queue.
    pub error_queue: String,
    /// How long a lease lasts without renewal.
    pub lease: Duration,
    /// The maximum time of an execution.
    pub timeout: Duration,
    /// The table of settings that sets the timeout, if any.
    pub table: Option<String>,
    /// The maximum number of attempts of a task.
    pub max_attempts: u32,
}

/// The settings of a host's queues, as far as their service reports them.
#[derive(Debug, Default)]
pub struct Queues {
    /// The task queue.
    pub tasks: Facts,
    /// The error queue.
    pub errors: Option<Facts>,
    /// The dead-letter queue.
    pub dead_letters: Option<Facts>,
    /// Whether the task queue belongs to a service, where requests cost money.
    pub is_remote: bool,
}

/// A shorter lease needs a renewal every few seconds.
const SHORT_LEASE: Duration = Duration::from_secs(30);
/// With a shorter retention period, messages may be deleted overnight.
const SHORT_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Returns the findings, most severe first.
pub fn judge(settings: &Settings, queues: &Queues) -> Vec<Finding> {
    let mut findings = Vec::new();
    receives(settings, &queues.tasks, &mut findings);
    leases(settings, queues, &mut findings);
    retention(settings, queues, &mut findings);
    let subject = &queue(settings);
    let mut note = |text: String| findings.push(Finding::new(Level::Note, subject, text));
    if queues.tasks.is_ordered {
        note("keeps order: tasks of the same message group run one after another".into());
    }
    if let Some(visibility) = queues.tasks.visibility {
        note(format!(
            "its visibility timeout of {} applies to other programs; hosts lease messages for {}",
            time(visibility),
            time(settings.lease)
        ));
    }
    for text in &queues.tasks.notes {
        note(text.clone());
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    findings
}

/// A warning is given if fewer deliveries than this are left for hosts that are killed.
const FEW_DELIVERIES: u32 = 5;

/// Compares the service's receive limit with the attempts of a task.
fn receives(settings: &Settings, tasks: &Facts, findings: &mut Vec<Finding>) {
    let Some(limit) = tasks.receive_limit else { return };
    let attempts = settings.max_attempts;
    let to = tasks.dead_letter_queue.as_deref().unwrap_or("its dead-letter queue");
    let from = tasks.dead_letter_queue.as_deref().map_or("QUEUE".to_owned(), shell::word);
    let cure = format!(
        "set the receive limit (maxReceiveCount) to {} or more, or --max-attempts lower; \
         `host queue redrive {} --from {from}` sends tasks back that were moved",
        attempts.saturating_add(FEW_DELIVERIES),
        shell::word(&settings.queue)
    );
    if limit == 1 {
        let text = format!(
            "the service delivers a message once and then moves it to {to}: a task is not tried \
             again if its host stops or crashes"
        );
        findings.push(Finding::new(Level::Problem, &queue(settings), text).cure(cure));
    } else if !tasks.every_delivery_counts {
        if limit < FEW_DELIVERIES {
            let text = format!(
                "the service moves a message to {to} after its hosts were killed {limit} times, even \
                 if its task had not started; the error queue gets no report"
            );
            findings.push(Finding::new(Level::Warn, &queue(settings), text).cure(cure));
        }
    } else if limit <= attempts {
        let text = format!(
            "the service moves a message to {to} after it was received {limit} times, and a task \
             has up to {attempts} attempts: the message may be moved before the last attempt, and \
             the error queue gets no report"
        );
        findings.push(Finding::new(Level::Problem, &queue(settings), text).cure(cure));
    } else if limit < attempts.saturating_add(FEW_DELIVERIES) {
        let text = format!(
            "the service moves a message to {to} after it was received {limit} times, and a task \
             has up to {attempts} attempts: hosts that drain or are killed use up the few \
             remaining receives"
        );
        findings.push(Finding::new(Level::Warn, &queue(settings), text).cure(cure));
    }
}

/// Compares the service's maximum lease duration with the host's lease and timeout.
fn leases(settings: &Settings, queues: &Queues, findings: &mut Vec<Finding>) {
    let subject = &queue(settings);
    if let Some(longest) = queues.tasks.max_lease {
        let limit = time(longest);
        if settings.lease > longest {
            let text = format!(
                "a lease of {} is longer than the {limit} that the service allows",
                time(settings.lease)
            );
            let cure = format!("set --lease to {limit} or less");
            findings.push(Finding::new(Level::Problem, subject, text).cure(cure));
        }
        if settings.timeout > longest {
            let text = format!(
                "a task may take {}, and a message can be leased for at most {limit}: a longer task \
                 would be started again while it still runs",
                time(settings.timeout)
            );
            let setting = match &settings.table {
                Some(table) => format!("`timeout` in {table}"),
                None => "--timeout".to_owned(),
            };
            let cure = format!("set {setting} below {limit}, and make the tasks smaller");
            findings.push(Finding::new(Level::Problem, subject, text).cure(cure));
        }
    }
    if queues.is_remote && settings.lease < SHORT_LEASE {
        let text = format!(
            "a lease of {} is renewed every {}: each renewal is a request that costs money",
            time(settings.lease),
            time(settings.lease / 2)
        );
        let cure = format!("set --lease to {} or more", time(SHORT_LEASE));
        findings.push(Finding::new(Level::Warn, subject, text).cure(cure));
    }
}

/// Compares the retention periods with the time that messages are needed.
fn retention(settings: &Settings, queues: &Queues, findings: &mut Vec<Finding>) {
    let Some(kept) = queues.tasks.retention else { return };
    let attempts = settings.timeout.saturating_mul(settings.max_attempts);
    let cure = "raise the queue's message retention period (SQS allows up to 14 days)";
    if kept < SHORT_RETENTION {
        let text =
            format!("the service deletes messages after {}, even if they are not done", time(kept));
        findings.push(Finding::new(Level::Warn, &queue(settings), text).cure(cure));
    } else if kept < attempts {
        let text = format!(
            "the service deletes messages after {}, and {} attempts of {} take longer",
            time(kept),
            settings.max_attempts,
            time(settings.timeout)
        );
        findings.push(Finding::new(Level::Warn, &queue(settings), text).cure(cure));
    }
    let dead = queues.tasks.dead_letter_queue.as_ref().zip(queues.dead_letters.as_ref());
    let errors = Some(&settings.error_queue).zip(queues.errors.as_ref());
    for (role, other) in [("errors", errors), ("dead letters", dead)] {
        let Some((url, facts)) = other else { continue };
        if let Some(shorter) = facts.retention.filter(|other| *other < kept) {
            let text = format!(
                "the service deletes messages after {}, sooner than the {} of the task queue: \
                 reports may be deleted before anybody reads them",
                time(shorter),
                time(kept)
            );
            let subject = format!("{role} {url}");
            findings.push(Finding::new(Level::Warn, &subject, text).cure(cure));
        }
    }
}

/// The subject of findings about the task queue.
fn queue(settings: &Settings) -> String {
    format!("queue {}", settings.queue)
}

fn time(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn settings() -> Settings {
        Settings {
            queue: "sqs://q".into(),
            error_queue: "sqs://q-errors".into(),
            lease: Duration::from_secs(300),
            timeout: HOUR,
            table: None,
            max_attempts: 5,
        }
    }

    fn facts() -> Facts {
        Facts { max_lease: Some(12 * HOUR), retention: Some(4 * DAY), ..Facts::default() }
    }

    /// Expects one finding with this level and text, or nothing above a note.
    #[track_caller]
    fn check(settings: &Settings, tasks: Facts, want: Option<(Level, &str)>) {
        check_all(settings, Queues { tasks, is_remote: true, ..Queues::default() }, want);
    }

    #[track_caller]
    fn check_all(settings: &Settings, queues: Queues, want: Option<(Level, &str)>) {
        let found = judge(settings, &queues);
        let found: Vec<_> = found.iter().filter(|f| f.level > Level::Note).collect();
        match want {
            None => assert!(found.is_empty(), "{found:#?}"),
            Some((level, text)) => {
                assert_eq!(found.len(), 1, "{found:#?}");
                assert_eq!(found[0].level, level, "{found:#?}");
                assert!(found[0].to_string().contains(text), "{text}: {found:#?}");
                assert!(found[0].cure.is_some(), "{found:#?}");
            }
        }
    }

    #[test]
    fn what_fits_is_left_alone() {
        check(&settings(), Facts::default(), None);
        check(&settings(), facts(), None);
    }

    #[test]
    fn a_receive_limit_leaves_room_for_all_attempts() {
        let limited = |n| Facts { receive_limit: Some(n), every_delivery_counts: true, ..facts() };
        check(&settings(), limited(1), Some((Level::Problem, "delivers a message once")));
        check(&settings(), limited(2), Some((Level::Problem, "received 2 times")));
        check(&settings(), limited(5), Some((Level::Problem, "received 5 times")));
        check(&settings(), limited(6), Some((Level::Warn, "up to 5 attempts: hosts that drain")));
        check(&settings(), limited(9), Some((Level::Warn, "received 9 times")));
        check(&settings(), limited(10), None);
        let mut patient = settings();
        patient.max_attempts = 6;
        check(&patient, limited(6), Some((Level::Problem, "up to 6 attempts")));
        // If a release does not count as a delivery, only hosts that are killed use up the limit.
        let told = |n| Facts { receive_limit: Some(n), ..facts() };
        check(&settings(), told(1), Some((Level::Problem, "delivers a message once")));
        check(&settings(), told(3), Some((Level::Warn, "were killed 3 times")));
        check(&settings(), told(5), None);
    }

    #[test]
    fn a_message_can_be_held_for_as_long_as_its_task_takes() {
        let mut long = settings();
        long.timeout = 13 * HOUR;
        check(&long, facts(), Some((Level::Problem, "leased for at most 12h")));
        let found = judge(&long, &Queues { tasks: facts(), ..Queues::default() });
        assert!(found[0].cure.as_ref().unwrap().contains("set --timeout below 12h"), "{found:?}");
        long.table = Some("[tasks.shrink]".into());
        let found = judge(&long, &Queues { tasks: facts(), ..Queues::default() });
        let cure = "set `timeout` in [tasks.shrink] below 12h";
        assert!(found[0].cure.as_ref().unwrap().contains(cure), "{found:?}");
        long.timeout = 12 * HOUR;
        check(&long, facts(), None);
        let short = Facts { max_lease: Some(HOUR), ..facts() };
        let mut lease = settings();
        lease.lease = 2 * HOUR;
        check(&lease, short, Some((Level::Problem, "a lease of 2h is longer")));
    }

    #[test]
    fn short_leases_cost_requests_where_those_cost_money() {
        let mut short = settings();
        short.lease = Duration::from_secs(10);
        check(&short, facts(), Some((Level::Warn, "renewed every 5s")));
        check_all(&short, Queues { tasks: facts(), ..Queues::default() }, None);
    }

    #[test]
    fn messages_are_kept_until_they_are_done_and_reports_until_they_are_read() {
        let kept = |retention| Facts { retention: Some(retention), ..facts() };
        check(
            &settings(),
            kept(HOUR),
            Some((Level::Warn, "deletes messages after 1h, even if they are not done")),
        );
        let mut long = settings();
        long.timeout = 10 * HOUR;
        check(&long, kept(2 * DAY), Some((Level::Warn, "5 attempts of 10h take longer")));
        let queues = |errors, dead_letters| Queues {
            tasks: Facts { dead_letter_queue: Some("sqs://dead".into()), ..kept(4 * DAY) },
            errors,
            dead_letters,
            is_remote: true,
        };
        let want = Some((Level::Warn, "sqs://q-errors: the service deletes messages after 1day"));
        check_all(&settings(), queues(Some(kept(DAY)), None), want);
        let want = Some((Level::Warn, "sqs://dead: the service deletes messages after 1day"));
        check_all(&settings(), queues(Some(kept(4 * DAY)), Some(kept(DAY))), want);
        check_all(&settings(), queues(Some(kept(14 * DAY)), Some(kept(4 * DAY))), None);
    }

    #[test]
    fn the_worst_is_said_first() {
        let mut short = settings();
        short.lease = Duration::from_secs(10);
        let tasks = Facts {
            receive_limit: Some(1),
            visibility: Some(HOUR),
            is_ordered: true,
            notes: vec!["a note".into()],
            ..facts()
        };
        let found = judge(&short, &Queues { tasks, is_remote: true, ..Queues::default() });
        let levels: Vec<Level> = found.iter().map(|finding| finding.level).collect();
        use Level::{Note, Problem, Warn};
        assert_eq!(levels, [Problem, Warn, Note, Note, Note]);
    }
}
