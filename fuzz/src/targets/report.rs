//! Reports: a report about any message and any text of a guest can be read again, and a report of
//! another program does not stop a reader.

use task_host::message;
use task_host::report::{DoneReport, ErrorReport, Report, SHORTEST, Took, is_report};
use task_host::stats::Steps;

/// The most bytes of a message here. It is small, because nine versions of its reports are written
/// and read.
const LONGEST: usize = 1024;
/// The separator between a message and a guest's text.
const SEPARATOR: &str = "\0";

pub(crate) fn check(input: &[u8]) {
    read(input);
    if input.len() > LONGEST {
        return;
    }
    let text = String::from_utf8_lossy(input);
    let (message, words) = match std::str::from_utf8(input) {
        Ok(text) => text.split_once(SEPARATOR).unwrap_or((text, "")),
        Err(_) => ("", &*text),
    };
    let message = if message.is_empty() { input } else { message.as_bytes() };
    let earlier = [words.to_owned()];
    let steps = Steps::start();
    let error = ErrorReport {
        message,
        exception: words.to_owned(),
        trace: Some(words),
        failed_call: Some(words),
        attempt: 1,
        earlier: &earlier,
        phase: None,
        component: None,
        log: Some(words),
        took: Took { steps: &steps, cpu_time: None, memory: 0 },
    };
    let done = DoneReport {
        message,
        outputs: &[],
        attempt: 1,
        component: None,
        took: Took { steps: &steps, cpu_time: None, memory: 0 },
    };
    let errors: Vec<_> = error.versions().collect();
    let dones: Vec<_> = done.versions().collect();
    for version in errors.iter().chain(&dones) {
        assert!(is_report(version));
        let text = std::str::from_utf8(version).expect("a report is text");
        // SQS accepts only characters of XML 1.0. Line ends and tabs can be between the fields of
        // an embedded message.
        let is_carried = |c: char| match c {
            '\t' | '\n' | '\r' => true,
            _ => c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}'),
        };
        assert!(text.chars().all(is_carried), "a queue can't carry {text:?}");
        serde_json::from_str::<serde_json::Value>(text).map(drop).unwrap_or_else(|error| {
            // An embedded message keeps its numbers beyond 64 bits.
            assert!(error.to_string().starts_with("number out of range"), "{error}: {text}");
        });
    }
    for versions in [&errors, &dones] {
        assert!(versions.last().is_some_and(|last| last.len() <= SHORTEST));
    }
    // `host queue redrive` sends back the task that failed.
    let report = Report::parse(&errors[0]).expect("our own report");
    let sent_back = report.message().ok().and_then(|text| message::decode(text.as_bytes()).ok());
    assert_eq!(sent_back, message::decode(message).ok());
    assert_eq!(report.exception().as_deref(), Some(words));
    assert!(report.time().is_some());
}

/// Reads a report of another program.
fn read(input: &[u8]) {
    let Some(report) = Report::parse(input) else { return };
    match report.message() {
        Ok(message) => {
            // The message is not longer than its report. So reading nested reports ends.
            assert!(message.len() <= input.len());
        }
        Err(omitted) => assert!(omitted.to_string().contains("send it again yourself")),
    }
    let _ = (report.exception(), report.time());
}
