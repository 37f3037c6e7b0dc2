//! Attacks by the end of a task: guests that end in unusual ways.

use misbehave::{Action, How, Phase};

use super::trial::Case;

attacks! {
    /// Ends its instance with an abort, without a message.
    Abort => an_abort,
    /// Ends its instance with an exit, as a program does.
    Exit => an_exit,
    /// Asks for a retry each time.
    Retry => retries_without_end,
    /// Returns without an error, but reports no success.
    Unsuccessful => an_outcome_without_success,
    /// Panics in the call of `finalize`, after it has written its outputs.
    Finalize => a_panic_in_the_last_call,
    /// Lists an output that does not exist.
    Missing => an_output_that_is_not_there,
}

pub(super) fn case(attack: Attack) -> Case {
    match attack {
        Attack::Abort => Case::given_up(Action::Abort, &["panicked or aborted"]),
        Attack::Exit => Case::given_up(Action::Exit { code: 3 }, &["called exit with an error"]),
        Attack::Retry => Case::given_up(Action::Retry { text: "not yet".to_owned() }, &["not yet"]),
        Attack::Unsuccessful => Case::rejected(Action::Unsuccessful, &["without success"]),
        Attack::Finalize => {
            let action = Action::FailIn { phase: Phase::Finalize, how: How::Panic };
            Case::given_up(action, &["panicked at ", "Finalize fails"])
        }
        Attack::Missing => Case::rejected(Action::MissingOutput, &["missing.txt"]),
    }
}
