//! Executes guests: each in a fresh instance, with three calls, under limits. A guest with a plan
//! gets a call of `plan` in a separate instance before that (`sandbox/plan.rs`).
//!
//! A [`Sandbox`] owns the engine and the threads that execute guests. A component is compiled once
//! by a [`compiling_engine`], [loaded](Sandbox::load) and [linked](Sandbox::link) as a [`Guest`],
//! and [run](Sandbox::run) any number of times; no two runs share an instance, a file or a byte of
//! memory.
//!
//! Three files decide what a guest can reach: `sandbox/imports.rs` links its imports,
//! `sandbox/files.rs` answers its file calls, and `sandbox/confine.rs` sets the kernel's rules for
//! the executing thread.

mod confine;
mod cpu;
mod disk;
mod execute;
mod files;
#[doc(hidden)]
pub mod foreign;
mod imports;
mod interface;
mod kind;
mod last_words;
mod limits;
mod lines;
mod log;
mod mode;
mod plan;
mod profile;
mod program;
mod progress;
mod quota;
mod room;
mod stack;
mod thread;
mod watched;

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{
    Config, Enabled, Engine, PoolingAllocationConfig, Store, Trap, UpdateDeadline,
    WasmBacktraceDetails,
};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxView, WasiView};

use crate::fault::{self, Step};
use crate::message::Task;
use crate::plain;
use crate::spill::SpillDir;
use crate::words;
pub use confine::Confinement;
use cpu::CpuTime;
use disk::Disk;
pub use disk::Source;
pub use execute::Execute;
use files::{FailedCall, Tree};
pub use files::{FileUse, Input, InputContent, Output};
pub use interface::version_problem;
pub use kind::{CALLS, Kind};
use last_words::LastWords;
use limits::Memory;
pub use limits::{LEAST_HOST_MEMORY, Limit, Limits, MOST_LOG, Table, is_too_large};
pub use lines::Lines;
pub use log::{Log, Tee};
pub use mode::Mode;
use mode::{StepClock, World};
pub use plan::{Need, Needs};
pub use profile::Profiler;
use program::Errors;
pub use progress::CallTimes;
use progress::Progress;
use quota::Quota;
use room::{Room, Share};
pub use stack::Trace;
use thread::Threads;
pub use watched::Watched;

/// The most bytes that are kept of a guest's reason for a failure.
const MAX_REASON: usize = 16 << 10;
/// The host searches this many bytes at the end of a guest's log for the reason of its end.
const LAST_WORDS: usize = 32 << 10;
/// The most bytes that are kept of the engine's error messages. They may contain names from the
/// component, which can be long.
const MAX_PROBLEM: usize = 2 << 10;

mod bindings {
    //! The guest world of `wit/task.wit`.
    wasmtime::component::bindgen!({
        path: "wit",
        world: "task",
        exports: { default: async },
    });
}
use bindings::task_host::guest::types;

/// The engine, and the threads that execute guests.
pub struct Sandbox {
    engine: Engine,
    linker: Linker<State>,
    threads: Threads,
    /// One more thread, for plans, so that a plan does not wait for the end of a task. If there is
    /// not enough address space for it, plans use the threads of tasks.
    planner: Option<Threads>,
    disk: Disk,
    mode: Mode,
    room: Arc<Room>,
}

/// A compiled component, ready to be instantiated.
#[derive(Clone)]
pub struct Guest {
    pre: Pre,
}

/// A component whose imports are linked and whose exports are looked up.
#[derive(Clone)]
enum Pre {
    Task { pre: bindings::TaskPre<State>, planned: Option<plan::Planned> },
    Program(CommandPre<State>),
}

impl Guest {
    /// Which interface the guest implements.
    pub fn kind(&self) -> Kind {
        match &self.pre {
            Pre::Task { planned: None, .. } => Kind::Task,
            Pre::Task { planned: Some(_), .. } => Kind::TaskWithPlan,
            Pre::Program(_) => Kind::Program,
        }
    }

    /// Whether the guest has a `plan` that names more inputs.
    pub fn has_plan(&self) -> bool {
        self.kind() == Kind::TaskWithPlan
    }
}

