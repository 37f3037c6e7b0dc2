//! Runs one task, from its leased message to its settled message. `task/plan.rs` brings the inputs
//! that the task names itself, `task/receipts.rs` reads and writes its receipt, `task/guest_log.rs`
//! and `task/printed.rs` log and store what it prints, and `task/settle.rs` settles its message.

mod guest_log;
mod plan;
mod printed;
mod receipts;
mod settle;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::activity::Shown;
use crate::blocking::blocking;
use crate::catalog::{CatalogError, Ready};
use crate::digest::Digest;
use crate::failure::Failure;
use crate::fault::{self, Step as Reached};
use crate::hold::Hold;
use crate::lease::Lease;
use crate::message::{DecodeError, Task};
use crate::prefetch::{Brought, ReadInPlace, ReadObject};
use crate::publish::{self, Published, PutOutput};
use crate::queue::Message;
use crate::sandbox::{Calls, Execution, Guest, Input, Job, Log, Output, Phase, RunError, Trace};
use crate::services::Services;
use crate::services::slots::{self, Begun, Slot};
use crate::stats::{Gauge, Step, Steps};
use crate::turns::Turns;
use crate::verdict::{self, Verdict};
use crate::words;
pub use plan::{Planner, Planning, Record, Unplanned, Unrecorded};
pub(crate) use receipts::Inputs;
use receipts::ReceiptPlace;

/// The most bytes of a message that is decoded on the async thread. A larger message is decoded on
/// a blocking thread.
const DECODED_INLINE: usize = 256 << 10;

/// The most bytes of a missing output's name that an error quotes.
const MAX_LISTED: usize = 300;

/// The shortest and longest time that a task waits for a bucket that does not take its outputs.
const MIN_PATIENCE: Duration = Duration::from_secs(5);
const MAX_PATIENCE: Duration = Duration::from_secs(600);

/// An attempt: the facts for its report, receipt and log, and the guards that it holds.
struct Attempt {
    steps: Steps,
    task: Option<Arc<Task>>,
    component: Option<Digest>,
    log: Log,
    /// The call stack of a guest that trapped or exited, if it is known.
    trace: Option<Trace>,
    /// The last file call of the guest that failed.
    failed_call: Option<String>,
    receipt: Option<ReceiptPlace>,
    /// The guest's peak memory, in bytes.
    memory: u64,
    /// The guest's processor time, if it was measured.
    cpu_time: Option<Duration>,
    /// The task's entry in the list of running tasks, once it runs.
    shown: Option<Shown>,
    /// Held from the recorded start until the message is settled. None for a task that runs alone.
    begun: Option<Begun>,
}

/// How a task goes on after its message is decoded.
enum Next {
    /// The task's receipt says that it is done.
    DoneBefore(Published),
    /// The task runs.
    Run(Box<Prepared>),
}

/// Everything that a task needs to run.
struct Prepared {
    /// The task as its guest receives it, with the inputs that its plan named.
    told: Arc<Task>,
    inputs: Vec<Input>,
    objects: Vec<ReadObject>,
    in_place: ReadInPlace,
    component: Ready,
    turn: Turn,
}

/// The permit to run, held until other tasks may run.
enum Turn {
    Slot(Slot),
    /// No other task may run, publish or be settled meanwhile.
    Alone([OwnedSemaphorePermit; 3]),
}

/// Runs the task of a leased message and settles the message. `hold` is dropped as soon as the
/// task neither waits nor runs.
pub async fn run(services: &Services, mut lease: Lease, hold: Hold) {
    let _in_flight = Gauge::enter(&services.stats.in_flight);
    let (since, mut steps) = (Instant::now(), Steps::start());
    fault::point(Reached::Leased);
    let decoded = decode(lease.message()).await;
    fault::point(Reached::Decoded);
    steps.done(Step::Decode);
    let known = decoded.as_ref().ok();
    // Recording a field later would cost as much as the whole span. The span has the highest level,
    // so that every log line within it names the task.
    let span = tracing::error_span!(
        "task",
        message_id = lease.message().id,
        attempt = lease.attempt(),
        id = known.map(|task| task.id),
        task_name = known.map(|task| task.name.as_str()),
    );
    async {
        let mut attempt = Attempt {
            steps,
            task: None,
            component: None,
            log: Log::default(),
            trace: None,
            failed_call: None,
            receipt: None,
            memory: 0,
            cpu_time: None,
            shown: None,
            begun: None,
        };
        let mut end = match services.undeleted.recall(&lease.message().id, &lease.message().body) {
            // The task has ended, but its message could not be deleted and was delivered again.
            Some(ended) => {
                attempt.task = decoded.ok().map(Arc::new);
                return attempt.settle_again(services, lease, ended).await;
            }
            None => attempt.make(services, &mut lease, decoded, hold).await,
        };
        if let Err(failure) = end {
            end = Err(services.diagnose(failure, attempt.task.as_deref(), since).await);
        }
        let verdict = match &end {
            Ok(_) => Verdict::Done,
            Err(failure) => verdict::judge(failure, lease.attempt(), &services.policy),
        };
        attempt.settle(services, lease, &end, verdict).await;
    }
    .instrument(span)
    .await;
}

