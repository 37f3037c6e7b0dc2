//! Kills, stops or starves the real host at each step of a task's life, on each kind of queue.
//!
//! [`plan::of`] defines how each step is tested. After each fault, all tasks are done, their
//! outputs are complete, no attempt is counted for a task that did nothing wrong, and no temporary
//! file remains.

mod plan;
mod scenario;
mod site;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use task_host_tests::step::Step;
use task_host_tests::{Finished, host, host_with_fault_points};

use plan::{Action, On, Plan};

/// The number of scenarios that run at the same time. They mostly wait for leases to end, on
/// Pub/Sub for ten seconds.
const AT_ONCE: usize = 14;

/// Runs all scenarios with this action on this kind of queue. If `TASK_HOST_FAULT_STEP` is set,
/// runs only the scenarios of that step.
fn check(on: On, action: fn(&Plan) -> Option<Action>) {
    let only = std::env::var("TASK_HOST_FAULT_STEP").ok();
    let is_meant = |step: &&Step| only.as_ref().is_none_or(|only| *only == format!("{step:?}"));
    let scenarios = Step::ALL.iter().filter(is_meant).enumerate().filter_map(|(n, step)| {
        let plan = plan::of(*step);
        let action = action(&plan)?;
        plan.on.contains(&on).then_some((n, *step, plan, action))
    });
    let scenarios: Vec<_> = scenarios.collect();
    assert!(only.is_some() || scenarios.len() > 5, "hardly any: {}", scenarios.len());
    let (next, failed) = (Mutex::new(scenarios.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some((n, step, plan, action)) = next.lock().unwrap().next() else { return };
                    let has_receipts = plan.receipts.unwrap_or(n % 2 == 0);
                    let run = || scenario::run(on, *step, plan, *action, has_receipts);
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                        let why = panic.downcast_ref::<String>().cloned();
                        let why = why.or(panic.downcast_ref::<&str>().map(|why| why.to_string()));
                        let why = why.unwrap_or_default();
                        failed.lock().unwrap().push(format!("{action:?} at {step:?}: {why}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), scenarios.len(), failed.join("\n\n"));
}

macro_rules! on_a_queue {
    ($name:ident, $on:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn a_host_that_is_killed_at_any_step_loses_nothing() {
                check($on, |plan| plan.kill.then_some(Action::Kill));
            }

            #[test]
            fn a_host_that_is_stopped_at_any_step_changes_nothing_later() {
                check($on, |plan| plan.stop.then_some(Action::Stop));
            }

            #[test]
            fn a_host_that_is_short_of_something_at_any_step_charges_no_task() {
                check($on, |plan| plan.starve.map(Action::Starve));
            }
        }
    };
}

on_a_queue!(directory, On::Directory);
on_a_queue!(aws, On::Aws);
on_a_queue!(google, On::Google);

#[test]
fn the_program_of_users_has_no_fault_points() {
    let words = ["FAILPOINTS", "fault point "].map(str::to_owned);
    // The compiler stores the names of an enum's variants as one text. No other text contains four
    // of them in a row.
    let names: Vec<String> = Step::ALL.iter().map(|step| format!("{step:?}")).collect();
    let names = names.windows(4).map(<[String]>::concat);
    let words: Vec<String> = words.into_iter().chain(names).collect();
    let contains = |program: &Path| -> BTreeSet<String> {
        let mut grep = Command::new("grep");
        grep.args(["--text", "--only-matching", "--fixed-strings"]);
        grep.args(words.iter().flat_map(|word| ["-e", word]));
        let found = Finished::run(grep.arg(program)).stdout;
        found.lines().map(str::to_owned).collect()
    };
    assert_eq!(contains(&host()), BTreeSet::new());
    assert!(
        contains(&host_with_fault_points()).len() > 2,
        "the words are not those of the program"
    );
}