/// The calls of one execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// `prepare`, `execute` and `finalize`; the `main` of a program.
    Task,
    /// `plan`, in an instance that has no outputs.
    Plan,
}

/// Everything one execution needs.
pub struct Job {
    /// The guest to run.
    pub guest: Guest,
    /// Which functions of the guest to call.
    pub calls: Calls,
    /// The task that the guest receives.
    pub task: Arc<Task>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// What the guest may use.
    pub limits: Arc<Limits>,
    /// The files in `/inputs`.
    pub inputs: Vec<Input>,
    /// Ends the execution early, with [`RunError::Cancelled`].
    pub cancelled: CancellationToken,
    /// Receives what the guest prints as soon as it is printed, in addition to the log.
    pub tee: Option<Tee>,
    /// Samples the guest while it computes.
    pub profiler: Option<Arc<Profiler>>,
    /// Shows the state of the guest to other threads while it runs.
    pub watched: Option<Arc<Watched>>,
    /// Dropped on the guest's thread as soon as the guest has ended, so that the next task can
    /// begin before the caller receives the [`Execution`].
    pub slot: Option<OwnedSemaphorePermit>,
}

/// The result of an execution.
#[derive(Debug)]
pub struct Execution {
    /// The outputs that the guest lists, or why the task is not done.
    pub result: Result<Vec<String>, RunError>,
    /// What the guest left in `/outputs`, sorted by path; nothing if the result is an error.
    pub outputs: Vec<Output>,
    /// What the guest's `plan` asks for, if it was called and returned.
    pub needs: Option<Needs>,
    /// The most memory that the guest had, in bytes.
    pub memory: u64,
    /// The processor time of the thread that executed it, if it was measured.
    pub cpu_time: Option<Duration>,
    /// The end of what the guest wrote to its standard output and error.
    pub log: Log,
    /// The time from the creation of the instance to its end.
    pub elapsed: Duration,
    /// The parts of `elapsed` that instantiation and each call took.
    pub times: CallTimes,
    /// What the guest did with its files.
    pub files: FileUse,
    /// The call stack of a guest that trapped or exited, if it is known.
    pub trace: Option<Trace>,
    /// The last file call that failed, and why: `open /inputs/a.png: no such file`.
    pub failed_call: Option<String>,
}

impl Execution {
    /// An execution that the host could not begin, or whose result is lost.
    pub fn not_begun(error: RunError) -> Self {
        Self {
            result: Err(error),
            outputs: Vec::new(),
            needs: None,
            memory: 0,
            cpu_time: None,
            log: Log::default(),
            elapsed: Duration::ZERO,
            times: CallTimes::default(),
            files: FileUse::default(),
            trace: None,
            failed_call: None,
        }
    }
}

/// The phases of an execution, in their order; and the call of `plan`, which has its own execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(usize)]
pub enum Phase {
    /// The creation of the instance.
    Instantiate,
    /// The call of `prepare`.
    Prepare,
    /// The call of `execute`, or of the `main` of a program.
    Execute,
    /// The call of `finalize`.
    Finalize,
    /// The call of `plan`.
    Plan,
}

impl Phase {
    /// All phases.
    pub const ALL: [Self; 5] =
        [Self::Instantiate, Self::Prepare, Self::Execute, Self::Finalize, Self::Plan];
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Instantiate => "instantiate",
            Self::Prepare => "prepare",
            Self::Execute => "execute",
            Self::Finalize => "finalize",
            Self::Plan => "plan",
        })
    }
}

