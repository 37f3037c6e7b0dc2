//! Confinement on macOS: none.

use super::Confinement;

/// Leaves this thread as it is.
pub(in super::super) fn confine() -> Confinement {
    Confinement { files: false, scopes: false, calls: false }
}
