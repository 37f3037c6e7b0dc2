//! Calls a guest's `plan`, and brings the inputs that it names.

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

/// The services that planning uses.
pub struct Planner<'a> {
    /// Runs the guest.
    pub sandbox: &'a dyn Execute,
    /// Fetches inputs.
    pub inputs: &'a Prefetch,
    /// The keys that plans may name.
    pub reach: &'a Reach,
}

/// The plan's calls of one task.
pub struct Planning {
    /// The guest, which [has a plan](Guest::has_plan).
    pub guest: Guest,
    /// The task as decoded from the message.
    pub task: Arc<Task>,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The limits of an execution. A plan has lower limits.
    pub limits: Arc<Limits>,
    /// Receives the guest's output as it is printed.
    pub tee: Option<Tee>,
}

/// Records when a plan runs, so that a task whose plan kills its hosts is rejected in the end.
#[async_trait]
pub trait Record: Send {
    /// Records that a call begins.
    ///
    /// # Errors
    /// If the call could not be recorded.
    async fn begins(&mut self) -> Result<(), Failure>;

    /// Records that the call has returned, and was not an attempt.
    ///
    /// # Errors
    /// If the return could not be recorded.
    async fn returns(&mut self) -> Result<(), Failure>;
}

/// Records nothing, for a task that is not leased.
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

/// Why planning failed.
pub struct Unplanned {
    /// The failure.
    pub failure: Failure,
    /// The execution of the call that failed, if a call failed.
    pub execution: Option<Box<Execution>>,
}

impl<E: Into<Failure>> From<E> for Unplanned {
    fn from(error: E) -> Self {
        Self { failure: error.into(), execution: None }
    }
}

impl<'a> Planner<'a> {
    /// Calls the plan until it asks for no further call, and brings all inputs. `brought` are the
    /// inputs of the message. Returns the task for the guest, whose inputs are those that exist.
    /// Dropping the future ends the guest.
    ///
    /// # Errors
    /// If a call fails, names an input that it may not read, or names an input that can't be
    /// fetched, or if an input was replaced after the plan had read it.
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
            // An input that changed while the plan read it makes any result invalid.
            brought.in_place.check()?;
            let needs = needs?;
            record.returns().await?;
            gathered.add(&needs.inputs, self.reach, &*self.inputs.bucket).await?;
            let seen: HashMap<BucketKey, Version> =
                brought.objects.drain(..).map(|object| (object.key, object.version)).collect();
            let before = brought.fetched;
            // Two tasks that each hold some prefetch bytes and need more would wait for each other.
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

/// Checks that no input was replaced since the plan read it.
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