impl Attempt {
    /// Makes the attempt: runs the task of a decoded message and publishes its outputs.
    async fn make(
        &mut self,
        services: &Services,
        lease: &mut Lease,
        decoded: Result<Task, DecodeError>,
        mut hold: Hold,
    ) -> Result<Published, Failure> {
        let task = Arc::new(decoded?);
        self.task = Some(task.clone());
        let was_crowded = services.crowded.take(&lease.message().id);
        let alone = was_crowded || verdict::is_suspect(lease.message());
        let is_trial = services.outages.any();
        if services.outages.is_out(&services.renewing()) {
            // No task can finish without renewals, so try one first.
            lease.renew().await;
            if services.outages.is_out(&services.renewing()) {
                return Err(Failure::Outage("leases can't be renewed".to_owned()));
            }
        }

        // Before the guest starts, the task can go to another host. So a drain, slots that stay
        // busy or an outage end the attempt at once. A task that began during an outage tests
        // whether the outage is over, so the outage does not end its attempt.
        let lost = lease.lost().clone();
        let released = hold.released();
        let next = tokio::select! {
            next = self.begin(services, lease, &task, alone, &mut hold) => next?,
            () = lost.cancelled() => return Err(Failure::LeaseLost),
            () = services.draining.cancelled() => return Err(Failure::Draining),
            () = released => return Err(Failure::SlotsBusy),
            () = services.outages.begun(), if !is_trial => {
                return Err(Failure::Outage(
                    "the host can't work now and releases tasks that have not started"
                        .to_owned(),
                ));
            }
        };

        match next {
            Next::DoneBefore(published) => {
                services.stats.done_before.fetch_add(1, Relaxed);
                tracing::debug!("done before, as its receipt says");
                Ok(published)
            }
            Next::Run(ready) => self.run_and_publish(services, lease, &task, *ready, hold).await,
        }
    }

    /// Does everything before the recorded start.
    async fn begin(
        &mut self,
        services: &Services,
        lease: &mut Lease,
        task: &Arc<Task>,
        alone: bool,
        hold: &mut Hold,
    ) -> Result<Next, Failure> {
        // A task that is done is not rejected, even if it has too many deaths.
        if let Some(published) = self.done_before(services, task).await? {
            return Ok(Next::DoneBefore(published));
        }
        let limits_deliveries = services.queue.limits_deliveries();
        verdict::may_start(lease.message(), &services.policy, limits_deliveries)?;
        services.catalog.check_listed(&task.name)?;
        self.get_ready(services, lease, task, alone, hold).await
    }

