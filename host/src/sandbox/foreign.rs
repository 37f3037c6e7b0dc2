//! How this module reads what a component says of itself and what a guest prints, for the fuzz
//! targets.

use super::{last_words, stack};

/// The name of a function or module as it is shown in a call stack.
pub fn name_in_stack(raw: &str) -> String {
    stack::name(raw)
}

/// The cause in the end of a guest's log, and the calls that led there, if the log tells them.
pub fn last_words(log: &str) -> Option<(String, Option<String>)> {
    last_words::of(log).map(|words| (words.cause, words.trace))
}
