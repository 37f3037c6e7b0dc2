//! Checks that the engines of the other tests exist and are real.

use task_host_tests::{Place, engines, host};

const TASKS: usize = 3;

fn filled() -> Place {
    let place = Place::with(&["NO_OP"]);
    place.submit(&place.innocent(TASKS));
    place
}

#[test]
fn a_container_of_the_image_drains_a_queue() {
    let place = filled();
    let dir = place.path().display().to_string();
    let mount = format!("{dir}:{dir}");
    let mut docker = vec!["run", "--rm", "--network", "host", "--user", "0:0", "--volume", &mount];
    docker.extend(["--workdir", &dir, engines::image(), "run", "--fq", "./queue"]);
    docker.extend(["--bucket", "./bucket", "--exit-when-empty"]);
    engines::docker(&docker).good();
    place.innocent_are_done(TASKS);
}

#[test]
fn a_job_drains_a_queue() {
    let place = filled();
    let host = host();
    let host = host.to_str().expect("a path that is text");
    let run = format!("exec {host} run --fq ./queue --bucket ./bucket --exit-when-empty");
    let dir = place.path().to_str().expect("a path that is text");
    engines::slurm("sbatch", &["--wait", "--chdir", dir, "--output", "log", "--wrap", &run]).good();
    place.innocent_are_done(TASKS);
}
