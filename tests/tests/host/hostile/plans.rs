//! Attacks by a plan: guests that ask for forbidden inputs, or never end.

use serde_json::{Value, json};

use super::trial::{By, Case};

attacks! {
    /// Computes without end.
    Loop => a_plan_that_computes_without_end,
    /// Waits without end.
    Sleep => a_plan_that_waits_without_end,
    /// Allocates memory without end.
    Allocate => a_plan_that_takes_memory_without_end,
    /// Asks for a million keys.
    Many => a_plan_with_a_million_keys,
    /// Asks for keys of 100 KB.
    Long => a_plan_with_long_keys,
    /// Asks for more bytes of keys than a call may return.
    Longer => a_plan_with_more_text_than_a_call_may_have,
    /// Asks for a key above its base directory.
    Above => a_plan_with_a_key_above_the_base_directory,
    /// Asks for another task's data.
    Other => a_plan_with_a_key_of_another_base_directory,
    /// Asks for a component when the whole bucket is readable.
    Component => a_plan_with_the_key_of_a_component,
    /// Asks for all keys of the bucket.
    Everything => a_plan_with_the_prefix_of_the_bucket,
    /// Asks to be called again each time.
    Again => a_plan_without_end,
    /// Writes an output.
    Write => a_plan_that_writes,
    /// Panics.
    Panic => a_plan_that_panics,
    /// Asks for a retry each time.
    Retry => a_plan_that_is_retried,
    /// Rejects its task.
    Reject => a_plan_that_rejects,
}

fn plan(payload: Value) -> By {
    By::Plan(payload)
}

fn asks(key: &str) -> By {
    plan(json!({"do": "ask", "keys": [key]}))
}

pub(super) fn case(attack: Attack) -> Case {
    let says_time = "time limit of 1s";
    match attack {
        Attack::Loop => {
            Case::given_up(plan(json!({"do": "loop"})), &[says_time]).with(&["--timeout", "1s"])
        }
        Attack::Sleep => {
            Case::given_up(plan(json!({"do": "sleep"})), &[says_time]).with(&["--timeout", "1s"])
        }
        Attack::Allocate => {
            let says = ["memory limit of 64.0 MiB"];
            Case::rejected(plan(json!({"do": "allocate"})), &says).with(&["--memory", "64MiB"])
        }
        Attack::Many => {
            let says = ["more than the maximum of 10000 inputs"];
            Case::rejected(plan(json!({"do": "many", "count": 100_000})), &says)
        }
        Attack::Long => {
            let says = ["`plan` asked for \"xxxxxxxx", "a key of 100000 bytes"];
            Case::rejected(plan(json!({"do": "long", "count": 1})), &says)
        }
        Attack::Longer => {
            let says = ["limit of 16.0 MiB that may be handed over"];
            Case::rejected(plan(json!({"do": "long", "count": 300})), &says)
        }
        Attack::Above => Case::rejected(asks("../data/0_input/1.dat"), &["has a `..` segment"]),
        Attack::Other => {
            let says =
                ["`plan` asked for `data/0_input/1.dat`, which is outside of `tests` and of \
                 --readable"];
            Case::rejected(asks("/data/0_input/1.dat"), &says)
        }
        Attack::Component => {
            let says = ["`plan` asked for `components/NO_OP.wasm`, where the components are"];
            Case::rejected(asks("/components/NO_OP.wasm"), &says).with(&["--readable", "/"])
        }
        Attack::Everything => {
            let says = ["`plan` asked for `/`, which is outside of `tests` and of --readable"];
            Case::rejected(plan(json!({"do": "ask", "prefixes": ["/"]})), &says)
        }
        Attack::Again => Case::rejected(
            plan(json!({"do": "again"})),
            &["to be called more than the maximum of 8 times"],
        ),
        Attack::Write => Case::rejected(plan(json!({"do": "write"})), &["planned.txt"]),
        Attack::Panic => Case::given_up(plan(json!({"do": "panic"})), &["in the plan"]),
        Attack::Retry => Case::given_up(plan(json!({"do": "retry"})), &["can't be made yet"]),
        Attack::Reject => Case::rejected(plan(json!({"do": "reject"})), &["can't be made"]),
    }
}