    /// Records the start, executes the task and publishes its outputs.
    async fn run_and_publish(
        &mut self,
        services: &Services,
        lease: &mut Lease,
        task: &Arc<Task>,
        prepared: Prepared,
        hold: Hold,
    ) -> Result<Published, Failure> {
        let lost = lease.lost().clone();
        let Prepared { told, inputs, objects, in_place, component, turn } = prepared;
        let read = services.receipts.as_ref().map(|_| Inputs::new(&inputs, &objects));
        // A task that may kill its host runs alone until its outputs are published.
        let (slot, _alone) = match turn {
            Turn::Slot(slot) => (Some(slot), None),
            Turn::Alone(all) => (None, Some(all)),
        };
        let shown = self.shown.insert(services.activity.runs(task, lease.attempt()));
        let watched = Some(shown.watched().clone());
        if slot.is_some() {
            self.begun = Some(services.slots.begin().await);
        }
        lease.start().await.map_err(Failure::Start)?;
        fault::point(Reached::Started);
        let is_ahead = slot.as_ref().is_some_and(|slot| slot.is_ahead);
        let job = Job {
            guest: component.guest.clone(),
            calls: Calls::Task,
            task: told,
            attempt: lease.attempt(),
            limits: services.limits.of(&task.name).clone(),
            inputs,
            cancelled: lost.child_token(),
            tee: guest_log::tee(services.limits.of(&task.name)),
            profiler: None,
            watched,
            slot: slot.map(|slot| slot.permit),
        };
        let execution = if is_ahead {
            self.execute_ahead(services, lease, &hold, job).await?
        } else {
            self.execute(services, &hold, job).await
        };
        self.log = execution.log;
        self.trace = execution.trace;
        self.failed_call = execution.failed_call;
        self.memory = execution.memory;
        self.cpu_time = execution.cpu_time;
        let listed = match execution.result {
            Err(RunError::Cancelled) if lost.is_cancelled() => return Err(Failure::LeaseLost),
            Err(RunError::Cancelled) => return Err(RunError::Cancelled.into()),
            Err(error @ RunError::Crowded { .. }) => {
                services.crowded.remember(&lease.message().id);
                return Err(error.into());
            }
            result => {
                // An input that changed while the guest read it makes any result invalid.
                in_place.check()?;
                if !in_place.is_empty() {
                    services.were_read(&objects);
                }
                result?
            }
        };

        let _publishing = services.publishing.acquire().await;
        drop(hold);
        check_listed(&execution.outputs, &listed).await?;
        lease.confirm().await.map_err(|_| Failure::LeaseLost)?;
        fault::point(Reached::Confirmed);
        let outputs = execution.outputs;
        let published = tokio::select! {
            published = self.publish_once(services, lease, task, &in_place, read, outputs) => {
                published?
            }
            () = lost.cancelled() => return Err(Failure::LeaseLost),
            () = services.killed.cancelled() => return Err(RunError::Cancelled.into()),
        };
        self.steps.done(Step::Publish);
        Ok(published)
    }

    /// Publishes the outputs and leaves a receipt, unless another attempt has left one.
    async fn publish_once(
        &mut self,
        services: &Services,
        lease: &Lease,
        task: &Task,
        in_place: &ReadInPlace,
        read: Option<Inputs>,
        outputs: Vec<Output>,
    ) -> Result<Published, Failure> {
        let read = match read {
            Some(read) => {
                let facts = read.facts().await?;
                // Confirms that the digests are those of the bytes that the guest read.
                in_place.check()?;
                Some(facts)
            }
            None => None,
        };
        if let Some(published) = self.done_meanwhile(services, lease).await? {
            return Ok(published);
        }
        let (published, outputs) = self.publish(services, lease, task, outputs).await?;
        match read {
            Some(read) => self.leave_receipt(services, lease, published, &read, &outputs).await,
            None => Ok(published),
        }
    }

    /// Writes the outputs to the bucket. During an outage of the bucket, waits for about as long as
    /// the execution took, because running the task again would take as long.
    async fn publish(
        &self,
        services: &Services,
        lease: &Lease,
        task: &Task,
        outputs: Vec<Output>,
    ) -> Result<(Published, Vec<PutOutput>), Failure> {
        let bucket = &*services.bucket;
        let protected = &services.protected;
        let base = &task.base_directory;
        let outputs = publish::Outputs::check(outputs, base, protected, bucket).await?;
        let mut outputs = outputs.with_digests(services.receipts.is_some());
        let patience = self.steps.spent(Step::Run).clamp(MIN_PATIENCE, MAX_PATIENCE);
        let until = Instant::now() + patience;
        let may_put = || lease.is_ours();
        let mut since = Instant::now();
        while let Err(error) = outputs.put(bucket, &may_put).await {
            if outputs.are_lost() {
                return Err(Failure::Homeless);
            }
            let failure = services.diagnose(error.into(), Some(task), since).await;
            let is_outage = matches!(failure, Failure::Outage(_));
            if !is_outage || !services.wait_to_write(lease, until).await {
                return Err(failure);
            }
            since = Instant::now();
        }
        if services.config.data.durable {
            publish::sync(bucket).await?;
        }
        let facts = outputs.facts();
        let published = outputs.published();
        services.stats.bytes_out.fetch_add(published.bytes, Relaxed);
        services.were_put(&published.keys);
        Ok((published, facts))
    }