/// Why an execution did not end with outputs to publish.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The guest asks for a retry.
    #[error("{reason}")]
    Retry {
        /// The call that returned the error.
        phase: Phase,
        /// The guest's reason.
        reason: String,
    },
    /// The guest says that a retry can't help.
    #[error("{reason}")]
    Reject {
        /// The call that returned the error.
        phase: Phase,
        /// The guest's reason.
        reason: String,
    },
    /// The guest ran to its end and reported no success.
    #[error("the task ran to its end without success")]
    Unsuccessful,
    /// The guest ran into one of its limits.
    #[error("{limit}; {}", limits::cure(limit, table.as_deref()))]
    Limit {
        /// The call that was under way.
        phase: Phase,
        /// The limit and its value.
        limit: Limit,
        /// The table of settings that the limit is from, if it is from one.
        table: Option<Arc<Table>>,
    },
    /// The guest trapped or exited: a panic, an abort, a call of `exit`, a bad memory access.
    #[error("{what}")]
    Trap {
        /// The call that was under way.
        phase: Phase,
        /// What happened: the guest's own message, if its log has one.
        what: String,
    },
    /// The lease was lost, or the host is stopping.
    #[error("the execution was cancelled")]
    Cancelled,
    /// The host could not run the guest. The guest is not the cause.
    #[error("the host could not run the task: {0}")]
    Host(String),
    /// A file call of the guest failed because of the host: its disk is full or fails, for example.
    #[error("a file call of the guest failed: {errno} ({})", crate::shortage::cure(*errno))]
    Shortage {
        /// The system's error number.
        errno: Errno,
        /// The number of bytes that the guest's outputs had.
        written: u64,
    },
    /// The guests that ran at the same time needed more memory together than the host has for
    /// them. If this guest runs alone, the memory may be enough.
    #[error(
        "the tasks that ran at the same time need more than the {} of memory that this host has for \
         tasks; a lower --parallel or more memory lets each of them run at once",
        memory.display().iec()
    )]
    Crowded {
        /// The memory for all guests.
        memory: ByteSize,
    },
    /// The host's own code panicked while it ran the task.
    #[error(
        "the host's own code panicked while it ran the task (its log says where); \
         please report this"
    )]
    Broke,
}

impl RunError {
    /// The call that was under way, if the error belongs to one.
    pub fn phase(&self) -> Option<Phase> {
        match self {
            Self::Retry { phase, .. }
            | Self::Reject { phase, .. }
            | Self::Limit { phase, .. }
            | Self::Trap { phase, .. } => Some(*phase),
            Self::Unsuccessful => Some(Phase::Finalize),
            Self::Cancelled
            | Self::Host(_)
            | Self::Shortage { .. }
            | Self::Crowded { .. }
            | Self::Broke => None,
        }
    }
}

/// Why a component can't be a guest. A retry can't help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotAGuest(pub String);

impl NotAGuest {
    /// The engine's error in one line. Its length is bounded, because it contains names from the
    /// component.
    pub fn new(error: &wasmtime::Error) -> Self {
        Self(words::bounded_line(&format_args!("{error:#}"), MAX_PROBLEM))
    }
}

/// The host's state for one instance. It is dropped with the instance.
struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    files: Tree,
    quota: Arc<Quota>,
    memory: Memory,
    /// The clock of a deterministic guest.
    steps: Option<StepClock>,
    cpu_time: Option<CpuTime>,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// What this machine's kernel can prevent guests from doing.
pub fn possible_confinement() -> Confinement {
    confine::possible()
}

impl Sandbox {
    /// Starts `slots` threads for guests, and one for plans. Outputs that are too large for memory
    /// go to `spill`. `mode` applies to all guests.
    ///
    /// # Errors
    /// When the engine or a thread can't be created, for example for lack of address space.
    pub fn new(slots: usize, spill: Arc<SpillDir>, mode: Mode) -> wasmtime::Result<Self> {
        let (engine, plans_apart) = match Engine::new(&config(slots + 1, mode)) {
            Ok(engine) => (engine, true),
            Err(_) => (Engine::new(&config(slots, mode))?, false),
        };
        let mut linker = Linker::new(&engine);
        imports::add_to_linker(&mut linker)?;
        let threads = Threads::start("guest", slots, &engine)?;
        let planner = plans_apart.then(|| Threads::start("plan", 1, &engine)).transpose()?;
        let disk = Disk::start(spill)?;
        let room = Room::new(ByteSize(u64::MAX));
        Ok(Self { engine, linker, threads, planner, disk, mode, room })
    }

    /// The same sandbox, in which all guests together have at most `memory`, if it is set. A guest
    /// that needs more than is free waits until another one ends. If all of them wait, one ends
    /// with [`RunError::Crowded`].
    pub fn with_memory(self, memory: Option<ByteSize>) -> Self {
        match memory {
            Some(memory) => Self { room: Room::new(memory), ..self },
            None => self,
        }
    }

