//! Fleets on a real Docker daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use task_host_tests::{Finished, Place, engines};

use crate::conformance::{ENDS, Fleet, Subject, Work, suite};
use crate::hostile;

pub(crate) struct Docker(Work);

suite!(Docker);

impl Docker {
    /// The containers of a fleet that are running or may start.
    fn containers(fleet: &str) -> Vec<String> {
        let label = format!("label=task-host.fleet={fleet}");
        let states = ["--filter=status=created", "--filter=status=running"];
        let list = ["ps", "--all", "--quiet", "--filter", &label];
        let ids = engines::docker(&[&list[..], &states].concat()).good().stdout;
        ids.split_whitespace().map(str::to_owned).collect()
    }
}

impl Subject for Docker {
    const CAN_BE_FULL: bool = false;
    const TOOL: Option<&'static str> = Some("docker");
    const WRONG_OPTION: &'static str = "--option=name=other";

    fn with_room(_: Option<u32>) -> Self {
        Self(Work::Here(Place::new()))
    }

    fn work(&self) -> &Work {
        &self.0
    }

    fn url(&self) -> String {
        "docker://".to_owned()
    }

    fn options(&self) -> Vec<String> {
        // The daemon of the tests has no container network.
        ["--image", engines::image(), "--option", "network=host"].map(str::to_owned).to_vec()
    }

    fn lead(&self, command: &mut Command) {
        command.envs([engines::docker_variable()]);
    }

    fn lead_astray(&self, command: &mut Command) {
        command.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    }

    fn no_room(&self) -> &'static str {
        unreachable!("a daemon starts all containers at once")
    }

    fn kill_one(&self, fleet: &str) {
        engines::docker(&["kill", &Self::containers(fleet)[0]]).good();
    }

    fn alive(&self, fleet: &str) -> usize {
        Self::containers(fleet).len()
    }

    fn accept(&self, document: &str) {
        let script = self.0.place().path().join("script");
        fs::write(&script, document).expect("a script");
        let mut sh = Command::new("sh");
        sh.arg(script).current_dir(self.0.place().path()).envs([engines::docker_variable()]);
        Finished::run(&mut sh).good();
    }

    fn hostile(&self) -> Vec<String> {
        let name = format!("{}, \"source=.\",é", hostile::NAME);
        hostile::options(self.0.place(), &format!("{name}\n"))
    }

    fn clear(&self, fleet: &str) {
        let label = format!("label=task-host.fleet={fleet}");
        let all = engines::docker(&["ps", "--all", "--quiet", "--filter", &label]);
        for id in all.stdout.split_whitespace() {
            engines::docker(&["rm", "--force", "--volumes", id]);
        }
    }
}

/// Puts a `docker` into PATH that runs this script. In the script, `"$DOCKER"` is the real one.
fn with_docker(fleet: &Fleet<Docker>, command: &mut Command, script: &str) {
    let dir = fleet.subject.work().place().path().join("bin");
    fs::create_dir_all(&dir).expect("a directory of programs");
    let docker = dir.join("docker");
    let path = std::env::var("PATH").expect("PATH");
    let find = "DOCKER=$(PATH=${PATH#*:} command -v docker)";
    fs::write(&docker, format!("#!/bin/sh\n{find}\n{script}\n")).expect("a program");
    fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).expect("a mode");
    command.env("PATH", format!("{}:{path}", dir.display()));
}

/// Runs `up` with a daemon that starts only two containers.
fn up_with_room_for_two(fleet: &Fleet<Docker>, workers: &str, args: &[&str]) -> Finished {
    let mut up = fleet.up_command(workers, &[&["--for", "1h"], args]);
    let full = r#"
        if [ "$1" = run ]; then
            mkdir one 2>/dev/null || mkdir two 2>/dev/null || {
                echo 'docker: Error response from daemon: no space left on device.' >&2
                exit 125
            }
        fi
        exec "$DOCKER" "$@""#;
    with_docker(fleet, &mut up, full);
    Finished::run(&mut up)
}

#[test]
fn a_daemon_that_starts_too_few_containers_says_why_and_keeps_none() {
    let fleet = Fleet::<Docker>::new();
    let up = up_with_room_for_two(&fleet, "3..4", &["--wait", "2s"]).code(5);
    assert!(up.stderr.contains("no space left on device"), "{}", up.stderr);
    fleet.is_gone();
}

#[test]
fn a_daemon_that_starts_enough_containers_is_a_warning() {
    let fleet = Fleet::<Docker>::new();
    let up = up_with_room_for_two(&fleet, "2..4", &["--wait", "2s"]).good();
    assert!(up.stderr.contains("no space left on device"), "{}", up.stderr);
    assert!(up.stderr.contains("warning: "), "{}", up.stderr);
    assert_eq!(fleet.count("running"), 2);
}

#[test]
fn a_worker_that_can_not_start_says_why_in_its_last_words() {
    let fleet = Fleet::<Docker>::new();
    // The failure is known afterwards, whether the launcher saw the worker run or only saw its end.
    fleet.up("1", &[&["--listen", "192.0.2.1:1", "--keep"]]);
    fleet.has(1, "failed");
    let status = fleet.run("status", &[]).good();
    assert!(status.stdout.contains("exit code 1: error: "), "{}", status.stdout);
}

#[test]
fn the_containers_of_a_fleet_that_has_ended_are_removed_by_down() {
    let fleet = Fleet::<Docker>::new();
    fleet.up("2", &[&ENDS]).good();
    fleet.run("wait", &["--for", "idle"]).good();
    fleet.run("logs", &["--worker", "1"]).good();
    fleet.run("down", &[]).good();
    let known = fleet.run("status", &[]).code(1);
    assert!(known.stderr.contains("has no fleet"), "{}", known.stderr);
}
