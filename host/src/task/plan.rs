//! The inputs that a task names itself: calls the guest's `plan`, and brings what it asks for.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::bucket::Version;
use crate::failure::Failure;
use crate::fault::{self, Step};
use crate::key::BucketKey;
use crate::message::Task;
use crate::needs::{Gathered, MOST_CALLS, PlanError, Reach};
use crate::prefetch::{Brought, Prefetch, PrefetchError};
use crate::sandbox::{Calls, Execute, Execution, Guest, Input, Job, Limits, Needs, RunError, Tee};

/// What planning needs of its surroundings.
pub struct Planner<'a> {
    /// Where the guest runs.
    pub sandbox: &'a dyn Execute,
    /// Where inputs come from.
    pub inputs: &'a Prefetch,
    /// Where plans may read.
    pub reach: &'a Reach,
}

/// A guest that plans.
pub struct Planning {
    /// The guest, which [has a plan](Guest::has_plan).
    pub guest: Guest,
    /// Its task as the message has it.
    pub task: Arc<Task>,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The limits of an execution. Those of a plan are narrower.
    pub limits: Arc<Limits>,
    /// Where the guest's output goes at once.
    pub tee: Option<Tee>,
}

/// Records when a guest runs, so that a task whose plan kills its hosts is given up in the end.
#[async_trait]
pub trait Record: Send {
    /// A call begins.
    ///
    /// # Errors
    /// When that could not be recorded.
    async fn begins(&mut self) -> Result<(), Failure>;

    /// The call has returned, and was no attempt.
    ///
    /// # Errors
    /// When that could not be recorded.
    async fn returns(&mut self) -> Result<(), Failure>;
}

/// For a task that is not leased.
pub struct Unrecorded;

#[async_trait]
impl Record for Unrecorded {
    async fn begins(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn returns(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// Why a task has no plan.
pub struct Unplanned {
    /// The failure.
    pub failure: Failure,
    /// The call that failed, if one did.
    pub execution: Option<Box<Execution>>,
}

impl<E: Into<Failure>> From<E> for Unplanned {
    fn from(error: E) -> Self {
        Self { failure: error.into(), execution: None }
    }
}

impl<'a> Planner<'a> {
    /// Calls the plan until it asks for no further call, and brings all inputs. `brought` are those
    /// of the message. The task that is returned is for the guest: its inputs are those that are
    /// there. Dropping the future ends the guest.
    ///
    /// # Errors
    /// When a call fails, when it asks for what it may not have, when an input can't be had, or when
    /// one was replaced after the plan had seen it.
    pub async fn bring(
        &self,
        planning: Planning,
        mut brought: Brought<'a>,
        record: &mut dyn Record,
    ) -> Result<(Arc<Task>, Brought<'a>), Unplanned> {
        let task = &planning.task;
        let mut gathered = Gathered::new(task);
        let mut listed = task.clone();
        for _ in 0..MOST_CALLS {
            let inputs = std::mem::take(&mut brought.inputs);
            record.begins().await?;
            let needs = self.call(&planning, listed, inputs).await;
            // Whatever the plan made of an input that was changed while it read it.
            brought.in_place.check()?;
            let needs = needs?;
            record.returns().await?;
            gathered.add(&needs.inputs, self.reach, &*self.inputs.bucket).await?;
            let seen: HashMap<BucketKey, Version> =
                brought.objects.drain(..).map(|object| (object.key, object.version)).collect();
            let before = brought.fetched;
            // Two tasks that each held a part of the bytes they need would wait for each other.
            drop(brought.ahead.take());
            brought = self.inputs.bring_all(gathered.wanted()).await?;
            brought.fetched = brought.fetched.after(before);
            check_unchanged(&brought, &seen)?;
            let inputs = gathered.listed(task, &brought.inputs);
            listed = Arc::new(Task { inputs, ..(**task).clone() });
            if !needs.more {
                return Ok((listed, brought));
            }
        }
        Err(PlanError::TooManyCalls.into())
    }

    /// Calls the plan once.
    async fn call(
        &self,
        planning: &Planning,
        listed: Arc<Task>,
        inputs: Vec<Input>,
    ) -> Result<Needs, Unplanned> {
        let cancelled = CancellationToken::new();
        let _ends_with_this = cancelled.clone().drop_guard();
        let job = Job {
            guest: planning.guest.clone(),
            calls: Calls::Plan,
            task: listed,
            attempt: planning.attempt,
            limits: planning.limits.clone(),
            inputs,
            cancelled,
            tee: planning.tee.clone(),
            profiler: None,
            watched: None,
            slot: None,
        };
        fault::point(Step::Plan);
        let mut execution = self.sandbox.run(job).await;
        fault::point(Step::Planned);
        let result = std::mem::replace(&mut execution.result, Ok(Vec::new()));
        match (result, execution.needs.take()) {
            (Ok(_), Some(needs)) => Ok(needs),
            (Ok(_), None) => Err(RunError::Host("the plan returned nothing".to_owned()).into()),
            (Err(error), _) => {
                Err(Unplanned { failure: error.into(), execution: Some(Box::new(execution)) })
            }
        }
    }
}

/// Checks that the inputs that a plan has seen are those that the task will read.
fn check_unchanged(
    brought: &Brought<'_>,
    seen: &HashMap<BucketKey, Version>,
) -> Result<(), PrefetchError> {
    for (object, input) in brought.objects.iter().zip(&brought.inputs) {
        if seen.get(&object.key).is_some_and(|version| *version != object.version) {
            return Err(PrefetchError::Replaced { input: input.path.clone() });
        }
    }
    Ok(())
}
