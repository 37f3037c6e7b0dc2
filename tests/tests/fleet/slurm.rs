//! Fleets on a real Slurm.

use std::io::Write;
use std::process::{Command, Stdio};

use task_host_tests::{Finished, Place, engines, eventually, unique};

use crate::conformance::{Fleet, Subject, Work, suite};
use crate::hostile;

pub(crate) struct Slurm {
    work: Work,
    partition: String,
    is_own: bool,
}

suite!(Slurm);

impl Slurm {
    /// The ids of a fleet's jobs in these states, one for each element of an array.
    fn jobs(fleet: &str, states: &str) -> Vec<String> {
        let name = format!("--name=task-host.{fleet}");
        let states = format!("--states={states}");
        let list = ["--noheader", "--array", &name, &states, "--format=%F_%K"];
        let jobs = engines::slurm("squeue", &list).good().stdout;
        jobs.split_whitespace().map(str::to_owned).collect()
    }
}

impl Subject for Slurm {
    const CAN_BE_FULL: bool = true;
    const TOOL: Option<&'static str> = Some("slurm");
    const WRONG_OPTION: &'static str = "--option=qos-of-nobody=high";

    fn with_room(room: Option<u32>) -> Self {
        let mut slurm =
            Self { work: Work::Here(Place::new()), partition: "main".to_owned(), is_own: false };
        if let Some(cores) = room {
            slurm.partition = unique("p").replace('-', "_");
            slurm.is_own = true;
            let name = format!("PartitionName={}", slurm.partition);
            let limit = format!("MaxCPUsPerNode={cores}");
            let create = ["create", &name, "Nodes=ALL", "State=UP", &limit];
            engines::slurm("scontrol", &create).good();
        }
        slurm
    }

    fn work(&self) -> &Work {
        &self.work
    }

    fn url(&self) -> String {
        format!("slurm://{}", self.partition)
    }

    fn options(&self) -> Vec<String> {
        Vec::new()
    }

    fn lead(&self, command: &mut Command) {
        command.envs([engines::slurm_variable()]);
    }

    fn lead_astray(&self, command: &mut Command) {
        let config = std::fs::read_to_string(engines::slurm_variable().1).expect("slurm.conf");
        let silent = config.lines().map(|line| match line.split_once('=') {
            // No controller listens on this port, and the timeout is short.
            Some(("SlurmctldPort", _)) => "SlurmctldPort=1\nMessageTimeout=1".to_owned(),
            _ => line.to_owned(),
        });
        let path = self.work.place().path().join("slurm.conf");
        std::fs::write(&path, silent.collect::<Vec<_>>().join("\n")).expect("slurm.conf");
        command.env("SLURM_CONF", path);
    }

    fn no_room(&self) -> &'static str {
        "Resources"
    }

    fn kill_one(&self, fleet: &str) {
        engines::slurm("scancel", &["--signal=KILL", &Self::jobs(fleet, "RUNNING")[0]]);
    }

    fn alive(&self, fleet: &str) -> usize {
        Self::jobs(fleet, "PENDING,RUNNING,COMPLETING,CONFIGURING").len()
    }

    fn accept(&self, document: &str) {
        let mut sbatch = Command::new("sbatch")
            .envs([engines::slurm_variable()])
            .current_dir(self.work.place().path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("sbatch");
        let mut stdin = sbatch.stdin.take().expect("a pipe");
        stdin.write_all(document.as_bytes()).expect("sbatch reads");
        drop(stdin);
        assert!(sbatch.wait().expect("sbatch").success(), "sbatch refuses:\n{document}");
    }

    fn hostile(&self) -> Vec<String> {
        hostile::options(self.work.place(), &format!("{}\n\\", hostile::NAME))
    }

    fn clear(&self, fleet: &str) {
        let name = format!("--name=task-host.{fleet}");
        engines::slurm("scancel", &["--state=PENDING", &name]);
        engines::slurm("scancel", &["--signal=KILL", &name]);
        if self.is_own {
            // Slurm cannot remove a partition that has jobs.
            let delete = format!("PartitionName={}", self.partition);
            let gone = || {
                let deleted = engines::slurm("scontrol", &["delete", &delete]);
                deleted.status.success().then_some(())
            };
            if !std::thread::panicking() {
                eventually("a partition without jobs", gone);
            }
        }
    }
}

/// Sends a signal to a running element of the fleet, as Slurm does before the walltime ends.
fn end_of_walltime(fleet: &Fleet<Slurm>) {
    let job = &Slurm::jobs(fleet.name(), "RUNNING")[0];
    // `scancel` may exit with an error for some elements, although they get the signal.
    engines::slurm("scancel", &["--signal=TERM", "--batch", job]);
}

