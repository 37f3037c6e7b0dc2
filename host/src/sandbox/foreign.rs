//! How this module reads what a component says of itself, for the fuzz targets.

use super::stack;

/// The name of a function or module as it is shown in a call stack.
pub fn name_in_stack(raw: &str) -> String {
    stack::name(raw)
}