    /// The memory that all guests have now, and the limit for all of them together, if there is
    /// one.
    pub fn memory(&self) -> (ByteSize, Option<ByteSize>) {
        let size = self.room.size();
        (self.room.held(), Some(size).filter(|size| size.as_u64() < u64::MAX))
    }

    /// Where guests get the time and random numbers from. Their compiled code depends on the mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The engine. It loads only code that was compiled for an engine with the same settings.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the kernel prevents guests from doing.
    pub fn confinement(&self) -> Confinement {
        let threads = std::iter::once(&self.threads).chain(&self.planner);
        Confinement::of_all(threads.map(Threads::confinement))
    }

    /// Samples each guest that has a [`Profiler`] once per `interval`.
    pub fn sample_every(&self, interval: Duration) {
        self.threads.tick_every(interval);
    }

    /// Loads compiled code.
    ///
    /// # Errors
    /// When the code was compiled for another engine, when it asks for more than the sandbox has,
    /// or when the machine has not enough memory for it.
    ///
    /// # Safety
    /// [`Engine::precompile_component`] must have made the bytes: the code runs without checks.
    pub unsafe fn load(&self, code: &[u8]) -> wasmtime::Result<Component> {
        // SAFETY: the caller guarantees that the bytes are compiled code.
        unsafe { Component::deserialize(&self.engine, code) }
    }

    /// Links a component. It must export our world or be a program, and import only what the host
    /// provides.
    ///
    /// # Errors
    /// Names the version of the interface that is not supported, the export that is missing, or
    /// the import that the host does not provide.
    pub fn link(&self, component: &Component) -> Result<Guest, NotAGuest> {
        let kind = component.component_type();
        let mut imports = kind.imports(&self.engine);
        if let Some(problem) = imports.find_map(|(name, _)| version_problem(name)) {
            return Err(NotAGuest(words::bounded_line(&problem, MAX_PROBLEM)));
        }
        let linked = self.linker.instantiate_pre(component).map_err(|e| NotAGuest::new(&e))?;
        let exports = kind.exports(&self.engine).map(|(name, _)| name);
        let kind = Kind::of_exports(exports);
        if kind == Some(Kind::Program) {
            let pre = CommandPre::new(linked).map_err(|e| NotAGuest::new(&e))?;
            return Ok(Guest { pre: Pre::Program(pre) });
        }
        let planned = match kind {
            Some(Kind::TaskWithPlan) => Some(plan::Planned::new(linked.clone())),
            _ => None,
        };
        let planned = planned.transpose().map_err(|e| NotAGuest::new(&e))?;
        // For a component that is neither, this error names the first missing export.
        let pre = bindings::TaskPre::new(linked).map_err(|e| NotAGuest::new(&e))?;
        Ok(Guest { pre: Pre::Task { pre, planned } })
    }

    /// Runs a job on the next free thread.
    pub async fn run(&self, job: Job) -> Execution {
        let threads = match (job.calls, &self.planner) {
            (Calls::Plan, Some(planner)) => planner,
            _ => &self.threads,
        };
        self.run_unless_taken(threads, Arc::new(Mutex::new(Some(job)))).await
    }

    /// Runs a job like [`Sandbox::run`], but does not wait longer than `patience` for a thread.
    ///
    /// # Errors
    /// Gives the job back if no thread was free within `patience`.
    pub async fn run_soon(&self, job: Job, patience: Duration) -> Result<Execution, Box<Job>> {
        let waiting = Arc::new(Mutex::new(Some(job)));
        let mut running = std::pin::pin!(self.run_unless_taken(&self.threads, waiting.clone()));
        tokio::select! {
            biased;
            execution = &mut running => return Ok(execution),
            () = tokio::time::sleep(patience) => {}
        }
        let taken = waiting.lock().take();
        match taken {
            Some(job) => Err(Box::new(job)),
            None => Ok(running.await),
        }
    }

