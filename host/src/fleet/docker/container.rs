//! Containers as `docker inspect` describes them, and as a script starts them.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use serde::Deserialize;

use super::super::{FleetName, Spec};
use super::WORKER;

/// A container of a fleet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    id: String,
    created: String,
    state: Described,
    config: Config,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    status: String,
    #[serde(default)]
    exit_code: i64,
    #[serde(default)]
    error: String,
    #[serde(rename = "OOMKilled", default)]
    is_out_of_memory: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<HashMap<String, String>>,
    env: Option<Vec<String>>,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// It was made and has never been started.
    Created,
    Running,
    /// It has ended well.
    Ended,
    /// It has ended in another way, or could not start; and why.
    Failed(String),
}

impl Container {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.config.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// The number of its worker.
    pub(super) fn worker(&self) -> Option<u32> {
        self.label(WORKER)?.parse().ok()
    }

    pub(super) fn created(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339(&self.created).ok()
    }

    /// The `HOST_*` variables of its worker.
    pub(super) fn environment(&self) -> BTreeMap<String, String> {
        let all = self.config.env.iter().flatten().filter_map(|pair| pair.split_once('='));
        let ours = all.filter(|(name, _)| name.starts_with("HOST_"));
        ours.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    pub(super) fn state(&self) -> State {
        let Described { status, exit_code, error, is_out_of_memory } = &self.state;
        match (&**status, exit_code) {
            ("created", _) if error.is_empty() => State::Created,
            ("created", _) => State::Failed(error.clone()),
            ("running" | "paused" | "restarting", _) => State::Running,
            (_, 0) => State::Ended,
            (_, code) if *is_out_of_memory => {
                State::Failed(format!("exit code {code}, out of memory"))
            }
            (_, code) if error.is_empty() => State::Failed(format!("exit code {code}")),
            (_, code) => State::Failed(format!("exit code {code}: {error}")),
        }
    }

    /// Whether it may have written something.
    pub(super) fn has_run(&self) -> bool {
        self.state.status != "created"
    }
}

/// The name of a worker's container. No two can have the same, so that two launchers don't start a
/// worker twice.
pub(super) fn name(fleet: &FleetName, worker: u32) -> String {
    format!("task-host.{fleet}.{worker}")
}

/// What a worker said at its end: its error if there is one.
pub(super) fn last_words(log: &str) -> Option<String> {
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines.clone().rfind(|line| line.starts_with("error: "));
    let line = error.or(lines.last())?;
    let fields: Option<serde_json::Value> = serde_json::from_str(line).ok();
    let message = fields.and_then(|fields| Some(fields["message"].as_str()?.to_owned()));
    Some(message.unwrap_or(line.to_owned()))
}

/// A script that starts workers.
pub(super) fn script(spec: &Spec, docker: &[&str], create: &[String], workers: u32) -> String {
    let mut words: Vec<String> = vec!["docker".to_owned()];
    words.extend(docker.iter().map(|word| in_shell(word)));
    words.push(format!("--name=\"task-host.{}.$worker\"", spec.fleet));
    words.push(format!("--label=\"{WORKER}=$worker\""));
    // A script has the values too, those of --pass-env excepted.
    let with_value = |arg: &String| {
        let value = arg.strip_prefix("--env=").and_then(|name| spec.environment.get(name));
        value.map_or_else(|| arg.clone(), |value| format!("{arg}={value}"))
    };
    words.extend(create.iter().map(|arg| in_shell(&with_value(arg))));
    words.extend([in_shell(&spec.image), "run".to_owned()]);
    let numbers: Vec<String> = (0..workers).map(|worker| worker.to_string()).collect();
    format!(
        "#!/bin/sh\nset -e\nfor worker in {}; do\n  {}\ndone\n",
        numbers.join(" "),
        words.join(" \\\n    ")
    )
}

/// A word for the shell: nothing of it is obeyed.
fn in_shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(described: &str) -> State {
        let container = format!(
            r#"{{"Id": "1", "Created": "2026-11-26T19:36:28.76848479Z", "State": {described},
                "Config": {{"Labels": {{"task-host.worker": "3"}}, "Env": ["HOST_A=b=c", "X=y"]}}}}"#
        );
        let container: Container = serde_json::from_str(&container).unwrap();
        assert_eq!((container.worker(), container.environment().len()), (Some(3), 1));
        assert!(container.created().is_some());
        container.state()
    }

    #[test]
    fn the_state_of_a_container_says_why() {
        let failed = |reason: &str| State::Failed(reason.to_owned());
        for (described, want) in [
            (r#"{"Status": "created"}"#, State::Created),
            (r#"{"Status": "created", "ExitCode": 127, "Error": "no"}"#, failed("no")),
            (r#"{"Status": "running"}"#, State::Running),
            (r#"{"Status": "exited", "ExitCode": 0}"#, State::Ended),
            (r#"{"Status": "exited", "ExitCode": 4}"#, failed("exit code 4")),
            (
                r#"{"Status": "exited", "ExitCode": 137, "OOMKilled": true}"#,
                failed("exit code 137, out of memory"),
            ),
        ] {
            assert_eq!(state(described), want, "{described}");
        }
    }

    #[test]
    fn the_last_words_are_an_error_or_the_last_message() {
        let log = "{\"level\":\"INFO\",\"message\":\"started\"}\nerror: no bucket\nhint: make one\n";
        assert_eq!(last_words(log).as_deref(), Some("error: no bucket"));
        let log = "{\"level\":\"INFO\",\"message\":\"stopped\"}\n";
        assert_eq!(last_words(log).as_deref(), Some("stopped"));
        assert_eq!(last_words("\n"), None);
    }
}
