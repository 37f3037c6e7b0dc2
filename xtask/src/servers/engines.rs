//! Engines for tests: a Docker daemon and a Slurm cluster of one machine, both real.
//!
//! Each has its own process namespace and mount namespace. When the first process of a namespace
//! ends, the kernel ends all others, so no container or job outlives the tests.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::ensure;

use super::{Kept, Servers, greets, port, with_us};
use crate::command::capture;
use crate::setup;

/// The number of cores in Slurm's configuration: more than all tests request together.
const CORES: u32 = 1_000;
/// The memory in Slurm's configuration, also more than all tests request together.
const MEBIBYTES: u32 = 10_000_000;

impl Servers {
    /// Starts Docker and Slurm.
    pub(super) fn start_engines(&mut self) -> anyhow::Result<()> {
        setup::engines()?;
        ensure!(setup::is_root()?, "the daemons of Docker and Slurm need root: run this as root");
        self.start_docker()?;
        self.start_slurm()
    }

    fn start_docker(&mut self) -> anyhow::Result<()> {
        // A socket's path must be short, so the socket is in the temporary directory. Images are on
        // the disk of the build directory, because Docker's layers cannot be on an overlay file
        // system.
        let run = Kept::new(&std::env::temp_dir(), "docker")?;
        let images = Kept::new(&self.logs, "docker-images")?;
        let socket = run.0.join("docker.sock");
        let address = format!("unix://{}", socket.display());
        let mut docker = enclosed("dockerd");
        docker
            .arg("--data-root")
            .arg(&images.0)
            .arg("--exec-root")
            .arg(run.0.join("exec"))
            .arg("--pidfile")
            .arg(run.0.join("pid"))
            .args(["--host", &address, "--iptables=false", "--ip6tables=false", "--bridge=none"]);
        self.serve("docker", &mut docker, move || {
            let greeting = UnixStream::connect(&socket).and_then(|mut stream| greets(&mut stream));
            greeting.unwrap_or(false)
        })?;
        self.kept.extend([run, images]);
        self.variables.push(("TASK_HOST_TEST_DOCKER", address));
        Ok(())
    }

    fn start_slurm(&mut self) -> anyhow::Result<()> {
        let kept = Kept::new(&std::env::temp_dir(), "slurm")?;
        let dir = &kept.0;
        let config = dir.join("slurm.conf");
        fs::write(&config, slurm_conf(dir)?)?;
        let path = config.clone();
        let has_answered = move || {
            let mut sinfo = Command::new("sinfo");
            sinfo.args(["--noheader", "--format", "%T"]).env("SLURM_CONF", &path);
            let output = sinfo.stdin(Stdio::null()).stderr(Stdio::null()).output();
            output.is_ok_and(|output| output.stdout.starts_with(b"idle"))
        };
        let mut controller = enclosed("slurmctld");
        controller.args(["-D", "-c"]).env("SLURM_CONF", &config);
        self.serve("slurmctld", &mut controller, || true)?;
        let mut node = enclosed("slurmd");
        node.arg("-D").env("SLURM_CONF", &config);
        self.serve("slurmd", &mut node, has_answered)?;
        self.variables.push(("TASK_HOST_TEST_SLURM", config.display().to_string()));
        self.kept.push(kept);
        Ok(())
    }
}

/// The configuration of a Slurm cluster of one machine, without authentication and accounting, that
/// starts jobs immediately.
fn slurm_conf(dir: &Path) -> anyhow::Result<String> {
    let name = capture(&mut Command::new("hostname"))?;
    let name = name.trim();
    ensure!(!name.is_empty(), "Slurm needs a host name; set one with `hostname`");
    let (state, spool) = (dir.join("state"), dir.join("spool"));
    fs::create_dir(&state)?;
    fs::create_dir(&spool)?;
    Ok(format!(
        "ClusterName=tests
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={state}
SlurmdSpoolDir={spool}
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
NodeName={name} NodeAddr=127.0.0.1 CPUs={CORES} RealMemory={MEBIBYTES}
PartitionName=main Nodes=ALL Default=YES State=UP MaxTime=INFINITE
",
        controller = port()?,
        node = port()?,
        state = state.display(),
        spool = spool.display(),
        dir = dir.display(),
    ))
}

/// A command that the kernel kills when this program ends, together with all processes and mounts
/// that the command has created.
fn enclosed(program: &str) -> Command {
    let mut command = with_us("unshare");
    command
        .args(["--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", program]);
    command
}
