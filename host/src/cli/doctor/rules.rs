//! The one table of what does not fit together: what a service says of its queues, and what a
//! host is told to do. Pure.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use task_host::config::Config;
use task_host::queue::Facts;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// It will work, and may lose time, money or tasks.
    Warn,
    /// It will not work.
    Problem,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// What it is about.
    pub(crate) subject: String,
    pub(crate) text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cure: Option<String>,
}

impl Finding {
    pub(crate) fn new(level: Level, subject: &str, text: impl Into<String>) -> Self {
        Self { level, subject: subject.to_owned(), text: text.into(), cure: None }
    }

    pub(crate) fn cure(self, cure: impl Into<String>) -> Self {
        Self { cure: Some(cure.into()), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)
    }
}

/// What a service says of the queues of a host, as far as it could be asked.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub(crate) tasks: Facts,
    pub(crate) errors: Option<Facts>,
    /// Of the queue to which the service itself moves messages.
    pub(crate) dead_letters: Option<Facts>,
    /// The queue is a service's, where requests cost money.
    pub(crate) is_remote: bool,
}

/// A lease that is shorter costs a renewal every few seconds.
const SHORT_LEASE: Duration = Duration::from_secs(30);
/// Messages that are kept for less may be gone after a night.
const SHORT_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// What does not fit, the worst first.
pub(crate) fn judge(config: &Config, queues: &Queues) -> Vec<Finding> {
    let mut findings = Vec::new();
    receives(config, &queues.tasks, &mut findings);
    holds(config, queues, &mut findings);
    retention(config, queues, &mut findings);
    let subject = &queue(config);
    let mut note = |text: String| findings.push(Finding::new(Level::Note, subject, text));
    if queues.tasks.is_ordered {
        note("keeps messages in order: of one message group, tasks run one after the other".into());
    }
    if let Some(visibility) = queues.tasks.visibility {
        note(format!(
            "its own visibility timeout of {} is for other programs that share it; hosts lease \
             for {}",
            time(visibility),
            time(config.work.lease)
        ));
    }
    for text in &queues.tasks.notes {
        note(text.clone());
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    findings
}

/// Deliveries that hosts which are killed may use up before that is worth a warning.
const FEW_DELIVERIES: u32 = 5;

/// How often the service gives a message out, and how often it is tried.
fn receives(config: &Config, tasks: &Facts, findings: &mut Vec<Finding>) {
    let Some(limit) = tasks.receive_limit else { return };
    let attempts = config.retries.max_attempts;
    let to = tasks.dead_letter_queue.as_deref().unwrap_or("its dead-letter queue");
    let cure = format!(
        "set the receive limit (maxReceiveCount) to {} or more, or --max-attempts lower; \
         `host queue redrive {} --from {to}` puts tasks back that were moved",
        attempts.saturating_add(5),
        config.queue
    );
    if limit == 1 {
        let text = format!(
            "the service gives a message out once and then moves it to {to}: a task whose host \
             was stopped or crashed is not tried again"
        );
        findings.push(Finding::new(Level::Problem, &queue(config), text).cure(cure));
    } else if !tasks.every_delivery_counts {
        if limit < FEW_DELIVERIES {
            let text = format!(
                "the service moves a message to {to} when hosts that held it were killed {limit} \
                 times, also if its task had not begun, with no report on the error queue"
            );
            findings.push(Finding::new(Level::Warn, &queue(config), text).cure(cure));
        }
    } else if limit <= attempts {
        let text = format!(
            "the service moves a message to {to} when it was received {limit} times, and tasks \
             are tried up to {attempts} times: it may be gone before its last attempt, with no \
             report on the error queue"
        );
        findings.push(Finding::new(Level::Problem, &queue(config), text).cure(cure));
    }
}

/// For how long a message can be held, and for how long it will be.
fn holds(config: &Config, queues: &Queues, findings: &mut Vec<Finding>) {
    let subject = &queue(config);
    if let Some(longest) = queues.tasks.longest_hold {
        let limit = time(longest);
        if config.work.lease > longest {
            let text = format!(
                "leases of {} are longer than the {limit} that it allows",
                time(config.work.lease)
            );
            let cure = format!("set --lease to {limit} or less");
            findings.push(Finding::new(Level::Problem, subject, text).cure(cure));
        }
        if config.task.timeout > longest {
            let text = format!(
                "tasks may take {}, and a message can be held for {limit} at the most: a longer \
                 task would be run again while it still runs",
                time(config.task.timeout)
            );
            let cure = format!("set --timeout below {limit}, and make tasks smaller");
            findings.push(Finding::new(Level::Problem, subject, text).cure(cure));
        }
    }
    if queues.is_remote && config.work.lease < SHORT_LEASE {
        let text = format!(
            "leases of {} are renewed every {}: each renewal is a request that costs money",
            time(config.work.lease),
            time(config.work.lease / 2)
        );
        let cure = format!("set --lease to {} or more", time(SHORT_LEASE));
        findings.push(Finding::new(Level::Warn, subject, text).cure(cure));
    }
}

/// For how long messages are kept.
fn retention(config: &Config, queues: &Queues, findings: &mut Vec<Finding>) {
    let Some(kept) = queues.tasks.retention else { return };
    let attempts = config.task.timeout.saturating_mul(config.retries.max_attempts);
    let cure = "raise the queue's message retention period (14 days is the most that SQS allows)";
    if kept < SHORT_RETENTION {
        let text = format!("messages are dropped after {}, done or not", time(kept));
        findings.push(Finding::new(Level::Warn, &queue(config), text).cure(cure));
    } else if kept < attempts {
        let text = format!(
            "messages are dropped after {}, and {} attempts of {} take longer",
            time(kept),
            config.retries.max_attempts,
            time(config.task.timeout)
        );
        findings.push(Finding::new(Level::Warn, &queue(config), text).cure(cure));
    }
    let dead = queues.tasks.dead_letter_queue.clone().zip(queues.dead_letters.as_ref());
    let errors = Some(config.error_queue.to_string()).zip(queues.errors.as_ref());
    for (role, other) in [("errors", errors), ("dead letters", dead)] {
        let Some((url, facts)) = other else { continue };
        if let Some(shorter) = facts.retention.filter(|other| *other < kept) {
            let text = format!(
                "messages are dropped after {}, sooner than the {} of the task queue: what failed \
                 may be gone before anybody looks",
                time(shorter),
                time(kept)
            );
            let subject = format!("{role} {url}");
            findings.push(Finding::new(Level::Warn, &subject, text).cure(cure));
        }
    }
}

/// What findings of the task queue are about.
fn queue(config: &Config) -> String {
    format!("queue {}", config.queue)
}

fn time(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn config() -> Config {
        let command = Config::augment_args(clap::Command::new("host").no_binary_name(true));
        let line = ["--queue=sqs://q", "--error-queue=sqs://q-errors"];
        Config::from_arg_matches(&command.get_matches_from(line)).unwrap()
    }

    fn facts() -> Facts {
        Facts { longest_hold: Some(12 * HOUR), retention: Some(4 * DAY), ..Facts::default() }
    }

    /// What is found is of this level and begins so; None: nothing but notes.
    #[track_caller]
    fn check(config: &Config, tasks: Facts, want: Option<(Level, &str)>) {
        check_all(config, Queues { tasks, is_remote: true, ..Queues::default() }, want);
    }

    #[track_caller]
    fn check_all(config: &Config, queues: Queues, want: Option<(Level, &str)>) {
        let found = judge(config, &queues);
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
        check(&config(), Facts::default(), None);
        check(&config(), facts(), None);
    }

    #[test]
    fn a_receive_limit_leaves_room_for_all_attempts() {
        let limited = |n| Facts { receive_limit: Some(n), every_delivery_counts: true, ..facts() };
        check(&config(), limited(1), Some((Level::Problem, "gives a message out once")));
        check(&config(), limited(2), Some((Level::Problem, "received 2 times")));
        check(&config(), limited(5), Some((Level::Problem, "received 5 times")));
        check(&config(), limited(6), None);
        let mut patient = config();
        patient.retries.max_attempts = 6;
        check(&patient, limited(6), Some((Level::Problem, "tried up to 6 times")));
        // Where a host can give a message back uncounted, the limit is for hosts that die.
        let told = |n| Facts { receive_limit: Some(n), ..facts() };
        check(&config(), told(1), Some((Level::Problem, "gives a message out once")));
        check(&config(), told(3), Some((Level::Warn, "were killed 3 times")));
        check(&config(), told(5), None);
    }

    #[test]
    fn a_message_can_be_held_for_as_long_as_its_task_takes() {
        let mut long = config();
        long.task.timeout = 13 * HOUR;
        check(&long, facts(), Some((Level::Problem, "held for 12h at the most")));
        long.task.timeout = 12 * HOUR;
        check(&long, facts(), None);
        let short = Facts { longest_hold: Some(HOUR), ..facts() };
        let mut lease = config();
        lease.work.lease = 2 * HOUR;
        check(&lease, short, Some((Level::Problem, "leases of 2h are longer")));
    }

    #[test]
    fn short_leases_cost_requests_where_those_cost_money() {
        let mut short = config();
        short.work.lease = Duration::from_secs(10);
        check(&short, facts(), Some((Level::Warn, "renewed every 5s")));
        check_all(&short, Queues { tasks: facts(), ..Queues::default() }, None);
    }

    #[test]
    fn messages_are_kept_until_they_are_done_and_reports_until_they_are_read() {
        let kept = |retention| Facts { retention: Some(retention), ..facts() };
        check(&config(), kept(HOUR), Some((Level::Warn, "dropped after 1h, done or not")));
        let mut long = config();
        long.task.timeout = 10 * HOUR;
        check(&long, kept(2 * DAY), Some((Level::Warn, "5 attempts of 10h take longer")));
        let queues = |errors, dead_letters| Queues {
            tasks: Facts { dead_letter_queue: Some("sqs://dead".into()), ..kept(4 * DAY) },
            errors,
            dead_letters,
            is_remote: true,
        };
        let want = Some((Level::Warn, "sqs://q-errors: messages are dropped after 1day"));
        check_all(&config(), queues(Some(kept(DAY)), None), want);
        let want = Some((Level::Warn, "sqs://dead: messages are dropped after 1day"));
        check_all(&config(), queues(Some(kept(4 * DAY)), Some(kept(DAY))), want);
        check_all(&config(), queues(Some(kept(14 * DAY)), Some(kept(4 * DAY))), None);
    }

    #[test]
    fn the_worst_is_said_first() {
        let mut short = config();
        short.work.lease = Duration::from_secs(10);
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