    /// Runs the job on the next free thread, if the job has not been taken out by then.
    async fn run_unless_taken(&self, threads: &Threads, job: Arc<Mutex<Option<Job>>>) -> Execution {
        let (disk, mode) = (self.disk.clone(), self.mode);
        let share = Share::of(self.room.clone());
        let run = threads.run(move |engine| {
            let job = job.lock().take();
            Box::pin(async move {
                match job {
                    Some(job) => execute(engine, disk, mode, share, job).await,
                    None => Execution::not_begun(RunError::Cancelled),
                }
            })
        });
        run.await.unwrap_or_else(|| Execution::not_begun(RunError::Broke))
    }
}

fn config(slots: usize, mode: Mode) -> Config {
    let slots = u32::try_from(slots).unwrap_or(u32::MAX);
    let in_all = |each: usize| u32::try_from(each).unwrap_or(u32::MAX).saturating_mul(slots);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(in_all(limits::MAX_MODULES))
        .total_memories(in_all(limits::MAX_MEMORIES))
        .total_tables(in_all(limits::MAX_TABLES))
        // The store's limiter counts the parts of an instance, so that the error names the limit.
        .max_core_instances_per_component(u32::MAX)
        .max_memories_per_component(u32::MAX)
        .max_tables_per_component(u32::MAX)
        .max_memory_size(4 << 30)
        .total_stacks(slots)
        .table_elements(limits::MAX_TABLE_ELEMENTS)
        // Pages that a small guest touched stay mapped. They are cleared instead of being unmapped
        // and faulted in again. The pagemap scan finds them without reading all of the memory.
        .linear_memory_keep_resident(1 << 20)
        .table_keep_resident(1 << 16)
        .async_stack_keep_resident(1 << 16)
        .pagemap_scan(if PoolingAllocationConfig::is_pagemap_scan_available() {
            Enabled::Yes
        } else {
            Enabled::No
        });
    let mut config = code_config(mode);
    config.allocation_strategy(pool);
    config
}

/// The part of the configuration that compiled code depends on.
fn code_config(mode: Mode) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        // The engine is built without garbage collection. This proposal also adds function types
        // with subtypes, which would be compiled to calls of code that aborts the process.
        .wasm_gc(false)
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(limits::MAX_STACK)
        .memory_init_cow(true)
        // The default depends on an environment variable, and may read debug information.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .wasm_backtrace_max_frames(NonZeroUsize::new(stack::MOST_FRAMES));
    if mode == Mode::Deterministic {
        // The bits of a NaN and the results of relaxed SIMD differ between processors.
        config.cranelift_nan_canonicalization(true).relaxed_simd_deterministic(true);
    }
    config
}

/// An engine that only compiles. Every [`Sandbox`] of this mode can load its code, because the code
/// does not depend on how instances are allocated. The engine reserves no memory for instances.
///
/// # Errors
/// When the compiler does not support the machine's processor.
pub fn compiling_engine(mode: Mode) -> wasmtime::Result<Engine> {
    Engine::new(&code_config(mode))
}

