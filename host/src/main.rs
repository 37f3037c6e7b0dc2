//! The program `host`: a command line over the library.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // SAFETY: this is the first thing the only thread does.
    //
    // A guest's failing file call is an error value that wasmtime makes; with backtraces
    // asked for, each would cost 20 microseconds. A panic of ours still prints its own.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    if let Some(certificates) = task_host::roots::missing() {
        // SAFETY: there still is no other thread.
        unsafe { std::env::set_var(task_host::roots::VARIABLE, certificates) };
    }
    cli::main()
}
