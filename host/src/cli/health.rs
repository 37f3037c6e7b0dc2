//! `host health`: asks a running host whether it is alive or ready, for health checks in containers
//! without a shell or another program.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use task_host::ask::{Answer, Question, ask};

use super::exit_code::{self, Advice, Exit};
use super::output;
use super::settings::{DisplaySettings, Flags, NoSetting, address};

/// How long the host may take to answer. Health checks of engines allow 5 s and more by default.
const PATIENCE: Duration = Duration::from_secs(4);

/// Options of `host health`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Asks a host that was started with --listen on this machine. Exits with 0 if it is alive, or with
--ready if it can take tasks; else with 1, and says why in one line.

Examples:
  host health 127.0.0.1:8080
  HOST_LISTEN=0.0.0.0:8080 host health --ready
  host health 127.0.0.1:8080 --ready --json")]
pub(crate) struct Health {
    /// Where the host listens [default: its --listen, from HOST_LISTEN or host.toml]
    #[arg(value_name = "ADDRESS")]
    address: Option<String>,
    /// Ask whether the host can take tasks, not only whether it is alive
    #[arg(long)]
    ready: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<NoSetting>,
}

/// The answer, as `--json` prints it.
#[derive(Serialize)]
struct Found {
    /// The address that the host was asked at.
    address: SocketAddr,
    ok: bool,
    /// Why the check failed, in one line.
    problem: Option<String>,
}

impl Health {
    /// A health check does not distinguish failures, so all of them have the same exit code.
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        self.check().or_else(|error| {
            exit_code::report(&error);
            Ok(Exit::Failed)
        })
    }

    fn check(&self) -> anyhow::Result<Exit> {
        let found = self.look()?;
        if self.json {
            output::json(&found)?;
            return Ok(if found.ok { Exit::Done } else { Exit::Failed });
        }
        if let Some(problem) = found.problem {
            return Err(Advice::failed(format!("{}: {problem}", found.address)).into());
        }
        writeln!(output::out(), "ok")?;
        Ok(Exit::Done)
    }

    fn look(&self) -> anyhow::Result<Found> {
        let listen = match &self.address {
            // Not parsed by clap, which would exit with code 2 for a wrong address.
            Some(text) => Some(address(text).map_err(|e| Advice::failed(format!("{text:?} {e}")))?),
            None => self.flags.load()?.get::<DisplaySettings>()?.listen,
        };
        let listen = listen.filter(|address| address.port() != 0).ok_or_else(|| {
            Advice::failed("no address with a port is given")
                .hint("name the one that the host was given with --listen, or set HOST_LISTEN")
        })?;
        let address = reachable(listen);
        let path = if self.ready { "readyz" } else { "healthz" };
        // One connection needs only this thread.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let url = format!("http://{address}/{path}");
        let question = Question { url: &url, ..Question::default() };
        let answer = runtime.block_on(ask(&question, PATIENCE));
        let problem = match answer {
            Ok(answer) => problem(&answer, self.ready),
            Err(error) => Some(error.to_string()),
        };
        Ok(Found { address, ok: problem.is_none(), problem })
    }
}

/// The address at which a host that listens at `listen` can be reached: the loopback address if it
/// listens at all addresses.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The problem that an answer shows, in one line. None if the host is alive, or ready if `ready` is
/// set.
fn problem(answer: &Answer, ready: bool) -> Option<String> {
    const OTHER: &str = "another server listens there, not a host";
    if !ready {
        let is_alive = answer.status == 200 && answer.text == "ok\n";
        return (!is_alive).then(|| OTHER.to_owned());
    }
    let said: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    match (answer.status, said["ready"].as_bool(), said["problems"].as_array()) {
        (200, Some(true), _) => None,
        (503, Some(false), Some(problems)) => {
            let problems: Vec<&str> = problems.iter().filter_map(Value::as_str).collect();
            Some(format!("not ready: {}", problems.join("; ").replace(['\r', '\n'], " ")))
        }
        _ => Some(OTHER.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_from_another_server() {
        let check = |ready, status, text: &str, want: Option<&str>| {
            let answer = Answer { status, tag: None, text: text.to_owned() };
            assert_eq!(problem(&answer, ready).as_deref(), want, "{status} {text}");
        };
        let other = Some("another server listens there, not a host");
        check(false, 200, "ok\n", None);
        check(false, 200, "<html>ok</html>", other);
        check(false, 404, "", other);
        check(true, 200, r#"{"ready":true,"problems":[]}"#, None);
        check(true, 200, "ok\n", other);
        check(true, 503, "busy", other);
        let out = r#"{"ready":false,"problems":["s3://a: no\nconnection","the host is stopping"]}"#;
        check(true, 503, out, Some("not ready: s3://a: no connection; the host is stopping"));
    }

    #[test]
    fn a_host_that_listens_everywhere_is_asked_on_this_machine() {
        let check = |listen: &str, want: &str| {
            assert_eq!(reachable(listen.parse().unwrap()), want.parse().unwrap());
        };
        check("0.0.0.0:8080", "127.0.0.1:8080");
        check("[::]:8080", "[::1]:8080");
        check("10.1.2.3:80", "10.1.2.3:80");
    }
}
