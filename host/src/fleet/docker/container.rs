//! Containers as `docker inspect` describes them, and the script that starts them.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use serde::Deserialize;

use super::super::{FleetName, Spec};
use super::{WORKER, mounts};
use crate::shell;

/// A container of a fleet.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    id: String,
    name: String,
    created: String,
    state: Described,
    config: Config,
}

#[derive(Debug, Clone, Deserialize)]
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

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<HashMap<String, String>>,
    env: Option<Vec<String>>,
}

/// The state of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// The container was created and never started.
    Created,
    Running,
    /// The container ended with exit code 0.
    Ended,
    /// The container ended in another way or could not start, with the reason.
    Failed(String),
}

impl State {
    /// Whether the container runs or will run.
    fn is_alive(&self) -> bool {
        matches!(self, Self::Created | Self::Running)
    }
}

impl Container {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The container's name. Docker reports it with a leading slash.
    pub(super) fn name(&self) -> &str {
        self.name.trim_start_matches('/')
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

    /// Whether the container may have written logs.
    pub(super) fn has_run(&self) -> bool {
        self.state.status != "created"
    }
}

/// A worker number that is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its number.
    pub(super) worker: u32,
    /// The number of earlier workers with this number.
    pub(super) turn: usize,
}

impl Place {
    /// The free places, the smallest numbers first. Worker 0 comes first because only that worker
    /// stays until the queue is empty if the workers exit when they are idle.
    pub(super) fn free(containers: &[Container]) -> impl Iterator<Item = Self> {
        (0..).filter_map(|worker| {
            let mut of_it = containers.iter().filter(|one| one.worker() == Some(worker));
            let is_taken = of_it.clone().any(|one| one.state().is_alive());
            (!is_taken).then(|| Self { worker, turn: of_it.by_ref().count() })
        })
    }

    /// The name of its container. Docker accepts each name once, so two launchers can't start the
    /// same worker twice.
    pub(super) fn name(self, fleet: &FleetName) -> String {
        match self.turn {
            0 => format!("task-host.{fleet}.{}", self.worker),
            turn => format!("task-host.{fleet}.{}-{}", self.worker, turn + 1),
        }
    }
}

/// A script that starts workers.
pub(super) fn script(spec: &Spec, docker: &[&str], create: &[String], workers: u32) -> String {
    let mut words: Vec<String> = vec!["docker".to_owned()];
    words.extend(docker.iter().map(shell::word));
    words.push(format!("--name=\"task-host.{}.$worker\"", spec.fleet));
    words.push(format!("--label=\"{WORKER}=$worker\""));
    words.push(format!("--env=\"HOST_WORKER=task-host.{}.$worker\"", spec.fleet));
    words.push("--env=\"HOST_WORKER_INDEX=$worker\"".to_owned());
    // The script contains the values too, except those of --pass-env.
    let with_value = |arg: &String| {
        let value = arg.strip_prefix("--env=").and_then(|name| spec.environment.get(name));
        value.map_or_else(|| arg.clone(), |value| format!("{arg}={value}"))
    };
    words.extend(create.iter().map(|arg| shell::word(with_value(arg))));
    words.extend([shell::word(&spec.image), "run".to_owned()]);
    let made = mounts::made(spec).filter_map(|path| path.to_str().map(shell::word));
    let made: String = made.map(|path| format!("mkdir -p {path}\n")).collect();
    let numbers: Vec<String> = (0..workers).map(|worker| worker.to_string()).collect();
    format!(
        "#!/bin/sh\nset -e\n{made}for worker in {}; do\n  {}\ndone\n",
        numbers.join(" "),
        words.join(" \\\n    ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(worker: u32, described: &str) -> Container {
        let container = format!(
            r#"{{"Id": "1", "Name": "/n", "Created": "2026-11-26T19:36:28.76848479Z",
                "State": {described}, "Config": {{"Labels": {{"task-host.worker": "{worker}"}},
                "Env": ["HOST_A=b=c", "X=y"]}}}}"#
        );
        serde_json::from_str(&container).unwrap()
    }

    #[test]
    fn a_number_is_given_again_when_its_worker_has_ended() {
        let [ended, running] = [r#"{"Status": "exited"}"#, r#"{"Status": "running"}"#];
        let there = [container(0, ended), container(1, running), container(3, ended)];
        let there = [&there[..], &[container(3, ended)]].concat();
        let fleet = "night".parse().unwrap();
        let names = Place::free(&there).take(4).map(|place| place.name(&fleet));
        let want = ["0-2", "2", "3-3", "4"].map(|name| format!("task-host.night.{name}"));
        assert_eq!(names.collect::<Vec<_>>(), want);
    }

    #[test]
    fn the_state_of_a_container_says_why() {
        let known = container(3, r#"{"Status": "created"}"#);
        assert_eq!((known.name(), known.worker(), known.environment().len()), ("n", Some(3), 1));
        assert!(known.created().is_some());
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
            assert_eq!(container(3, described).state(), want, "{described}");
        }
    }
}
