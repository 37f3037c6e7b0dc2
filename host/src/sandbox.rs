//! One guest, one fresh instance, three calls, under limits. A guest with a plan is called in an
//! instance of its own before (`sandbox/plan.rs`).
//!
//! A [`Sandbox`] owns the engine and the threads that execute guests. A component is compiled once
//! by a [`compiling_engine`], [loaded](Sandbox::load) and [linked](Sandbox::link) as a [`Guest`],
//! and [run](Sandbox::run) any number of times; no two runs share an instance, a file or a byte of
//! memory.
//!
//! What a guest can reach is decided in three files: the imports that are linked here, its files in
//! `sandbox/files.rs`, and the kernel's rules for the executing thread in `sandbox/confine.rs`.

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

/// Bytes of a guest's reason for a failure that are kept.
const MAX_REASON: usize = 16 << 10;
/// Bytes at the end of a guest's log in which its last words are looked for.
const LAST_WORDS: usize = 32 << 10;
/// Bytes of the engine's words that are kept: they may have names in them.
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
    /// One more thread, for plans: they need not wait for the end of a task. Without the address
    /// space for it, plans use the threads of tasks.
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

/// A component, with the places of what it exports.
#[derive(Clone)]
enum Pre {
    Task { pre: bindings::TaskPre<State>, planned: Option<plan::Planned> },
    Program(CommandPre<State>),
}

impl Guest {
    /// Which interface it implements.
    pub fn kind(&self) -> Kind {
        match &self.pre {
            Pre::Task { planned: None, .. } => Kind::Task,
            Pre::Task { planned: Some(_), .. } => Kind::TaskWithPlan,
            Pre::Program(_) => Kind::Program,
        }
    }

    /// Whether it names inputs of its own.
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
    /// What is run.
    pub guest: Guest,
    /// What is called.
    pub calls: Calls,
    /// What it is told.
    pub task: Arc<Task>,
    /// Which execution of this task this is, from 1.
    pub attempt: u32,
    /// What it may use.
    pub limits: Arc<Limits>,
    /// What it sees in `/inputs`.
    pub inputs: Vec<Input>,
    /// Ends the execution early, with [`RunError::Cancelled`].
    pub cancelled: CancellationToken,
    /// Where the guest's output goes at once, beside the log.
    pub tee: Option<Tee>,
    /// Samples the guest while it computes.
    pub profiler: Option<Arc<Profiler>>,
    /// What others see of it while it runs.
    pub watched: Option<Arc<Watched>>,
    /// Dropped as soon as the guest has ended, on its thread: the next task can begin before this
    /// one's end is noticed.
    pub slot: Option<OwnedSemaphorePermit>,
}

/// What came of an execution.
#[derive(Debug)]
pub struct Execution {
    /// The outputs that the guest says it left, or why the task is not done.
    pub result: Result<Vec<String>, RunError>,
    /// What the guest left in `/outputs`, sorted by path; nothing if the result is an error.
    pub outputs: Vec<Output>,
    /// What the guest's plan asks for, if that was called and returned.
    pub needs: Option<Needs>,
    /// The most memory that the guest had, in bytes.
    pub memory: u64,
    /// The processor time of the thread that executed it, if it was measured.
    pub cpu_time: Option<Duration>,
    /// The end of what the guest wrote to its standard output and error.
    pub log: Log,
    /// From making the instance to its end.
    pub elapsed: Duration,
    /// The parts of `elapsed` that each call took, and making the context and the instance.
    pub times: CallTimes,
    /// What the guest did with its files.
    pub files: FileUse,
    /// The calls that led to the end of a guest that broke off, if they are known.
    pub trace: Option<Trace>,
    /// The last file call that failed, and why: `open /inputs/a.png: no such file`.
    pub failed_call: Option<String>,
}

