//! `host queue errors`: lists the reports in an error queue by cause.

use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use indicatif::HumanCount;
use task_host::activity::snapshot::Failures;
use task_host::config::parse;
use task_host::queue::{self, Address};
use task_host::shell;
use task_host::transfer::errors::ErrorCauses;

use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::progress_line::ProgressLine;
use super::{Which, load};

/// The default maximum number of reports that are read from a service. Each must be leased to be
/// read.
const LEASED: u64 = 1000;
/// The maximum number of characters of a cause or an example.
const SHOWN: usize = 160;

pub(super) const HELP: &str = "\
Failures with one cause have the same error but for numbers, ids, paths and quoted names. `#` stands
for numbers, and `…` for the rest.

Examples:
  host queue errors ./queue
  host queue redrive ./queue --cause 'open …: no such file'";

/// Options of `host queue errors`.
#[derive(Debug, clap::Args)]
pub(crate) struct Errors {
    #[command(flatten)]
    queue: Which,
    /// Queue with the reports [default: QUEUE if its name ends in `-errors`, or else the error queue
    /// of QUEUE]
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// Maximum number of reports to read [default: all; 1000 for a cloud queue, where each report
    /// must be leased to be read]
    #[arg(long, short = 'n', value_name = "N", value_parser = parse::whole)]
    limit: Option<u64>,
    /// Print one JSON object per cause: cause, count, names, first and last (in seconds since 1970),
    /// example
    #[arg(long)]
    json: bool,
}

impl Errors {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let (settings, console) = load(&self.queue.flags)?;
        let (tasks, from) = self.queue.with_errors(&settings, self.from.as_deref())?;
        if from.directory().is_some_and(|dir| !dir.exists()) {
            if !tasks.directory().is_some_and(|dir| dir.exists()) {
                return Err(Advice::failed(format!("there is no queue {tasks}")).into());
            }
            return self.show(&from, &tasks, ErrorCauses::default());
        }
        let most = self.limit.unwrap_or(if from.is_remote() { LEASED } else { u64::MAX });
        let busy = ProgressLine::busy(&console, format!("reading the reports of {from}"));
        let queue = queue::admin(&from, &settings.queue_access()?).await?;
        let found = ErrorCauses::of(&*queue, most).await?;
        queue.close().await;
        drop(busy);
        if found.read == most {
            let read = output::count(found.read, "report");
            console.tell(format_args!("{read} read; use -n N to read more"));
        }
        self.show(&from, &tasks, found)
    }

    fn show(&self, from: &Address, tasks: &Address, found: ErrorCauses) -> anyhow::Result<Exit> {
        let (done, others) = (found.done, found.others);
        let causes = found.sorted();
        let mut out = output::long_out();
        if self.json {
            for cause in &causes {
                out.json(cause)?;
            }
            out.flush()?;
            return Ok(Exit::Done);
        }
        let reports: u64 = causes.iter().map(|cause| cause.count).sum();
        let (reports, count) =
            (output::count(reports, "error report"), output::count(causes.len() as u64, "cause"));
        match causes.as_slice() {
            [] => writeln!(out, "no error reports in {}", output::name(from))?,
            [_, ..] => writeln!(out, "{reports} in {}, {count}", output::name(from))?,
        }
        for cause in &causes {
            write(&mut out, cause)?;
        }
        if done > 0 {
            writeln!(out, "\n{} of tasks that are done", output::count(done, "report"))?;
        }
        if others > 0 {
            let words = if others == 1 { "is not a report" } else { "are not reports" };
            writeln!(out, "\n{} that {words}", output::count(others, "message"))?;
        }
        if !causes.is_empty() && tasks != from {
            let mut queues = shell::word(tasks);
            if self.from.is_some() {
                queues.push_str(&format!(" --from {}", shell::word(from)));
            }
            writeln!(out, "\nafter fixing a cause:  host queue redrive {queues} --cause 'CAUSE'")?;
        }
        out.flush()?;
        Ok(Exit::Done)
    }
}

/// Writes a cause in three lines: its count and text, the names and times of its tasks, and an
/// example.
fn write(out: &mut impl Write, failures: &Failures) -> std::io::Result<()> {
    let Failures { cause, count, names, first, last, example, .. } = failures;
    writeln!(out, "\n{:>7}  {}", HumanCount(*count).to_string(), output::cut(cause, SHOWN))?;
    let times = match (first, last) {
        (_, 0.0) => String::new(),
        (first, last) if time(*first) == time(*last) => time(*last),
        (first, last) => format!("{} to {}", time(*first), time(*last)),
    };
    // Reports come in no particular order.
    let mut names = names.clone();
    names.sort();
    // A report about a message that is not a task has no name. A report from another program has no
    // time.
    let known = [names.join(", "), times];
    let known: Vec<&str> = known.iter().map(String::as_str).filter(|s| !s.is_empty()).collect();
    if !known.is_empty() {
        writeln!(out, "         {}", known.join("; "))?;
    }
    if let Some(example) = example {
        let text = output::cut(&example.text, SHOWN);
        let of = match &*example.name {
            "" => String::new(),
            name => format!("{name} {}: ", example.id),
        };
        writeln!(out, "         {of}{text}")?;
    }
    Ok(())
}

/// A time in UTC, in whole seconds.
fn time(seconds: f64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let text = humantime::format_rfc3339_seconds(time.unwrap_or(UNIX_EPOCH)).to_string();
    text.replace('T', " ")
}

#[cfg(test)]
mod tests {
    use task_host::activity::snapshot::Example;

    use super::*;

    #[test]
    fn what_is_not_known_of_a_report_leaves_no_gap() {
        let check = |name: &str, last: f64, want: &str| {
            let names = Some(name.to_owned()).filter(|name| !name.is_empty());
            let example = Example {
                name: name.to_owned(),
                id: if name.is_empty() { String::new() } else { "7".to_owned() },
                attempt: 1,
                text: "it broke".to_owned(),
            };
            let failures = Failures {
                cause: "it …".to_owned(),
                count: 2,
                names: names.into_iter().collect(),
                first: last,
                last,
                example: Some(example),
                ..Failures::default()
            };
            let mut written = Vec::new();
            write(&mut written, &failures).unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), format!("\n      2  it …\n{want}"));
        };
        let (time, at) = ("1970-01-01 00:01:00Z", "         ");
        check("A", 60.0, &format!("{at}A; {time}\n{at}A 7: it broke\n"));
        check("A", 0.0, &format!("{at}A\n{at}A 7: it broke\n"));
        check("", 60.0, &format!("{at}{time}\n{at}it broke\n"));
        check("", 0.0, &format!("{at}it broke\n"));
    }
}
