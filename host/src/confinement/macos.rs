//! Confinement on macOS: none.

use super::{InForce, Rules};

pub(super) fn try_on_thread() -> InForce {
    InForce::NOTHING
}

pub(super) fn confine(_rules: &Rules) -> InForce {
    InForce::NOTHING
}

pub(super) fn give_up_files() -> Result<(), &'static str> {
    Err("macOS has no such rules")
}
