//! Attacks by the end of a task: guests that end in a way that no guest should.

use misbehave::{Action, How, Phase};

use super::trial::Case;

attacks! {
    /// Ends its instance without a message.
    Abort => an_abort,
    /// Ends its instance as a program ends.
    Exit => an_exit,
    /// Asks for a retry each time.
    Retry => retries_without_end,
    /// Says that it is done, and without success.
    Unsuccessful => an_outcome_without_success,
    /// Fails when its outputs are there.
    Finalize => a_panic_in_the_last_call,
    /// Lists an output that is not there.
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
