//! Derives the states of workers from tasks of AWS ECS.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_ecs::types::{Task, TaskDefinition, TaskStopCode};

use super::request::{CONTAINER, GROUP, STREAMS};
use crate::fleet::aws::logs::Found;
use crate::fleet::aws::{self, exit};

/// The state of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// With the reason.
    Waiting(String),
    Running,
    Ended,
    /// With the reason.
    Failed(String),
}

pub(super) fn arn(task: &Task) -> &str {
    task.task_arn().unwrap_or_default()
}

/// The state of a task. A task that is being stopped still runs.
pub(super) fn state(task: &Task) -> State {
    match task.last_status().unwrap_or_default() {
        "STOPPED" => ended(task),
        status @ ("PROVISIONING" | "PENDING" | "ACTIVATING" | "") => State::Waiting(match status {
            "PROVISIONING" => "PROVISIONING: ECS prepares capacity and network".to_owned(),
            "ACTIVATING" => "ACTIVATING: the image is pulled, or the network is set up".to_owned(),
            _ => "PENDING: its machine has not started it".to_owned(),
        }),
        _ => State::Running,
    }
}

fn ended(task: &Task) -> State {
    let container = task.containers().iter().find(|it| it.name() == Some(CONTAINER));
    let code = container.and_then(|it| it.exit_code());
    if code == Some(0) {
        return State::Ended;
    }
    let stopped = task.stopped_reason().filter(|reason| !reason.is_empty());
    // This text adds nothing to the exit code.
    let is_exit = task.stop_code() == Some(&TaskStopCode::EssentialContainerExited);
    let stopped = stopped.filter(|_| code.is_none() || !is_exit);
    let code = code.map(exit);
    let parts = [code.as_deref(), container.and_then(|it| it.reason()), stopped];
    let parts: Vec<&str> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    State::Failed(match parts.as_slice() {
        [] => "it stopped, and AWS gives no reason".to_owned(),
        parts => parts.join(": "),
    })
}

/// The number of a worker, from the variable that passes it to the worker.
pub(super) fn worker(task: &Task) -> Option<u32> {
    let overrides = task.overrides()?.container_overrides();
    let variables = overrides.iter().flat_map(|container| container.environment());
    let mut index = variables.filter(|variable| variable.name() == Some(aws::WORKER_INDEX));
    index.next()?.value()?.parse().ok()
}

/// When a task was requested.
pub(super) fn created(task: &Task) -> Option<SystemTime> {
    let time = task.created_at()?.as_secs_f64();
    Duration::try_from_secs_f64(time).ok().map(|time| UNIX_EPOCH + time)
}

/// The log stream of a task, from its definition.
pub(super) fn found(task: &Task, definition: &TaskDefinition) -> Found {
    let has_ended = matches!(state(task), State::Ended | State::Failed(_));
    let id = arn(task).rsplit('/').next().unwrap_or_default();
    let container =
        definition.container_definitions().iter().find(|it| it.name() == Some(CONTAINER));
    let options = container.and_then(|it| it.log_configuration()?.options());
    let place = options.and_then(|options| {
        let (group, prefix) = (options.get(GROUP)?, options.get(STREAMS)?);
        Some((group.clone(), format!("{prefix}/{CONTAINER}/{id}")))
    });
    Found { place, has_ended }
}
