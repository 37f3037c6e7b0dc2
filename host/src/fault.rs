//! Fault points: the steps of a task's life at which a test kills, stops or starves a real host.
//!
//! A host that is built with the feature `fault-points` reads `FAILPOINTS`, in the format of the
//! crate `fail`: `ReceiptPut=1*return(kill)` kills the host when it first comes to that step. In all
//! other builds, the functions here do nothing, and the names of the steps are not in the program.
//!
//! | action | what the host does at the step |
//! |---|---|
//! | `return(kill)` | it is killed, by SIGKILL |
//! | `return(stop)` | it stops, by SIGSTOP, and goes on when it gets SIGCONT |
//! | `return(28)` | the step fails with the system's error of that number, here ENOSPC, for two seconds |

mod step;

use rustix::io::Errno;

pub use step::Step;

#[cfg(any(test, feature = "fault-points"))]
pub use armed::arm;

/// A step at which a host can be killed or stopped.
#[inline(always)]
pub(crate) fn point(step: Step) {
    // A step that can't fail ignores an error.
    let _ = shortage(step);
}

/// A step that can fail because something is short, besides.
///
/// # Errors
/// The error that the test asks for.
#[cfg(any(test, feature = "fault-points"))]
pub(crate) fn shortage(step: Step) -> Result<(), Errno> {
    armed::reach(step)
}

/// A step that can fail because something is short, besides.
///
/// # Errors
/// None in this build.
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

    /// A signal for this process.
    struct Order {
        signal: i32,
        /// Dropped after it.
        done: Sender<()>,
    }

    /// The thread that signals this process. The threads of guests may not.
    static HAND: OnceLock<Sender<Order>> = OnceLock::new();

    /// How long a shortage lasts. A trial of what failed must fail, too.
    const SHORTAGE: Duration = Duration::from_secs(2);

    /// When the shortage began.
    static BEGAN: OnceLock<Instant> = OnceLock::new();

    /// Reads `FAILPOINTS`. The faults hold until the result is dropped.
    ///
    /// # Panics
    /// If `FAILPOINTS` has another format.
    #[must_use]
    pub fn arm() -> FailScenario<'static> {
        HAND.get_or_init(|| {
            let (sender, orders) = channel::<Order>();
            std::thread::spawn(move || {
                for Order { signal, done } in orders {
                    // SAFETY: `raise` takes a number, and has no other preconditions. It returns
                    // after the process has stopped and was continued.
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
            // Nobody sends: it ends when the other side is dropped.
            let _ = wait.recv();
        }
        Ok(())
    }
}