async fn execute(engine: &Engine, disk: Disk, mode: Mode, share: Share, job: Job) -> Execution {
    let start = Instant::now();
    let limits = &*match job.calls {
        Calls::Task => Cow::Borrowed(&*job.limits),
        Calls::Plan => Cow::Owned(plan::limits(&job.limits)),
    };
    let deadline = start + limits.time;
    let log = log::Sink::new(usize::try_from(limits.log.as_u64()).unwrap_or(usize::MAX), job.tee);
    let quota = Quota::new(limits);
    let world = (mode == Mode::Deterministic).then(|| World::of(&job.task));
    if let Some(watched) = &job.watched {
        watched.prints_to(&log);
    }
    let mut progress = Progress::start(start, job.watched.as_deref());
    let files = Tree::new(job.inputs, limits, quota.clone(), disk, log.clone(), world.as_ref());
    let files = match job.calls {
        Calls::Task => files,
        Calls::Plan => files.without_outputs(),
    };
    let mut table = ResourceTable::new();
    table.set_max_capacity(limits::MAX_HANDLES);
    let mut wasi = WasiCtx::builder();
    wasi.stdout(log.clone())
        .stderr(log.clone())
        .allow_tcp(false)
        .allow_udp(false)
        .max_random_size(limits.call().as_u64());
    let errors = Errors::default();
    if job.guest.kind() == Kind::Program {
        errors.begin(&mut wasi, &job.task, job.attempt, &log);
    }
    if let Some(world) = &world {
        world.set(&mut wasi);
    }
    let state = State {
        wasi: wasi.build(),
        table,
        files: files.clone(),
        quota: quota.clone(),
        memory: Memory::new(limits.memory, share, job.watched.clone()),
        steps: world.map(|world| world.clock),
        cpu_time: limits.cpu_time.map(|most| CpuTime::start(most, start)),
    };
    let mut store = Store::new(engine, state);
    store.limiter_async(|state| &mut state.memory);
    store.set_hostcall_fuel(usize::try_from(limits.call().as_u64()).unwrap_or(usize::MAX));
    store.set_max_component_handles(limits::MAX_ALL_HANDLES);
    // The epoch stops a guest that computes. The timer below stops a guest that waits in a host
    // call.
    store.set_epoch_deadline(1);
    let (cancelled, profiler) = (job.cancelled.clone(), job.profiler);
    store.epoch_deadline_callback(move |mut store| {
        if let Some(profiler) = &profiler {
            profiler.sample(&store);
        }
        let now = Instant::now();
        let is_over = |cpu_time: &mut CpuTime| cpu_time.check(now);
        if cancelled.is_cancelled()
            || now >= deadline
            || store.data_mut().cpu_time.as_mut().is_some_and(is_over)
        {
            Ok(UpdateDeadline::Interrupt)
        } else {
            Ok(UpdateDeadline::Yield(1))
        }
    });

    let task = to_wire(&job.task, job.attempt);
    let running = async {
        match (&job.guest.pre, job.calls) {
            (Pre::Task { planned, .. }, Calls::Plan) => {
                let needs = plan::call(&mut store, planned.as_ref(), &task, &mut progress).await;
                needs.map(Returned::Needs)
            }
            (Pre::Task { pre, .. }, Calls::Task) => {
                let outcome = calls(&mut store, pre, &task, limits, &mut progress).await;
                outcome.map(Returned::Outcome)
            }
            (Pre::Program(pre), _) => {
                let outcome = program::run(&mut store, pre, &errors, &mut progress).await;
                outcome.map(Returned::Outcome)
            }
        }
    };
    let ended = tokio::select! {
        biased;
        ended = running => ended,
        () = tokio::time::sleep_until(deadline.into()) => Err(Ended::Late),
        () = job.cancelled.cancelled() => Err(Ended::Cancelled),
    };
    let (phase, times) = progress.end();
    let memory = store.data().memory.bytes();
    let denied = store.data().memory.denied();
    let (crowded, waited_for) = (store.data().memory.crowded(), store.data().memory.waited_for());
    let refused_open = quota.refused_open();
    let cpu_time = store.data().cpu_time.as_ref().map(CpuTime::used);
    let is_out_of_cpu_time = store.data().cpu_time.as_ref().is_some_and(CpuTime::is_over);
    // The instance must be gone before its outputs are taken.
    drop(store);
    drop(job.slot);
    let exceeded = quota.exceeded();
    let limit = |phase, limit| limits.exceeded(phase, limit);
    let out_of_time = match job.calls {
        Calls::Task => Limit::Time(limits.time),
        Calls::Plan => plan::out_of_time(&job.limits),
    };
    let failed_call = files.failed_call();
    let (mut trace, mut needs) = (None, None);
    let result = match (ended, exceeded) {
        (Err(Ended::Cancelled), _) => Err(RunError::Cancelled),
        // Even if the guest went on after the failure: its outputs may be incomplete.
        _ if let Some(errno) = quota.shortage() => {
            Err(RunError::Shortage { errno, written: quota.written() })
        }
        (Err(Ended::Error(_)), _) if let Some(memory) = crowded => {
            Err(RunError::Crowded { memory })
        }
        // The time limit does not apply to the time spent waiting for other guests' memory.
        (Err(Ended::Late), _) if let Some(memory) = waited_for => Err(RunError::Crowded { memory }),
        (Err(Ended::Late), _) => Err(limit(phase, out_of_time)),
        (Err(Ended::Error(_)), _) if job.cancelled.is_cancelled() => Err(RunError::Cancelled),
        (Err(Ended::Error(error)), _) if error.downcast_ref() == Some(&Trap::Interrupt) => {
            match (limits.cpu_time.filter(|_| is_out_of_cpu_time), waited_for) {
                (Some(most), _) => Err(limit(phase, Limit::CpuTime(most))),
                (None, Some(memory)) => Err(RunError::Crowded { memory }),
                (None, None) => Err(limit(phase, out_of_time)),
            }
        }
        // A guest that was refused bytes and went on may have left incomplete outputs. The limit
        // is a better reason than any error that the guest returned because of the refusal.
        (_, Some(exceeded)) => Err(limit(phase, exceeded)),
        (Err(Ended::Limit(exceeded)), None) => Err(limit(phase, exceeded)),
        (Err(Ended::Error(error)), None) if let Some(of) = Limit::of_error(&error, limits) => {
            Err(limit(phase, of))
        }
        // Only a refusal of the last open counts: a guest that closed files and went on did not end
        // because of an earlier one.
        (Err(Ended::Error(_) | Ended::Failure(_)), None) if let Some(refused) = refused_open => {
            Err(limit(phase, refused))
        }
        (Err(Ended::Error(_)), None) if let Some(denied) = denied => Err(limit(phase, denied)),
        (Err(Ended::Error(error)), None) => {
            let program = (job.guest.kind() == Kind::Program).then_some(&errors);
            let (error, its_trace) = trapped(phase, &error, &log, program);
            trace = its_trace;
            Err(error)
        }
        (Err(Ended::Failure(types::Failure::Retry(reason))), None) => {
            Err(RunError::Retry { phase, reason: told(reason, failed_call.as_ref()) })
        }
        (Err(Ended::Failure(types::Failure::Reject(reason))), None) => {
            Err(RunError::Reject { phase, reason: told(reason, failed_call.as_ref()) })
        }
        (Ok(Returned::Outcome(outcome)), None) if outcome.success => Ok(outcome.outputs),
        (Ok(Returned::Outcome(_)), None) => Err(RunError::Unsuccessful),
        (Ok(Returned::Needs(returned)), None) => {
            needs = Some(returned);
            Ok(Vec::new())
        }
    };
    let used = files.used();
    let (result, outputs) = match result {
        Ok(listed) => match files.into_outputs() {
            Ok(outputs) => (Ok(listed), outputs),
            Err(exceeded) => (Err(limit(phase, exceeded)), Vec::new()),
        },
        Err(error) => (Err(error), Vec::new()),
    };
    Execution {
        result,
        outputs,
        needs,
        memory,
        cpu_time,
        log: log.finish(),
        elapsed: start.elapsed(),
        times,
        files: used,
        trace,
        failed_call: failed_call.map(|call| call.text().to_owned()),
    }
}

