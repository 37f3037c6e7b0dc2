//! Stops a host at a signal, or at a cloud's notice that the machine will be taken away.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};
use std::time::Duration;

use task_host::notice::Watcher;
use task_host::services::Services;
use task_host::worker::Worker;
use tokio::runtime::Handle;
use tokio::signal::unix::SignalKind;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::console::Console;
use super::super::output;
use super::super::signals::Signals;
use super::{FILE_CALLS, STALLED, WATCH};

/// How long a host may take to stop after the grace period.
const TO_STOP: Duration = Duration::from_secs(60);

/// Keeps SIGTERM and SIGINT pending while this exists. Otherwise, if the host is the first process
/// of a container, the kernel would discard a signal that arrives before the host listens.
pub(super) struct Waiting;

impl Waiting {
    pub(super) fn begin() -> Self {
        Self::mask(libc::SIG_BLOCK);
        Self
    }

    fn mask(how: i32) {
        let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initializes the set before `sigaddset` and `pthread_sigmask` use
        // it, and `pthread_sigmask` changes only the mask of this thread.
        unsafe {
            libc::sigemptyset(signals.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT] {
                libc::sigaddset(signals.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(how, signals.as_ptr(), std::ptr::null_mut());
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        Self::mask(libc::SIG_UNBLOCK);
    }
}

/// The requests of signals and notices.
pub(super) struct Stop {
    pub(super) drain: CancellationToken,
    pub(super) kill: CancellationToken,
    /// The number of the second signal, or zero before it arrives.
    second: Arc<AtomicI32>,
    /// A notice arrived before any signal.
    is_noticed: Arc<AtomicBool>,
}

/// The state of the task that acts on signals and notices.
struct Heeding {
    signals: Signals,
    screen: Console,
    services: Arc<Services>,
    worker: Arc<Worker>,
    /// The time until which running tasks may finish, once the host stops.
    until: Option<Instant>,
}

impl Stop {
    /// Acts on signals: the first drains, the second releases all tasks, the third exits. A notice
    /// drains too. It does not count as a signal, because the machine sends one later when it shuts
    /// down.
    pub(super) fn heed(
        signals: Signals,
        notices: Option<Watcher>,
        screen: Console,
        worker: Arc<Worker>,
        services: Arc<Services>,
        control: &Handle,
    ) -> Self {
        let stop = Self {
            drain: CancellationToken::new(),
            kill: CancellationToken::new(),
            second: Arc::default(),
            is_noticed: Arc::default(),
        };
        let (drain, kill) = (stop.drain.clone(), stop.kill.clone());
        let (second, is_noticed) = (stop.second.clone(), stop.is_noticed.clone());
        let mut heeding = Heeding { signals, screen, services, worker, until: None };
        control.spawn(async move {
            let signal = heeding.drain(notices, &drain, &is_noticed).await;
            second.store(signal, Relaxed);
            kill.cancel();
            heeding.say("stopping now: running tasks go back to the queue; a third signal exits");
            let signal = tokio::select! {
                third = heeding.signals.next() => third,
                () = overdue(&heeding.services, Instant::now()) => {
                    heeding.say("exiting: file system calls do not return");
                    signal
                }
            };
            // Other workers get the tasks when their leases expire.
            std::process::exit(128 + signal);
        });
        stop
    }

    pub(super) fn second_signal(&self) -> Option<i32> {
        Some(self.second.load(Relaxed)).filter(|signal| *signal != 0)
    }

    /// The kind of request that made the host stop. None if there was none.
    pub(super) fn cause(&self) -> Option<&'static str> {
        let cause = if self.is_noticed.load(Relaxed) { "notice" } else { "signal" };
        self.drain.is_cancelled().then_some(cause)
    }
}

impl Heeding {
    /// Drains at the first signal or at a notice. Returns the second signal, or SIGTERM if the host
    /// is overdue.
    async fn drain(
        &mut self,
        mut notices: Option<Watcher>,
        drain: &CancellationToken,
        is_noticed: &AtomicBool,
    ) -> i32 {
        let grace = self.services.config().stop.grace;
        let mut is_told = false;
        loop {
            let noticed = async {
                match &mut notices {
                    Some(watcher) => watcher.notice().await,
                    None => std::future::pending().await,
                }
            };
            let (services, until) = (&self.services, self.until);
            let late = async {
                match until {
                    Some(until) => overdue(services, until).await,
                    None => std::future::pending().await,
                }
            };
            let notice = tokio::select! {
                signal = self.signals.next() => {
                    if is_told {
                        return signal;
                    }
                    is_told = true;
                    None
                }
                notice = noticed => Some(notice),
                () = late => return SignalKind::terminate().as_raw_value(),
            };
            let time = notice.as_ref().map_or(grace, |notice| notice.grace());
            let now = Instant::now();
            let is_first = until.is_none();
            let until = until.map_or(now + time, |before| before.min(now + time));
            self.until = Some(until);
            self.worker.may_run_until(until);
            if is_first {
                is_noticed.store(notice.is_some(), Relaxed);
                drain.cancel();
            }
            let cause = notice.map_or(String::new(), |notice| {
                notices = None;
                format!("{}; ", notice.text)
            });
            let left = until.saturating_duration_since(now);
            self.tell(is_first, &cause, if is_first { time } else { left });
        }
    }

    fn tell(&self, is_first: bool, cause: &str, left: Duration) {
        let running = output::count(self.services.stats().running.load(Relaxed), "task");
        self.say(&match is_first {
            true => format!(
                "{cause}stopping: {running} running may finish within {}, other tasks go back to \
                 the queue; a second signal releases all tasks at once",
                humantime::format_duration(left)
            ),
            false => format!(
                "{cause}{running} running may finish within {}",
                humantime::format_duration(Duration::from_secs(left.as_secs()))
            ),
        });
    }

    fn say(&self, line: &str) {
        if self.screen.is_json {
            tracing::info!("{line}");
        } else {
            self.screen.tell(line);
        }
    }
}

/// Waits until a host whose tasks had to end at `until` is overdue: soon after `until` if file
/// system calls hang, or else later.
async fn overdue(services: &Services, until: Instant) {
    tokio::time::sleep_until(until + STALLED).await;
    let hangs = async {
        while !services.outages().is_out(&FILE_CALLS) {
            tokio::time::sleep(WATCH).await;
        }
    };
    // If no call hangs, other work gets more time to end.
    let _ = tokio::time::timeout(TO_STOP, hangs).await;
}
