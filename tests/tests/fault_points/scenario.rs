//! Runs one host that gets one fault.

use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;
use task_host_tests::step::Step;
use task_host_tests::{Running, eventually};

use crate::plan::{Action, On, Plan, Work};
use crate::site::Site;

/// Runs tasks on hosts, one of which gets a fault, and checks the results of the tasks.
pub(crate) fn run(on: On, step: Step, plan: &Plan, action: Action, has_receipts: bool) {
    let mut site = Site::new(on, plan, has_receipts);
    // A host that will be stopped has only one task. With a second task running, it might stop
    // while it holds the lock of that task's message, or while it renames one of that task's
    // outputs.
    match action {
        Action::Stop => site.submit_first(),
        Action::Kill | Action::Starve(_) => site.submit_rest(),
    }
    if let Some(before) = plan.after {
        kill(&site, before);
    }
    match action {
        Action::Kill => {
            kill(&site, step);
            let mut next = site.start_next();
            site.wait_until_done(0, &mut next);
            end(next);
        }
        Action::Stop => stop(&mut site, step, plan),
        Action::Starve(errno) => {
            let faults = format!("{step:?}=return({errno})");
            let mut host = site.start_faulty(&faults, &[]);
            site.wait_until_done(0, &mut host);
            let said = end(host);
            assert!(said.contains(&format!("fault point {step:?}")), "not reached: {said}");
        }
    }
    site.check();
}

/// Runs a host that is killed at this step.
fn kill(site: &Site, step: Step) {
    let host = site.start_faulty(&format!("{step:?}=1*return(kill)"), &[]);
    let ended = host.wait();
    assert_eq!(ended.status.signal(), Some(9), "it was not killed at {step:?}: {}", ended.stderr);
}

/// Runs a host that is stopped at this step, and another host until the tasks of both are done.
fn stop(site: &mut Site, step: Step, plan: &Plan) {
    let is_any_task = plan.work == Work::Copies;
    // If all tasks are copies, the stopped host leases only one.
    let args: &[&str] = if is_any_task { &["--max-tasks", "1"] } else { &[] };
    let mut stopped = site.start_faulty(&format!("{step:?}=1*return(stop)"), args);
    eventually(&format!("a host that stops at {step:?}"), || {
        assert!(!stopped.has_ended(), "the host ended: {}", stopped.stderr());
        is_stopped(&stopped).then_some(())
    });
    site.submit_rest();
    let mut other = site.start_elsewhere();
    // On a busy machine, the host may have stopped while it renewed its lease.
    if plan.locks || site.is_locked_by(&stopped) {
        site.wait_until_done(1, &mut other);
        stopped.signal(Signal::CONT);
        site.wait_until_done(0, &mut other);
        end(other);
        end(stopped);
        return;
    }
    site.wait_until_done(0, &mut other);
    end(other);
    let before = site.stamps();
    stopped.signal(Signal::CONT);
    end(stopped);
    if is_any_task && !plan.is_under_way {
        assert_eq!(site.stamps(), before, "outputs were written again");
    }
}

fn is_stopped(host: &Running) -> bool {
    let pid = host.pid().as_raw_nonzero();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name of the program, which is in parentheses.
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
}

/// Stops a host, unless it has stopped by itself. Returns its log.
fn end(host: Running) -> String {
    eventually("a host that heeds signals", || host.stderr().contains("starting").then_some(()));
    host.signal(Signal::TERM);
    host.wait().good().stderr
}
