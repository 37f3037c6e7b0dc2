//! Fault points: the steps of a task's life at which a test kills, stops or starves a real host.
//!
//! A host that is built with the feature `fault-points` reads the variable `FAILPOINTS`, in the
//! format of the crate `fail`: `ReceiptPut=1*return(kill)` kills the host when it first reaches
//! that step. In all other builds, the functions here do nothing, and the program does not contain
//! the names of the steps.
//!
//! | action | what the host does at the step |
//! |---|---|
//! | `return(kill)` | is killed by SIGKILL |
//! | `return(stop)` | is stopped by SIGSTOP, and continues at SIGCONT |
//! | `return(28)` | fails the step with this system error, here ENOSPC, for two seconds |

mod step;

use rustix::io::Errno;

pub use step::Step;

#[cfg(any(test, feature = "fault-points"))]
pub use armed::arm;

/// A step at which a host can be killed or stopped.
#[inline(always)]
pub(crate) fn point(step: Step) {
    // A step that can't fail ignores an injected error.
    let _ = shortage(step);
}

/// A step at which a host can be killed or stopped, and which can also fail with a system error.
///
/// # Errors
/// The system error that the test asks for.
#[cfg(any(test, feature = "fault-points"))]
pub(crate) fn shortage(step: Step) -> Result<(), Errno> {
    armed::reach(step)
}

/// A step that can fail in tests.
///
/// # Errors
/// Never in this build.
#[cfg(not(any(test, feature = "fault-points")))]
#[inline(always)]
pub(crate) fn shortage(_step: Step) -> Result<(), Errno> {
    Ok(())
}

#[cfg(any(test, feature = "fault-points"))]
mod armed {
    use std::sync::OnceLock;
    use std::sync::mpsc::{Sender, channel};
    use std::time::{Duration, Instant};

    use fail::{FailScenario, fail_point};
    use rustix::io::Errno;

    use super::Step;

    /// A request to signal this process.
    struct Order {
        signal: i32,
        /// Dropped after the signal was raised.
        done: Sender<()>,
    }

    /// Sends to the thread that signals this process. The threads of guests may not send signals.
    static HAND: OnceLock<Sender<Order>> = OnceLock::new();

    /// How long a shortage lasts. The host's next test of the failed resource must fail too.
    const SHORTAGE: Duration = Duration::from_secs(2);

    /// When the first shortage began.
    static BEGAN: OnceLock<Instant> = OnceLock::new();

    /// Reads `FAILPOINTS`. The faults are active until the returned guard is dropped.
    ///
    /// # Panics
    /// If `FAILPOINTS` has a wrong format.
    #[must_use]
    pub fn arm() -> FailScenario<'static> {
        HAND.get_or_init(|| {
            let (sender, orders) = channel::<Order>();
            std::thread::spawn(move || {
                for Order { signal, done } in orders {
                    // SAFETY: `raise` has no preconditions. It returns after the process was
                    // stopped and continued.
                    unsafe { libc::raise(signal) };
                    drop(done);
                }
            });
            sender
        });
        FailScenario::setup()
    }

    pub(super) fn reach(step: Step) -> Result<(), Errno> {
        let name = format!("{step:?}");
        fail_point!(&name, |action| act(&name, &action.unwrap_or_default()));
        Ok(())
    }

    fn act(step: &str, action: &str) -> Result<(), Errno> {
        let signal = match action {
            "kill" => libc::SIGKILL,
            "stop" => libc::SIGSTOP,
            errno => {
                let errno = errno.parse().unwrap_or_else(|_| panic!("no such action: {errno}"));
                if BEGAN.get_or_init(Instant::now).elapsed() >= SHORTAGE {
                    return Ok(());
                }
                tracing::warn!("fault point {step}: {action}");
                return Err(Errno::from_raw_os_error(errno));
            }
        };
        let (done, wait) = channel();
        let hand = HAND.get().expect("faults are armed by `arm`");
        if hand.send(Order { signal, done }).is_ok() {
            // Nothing is sent. This returns when the other side drops the sender.
            let _ = wait.recv();
        }
        Ok(())
    }
}
