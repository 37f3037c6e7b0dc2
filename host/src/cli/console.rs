//! Standard error: log lines, for people or as JSON, and progress bars. Bars are hidden while a log
//! line is written.
//!
//! `tracing-indicatif` would replace only a dozen lines of this file, and it does not escape
//! control characters.

mod guest;
mod human;
mod json;
mod repeats;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use task_host::plain;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::JsonFields;

pub(crate) use self::guest::GuestOutput;
use super::output::{is_quiet, verbosity};
use super::settings::{DisplaySettings, LogFormat, When};

/// Libraries log only errors by default. Their failures come back as errors, which we report.
const QUIET: &str = "aws_config=error,aws_runtime=error,aws_sdk_sqs=error,aws_smithy_runtime=error,\
    aws_smithy_http_client=error,aws_sigv4=error,google_cloud_auth=error,google_cloud_gax=error,\
    h2=error,hyper=error,hyper_util=error,object_store=error,reqwest=error,rustls=error,\
    tonic=error,tower=error";

/// Standard error. Once a bar may be shown, all output must go through this type.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    bars: MultiProgress,
    is_terminal: bool,
    /// Everything on standard error is a JSON log line.
    pub(crate) is_json: bool,
    progress: When,
}

impl Console {
    /// Starts logging with the given settings.
    pub(crate) fn open(settings: &DisplaySettings) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let is_json = match settings.log_format {
            LogFormat::Json => true,
            LogFormat::Human => false,
            LogFormat::Auto => !is_terminal,
        };
        let level = match verbosity() {
            ..0 => "warn".to_owned(),
            0 => settings.log_level.clone(),
            1 => "warn,task_host=debug,host=debug,guest=debug".to_owned(),
            2.. => "warn,task_host=trace,host=trace,guest=trace".to_owned(),
        };
        Self::start(&level, is_json, settings.progress)
    }

    /// Starts logging of warnings for people, for all commands except `host run`.
    pub(crate) fn plain(progress: When) -> Self {
        let level = match verbosity() {
            ..=0 => "warn",
            1 => "warn,task_host=info,host=info",
            2 => "warn,task_host=debug,host=debug",
            3.. => "warn,task_host=trace,host=trace",
        };
        Self::start(level, false, progress)
    }

    fn start(filter: &str, is_json: bool, progress: When) -> Self {
        let progress = if verbosity() < 0 { When::Never } else { progress };
        let is_terminal = io::stderr().is_terminal();
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let console = Self { bars, is_terminal, is_json, progress };
        let filter = EnvFilter::builder().parse_lossy(format!("{QUIET},{filter}"));
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(console.clone());
        if is_json {
            lines.fmt_fields(JsonFields::new()).event_format(json::JsonLines).init();
        } else {
            let colours = is_terminal && has_colours(|name| std::env::var_os(name));
            let lines = lines.fmt_fields(JsonFields::new()).with_ansi(colours);
            lines.event_format(human::HumanLines::of(is_terminal)).init();
        }
        console
    }

    /// The progress bars, if they are to be shown.
    pub(crate) fn live(&self) -> Option<&MultiProgress> {
        (self.is_terminal && !self.is_json && self.progress != When::Never).then_some(&self.bars)
    }

    /// True if progress is to be shown as a line from time to time.
    pub(crate) fn wants_lines(&self) -> bool {
        self.live().is_none() && self.progress != When::Never
    }

    /// Hides the bars, and writes bytes to standard error.
    fn write(&self, bytes: &[u8]) {
        // If standard error is closed, the failure can't be reported.
        self.bars.suspend(|| drop(io::stderr().lock().write_all(bytes)));
    }

    /// Like [`Console::tell`], but silent with `--quiet`. For lines that are neither results nor
    /// problems.
    pub(crate) fn note(&self, line: impl std::fmt::Display) {
        if !is_quiet() {
            self.tell(line);
        }
    }

    /// Hides the bars, and writes a line to standard error. Control characters in it are escaped.
    pub(crate) fn tell(&self, line: impl std::fmt::Display) {
        let line = line.to_string();
        self.write(format!("{}\n", plain::escape_lines(&line)).as_bytes());
    }
}

/// Whether the user and the terminal want colours.
fn has_colours(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term != "dumb")
}

/// A log line. It is collected and then written in one piece.
pub(crate) struct Line {
    console: Console,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.console.write(&self.bytes);
    }
}

impl MakeWriter<'_> for Console {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { console: self.clone(), bytes: Vec::with_capacity(256) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_terminal_gets_no_colours() {
        let check = |set: &[(&str, &str)], want: bool| {
            let value = |name: &str| Some(set.iter().find(|(n, _)| *n == name)?.1.into());
            assert_eq!(has_colours(value), want, "{set:?}");
        };
        check(&[], true);
        check(&[("TERM", "xterm")], true);
        check(&[("TERM", "dumb")], false);
        check(&[("TERM", "xterm"), ("NO_COLOR", "1")], false);
    }
}
