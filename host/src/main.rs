//! The program `host`: a command line over the library.

mod bytes;
mod cli;

use std::process::ExitCode;

use task_host::environment::Environment;
use task_host::roots;

fn main() -> ExitCode {
    // SAFETY: no other thread runs yet.
    //
    // Each failed file call of a guest creates an error value in wasmtime. With `RUST_BACKTRACE`
    // set, each would capture a backtrace, which takes 20 microseconds. Panics still print a
    // backtrace.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    if let Some(certificates) = roots::missing(&Environment::of_process()) {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var(roots::VARIABLE, certificates) };
    }
    #[cfg(feature = "fault-points")]
    let _faults = task_host::fault::arm();
    cli::main()
}