impl Execution {
    /// One that the host could not begin, or not follow to its end.
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

/// The calls, in the order of an execution, and `plan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(usize)]
pub enum Phase {
    /// Making the instance.
    Instantiate,
    /// The call of that name.
    Prepare,
    /// The call of that name.
    Execute,
    /// The call of that name.
    Finalize,
    /// The call of that name.
    Plan,
}

impl Phase {
    /// All of them.
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
    /// The guest asks for another try.
    #[error("{reason}")]
    Retry {
        /// The call.
        phase: Phase,
        /// The guest's words.
        reason: String,
    },
    /// The guest says that no try will do.
    #[error("{reason}")]
    Reject {
        /// The call.
        phase: Phase,
        /// The guest's words.
        reason: String,
    },
    /// The guest ran to its end and says that its result is no good.
    #[error("the task ran to its end without success")]
    Unsuccessful,
    /// The guest ran into one of its limits.
    #[error("{limit}; {}", limits::cure(limit, table.as_deref()))]
    Limit {
        /// The call.
        phase: Phase,
        /// Which limit, and what it is.
        limit: Limit,
        /// The table of settings that the limit is from, if it is from one.
        table: Option<Arc<Table>>,
    },
    /// The guest broke off: a panic, an abort, a call of `exit`, a bad memory access.
    #[error("{what}")]
    Trap {
        /// The call.
        phase: Phase,
        /// What happened, in words: the guest's own if its log has them.
        what: String,
    },
    /// The lease was lost, or the host is stopping.
    #[error("the execution was cancelled")]
    Cancelled,
    /// The host could not run it; not the guest's fault.
    #[error("the host could not run the task: {0}")]
    Host(String),
    /// A file call of the guest met a failure of the host's own disk, or of the host.
    #[error("a file call of the guest failed: {errno} ({})", crate::shortage::cure(*errno))]
    Shortage {
        /// The system's number.
        errno: Errno,
        /// What the guest had written until then, in bytes.
        written: u64,
    },
    /// The guests that ran at the same time needed more memory together than the host has for
    /// them. Alone, this one may have enough.
    #[error(
        "the tasks that ran at the same time need more than the {} of memory that this host has for \
         tasks; a lower --parallel or more memory lets each of them run at once",
        memory.display().iec()
    )]
    Crowded {
        /// The memory for all guests.
        memory: ByteSize,
    },
    /// The host's own code broke off while it ran the task.
    #[error(
        "the host's own code panicked while it ran the task (its log says where); \
         please report this"
    )]
    Broke,
}

impl RunError {
    /// The call during which it happened, where one was under way.
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

/// Why a component can't be a guest. No further try can help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotAGuest(pub String);

impl NotAGuest {
    /// The engine's words, in one line and with a bound: names in them are the component's.
    pub fn new(error: &wasmtime::Error) -> Self {
        Self(words::bounded_line(&format_args!("{error:#}"), MAX_PROBLEM))
    }
}

/// What belongs to one instance. Dropped with it.
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

/// What this machine's kernel can keep guests from.
pub fn possible_confinement() -> Confinement {
    confine::possible()
}

impl Sandbox {
    /// Starts `slots` threads for guests, and one for plans. Outputs that are too large for memory go to `spill`.
    /// `mode` holds for all guests.
    ///
    /// # Errors
    /// When the engine or a thread can't be had: too little address space, for example.
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

    /// The same, in which all guests together have no more than `memory`, if there is such a limit.
    /// A guest that needs memory of another one waits for its end. If all of them wait, one ends with
    /// [`RunError::Crowded`].
    pub fn with_memory(self, memory: Option<ByteSize>) -> Self {
        match memory {
            Some(memory) => Self { room: Room::new(memory), ..self },
            None => self,
        }
    }

    /// The memory that all guests have now, and the most that they may have, if there is a limit.
    pub fn memory(&self) -> (ByteSize, Option<ByteSize>) {
        let size = self.room.size();
        (self.room.held(), Some(size).filter(|size| size.as_u64() < u64::MAX))
    }

    /// Where guests get the time and random numbers from. Their compiled code depends on it.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The engine, which decides what compiled code fits.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the kernel itself keeps guests from.
    pub fn confinement(&self) -> Confinement {
        let threads = std::iter::once(&self.threads).chain(&self.planner);
        Confinement::of_all(threads.map(Threads::confinement))
    }

    /// Samples guests that have a [`Profiler`] this often.
    pub fn sample_every(&self, interval: Duration) {
        self.threads.tick_every(interval);
    }

    /// Loads compiled code.
    ///
    /// # Errors
    /// When the code is another engine's, asks for more than the sandbox has, or the machine has
    /// no memory for it.
    ///
    /// # Safety
    /// The bytes have to be what [`Engine::precompile_component`] made, as code is trusted.
    pub unsafe fn load(&self, code: &[u8]) -> wasmtime::Result<Component> {
        // SAFETY: as the caller says.
        unsafe { Component::deserialize(&self.engine, code) }
    }

