//! Fleets on stand-ins for kubectl and a cluster, because no API server can be installed for tests.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use task_host_tests::{Finished, Place, eventually, fleet_tool, host};

use crate::conformance::{Fleet, Subject, Work, suite};
use crate::hostile;

pub(crate) struct Kubernetes {
    work: Work,
    /// The cores of the node.
    cores: u32,
}

suite!(Kubernetes);

impl Kubernetes {
    fn file(&self, name: &str) -> PathBuf {
        self.work.place().path().join(name)
    }

    fn kubectl(&self, args: &[&str]) -> Command {
        let mut kubectl = Command::new(self.file("bin/kubectl"));
        kubectl.args(args).arg("--namespace=jobs");
        self.lead(&mut kubectl);
        kubectl
    }

    /// The pods of a fleet that are running or may start.
    fn pods(&self, fleet: &str) -> Vec<Value> {
        let selector = format!("--selector=task-host/fleet={fleet}");
        let get = ["get", "pods", &selector, "--output=json"];
        let list = Finished::run(&mut self.kubectl(&get)).good().stdout;
        let list: Value = serde_json::from_str(&list).expect("JSON");
        let mut pods = list["items"].as_array().expect("pods").clone();
        let is_alive = |pod: &Value| {
            pod["status"]["phase"] == "Running" || pod["status"]["phase"] == "Pending"
        };
        pods.retain(is_alive);
        pods
    }
}

impl Subject for Kubernetes {
    const CAN_BE_FULL: bool = true;
    const TOOL: Option<&'static str> = Some("kubectl");
    const WRONG_OPTION: &'static str = "--option=partition=main";

    fn with_room(room: Option<u32>) -> Self {
        let new = Self { work: Work::Here(Place::new()), cores: room.unwrap_or(64) };
        fs::create_dir(new.file("bin")).expect("a directory of programs");
        symlink(host(), new.file("bin/host")).expect("a link to the host");
        let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers/kubernetes.py");
        let python = fleet_tool("python");
        let script =
            format!("#!/bin/sh\nexec {} {} \"$@\"\n", python.display(), stand_in.display());
        fs::write(new.file("bin/kubectl"), script).expect("a program");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(new.file("bin/kubectl"), mode).expect("its mode");
        new
    }

    fn work(&self) -> &Work {
        &self.work
    }

    fn url(&self) -> String {
        "k8s://jobs".to_owned()
    }

    fn options(&self) -> Vec<String> {
        vec![format!("--option=hostPath={}", self.work.place().path().display())]
    }

    fn lead(&self, command: &mut Command) {
        let path = std::env::var("PATH").expect("PATH");
        command.env("PATH", format!("{}:{path}", self.file("bin").display()));
        command.env("STAND_IN_CLUSTER", self.file("cluster"));
        command.env("STAND_IN_CPUS", self.cores.to_string());
    }

    fn lead_astray(&self, command: &mut Command) {
        command.env("STAND_IN_CLUSTER", "/nonexistent/cluster");
    }

    fn no_room(&self) -> &'static str {
        "Insufficient cpu"
    }

    fn kill_one(&self, fleet: &str) {
        let pods = self.pods(fleet);
        let running = pods.iter().find(|pod| pod["status"]["phase"] == "Running");
        let name = running.expect("a running pod")["metadata"]["name"].as_str().expect("a name");
        let pid = fs::read_to_string(self.file("cluster/pids").join(name)).expect("a process");
        let pid = Pid::from_raw(pid.parse().expect("a number")).expect("a process");
        kill_process(pid, Signal::KILL).expect("a signal");
    }

    fn alive(&self, fleet: &str) -> usize {
        self.pods(fleet).len()
    }

    fn accept(&self, document: &str) {
        let mut create = self.kubectl(&["create", "--filename=-", "--output=name"]);
        let mut create = create.stdin(Stdio::piped()).spawn().expect("kubectl");
        let mut stdin = create.stdin.take().expect("an input");
        stdin.write_all(document.as_bytes()).expect("a manifest");
        drop(stdin);
        assert!(create.wait().expect("an end").success());
    }

    fn hostile(&self) -> Vec<String> {
        hostile::options(self.work.place(), &format!("{}, $(HOME) $$\n", hostile::NAME))
    }

    fn clear(&self, _: &str) {
        // Removing its state ends the cluster.
        let _ = fs::remove_dir_all(self.file("cluster"));
    }
}

#[test]
fn an_image_that_cannot_be_fetched_is_a_reason() {
    let fleet = Fleet::<Kubernetes>::new();
    fleet.up("1", &[&["--for", "1h", "--wait", "0s", "--image", "nowhere/host:1"]]).good();
    let status = || fleet.run("status", &[]).good().stdout;
    eventually("a reason", || {
        status().contains("1 waits: ErrImagePull: nowhere/host:1").then_some(())
    });
}

#[test]
fn a_worker_that_dies_is_replaced() {
    let fleet = Fleet::<Kubernetes>::new();
    fleet.up("2", &[&["--for", "1h"]]).good();
    fleet.subject.kill_one(fleet.name());
    fleet.has(1, "waiting");
    fleet.has(2, "running");
}

#[test]
fn directories_that_pods_do_not_see_are_refused() {
    let fleet = Fleet::<Kubernetes>::new();
    let refused = fleet.up("1", &[&["--fq", "/somewhere/else"]]).code(2);
    assert!(refused.stderr.contains("pods do not see the directories"), "{}", refused.stderr);
    assert!(refused.stderr.contains("persistentVolumeClaim"), "{}", refused.stderr);
}
