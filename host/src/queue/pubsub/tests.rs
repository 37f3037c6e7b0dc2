//! Tests of the Pub/Sub queue against Google's emulator, and against a fake with the features that
//! the emulator lacks.

use super::*;

mod against_emulator;
mod against_fake;
mod fake;
