//! The call of `plan`, for guests that name their own inputs.

use std::time::Duration;

use wasmtime::Store;

use super::limits::{Limit, Limits};
use super::progress::Progress;
use super::{Ended, Phase, State, types};

mod bindings {
    //! The world of `wit/task.wit` for guests with a plan.
    wasmtime::component::bindgen!({
        path: "wit",
        world: "task-with-plan",
        exports: { default: async },
        with: { "task-host:guest/types": crate::sandbox::bindings::task_host::guest::types },
    });
}
pub use bindings::task_host::guest::planning::{Need, Needs};

/// The time limit of one call, including the creation of its instance.
const TIME: Duration = Duration::from_secs(10);

/// A component that has a plan, ready to be instantiated.
pub(super) type Planned = bindings::TaskWithPlanPre<State>;

/// The limits of one call.
pub(super) fn limits(task: &Limits) -> Limits {
    Limits { time: task.time.min(TIME), ..task.clone() }
}

/// The limit that a call exceeded when it ran out of time.
pub(super) fn out_of_time(task: &Limits) -> Limit {
    if task.time <= TIME { Limit::Time(task.time) } else { Limit::PlanTime(TIME) }
}

/// Calls `plan` in a fresh instance.
pub(super) async fn call(
    store: &mut Store<State>,
    planned: Option<&Planned>,
    task: &types::Task,
    progress: &mut Progress<'_>,
) -> Result<Needs, Ended> {
    let Some(planned) = planned else {
        return Ok(Needs { inputs: Vec::new(), more: false });
    };
    let instance = planned.instantiate_async(&mut *store).await?;
    progress.enter(Phase::Plan);
    let needs = instance.call_plan(&mut *store, task).await??;
    store.data().quota.check()?;
    Ok(needs)
}
