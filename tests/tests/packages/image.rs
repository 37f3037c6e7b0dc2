//! The container image, in a real Docker daemon with minimal rights.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;
use task_host_tests::engines::{docker, docker_variable};
use task_host_tests::{Finished, Place, eventually, host, unique};

use crate::packed::{HERE, PACKAGES, Processor, VERSION};
use crate::{first_result, shared};

/// Options that remove as many rights as possible.
const NO_RIGHTS: [&str; 6] = [
    "--network=none",
    "--cap-drop=ALL",
    "--read-only",
    "--security-opt=no-new-privileges",
    "--pids-limit=256",
    "--memory=1g",
];

/// The names of the images in the daemon, one for each processor.
static IMAGES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let file = PACKAGES.file("task-host-v", "-image.tar");
    let loaded = docker(&["load", "--input", file.to_str().unwrap()]).good();
    let names = loaded.stdout.lines().filter_map(|line| line.strip_prefix("Loaded image: "));
    names.map(str::to_owned).collect()
});

/// The name of the image for a processor.
fn image(processor: Processor) -> &'static str {
    let name = format!("ghcr.io/task-host/task-host:{VERSION}-{}", processor.debian);
    IMAGES.get(&name).unwrap_or_else(|| panic!("{name} is not among {:?}", *IMAGES))
}

/// `docker run OPTIONS… IMAGE ARGS…` with minimal rights, and with a place as `/work`.
fn run(place: &Place, options: &[&str], args: &[&str]) -> Command {
    run_for(HERE, place, options, args)
}

/// The same with the image for this processor.
pub(crate) fn run_for(
    processor: Processor,
    place: &Place,
    options: &[&str],
    args: &[&str],
) -> Command {
    let mut docker = Command::new("docker");
    docker.envs([docker_variable()]).arg("run").args(NO_RIGHTS).args(options).args(libraries());
    docker.arg(format!("--volume={}:/work", place.path().display())).arg("--workdir=/work");
    docker.arg(image(processor)).args(args);
    docker
}

/// Mounts the libraries that the tests' host needs, because it is not static.
fn libraries() -> Vec<String> {
    if PACKAGES.is_release {
        return Vec::new();
    }
    let linked = Finished::run(Command::new("ldd").arg(host())).good();
    let paths = linked.stdout.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(|path| format!("--volume={path}:{path}:ro")).collect()
}

#[test]
fn a_container_with_no_rights_does_a_task() {
    let place = shared();
    first_result(&place, |args| run(&place, &["--rm"], args));
}

#[test]
fn a_container_with_an_arbitrary_user_does_a_task() {
    let place = shared();
    first_result(&place, |args| run(&place, &["--rm", "--user=4242:4243"], args));
}

#[test]
fn docker_knows_when_the_host_is_well_and_can_stop_it() {
    let place = shared();
    let name = unique("image");
    let options = ["--detach", "--name", &name, "--health-interval=1s"];
    Finished::run(&mut run(&place, &options, &["run", "--fq", "./queue"])).good();
    let state = |what: &str| {
        let format = format!("--format={{{{.State.{what}}}}}");
        docker(&["inspect", &format, &name]).good().stdout.trim().to_owned()
    };
    eventually("a healthy container", || (state("Health.Status") == "healthy").then_some(()));
    docker(&["stop", "--time=60", &name]).good();
    assert_eq!(state("ExitCode"), "0", "the host did not drain");
    docker(&["rm", "--volumes", &name]).good();
}

#[test]
fn the_image_says_what_it_is() {
    let inspected = docker(&["inspect", image(HERE)]).good();
    let inspected: Value = serde_json::from_str(&inspected.stdout).unwrap();
    let (image, config) = (&inspected[0], &inspected[0]["Config"]);
    assert_eq!(image["Architecture"], HERE.debian);
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], VERSION);
    let commit = &config["Labels"]["org.opencontainers.image.revision"];
    assert_eq!(commit.as_str().map(str::len), Some(40), "{commit}");
    let healthy = &config["Healthcheck"]["Test"];
    assert_eq!(*healthy, serde_json::json!(["CMD", "/host", "health"]));
}
