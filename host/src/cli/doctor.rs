//! `host doctor`: checks whether `host run` would work. Leaves nothing behind.

pub(crate) mod machine;
mod trust;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use indicatif::HumanCount;
use serde::Serialize;
use task_host::bucket::{self, Bucket};
use task_host::config::Config;
use task_host::fit::{self, Finding, Level, Queues};
use task_host::key::{Prefix, TaskName};
use task_host::queue::{self, Access, Address, Admin, Counts, Facts, QueueError};
use task_host::shell;
use task_host::transfer::errors::ErrorCauses;

use super::component::component_of;
use super::console::Console;
use super::exit_code::Exit;
use super::output;
use super::settings::{Everything, Flags, Overlap, When, overlaps};
use machine::Use;

/// How long a queue or a bucket may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The maximum number of error reports that are read, and of causes that are named.
const REPORTS: u64 = 1000;
const CAUSES: usize = 3;
/// The maximum number of components that are listed by name.
const NAMED: usize = 5;
/// The maximum number of components that are counted.
const COUNTED: usize = 1000;
/// The maximum number of components whose signatures are verified.
const VERIFIED: usize = 100;

/// Options of `host doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Takes the flags of `host run` and checks that `host run` would work with them: access to queues,
buckets and the cache, at least one component, the compiler, limits on files, threads and address
space, and settings that contradict those of the queues. Changes nothing. The exit code is 1 if
there is a problem.

Examples:
  host doctor --fq ./queue
  host doctor --queue sqs://my-tasks --bucket s3://my-bucket --json")]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<Everything>,
}

/// All findings, as `--json` prints them.
#[derive(Serialize)]
struct Report<'a> {
    problems: usize,
    warnings: usize,
    findings: &'a [Finding],
}

impl Doctor {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let config = settings.config()?;
        Console::plain(When::Never);
        let mut findings: Vec<Finding> = settings
            .misspelt()
            .iter()
            .map(|slip| Finding::new(Level::Warn, "environment", slip))
            .collect();
        let is_made = settings.has_default_bucket();
        super::runtime()?.block_on(look(&config, is_made, &mut findings));
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let (problems, warnings) = (count(Level::Problem), count(Level::Warn));
        if self.json {
            output::json(&Report { problems, warnings, findings: &findings })?;
        } else {
            print(&findings, problems, warnings)?;
        }
        Ok(if problems > 0 { Exit::Failed } else { Exit::Done })
    }
}

fn print(findings: &[Finding], problems: usize, warnings: usize) -> io::Result<()> {
    let mut out = output::out();
    for finding in findings {
        let word = match finding.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warn => "warn",
            Level::Problem => "problem",
        };
        writeln!(out, "{word:<8} {finding}")?;
        if let Some(cure) = &finding.cure {
            writeln!(out, "{:<8} -> {cure}", "")?;
        }
    }
    let (problems, warnings) =
        (output::count(problems as u64, "problem"), output::count(warnings as u64, "warning"));
    writeln!(out, "{problems}, {warnings}")
}

async fn look(config: &Config, bucket_is_made: bool, findings: &mut Vec<Finding>) {
    let access = &config.queue_access();
    let (mut found, tasks) = look_at_queue("queue", &config.queue, access).await;
    findings.append(&mut found);
    let (mut found, errors) = look_at_queue("errors", &config.error_queue, access).await;
    findings.append(&mut found);
    if let Some(url) = &config.done_queue {
        findings.append(&mut look_at_queue("done", url, access).await.0);
    }
    if let Some(tasks) = tasks {
        let queues = queues(config, tasks, errors).await;
        findings.append(&mut fit::judge(&to_fit(config), &queues));
    }
    let bucket = look_at_bucket("bucket", &config.data.bucket, config, bucket_is_made).await;
    let is_usable = bucket.level != Level::Problem;
    findings.push(bucket);
    if let Some(url) = &config.data.input_bucket {
        findings.push(look_at_bucket("inputs", url, config, false).await);
    }
    if is_usable || config.data.components.is_some() {
        findings.append(&mut look_for_components(config).await);
        findings.append(&mut look_at_trust(config).await);
    }
    findings.append(&mut machine::look(config));
    let apart = |overlap: Overlap| {
        Finding::new(Level::Problem, "directories", overlap.problem).cure(overlap.cure)
    };
    findings.extend(overlaps(config).into_iter().map(apart));
    findings.push(machine::compiler(config).await);
}