#[test]
fn a_worker_at_the_end_of_its_walltime_is_replaced_until_the_relay_is_over() {
    let fleet = Fleet::<Slurm>::new();
    let relay = ["--walltime", "1h", "--relay", "2", "--for", "2h"];
    fleet.up("2", &[&relay]).good();
    // Jobs that will replace these workers do not count as waiting workers.
    assert_eq!((fleet.count("running"), fleet.count("waiting")), (2, 0));
    assert_eq!(fleet.subject.alive(fleet.name()), 4);
    for ended in 1..=2 {
        end_of_walltime(&fleet);
        fleet.has(ended, "ended");
        fleet.has(2, "running");
    }
    end_of_walltime(&fleet);
    fleet.has(1, "running");
    fleet.run("down", &[]).good();
    fleet.is_gone();
}

#[test]
fn a_walltime_that_leaves_no_time_to_stop_is_refused() {
    let fleet = Fleet::<Slurm>::new();
    let up = fleet.up("1", &[&["--walltime", "1m", "--grace", "1m"]]).code(2);
    assert!(up.stderr.contains("a walltime of 1m is too short"), "{}", up.stderr);
    assert_eq!(fleet.subject.alive(fleet.name()), 0);
}

#[test]
fn more_workers_than_an_array_has_room_for_are_several_arrays() {
    let fleet = Fleet::<Slurm>::with_room(1);
    let many = ["--relay", "1000", "--wait", "0s", "--for", "1h"];
    fleet.up("2", &[&many]).good();
    fleet.has(1, "running");
    assert_eq!(fleet.count("waiting"), 1);
    let up = fleet.up("1", &[&["--relay", "1002", "--for", "1h"]]).code(2);
    assert!(up.stderr.contains("MaxArraySize of 1001"), "{}", up.stderr);
}

#[test]
fn logs_are_in_the_directory_that_was_asked_for() {
    let fleet = Fleet::<Slurm>::new();
    let logs = fleet.subject.work().place().path().join("logs of 100% \"all\"");
    let option = format!("logs={}", logs.display());
    fleet.up("1", &[&["--option", &option, "--for", "1h", "--listen", "127.0.0.1:0"]]).good();
    eventually("a file", || std::fs::read_dir(&logs).ok()?.next().map(drop));
    eventually("a line", || {
        let log: Finished = fleet.run("logs", &[]).good();
        log.stdout.contains("listening").then_some(())
    });
}

#[test]
fn variables_that_are_passed_are_in_no_script() {
    let fleet = Fleet::<Slurm>::new();
    let mut up = fleet.up_command("1", &[&["--pass-env", "SECRET_OF_MINE", "--for", "1h"]]);
    up.env("SECRET_OF_MINE", "a'b\nc").env("SECRET_OF_OTHERS", "no");
    Finished::run(&mut up).good();
    let job = &Slurm::jobs(fleet.name(), "RUNNING")[0];
    let script = engines::slurm("scontrol", &["write", "batch_script", job, "-"]).good().stdout;
    assert!(!script.contains("a'b"), "{script}");
    let variables = variables_of(&format!("SLURM_JOB_NAME=task-host.{}", fleet.name()));
    assert!(variables.contains(&"SECRET_OF_MINE=a'b\nc".to_owned()), "{variables:#?}");
    assert!(!variables.iter().any(|pair| pair.starts_with("SECRET_OF_OTHERS")), "{variables:#?}");
}

/// The environment variables of a process that has the variable `known`.
fn variables_of(known: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let all = processes.filter_map(|process| std::fs::read(process.path().join("environ")).ok());
    let lists = all.map(|bytes| {
        let pairs = bytes.split(|byte| *byte == 0);
        pairs.map(|pair| String::from_utf8_lossy(pair).into_owned()).collect::<Vec<_>>()
    });
    let mut ours = lists.filter(|list| list.iter().any(|pair| pair == known));
    ours.next().expect("a process of a worker")
}

#[test]
fn a_worker_that_can_not_start_says_why_in_its_last_words() {
    let fleet = Fleet::<Slurm>::new();
    // The failure is known afterwards, whether the launcher saw the worker run or only saw its end.
    fleet.up("1", &[&["--listen", "192.0.2.1:1", "--keep"]]);
    fleet.has(1, "failed");
    let status = fleet.run("status", &[]).good();
    assert!(status.stdout.contains("exit code 1: error: "), "{}", status.stdout);
}
