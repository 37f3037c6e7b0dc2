//! Runs one target with libFuzzer, which provides the `main` of this program. The variable
//! `FUZZ_TARGET` selects the target.

#![no_main]

use std::sync::LazyLock;

use task_host_fuzz::Target;

/// The variable that selects the target. The processes that libFuzzer starts inherit it.
const VARIABLE: &str = "FUZZ_TARGET";

static SELECTED: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    Target::named(&name).unwrap_or_else(|| panic!("{VARIABLE}={name} is not a target"))
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| (SELECTED.check)(input));