/// The configuration of the queues, including the service's dead-letter queue.
async fn queues(config: &Config, tasks: Facts, errors: Option<Facts>) -> Queues {
    let dead_letters = match &tasks.dead_letter_queue {
        Some(url) => match url.parse() {
            Ok(queue) => facts_of(&queue, &config.queue_access()).await.ok(),
            Err(_) => None,
        },
        None => None,
    };
    let is_remote = config.queue.is_remote();
    Queues { tasks, errors, dead_letters, is_remote }
}

/// The settings that must fit the configuration of the queues.
fn to_fit(config: &Config) -> fit::Settings {
    let limits = config.limits();
    let longest = limits.most(|limits| limits.time);
    fit::Settings {
        queue: config.queue.to_string(),
        error_queue: config.error_queue.to_string(),
        lease: config.work.lease,
        timeout: longest.time,
        table: longest.table.as_ref().map(ToString::to_string),
        max_attempts: config.retries.max_attempts,
    }
}

async fn facts_of(queue: &Address, access: &Access) -> Result<Facts, QueueError> {
    queue::admin(queue, access).await?.facts().await
}

/// The warnings that a host logs when it starts, before it opens its queue.
pub(crate) fn warnings(config: &Config) -> impl Iterator<Item = Finding> {
    machine::memory(config).into_iter().filter(|finding| finding.level >= Level::Warn)
}

/// The problems of its queue that a host warns about when it starts. A queue whose configuration
/// can't be read is not a problem, because tasks can still be leased.
pub(crate) async fn problems(config: &Config) -> Vec<Finding> {
    if !config.queue.is_remote() {
        return Vec::new();
    }
    let access = config.queue_access();
    let asked = tokio::time::timeout(PATIENCE, facts_of(&config.queue, &access));
    let Ok(Ok(tasks)) = asked.await else { return Vec::new() };
    let queues = Queues { tasks, is_remote: true, ..Queues::default() };
    let mut found = fit::judge(&to_fit(config), &queues);
    found.retain(|finding| finding.level == Level::Problem);
    found
}

async fn look_at_queue(
    role: &str,
    queue: &Address,
    access: &Access,
) -> (Vec<Finding>, Option<Facts>) {
    let subject = &format!("{role} {queue}");
    let dir = queue.directory();
    if let Some(dir) = dir.filter(|dir| !dir.join("queue").is_dir()) {
        let note = match dir.exists() {
            true => "is not a queue yet; `host run` will make it one",
            false => "does not exist yet; `host run` will create it",
        };
        let place = machine::look_at(subject, dir, Use::Share);
        let text = Finding::new(Level::Note, subject, note);
        return (std::iter::once(text).chain(place.err()).collect(), None);
    }
    let asked = async {
        let queue: Box<dyn Admin> = queue::admin(queue, access).await?;
        let counts = queue.counts().await?;
        Ok::<_, QueueError>((counts, queue.facts().await?))
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok((counts, facts))) => {
            let mut findings = vec![Finding::new(Level::Ok, subject, describe(&counts))];
            if role == "errors" && counts.enqueued != Some(0) {
                findings.push(look_at_errors(subject, queue, access, &counts).await);
            }
            let parts = ["", "queue", "movement", "host"];
            let mut parts = dir.iter().flat_map(|dir| parts.map(|part| dir.join(part)));
            // One finding is enough, because the parts are on the same disk.
            let wrong = parts.find_map(|part| machine::look_at(subject, &part, Use::Share).err());
            findings.extend(wrong);
            (findings, Some(facts))
        }
        Ok(Err(QueueError::Invalid { problem, .. })) if access.create => {
            let problem = problem.split("; ").next().unwrap_or_default();
            let text = format!("{problem}; `host run` will create it");
            (vec![Finding::new(Level::Note, subject, text)], None)
        }
        Ok(Err(QueueError::Invalid { problem, .. })) => {
            (vec![Finding::new(Level::Problem, subject, problem)], None)
        }
        Ok(Err(error)) => (vec![Finding::new(Level::Problem, subject, error.to_string())], None),
        Err(_) => (vec![silent(subject)], None),
    }
}