    /// Checks that a component exports our world or is a program, and imports no more than it is
    /// offered.
    ///
    /// # Errors
    /// Names the version of the interface that is not supported, the export that is missing, or
    /// the import that nothing here provides.
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
        // If it is neither, the error names the first export that is missing.
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

    /// As [`Sandbox::run`].
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

    /// Runs the job on the next free thread, if it is still there then.
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
        // What one instance may have is counted when it is made: there the limit has a name.
        .max_core_instances_per_component(u32::MAX)
        .max_memories_per_component(u32::MAX)
        .max_tables_per_component(u32::MAX)
        .max_memory_size(4 << 30)
        .total_stacks(slots)
        .table_elements(limits::MAX_TABLE_ELEMENTS)
        // What a small guest touches stays mapped and is cleared instead of being unmapped
        // and faulted in again; the scan finds what it touched without reading all of it.
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

/// Everything that compiled code depends on.
fn code_config(mode: Mode) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        // The engine is built without garbage collection. Function types with subtypes, which this
        // proposal adds too, would be compiled to calls of code that aborts the process.
        .wasm_gc(false)
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(limits::MAX_STACK)
        .memory_init_cow(true)
        // The default asks an environment variable, and reads debug information.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .wasm_backtrace_max_frames(NonZeroUsize::new(stack::MOST_FRAMES));
    if mode == Mode::Deterministic {
        // What a processor leaves in a NaN, and in what relaxed SIMD leaves open, is its own.
        config.cranelift_nan_canonicalization(true).relaxed_simd_deterministic(true);
    }
    config
}

/// An engine whose compiled code every [`Sandbox`] of this mode can load, and which reserves nothing to run any:
/// how instances are allocated makes no difference to their code.
///
/// # Errors
/// When the machine's processor is not known to the compiler.
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
    // A guest that computes is stopped by the epoch; one that waits in a host call, by the
    // timer below. It takes both.
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
    // The instance is gone before anybody looks at what it left.
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
        // Whatever the guest made of it: what it left may be half of what it meant to.
        _ if let Some(errno) = quota.shortage() => {
            Err(RunError::Shortage { errno, written: quota.written() })
        }
        (Err(Ended::Error(_)), _) if let Some(memory) = crowded => {
            Err(RunError::Crowded { memory })
        }
        // The wait for other guests is not the guest's own time.
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
        // A guest that was refused bytes and went on has left half of what it meant to, and
        // what it makes of the refusal says less than the limit does.
        (_, Some(exceeded)) => Err(limit(phase, exceeded)),
        (Err(Ended::Limit(exceeded)), None) => Err(limit(phase, exceeded)),
        (Err(Ended::Error(error)), None) if let Some(of) = Limit::of_error(&error, limits) => {
            Err(limit(phase, of))
        }
        // A guest that closes some and goes on was not ended by the refusal.
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

/// What keeps an instance from returning an outcome.
enum Ended {
    Failure(types::Failure),
    Error(wasmtime::Error),
    /// It goes on as if nothing were wrong.
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

/// A guest's words for its failure. The error of a file call does not name the file in most
/// languages, so the call is put before it. The words go into logs and reports, so there is a bound
/// on them.
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

/// The three calls of the world, in their order. A guest that went on after it ran into its quota
/// is not called again: nothing that it returns counts.
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

/// Why a guest broke off, and the calls that led there. `program` is the standard error of a guest
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
        // WASI 0.2 tells a good exit from a bad one, and no more.
        (_, Some(exit)) => {
            let how = if exit.0 == 0 { "without an error" } else { "with an error" };
            format!("the guest called exit {how} instead of returning an outcome")
        }
        (Some(Trap::UnreachableCodeReached), _) => {
            "the guest panicked or aborted; its log says why".to_owned()
        }
        (Some(Trap::StackOverflow), _) => format!(
            "the guest's call stack overflowed its limit of {}; nothing raises it: recurse less deeply",
            ByteSize(limits::MAX_STACK as u64).display().iec()
        ),
        (Some(Trap::MemoryOutOfBounds), _) => {
            "the guest read or wrote outside its memory (in Rust: often a stack overflow)"
                .to_owned()
        }
        (Some(trap), _) => format!("the guest trapped: {trap}"),
        (None, _) => {
            let cause = words::bounded_line(&error.root_cause(), MAX_PROBLEM);
            format!("the guest broke off: {cause}")
        }
    };
    (RunError::Trap { phase, what }, Trace::of(error, told))
}
