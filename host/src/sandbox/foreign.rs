//! The functions that read a component's names and a guest's log, for the fuzz targets.

use super::{last_words, stack};

/// The name of a function or module as it is shown in a call stack.
pub fn name_in_stack(raw: &str) -> String {
    stack::name(raw)
}

/// The cause of a guest's end, and its call stack, as far as the end of its log has them.
pub fn last_words(log: &str) -> Option<(String, Option<String>)> {
    last_words::of(log).map(|words| (words.cause, words.trace))
}