/// The contents of the error queue. The reports in a service's queue are only counted, because
/// reading them takes leases.
async fn look_at_errors(
    subject: &str,
    queue: &Address,
    access: &Access,
    counts: &Counts,
) -> Finding {
    let reading = async {
        let queue = queue::admin(queue, access).await?;
        ErrorCauses::of(&*queue, REPORTS).await
    };
    let mut text = match counts.enqueued {
        Some(n) => format!("has {}", output::count(n, "error report")),
        None => "may have error reports".to_owned(),
    };
    if !queue.is_remote()
        && let Ok(Ok(found)) = tokio::time::timeout(PATIENCE, reading).await
    {
        let causes = found.sorted();
        let shown = causes.iter().take(CAUSES).map(|cause| {
            format!("{} × {}", HumanCount(cause.count), output::cut(&cause.cause, 100))
        });
        let shown: Vec<String> = shown.collect();
        let more = if causes.len() > CAUSES { "; …" } else { "" };
        if !shown.is_empty() {
            text.push_str(&format!(": {}{more}", shown.join("; ")));
        }
    }
    let cure = format!("see them all with `host queue errors {}`", shell::word(queue));
    Finding::new(Level::Note, subject, text).cure(cure)
}

fn describe(counts: &Counts) -> String {
    match (counts.enqueued, counts.leased) {
        (None, _) => "is reachable; its messages can't be counted".to_owned(),
        (Some(n), None) => format!("is reachable; {}", output::count(n, "message")),
        (Some(n), Some(held)) => format!(
            "is reachable; {}, {} of them leased or delayed",
            output::count(n, "message"),
            HumanCount(held)
        ),
    }
}

fn silent(subject: &str) -> Finding {
    let text = format!("did not answer within {}", humantime::format_duration(PATIENCE));
    Finding::new(Level::Problem, subject, text)
        .cure("check the network, and proxies and endpoints in the environment")
}

async fn look_at_bucket(
    role: &str,
    address: &bucket::Address,
    config: &Config,
    is_made: bool,
) -> Finding {
    let subject = &format!("{role} {address}");
    let dir = address.path();
    if is_made && dir.is_some_and(|dir| !dir.exists()) {
        let text = "does not exist yet; `host run` will create it without a component";
        return Finding::new(Level::Problem, subject, text)
            .cure("push a component with `host component push FILE`, or name another --bucket");
    }
    let opened = if role == "inputs" {
        bucket::open(address, &config.bucket_access()).await
    } else {
        bucket::open_for_outputs(address, &config.bucket_access()).await
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => return Finding::new(Level::Problem, subject, error.to_string()),
    };
    // Any prefix works: this only checks whether the bucket can be listed.
    let first = first(&*opened, &config.data.component_prefix);
    match tokio::time::timeout(PATIENCE, first).await {
        Ok(Ok(())) => match dir.filter(|_| role != "inputs") {
            Some(dir) => writable(subject, dir),
            None => Finding::new(Level::Ok, subject, "can be listed; writing was not tried"),
        },
        // Web servers have no listings. Inputs are fetched by name, so this is not a problem.
        Ok(Err(error)) if address.is_read_only() => {
            Finding::new(Level::Note, subject, format!("can't be listed: {error}"))
        }
        Ok(Err(error)) => Finding::new(Level::Problem, subject, error.to_string()),
        Err(_) => silent(subject),
    }
}

