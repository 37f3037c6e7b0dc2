//! Which interface a component implements.

use std::fmt;

use serde::Serialize;

/// The interface that a component implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It implements the world `task-host:guest/task`.
    Task,
    /// It implements the world `task-host:guest/task-with-plan`.
    TaskWithPlan,
    /// It has a `main`: the world `wasi:cli/command`.
    Program,
}

/// The functions that a [`Kind::Task`] exports.
pub const CALLS: [&str; 3] = ["prepare", "execute", "finalize"];

/// The function that a [`Kind::TaskWithPlan`] exports in addition.
const PLAN: &str = "plan";

/// The prefix of the name of the interface that a [`Kind::Program`] exports.
const RUN: &str = "wasi:cli/run@0.2.";

impl Kind {
    /// The kind of a component with these exports. None if the host can't run it.
    pub fn of_exports<'a>(names: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (mut calls, mut has_plan, mut has_main) = ([false; CALLS.len()], false, false);
        for name in names {
            for (call, is_there) in CALLS.iter().zip(&mut calls) {
                *is_there |= name == *call;
            }
            has_plan |= name == PLAN;
            has_main |= name.starts_with(RUN);
        }
        match calls.iter().all(|is_there| *is_there) {
            true if has_plan => Some(Self::TaskWithPlan),
            true => Some(Self::Task),
            false => has_main.then_some(Self::Program),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Task => "task",
            Self::TaskWithPlan => "task with a plan",
            Self::Program => "program",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exports_decide() {
        let check = |names: &[&str], want: Option<Kind>| {
            assert_eq!(Kind::of_exports(names.iter().copied()), want, "{names:?}");
        };
        check(&["prepare", "execute", "finalize"], Some(Kind::Task));
        check(&["finalize", "wasi:cli/run@0.2.3", "prepare", "execute"], Some(Kind::Task));
        check(&["prepare", "execute", "finalize", "plan"], Some(Kind::TaskWithPlan));
        check(&["plan"], None);
        check(&["wasi:cli/run@0.2.12"], Some(Kind::Program));
        check(&["wasi:cli/run@0.3.0"], None);
        check(&["prepare", "execute"], None);
        check(&[], None);
    }
}