    /// Gets what the task needs to run: inputs, component, plan and slot.
    async fn get_ready(
        &mut self,
        services: &Services,
        lease: &mut Lease,
        task: &Arc<Task>,
        alone: bool,
        hold: &mut Hold,
    ) -> Result<Next, Failure> {
        if let Some(error) = services.catalog.is_slow(&task.name).await {
            return Err(not_found(services, error));
        }
        let mut brought = services.inputs.bring(&task.base_directory, &task.inputs).await?;
        self.steps.done(Step::Fetch);
        hold.has_inputs();
        fault::point(Reached::InputsFetched);

        let component = self
            .find_component(services, task, || {
                brought.ahead = None;
                hold.leave();
            })
            .await?;
        hold.come_back().await;

        let (mut told, mut turn) = (task.clone(), None);
        if component.guest.has_plan() {
            if alone {
                turn = Some(take_turn(services, alone, hold).await?);
            }
            let guest = component.guest.clone();
            let record = &mut Recorded { lease, services, alone, turn: None };
            (told, brought) = self.plan(services, record, task, guest, brought).await?;
            self.steps.done(Step::Fetch);
            hold.has_inputs();
            if let Some(published) = self.done_before_as_planned(&component, &brought).await? {
                return Ok(Next::DoneBefore(published));
            }
        }
        let Brought { fetched, inputs, objects, in_place, ahead: _ahead } = brought;
        if in_place.is_empty() {
            services.were_read(&objects);
        }
        services.stats.bytes_in.fetch_add(fetched.bytes, Relaxed);
        services.stats.cache_hits.fetch_add(fetched.hits.into(), Relaxed);
        services.stats.cache_misses.fetch_add(fetched.misses.into(), Relaxed);
        let turn = match turn {
            Some(turn) => turn,
            None => take_turn(services, alone, hold).await?,
        };
        hold.runs();
        self.steps.done(Step::Wait);
        let prepared = Prepared { told, inputs, objects, in_place, component, turn };
        Ok(Next::Run(Box::new(prepared)))
    }

    /// Calls the guest's plan, and brings the inputs that it names.
    async fn plan<'s>(
        &mut self,
        services: &'s Services,
        record: &mut Recorded<'_>,
        task: &Arc<Task>,
        guest: Guest,
        brought: Brought<'s>,
    ) -> Result<(Arc<Task>, Brought<'s>), Failure> {
        let limits = services.limits.of(&task.name).clone();
        let (attempt, tee) = (record.lease.attempt(), guest_log::tee(&limits));
        let planning = Planning { guest, task: task.clone(), attempt, limits, tee };
        let planner = Planner {
            sandbox: &*services.sandbox,
            inputs: &services.inputs,
            reach: &services.reach,
        };
        let planned = planner.bring(planning, brought, record).await;
        planned.map_err(|Unplanned { failure, execution }| {
            if let Some(execution) = execution {
                self.log = execution.log;
                self.trace = execution.trace;
                self.failed_call = execution.failed_call;
                self.memory = execution.memory;
                self.cpu_time = execution.cpu_time;
            }
            failure
        })
    }

    /// Finds the task's component. If compiling it takes long, calls `make_room` to release
    /// resources that other tasks can use meanwhile.
    async fn find_component(
        &mut self,
        services: &Services,
        task: &Task,
        make_room: impl FnOnce(),
    ) -> Result<Ready, Failure> {
        let takes_long = Notify::new();
        let mut resolving = std::pin::pin!(services.catalog.resolve(&task.name, &takes_long));
        let found = tokio::select! {
            biased;
            found = &mut resolving => found,
            () = takes_long.notified() => {
                make_room();
                resolving.await
            }
        };
        self.steps.done(Step::Resolve);
        let component = found.map_err(|error| not_found(services, error))?;
        self.component = Some(component.digest);
        fault::point(Reached::ComponentReady);
        services.was_resolved(services.catalog.key(&task.name));
        Ok(component)
    }

    /// Executes a task that was started before a thread was free. If no thread becomes free soon,
    /// takes the start back and waits for a thread.
    async fn execute_ahead(
        &mut self,
        services: &Services,
        lease: &mut Lease,
        hold: &Hold,
        job: Job,
    ) -> Result<Execution, Failure> {
        let cancelled = job.cancelled.clone();
        let running = services.sandbox.run_soon(job, slots::PATIENCE);
        let mut job = match until_ended(services, &cancelled, running).await {
            Ok(execution) => {
                self.has_run(services, hold, &execution);
                return Ok(execution);
            }
            Err(job) => job,
        };
        hold.waits();
        tracing::debug!("all slots are taken by longer tasks; this one waits for a slot");
        job.slot = None;
        lease.take_back().await.map_err(Failure::Start)?;
        self.begun = None;
        let lost = lease.lost().clone();
        let slot = tokio::select! {
            slot = services.slots.take_thread() => slot.map_err(|_| Failure::Draining)?,
            () = lost.cancelled() => return Err(Failure::LeaseLost),
            () = services.draining.cancelled() => return Err(Failure::Draining),
            () = hold.released() => return Err(Failure::SlotsBusy),
        };
        hold.runs();
        self.steps.done(Step::Wait);
        self.begun = Some(services.slots.begin().await);
        lease.start().await.map_err(Failure::Start)?;
        job.slot = Some(slot.permit);
        Ok(self.execute(services, hold, *job).await)
    }

    async fn execute(&mut self, services: &Services, hold: &Hold, job: Job) -> Execution {
        let cancelled = job.cancelled.clone();
        let execution = until_ended(services, &cancelled, services.sandbox.run(job)).await;
        self.has_run(services, hold, &execution);
        execution
    }

    fn has_run(&mut self, services: &Services, hold: &Hold, execution: &Execution) {
        hold.has_run();
        services.slots.ran(execution.elapsed);
        if let Some(shown) = &self.shown {
            shown.publishes();
        }
        self.steps.done(Step::Run);
        // The run step of a task that started ahead includes its wait for a thread.
        let waited = self.steps.spent(Step::Run).saturating_sub(execution.elapsed);
        self.steps.move_from(Step::Run, Step::Wait, waited);
        self.steps.move_from(Step::Run, Step::Instantiate, execution.times.of(Phase::Instantiate));
    }
}