/// What the last call of an instance returned.
enum Returned {
    Outcome(types::Outcome),
    Needs(Needs),
}

/// Why an instance did not return an outcome.
enum Ended {
    Failure(types::Failure),
    Error(wasmtime::Error),
    /// The guest exceeded a limit and its call returned without an error.
    Limit(Limit),
    Late,
    Cancelled,
}

impl From<Limit> for Ended {
    fn from(limit: Limit) -> Self {
        Self::Limit(limit)
    }
}

impl From<wasmtime::Error> for Ended {
    fn from(error: wasmtime::Error) -> Self {
        Self::Error(error)
    }
}

impl From<types::Failure> for Ended {
    fn from(failure: types::Failure) -> Self {
        Self::Failure(failure)
    }
}

/// The guest's reason for its failure. In most languages, the error of a file call does not name
/// the file, so the failed call is inserted. The reason goes into logs and reports, so its length
/// is bounded.
fn told(reason: String, failed_call: Option<&FailedCall>) -> String {
    let reason = failed_call.and_then(|call| call.put_into(&reason)).unwrap_or(reason);
    match words::cut(&reason, MAX_REASON) {
        Cow::Borrowed(_) => reason,
        Cow::Owned(cut) => cut,
    }
}

/// The task as a guest receives it.
fn to_wire(task: &Task, attempt: u32) -> types::Task {
    types::Task {
        info: types::Info {
            id: task.id,
            name: task.name.to_string(),
            base_directory: task.base_directory.to_string(),
            inputs: task.inputs.iter().map(ToString::to_string).collect(),
        },
        payload: task.payload.clone(),
        attempt,
    }
}

