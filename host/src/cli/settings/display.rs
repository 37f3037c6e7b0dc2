//! The settings of the command line itself: logs, progress, and the address for monitoring.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, ValueEnum};
use task_host::config::parse::{self, Parsed};
use tracing_subscriber::EnvFilter;

/// More frequent heartbeats would cost more than they are worth.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(100);
/// With this interval, a silent host is still noticed on the same day.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(3600);

/// What a command shows.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logs and monitoring")]
pub(crate) struct DisplaySettings {
    /// Least important log messages to show: error, warn, info, debug (adds the output of tasks),
    /// trace or off; or filters such as info,guest=debug
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    pub(crate) log_level: String,
    /// Format of log messages: human, json, or auto, which is human on a terminal and json elsewhere
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = log_format)]
    pub(crate) log_format: LogFormat,
    /// When to show progress: auto, always or never; as a live line on a terminal, else as a line
    /// every 10 s
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = when)]
    pub(crate) progress: When,
    /// Address for the status page, metrics and health checks over HTTP, without a login, such as
    /// 127.0.0.1:8080, or :8080 for the same; 0.0.0.0:8080 is open to other machines [default: none]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Warn about a task that runs for longer than this, and about one that runs for ten times as
    /// long as most tasks with its name; 0 means about none [default: only the latter]
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub(crate) slow: Option<Duration>,
    /// How often to write a heartbeat for `host top` and `host dashboard`: in the directory of the
    /// queue, or below _hosts in the bucket; 0 means never
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = heartbeat)]
    pub(crate) heartbeat: Duration,
}

/// When something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    Auto,
    Always,
    Never,
}

fn when(text: &str) -> Parsed<When> {
    When::from_str(text, false).map_err(|_| "is not one of auto, always and never".to_owned())
}

/// How log messages look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Auto,
    Human,
    Json,
}

fn log_format(text: &str) -> Parsed<LogFormat> {
    LogFormat::from_str(text, false).map_err(|_| "is not one of auto, human and json".to_owned())
}

/// Turns a level into filters for this program and its guests. Returns filters unchanged.
fn log_level(text: &str) -> Parsed<String> {
    let filter = match text {
        "off" | "error" | "warn" | "info" | "debug" | "trace" => {
            // At the default level, show only warnings of guests.
            let guest = if text == "info" { "warn" } else { text };
            format!("warn,task_host={text},host={text},guest={guest}")
        }
        _ if text.contains('=') => text.to_owned(),
        _ => {
            return Err(
                "is not a level (error, warn, info, debug, trace or off), nor filters such as \
                        info,guest=debug"
                    .to_owned(),
            );
        }
    };
    match EnvFilter::builder().parse(&filter) {
        Ok(_) => Ok(filter),
        Err(error) => Err(format!("is not a filter of log messages: {error}")),
    }
}

/// The time between two heartbeats.
fn heartbeat(text: &str) -> Parsed<Duration> {
    match parse::duration(text)? {
        time if time.is_zero() || (SHORTEST_HEARTBEAT..=LONGEST_HEARTBEAT).contains(&time) => {
            Ok(time)
        }
        _ => Err("must be 0, or from 100ms to 1h".to_owned()),
    }
}

/// The address of a server. The default IP address is the loopback address, which other machines
/// can't reach.
pub(crate) fn address(text: &str) -> Parsed<SocketAddr> {
    let host_and_port = text.rsplit_once(':').filter(|(host, _)| matches!(*host, "" | "localhost"));
    let parsed = match host_and_port {
        Some((_, port)) => port.parse().ok().map(|port: u16| (Ipv4Addr::LOCALHOST, port).into()),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| {
        "is not an address; write for example 127.0.0.1:8080, or 0.0.0.0:8080 for all addresses \
         of this machine"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_filters_choose_what_is_logged() {
        assert_eq!(log_level("debug").unwrap(), "warn,task_host=debug,host=debug,guest=debug");
        assert_eq!(log_level("info").unwrap(), "warn,task_host=info,host=info,guest=warn");
        assert_eq!(log_level("info,guest=debug").unwrap(), "info,guest=debug");
        assert!(log_level("loud").is_err());
        assert!(log_level("info,guest=loud").is_err());
    }

    #[test]
    fn an_address_without_an_ip_address_is_this_machines_own() {
        for text in ["127.0.0.1:8080", "localhost:8080", ":8080"] {
            assert_eq!(address(text).unwrap().to_string(), "127.0.0.1:8080");
        }
        assert_eq!(address("[::1]:80").unwrap().to_string(), "[::1]:80");
        for text in ["8080", "localhost", "localhost:", ":99999", "::1:80", "example.org:80"] {
            assert!(address(text).unwrap_err().contains("write for example"), "{text}");
        }
    }

    #[test]
    fn heartbeats_are_off_or_come_at_sensible_times() {
        assert_eq!(heartbeat("0"), Ok(Duration::ZERO));
        assert_eq!(heartbeat("2m"), Ok(Duration::from_secs(120)));
        for text in ["10ms", "2h", "often"] {
            assert!(heartbeat(text).is_err(), "{text}");
        }
    }
}