/// Checks the directory that outputs are published to.
fn writable(subject: &str, dir: &Path) -> Finding {
    match machine::look_at(
        subject,
        dir,
        Use::Fill("outputs are published there: correct it, or name another --bucket"),
    ) {
        Ok(free) => {
            let text = format!("is writable; its disk has {} free", free.display().iec());
            Finding::new(Level::Ok, subject, text)
        }
        Err(finding) => finding,
    }
}

async fn first(bucket: &dyn Bucket, prefix: &Prefix) -> Result<(), bucket::BucketError> {
    bucket.list(prefix).next().await.transpose().map(drop)
}

/// The bucket and the prefix, or the directory, with components.
async fn components(config: &Config) -> Result<(Arc<dyn Bucket>, Prefix), bucket::BucketError> {
    match &config.data.components {
        Some(dir) => bucket::open_dir(dir).map(|bucket| (bucket, Prefix::root())),
        None => bucket::open(&config.data.bucket, &config.bucket_access())
            .await
            .map(|bucket| (bucket, config.data.component_prefix.clone())),
    }
}

/// Checks that components may run, if settings restrict which ones may.
async fn look_at_trust(config: &Config) -> Vec<Finding> {
    let policy = config.component_policy();
    if policy.digests.is_empty() && policy.keys.is_none() {
        return Vec::new();
    }
    let looking = async {
        let (bucket, prefix) = components(config).await?;
        let mut names: BTreeSet<TaskName> = policy.digests.keys().cloned().collect();
        let mut listing = bucket.list(&prefix);
        while let Some(object) = listing.next().await.transpose()? {
            if policy.keys.is_none() || names.len() >= VERIFIED {
                break;
            }
            let name = component_of(&object.key, &prefix);
            names.extend(name.and_then(|name| TaskName::new(name).ok()));
        }
        drop(listing);
        Ok::<_, bucket::BucketError>(trust::look(&policy, &names, &*bucket, &prefix).await)
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![Finding::new(Level::Problem, "trust", error.to_string())],
        Err(_) => vec![silent("trust")],
    }
}

/// Looks for components, including those that tables `[tasks.NAME]` are about.
async fn look_for_components(config: &Config) -> Vec<Finding> {
    let subject = &format!("components {}", config.data.components_place());
    let counting = async {
        let (bucket, prefix) = components(config).await?;
        let mut names = Vec::new();
        let mut listing = bucket.list(&prefix);
        while let Some(object) = listing.next().await.transpose()? {
            names.extend(component_of(&object.key, &prefix).map(str::to_owned));
            if names.len() >= COUNTED {
                break;
            }
        }
        Ok::<_, bucket::BucketError>(names)
    };
    let mut names = match tokio::time::timeout(PATIENCE, counting).await {
        Ok(Ok(names)) => names,
        Ok(Err(error)) => return vec![Finding::new(Level::Problem, subject, error.to_string())],
        Err(_) => return vec![silent(subject)],
    };
    if names.is_empty() {
        let text = "there are no components, so no task can run";
        let finding = Finding::new(Level::Problem, subject, text);
        return vec![finding.cure("push one with `host component push FILE`")];
    }
    names.sort();
    // A truncated list may lack the component of a table.
    let tables = config.tasks.keys().filter(|_| names.len() < COUNTED);
    let unused: Vec<Finding> = tables
        .filter(|name| !names.iter().any(|listed| listed == name.as_str()))
        .map(|name| {
            let text = format!("host.toml has limits for tasks named `{name}`, which is not here");
            Finding::new(Level::Warn, subject, text).cure("correct the name, or push the component")
        })
        .collect();
    let count = match names.len() {
        COUNTED => format!("{COUNTED} or more"),
        n => HumanCount(n as u64).to_string(),
    };
    let more = if names.len() > NAMED { ", …" } else { "" };
    names.truncate(NAMED);
    let listed = Finding::new(Level::Ok, subject, format!("{count}: {}{more}", names.join(", ")));
    std::iter::once(listed).chain(unused).collect()
}
