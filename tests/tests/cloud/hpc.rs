//! The job scripts for LSF, Grid Engine and PBS, with the environment variables that these systems
//! set for a job.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Signal, kill_process_group};
use serde_json::json;
use task_host_tests::{Place, Running, eventually, host, misbehaviour};

use crate::deploy::deployed;

/// The script of a system, and the variables that the system sets for the third of 40 jobs with two
/// cores.
const LSF: (&str, &[(&str, &str)]) = (
    "lsf.sh",
    &[
        ("LSB_DJOB_NUMPROC", "2"),
        ("LSB_JOBNAME", "task-host[1-40]%10"),
        ("LSB_JOBID", "4711"),
        ("LSB_JOBINDEX", "3"),
    ],
);
const SGE: (&str, &[(&str, &str)]) = (
    "sge.sh",
    &[("NSLOTS", "2"), ("JOB_NAME", "task-host"), ("JOB_ID", "4711"), ("SGE_TASK_ID", "3")],
);
const PBS: (&str, &[(&str, &str)]) = (
    "pbs.sh",
    &[
        ("NCPUS", "2"),
        ("PBS_JOBNAME", "task-host"),
        ("PBS_JOBID", "4711[3].server"),
        ("PBS_ARRAY_INDEX", "3"),
    ],
);

/// Starts a job in its own process group.
fn job(place: &Place, (script, variables): (&str, &[(&str, &str)])) -> Running {
    let mut bash = Command::new("bash");
    bash.arg(deployed("hpc").join(script)).current_dir(place.path()).process_group(0);
    let path = std::env::var("PATH").expect("a PATH");
    let bin = host().parent().map(Path::to_owned).expect("a directory");
    bash.env_clear().env("PATH", format!("{}:{path}", bin.display()));
    bash.env("USER", "me").env("HOME", place.path()).env("TMPDIR", place.path());
    bash.env("HOST_QUEUE", "fq://./queue").env("HOST_BUCKET", "./bucket");
    bash.envs(variables.iter().copied());
    Running::start(bash, place.path())
}

#[track_caller]
fn drains(system: (&str, &[(&str, &str)])) {
    let place = Place::with(&["NO_OP"]);
    place.submit(&place.innocent(3));
    let ended = job(&place, system).wait().good();
    place.innocent_are_done(3);
    assert!(ended.stderr.contains("\"parallel\":\"2 at a time"), "{}", ended.stderr);
    assert!(ended.stderr.contains("4711"), "{}", ended.stderr);
}

#[test]
fn a_job_of_lsf_drains_a_queue() {
    drains(LSF);
}

#[test]
fn a_job_of_grid_engine_drains_a_queue() {
    drains(SGE);
}

#[test]
fn a_job_of_pbs_drains_a_queue() {
    drains(PBS);
}

/// Checks that a job finishes the running tasks and leaves the rest, when all its processes get a
/// signal to stop.
#[track_caller]
fn leaves(system: (&str, &[(&str, &str)]), signal: Signal) {
    const TASKS: i64 = 200;
    let place = Place::with(&["misbehave"]);
    let task = |id| misbehaviour(id, &[], json!({"do": "sleep", "secs": 1}));
    place.submit(&(1..=TASKS).map(task).collect::<Vec<_>>());
    let job = job(&place, system);
    eventually("a leased task", || (place.counts().1 > 0).then_some(()));
    kill_process_group(job.pid(), signal).expect("a signal");
    job.wait().good();
    let (left, leased) = place.counts();
    assert!(left > 0, "it has not stopped");
    assert_eq!(leased, 0);
    assert_eq!(place.errors().len(), 0);
}

#[test]
fn a_job_of_lsf_leaves_before_its_time_limit() {
    leaves(LSF, Signal::TERM);
}

#[test]
fn a_job_of_grid_engine_leaves_before_its_time_limit() {
    leaves(SGE, Signal::USR1);
}

#[test]
fn a_job_of_grid_engine_leaves_when_it_is_deleted() {
    leaves(SGE, Signal::USR2);
}
