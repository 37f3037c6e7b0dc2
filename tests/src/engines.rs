//! Docker and Slurm, which `cargo xtask test` starts, and an image with the host under test.

use std::process::Command;
use std::sync::OnceLock;

use task_host_test_network::image;

use crate::built;
use crate::cloud::server;
use crate::process::Finished;

/// The environment variable with which Docker's programs find the daemon, and its value.
pub fn docker_variable() -> (&'static str, String) {
    ("DOCKER_HOST", server("TASK_HOST_TEST_DOCKER"))
}

/// The environment variable with which Slurm's programs find the controller, and its value.
pub fn slurm_variable() -> (&'static str, String) {
    ("SLURM_CONF", server("TASK_HOST_TEST_SLURM"))
}

/// Runs `docker ARGS…` with the daemon of the tests.
pub fn docker(args: &[&str]) -> Finished {
    Finished::run(Command::new("docker").args(args).envs([docker_variable()]))
}

/// Runs the Slurm command `PROGRAM ARGS…` with the controller of the tests.
pub fn slurm(program: &str, args: &[&str]) -> Finished {
    Finished::run(Command::new(program).args(args).envs([slurm_variable()]))
}

/// The name of an image with the host under test. Each test program creates the image once.
pub fn image() -> &'static str {
    const NAME: &str = "task-host:test";
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let (_, daemon) = docker_variable();
        image::import(&built::host(), &built::target(), &daemon, NAME);
    });
    NAME
}
