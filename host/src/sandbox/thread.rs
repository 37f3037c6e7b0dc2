//! The threads that execute guests.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;
use wasmtime::Engine;

use super::confine::{Confinement, confine};

/// How often a guest that computes is interrupted to check its limits.
const EPOCH: Duration = Duration::from_millis(10);

type Work = Box<dyn FnOnce(&Engine, &tokio::runtime::Runtime) + Send>;

/// A fixed number of threads that take work from one queue. Each has its own runtime.
pub(super) struct Threads {
    work: flume::Sender<Work>,
    confinement: Confinement,
    ticker: Arc<Ticker>,
}

impl Threads {
    /// Starts the threads, with names that begin with `name`.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn start(name: &str, count: usize, engine: &Engine) -> wasmtime::Result<Self> {
        let (work, queue) = flume::unbounded::<Work>();
        let (started, all_started) = mpsc::channel();
        for n in 0..count {
            let (engine, queue, started) = (engine.clone(), queue.clone(), started.clone());
            std::thread::Builder::new().name(format!("{name}-{n}")).spawn(move || {
                let runtime =
                    match tokio::runtime::Builder::new_current_thread().enable_time().build() {
                        Ok(runtime) => runtime,
                        Err(error) => {
                            tracing::error!("a thread for guests could not start: {error}");
                            return;
                        }
                    };
                block_signals();
                let confinement = confine();
                // The receiver is gone only if another thread could not be started.
                let _ = started.send(confinement);
                drop(started);
                for work in queue {
                    work(&engine, &runtime);
                }
            })?;
        }
        drop(started);
        let started: Vec<Confinement> = all_started.into_iter().collect();
        wasmtime::ensure!(started.len() == count, "a thread for guests could not start");
        let ticker = Ticker::start(engine)?;
        Ok(Self { work, confinement: Confinement::of_all(started), ticker })
    }

    /// What the kernel prevents all of the threads from doing.
    pub(super) fn confinement(&self) -> Confinement {
        self.confinement
    }

    /// Interrupts guests that compute once per `interval`, if that is more often than before.
    pub(super) fn tick_every(&self, interval: Duration) {
        let micros = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).max(1);
        self.ticker.micros.fetch_min(micros, SeqCst);
    }

    /// Runs `job` on the next free thread. None if the job panicked.
    ///
    /// Dropping the future does not end the job. Its cancellation token does.
    pub(super) async fn run<T, F>(&self, job: F) -> Option<T>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a Engine) -> Pin<Box<dyn Future<Output = T> + 'a>> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let ticking = self.ticker.hold();
        let work = move |engine: &Engine, runtime: &tokio::runtime::Runtime| {
            let run = std::panic::AssertUnwindSafe(|| runtime.block_on(job(engine)));
            // A panic in the host's code must not end the thread, which later tasks need.
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

/// Leaves the process's signals to other threads. Signal handlers make system calls that a guest's
/// thread may not make, so a signal that the kernel delivered to this thread would be lost.
fn block_signals() {
    let mut signals = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` initializes the set that it is given, `sigdelset` and `pthread_sigmask`
    // read it, and the last one changes only this thread.
    unsafe {
        libc::sigfillset(signals.as_mut_ptr());
        // Faults of the thread itself, which wasmtime handles.
        for fault in [libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGTRAP] {
            libc::sigdelset(signals.as_mut_ptr(), fault);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, signals.as_ptr(), std::ptr::null_mut());
    }
}

/// Increments the engine's epoch while any guest runs, and sleeps while none does.
struct Ticker {
    /// The time between two epochs.
    micros: AtomicU64,
    running: AtomicUsize,
    stopped: AtomicBool,
    thread: std::sync::OnceLock<std::thread::Thread>,
}

impl Ticker {
    fn start(engine: &Engine) -> wasmtime::Result<Arc<Self>> {
        let ticker = Arc::new(Self {
            micros: AtomicU64::new(EPOCH.as_micros() as u64),
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
                std::thread::sleep(Duration::from_micros(shared.micros.load(SeqCst)));
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

/// Keeps the ticker running until it is dropped.
struct Ticking(Arc<Ticker>);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}
