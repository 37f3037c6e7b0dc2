//! Docker and Slurm, which `cargo xtask test` has started, and the host under test as an image.

use std::process::Command;
use std::sync::OnceLock;

use task_host_test_network::image;

use crate::built;
use crate::cloud::server;
use crate::process::Finished;

/// The variable with which Docker's programs find the daemon, and its value.
pub fn docker_variable() -> (&'static str, String) {
    ("DOCKER_HOST", server("TASK_HOST_TEST_DOCKER"))
}

/// The variable with which Slurm's programs find the controller, and its value.
pub fn slurm_variable() -> (&'static str, String) {
    ("SLURM_CONF", server("TASK_HOST_TEST_SLURM"))
}

/// `docker ARGS…`, with the daemon of the tests.
pub fn docker(args: &[&str]) -> Finished {
    Finished::run(Command::new("docker").args(args).envs([docker_variable()]))
}

/// `PROGRAM ARGS…` of Slurm, with the controller of the tests.
pub fn slurm(program: &str, args: &[&str]) -> Finished {
    Finished::run(Command::new(program).args(args).envs([slurm_variable()]))
}

/// The name of an image with the host under test. It is made once for each test program.
pub fn image() -> &'static str {
    const NAME: &str = "task-host:test";
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let (_, daemon) = docker_variable();
        image::import(&built::host(), &built::target(), &daemon, NAME);
    });
    NAME
}