/// Records the plan's calls of a leased task. Each call takes a turn and is recorded as a start, so
/// that a task whose plan kills its hosts is rejected in the end.
struct Recorded<'a> {
    lease: &'a mut Lease,
    services: &'a Services,
    /// The task already holds all turns.
    alone: bool,
    turn: Option<OwnedSemaphorePermit>,
}

#[async_trait]
impl Record for Recorded<'_> {
    async fn begins(&mut self) -> Result<(), Failure> {
        if !self.alone {
            let turn = self.services.slots.take_plan().await;
            self.turn = Some(turn.map_err(|_| Failure::Draining)?);
        }
        self.lease.start().await.map_err(Failure::Start)
    }

    async fn returns(&mut self) -> Result<(), Failure> {
        let taken_back = self.lease.take_back().await.map_err(Failure::Start);
        self.turn = None;
        taken_back
    }
}

/// Waits for the permit to run.
async fn take_turn(services: &Services, alone: bool, hold: &Hold) -> Result<Turn, Failure> {
    if !alone {
        let slot = services.slots.take().await;
        return slot.map(Turn::Slot).map_err(|_| Failure::Draining);
    }
    hold.is_to_be_alone();
    let all = services.slots.take_all().await.map_err(|_| Failure::Draining)?;
    Ok(Turn::Alone(all))
}

/// Waits for an execution, and cancels it when the host must stop at once.
async fn until_ended<T>(
    services: &Services,
    cancelled: &CancellationToken,
    running: impl Future<Output = T>,
) -> T {
    let _running = Gauge::enter(&services.stats.running);
    let mut running = std::pin::pin!(running);
    tokio::select! {
        ended = &mut running => ended,
        () = services.killed.cancelled() => {
            cancelled.cancel();
            running.await
        }
    }
}

/// Decodes a message. Decodes a large one on a blocking thread.
async fn decode(message: &Message) -> Result<Task, DecodeError> {
    if message.body.len() <= DECODED_INLINE {
        return message.task();
    }
    let message = message.clone();
    blocking(move || message.task()).await
}

fn not_found(services: &Services, error: CatalogError) -> Failure {
    match error {
        CatalogError::NotYet { since, .. } | CatalogError::NotTrusted { since, .. } => {
            let limits_deliveries = services.queue.limits_deliveries();
            let after = verdict::until_compiled(since, limits_deliveries);
            Failure::NotYet { source: error, after }
        }
        error => error.into(),
    }
}

/// Checks that every output that the guest listed exists.
///
/// # Errors
/// [`Failure::Missing`] for the first output that does not exist.
pub async fn check_listed(outputs: &[Output], listed: &[String]) -> Result<(), Failure> {
    let mut turns = Turns::begin();
    for path in listed {
        turns.pass().await;
        if !publish::has(outputs, path) {
            return Err(Failure::Missing(words::cut(path, MAX_LISTED).into_owned()));
        }
    }
    Ok(())
}
