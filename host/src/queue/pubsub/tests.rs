//! Tests of the Pub/Sub queue against Google's emulator, and against a fake that does what the
//! emulator does not.

use super::*;

mod against_emulator;
mod against_fake;
mod fake;
