//! The threads that execute guests, and the kernel's rules for them.

use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use tokio::sync::oneshot;
use wasmtime::Engine;

/// How often a computing guest is asked whether its time is up.
const EPOCH: Duration = Duration::from_millis(10);

type Work = Box<dyn FnOnce(&Engine, &tokio::runtime::Runtime) + Send>;

/// A fixed number of threads, each with a runtime of its own, that take work from one queue.
pub(super) struct Threads {
    work: flume::Sender<Work>,
    enforced: bool,
    ticker: Arc<Ticker>,
}

impl Threads {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn start(
        count: usize,
        engine: &Engine,
        inputs: &Path,
        outputs: &Path,
    ) -> wasmtime::Result<Self> {
        let (work, queue) = flume::unbounded::<Work>();
        let (started, all_started) = mpsc::channel();
        for n in 0..count {
            let (engine, queue, started) = (engine.clone(), queue.clone(), started.clone());
            let (inputs, outputs) = (inputs.to_owned(), outputs.to_owned());
            std::thread::Builder::new().name(format!("guest-{n}")).spawn(move || {
                let runtime =
                    match tokio::runtime::Builder::new_current_thread().enable_time().build() {
                        Ok(runtime) => runtime,
                        Err(error) => {
                            tracing::error!("a thread for guests could not start: {error}");
                            return;
                        }
                    };
                let enforced = match confine(&inputs, &outputs) {
                    Ok(status) => status == RulesetStatus::FullyEnforced,
                    Err(error) => {
                        tracing::debug!("the kernel does not confine guests: {error}");
                        false
                    }
                };
                // The receiver is gone only when starting failed elsewhere.
                let _ = started.send(enforced);
                drop(started);
                for work in queue {
                    work(&engine, &runtime);
                }
            })?;
        }
        drop(started);
        let enforced: Vec<bool> = all_started.into_iter().collect();
        wasmtime::ensure!(enforced.len() == count, "a thread for guests could not start");
        let ticker = Ticker::start(engine)?;
        Ok(Self { work, enforced: enforced.iter().all(|yes| *yes), ticker })
    }

    /// True when the kernel confines every thread to the two directories.
    pub(super) fn enforced(&self) -> bool {
        self.enforced
    }

    /// Runs `job` on the next free thread. None when the thread died under it.
    ///
    /// Dropping the future does not end the job: a guest is ended by its cancellation token.
    pub(super) async fn run<T, F>(&self, job: F) -> Option<T>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a Engine) -> Pin<Box<dyn Future<Output = T> + 'a>> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let ticking = self.ticker.hold();
        let work = move |engine: &Engine, runtime: &tokio::runtime::Runtime| {
            let run = std::panic::AssertUnwindSafe(|| runtime.block_on(job(engine)));
            // A panic of ours under one task must not take the thread from all later ones.
            match std::panic::catch_unwind(run) {
                Ok(value) => drop(done.send(value)),
                Err(_) => drop(done),
            }
            drop(ticking);
        };
        self.work.send_async(Box::new(work)).await.ok()?;
        result.await.ok()
    }
}

/// Whether the kernel can keep a thread to some directories: tried on one that is then gone.
pub(super) fn can_confine() -> bool {
    let root = Path::new("/");
    let tried = std::thread::spawn(|| confine(root, root)).join();
    matches!(tried, Ok(Ok(RulesetStatus::FullyEnforced)))
}

/// Asks the kernel to keep this thread, for good, from everything but reading below `inputs`
/// and working below `outputs`.
fn confine(inputs: &Path, outputs: &Path) -> Result<RulesetStatus, RulesetError> {
    // Version 3 is the first that covers truncation, and so all ways to change a file.
    let needed = AccessFs::from_all(ABI::V3);
    let beneath = |path: &Path, access| -> Result<_, RulesetError> {
        match PathFd::new(path) {
            Ok(fd) => Ok(Some(PathBeneath::new(fd, access))),
            Err(error) => {
                tracing::debug!("{error}");
                Ok(None)
            }
        }
    };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(needed)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V5))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let work = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSym
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    for (path, access) in [(inputs, read), (outputs, work)] {
        if let Some(rule) = beneath(path, access)? {
            rules = rules.add_rule(rule)?;
        }
    }
    let status = rules.restrict_self()?;
    // Version 4 (networks) and later may be missing: no network call is linked anyway.
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => RulesetStatus::NotEnforced,
        _ => RulesetStatus::FullyEnforced,
    })
}

/// Moves the engine's epoch on while any guest runs, and sleeps while none does.
struct Ticker {
    running: AtomicUsize,
    stopped: AtomicBool,
    thread: std::sync::OnceLock<std::thread::Thread>,
}

impl Ticker {
    fn start(engine: &Engine) -> wasmtime::Result<Arc<Self>> {
        let ticker = Arc::new(Self {
            running: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            thread: std::sync::OnceLock::new(),
        });
        let (engine, shared) = (engine.weak(), ticker.clone());
        let thread = std::thread::Builder::new().name("epoch".to_owned()).spawn(move || {
            while !shared.stopped.load(SeqCst) {
                if shared.running.load(SeqCst) == 0 {
                    std::thread::park();
                    continue;
                }
                std::thread::sleep(EPOCH);
                match engine.upgrade() {
                    Some(engine) => engine.increment_epoch(),
                    None => return,
                }
            }
        })?;
        let _ = ticker.thread.set(thread.thread().clone());
        Ok(ticker)
    }

    fn hold(self: &Arc<Self>) -> Ticking {
        if self.running.fetch_add(1, SeqCst) == 0 {
            self.wake();
        }
        Ticking(self.clone())
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.ticker.stopped.store(true, SeqCst);
        self.ticker.wake();
    }
}

/// Keeps the epoch moving until it is dropped.
struct Ticking(Arc<Ticker>);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}