/// Makes the three calls of the world in order. A guest that exceeded its quota during a call is
/// not called again, because its result would not be used.
async fn calls(
    store: &mut Store<State>,
    pre: &bindings::TaskPre<State>,
    task: &types::Task,
    limits: &Limits,
    progress: &mut Progress<'_>,
) -> Result<types::Outcome, Ended> {
    let instance = pre.instantiate_async(&mut *store).await?;
    progress.enter(Phase::Prepare);
    fault::point(Step::Prepare);
    instance.call_prepare(&mut *store, task).await??;
    store.data().quota.check()?;
    progress.enter(Phase::Execute);
    fault::point(Step::Execute);
    let outcome = instance.call_execute(&mut *store, task).await??;
    store.data().quota.check()?;
    if outcome.outputs.len() as u64 > limits.output_files {
        return Err(Limit::OutputFiles(limits.output_files).into());
    }
    let listed = outcome.outputs.iter().map(|path| (path.capacity() + size_of::<String>()) as u64);
    store.data().quota.hold(listed.sum())?;
    progress.enter(Phase::Finalize);
    fault::point(Step::Finalize);
    instance.call_finalize(&mut *store, task, &outcome).await??;
    fault::point(Step::Finalized);
    Ok(outcome)
}

/// Why a guest trapped or exited, and its call stack. `program` is the standard error of a guest
/// that is a program.
fn trapped(
    phase: Phase,
    error: &wasmtime::Error,
    log: &log::Sink,
    program: Option<&Errors>,
) -> (RunError, Option<Trace>) {
    if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
        let what = "more instances were needed than the engine has room for".to_owned();
        return (RunError::Host(what), None);
    }
    let trap = error.downcast_ref::<Trap>();
    let exit = error.downcast_ref::<I32Exit>();
    let is_said =
        trap == Some(&Trap::UnreachableCodeReached) || exit.is_some_and(|exit| exit.0 != 0);
    let said = if is_said { last_words::of(&log.end(LAST_WORDS)) } else { None };
    let (cause, told) = match said {
        Some(LastWords { cause, trace }) => (Some(cause), trace),
        None => (None, None),
    };
    let cause = match (program, exit) {
        (Some(errors), Some(exit)) => Some(errors.exited(exit.0, cause)),
        _ => cause,
    };
    let what = match (trap, exit) {
        _ if let Some(cause) = cause => {
            plain::escape_lines(&words::cut(&cause, MAX_REASON)).into_owned()
        }
        // WASI 0.2 only distinguishes an exit with an error from one without.
        (_, Some(exit)) => {
            let how = if exit.0 == 0 { "without an error" } else { "with an error" };
            format!("the guest called exit {how} instead of returning an outcome")
        }
        (Some(Trap::UnreachableCodeReached), _) => {
            "the guest panicked or aborted; its log says why".to_owned()
        }
        (Some(Trap::StackOverflow), _) => format!(
            "the guest's call stack overflowed its limit of {}; this limit is fixed: recurse less \
             deeply",
            ByteSize(limits::MAX_STACK as u64).display().iec()
        ),
        (Some(Trap::MemoryOutOfBounds), _) => {
            "the guest read or wrote outside its memory (in Rust: often a stack overflow)"
                .to_owned()
        }
        (Some(trap), _) => format!("the guest trapped: {trap}"),
        (None, _) => {
            let cause = words::bounded_line(&error.root_cause(), MAX_PROBLEM);
            format!("the guest stopped with an error: {cause}")
        }
    };
    (RunError::Trap { phase, what }, Trace::of(error, told))
}
