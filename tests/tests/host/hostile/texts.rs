//! Attacks by texts: long names and messages, or text that a terminal would interpret.

use misbehave::{Action, How, Stream};
use serde_json::Value;
use task_host_tests::components;

use super::names::ODD;
use super::trial::{Case, Trial};

attacks! {
    /// A function name that expands to gigabytes when it is decoded as C++.
    EndlessName => an_endless_name_of_a_function,
    /// A function name of 100 KB.
    LongName => a_long_name_of_a_function,
    /// A function name that a terminal would interpret.
    OddName => an_odd_name_of_a_function,
    /// A deep stack of functions with long names.
    DeepStack => a_deep_stack_of_long_names,
    /// An output whose name is long.
    Output => a_long_name_of_an_output,
    /// An output whose name is longer than a guest in Rust can create.
    LongOutput => a_very_long_name_of_an_output,
    /// An import whose name is long.
    Import => a_long_name_of_an_import,
    /// A failure with a text of 1 MB.
    Failure => a_long_text_of_a_failure,
    /// A panic with a text that a terminal would interpret.
    OddPanic => an_odd_text_of_a_panic,
    /// A log of 300 KB on standard error.
    Log => a_long_log,
    /// The same on standard output.
    Stdout => a_long_standard_output,
}

pub(super) fn case(attack: Attack) -> Case {
    match attack {
        Attack::EndlessName => {
            let says = ["the guest panicked or aborted", "_Z1f1AIiiiiiiiiiiE", "bytes cut"];
            traps(&components::endless_name(), &says)
        }
        Attack::LongName => traps(&"x".repeat(100_000), &["xxxxxxxx", "(99800 bytes cut)"]),
        Attack::OddName => {
            traps("red\\1b[31m\\0aline\\e2\\80\\aegpj", &["red\\u{1b}[31m\\nline\\u{202e}gpj"])
        }
        Attack::DeepStack => {
            let deep = "(call $execute (local.get 0) (local.get 1) (local.get 2) (local.get 3) \
                        (local.get 4) (local.get 5) (local.get 6) (local.get 7) (local.get 8) \
                        (local.get 9) (local.get 10))";
            let component = components::with_execute(&"y".repeat(90_000), deep);
            let says = ["call stack overflowed", "no more than 32 frames"];
            Case::given_up(component, &says).also(|_, report| {
                let lines = report["trace"].as_str().unwrap().lines().count();
                assert!((30..40).contains(&lines), "{report:#}");
            })
        }
        Attack::Output => {
            let says = ["listed the output \"00000", "(59700 bytes cut)", "has no such file"];
            Case::rejected(Action::BigResult { outputs: 1, bytes: 60_000, how: None }, &says)
        }
        Attack::LongOutput => {
            let says = ["the guest listed the output \"xxx", "(3999700 bytes cut)"];
            Case::rejected(components::listing(1, 4_000_000), &says)
        }
        Attack::Import => {
            let import = format!("(import \"{}\" (func))", "a".repeat(90_000));
            Case::given_up(components::composed(&import), &["can't be run", "aaaa", "(cut)"])
                .also(|_, report| assert!(report["exception"].as_str().unwrap().len() < 4_000))
        }
        Attack::Failure => {
            let action = Action::BigResult { outputs: 0, bytes: 1_000_000, how: Some(How::Reject) };
            Case::rejected(action, &["xxxxxxxx"])
        }
        Attack::OddPanic => {
            let says = ["panicked at ", "FORGED"];
            Case::given_up(Action::Panic { text: ODD.to_owned() }, &says)
                .also(|_, report| assert!(report["log"].as_str().unwrap().contains("FORGED")))
        }
        Attack::Log => long_log(Stream::Stderr),
        Attack::Stdout => long_log(Stream::Stdout),
    }
}

/// A component that traps in a function with this name.
fn traps(name: &str, says: &[&str]) -> Case {
    Case::given_up(components::with_execute(name, "(unreachable)"), says)
}

fn long_log(to: Stream) -> Case {
    let log = Action::Log { bytes: 300_000, to };
    let steps = vec![log, Action::Panic { text: "the last words".to_owned() }];
    Case::given_up(Action::All { steps }, &["panicked at ", "the last words"]).also(log_is_short)
}

fn log_is_short(_: &mut Trial, report: &Value) {
    let log = report["log"].as_str().expect("a log");
    assert!(log.contains("the last words"), "the end of the log is missing: {log:?}");
    assert!(log.len() <= 64 << 10, "the log has {} bytes", log.len());
}
