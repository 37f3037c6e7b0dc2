//! The servers for tests: real ones, or independent implementations of AWS, Google and Microsoft
//! services.
//!
//! All servers listen only on free ports or sockets of this machine. They stop when `Servers` is
//! dropped, and the kernel kills them when this program is killed. Tests find their addresses in
//! environment variables.

mod engines;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::command::styled;
use crate::project::Project;
use crate::setup;

/// How long a server may take to answer. The Java server is slow on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which servers to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The servers of cloud services.
    Clouds,
    /// The engines that run workers: Docker and Slurm. Both need root.
    Engines,
    /// All servers.
    All,
}

/// Running servers.
pub(crate) struct Servers {
    servers: Vec<Server>,
    /// The environment variables through which tests find the addresses.
    variables: Vec<(&'static str, String)>,
    logs: PathBuf,
    /// The servers' files on disk. Declared last, so that the servers end before their files are
    /// removed.
    kept: Vec<Kept>,
}

struct Server {
    name: &'static str,
    child: Child,
    answers: Box<dyn Fn() -> bool>,
}

/// A directory of this process. Dropping it removes the directory. The next process removes the
/// directories of killed ones.
struct Kept(PathBuf);

impl Servers {
    /// Installs missing tools and starts the servers.
    pub(crate) fn start(project: &Project, which: Which) -> anyhow::Result<Self> {
        let logs = project.target.join("servers");
        fs::create_dir_all(&logs)?;
        let mut servers = Self { servers: Vec::new(), variables: Vec::new(), logs, kept: vec![] };
        if which != Which::Clouds {
            servers.start_engines()?;
        }
        if which != Which::Engines {
            servers.start_clouds(project)?;
            servers.start_batch(project)?;
        }
        for server in &mut servers.servers {
            server.wait(&servers.logs)?;
        }
        let shown = servers.variables().map(|(name, address)| format!("{name}={address}"));
        eprintln!("{}", styled("2", &shown.collect::<Vec<_>>().join(" ")));
        Ok(servers)
    }

    /// The environment variable with which servers find Docker.
    fn docker(&self) -> Option<(&'static str, String)> {
        let mut all = self.variables.iter().filter(|(name, _)| *name == "TASK_HOST_TEST_DOCKER");
        all.next().map(|(_, address)| ("DOCKER_HOST", address.clone()))
    }

    /// Starts AWS Batch, if Docker is running for its jobs.
    fn start_batch(&mut self, project: &Project) -> anyhow::Result<()> {
        let Some(docker) = self.docker() else { return Ok(()) };
        let port = port()?;
        let mut batch = with_us(setup::fleet_tools(project)?.join("bin/python"));
        batch.arg(project.root.join("tests/servers/batch.py")).arg(port.to_string());
        batch.envs([docker]);
        self.serve_http("batch", batch, "TASK_HOST_TEST_BATCH", port)
    }

    fn start_clouds(&mut self, project: &Project) -> anyhow::Result<()> {
        let aws = setup::aws_server(project)?;
        let azure = setup::azure_server(project)?;
        let pubsub = setup::pubsub_server()?;
        let (aws_port, gcs_port, azure_port, pubsub_port) = (port()?, port()?, port()?, port()?);

        let mut ministack = with_us(aws.join("bin/ministack"));
        ministack
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", aws_port.to_string())
            .env("MINISTACK_HOST", "127.0.0.1")
            .env("LOG_LEVEL", "WARNING");
        // Without Docker, tasks of ECS do not run in containers.
        ministack.envs(self.docker());
        self.serve_http("aws", ministack, "TASK_HOST_TEST_AWS", aws_port)?;
        let mut gcs = with_us(aws.join("bin/python"));
        gcs.arg(project.root.join("tests/servers/gcs.py"))
            .args([gcs_port.to_string(), aws_port.to_string()]);
        self.serve_http("gcs", gcs, "TASK_HOST_TEST_GCS", gcs_port)?;
        let mut azurite = with_us(azure);
        azurite.args(["--blobHost", "127.0.0.1", "--blobPort", &azure_port.to_string()]).args([
            "--inMemoryPersistence",
            "--silent",
            "--skipApiVersionCheck",
        ]);
        self.serve_http("azure", azurite, "TASK_HOST_TEST_AZURE", azure_port)?;
        let mut emulator = with_us(pubsub);
        emulator.args(["--host=127.0.0.1".to_owned(), format!("--port={pubsub_port}")]);
        self.serve("pubsub", &mut emulator, move || answers(pubsub_port))?;
        self.variables.push(("TASK_HOST_TEST_PUBSUB", format!("127.0.0.1:{pubsub_port}")));
        Ok(())
    }

    /// Starts a server whose address is a URL.
    fn serve_http(
        &mut self,
        name: &'static str,
        mut command: Command,
        variable: &'static str,
        port: u16,
    ) -> anyhow::Result<()> {
        self.serve(name, &mut command, move || answers(port))?;
        self.variables.push((variable, format!("http://127.0.0.1:{port}")));
        Ok(())
    }

    /// Starts a server, and writes its output to a file with its name.
    fn serve(
        &mut self,
        name: &'static str,
        command: &mut Command,
        answers: impl Fn() -> bool + 'static,
    ) -> anyhow::Result<()> {
        let log = File::create(self.logs.join(format!("{name}.log")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start the server {name}"))?;
        self.servers.push(Server { name, child, answers: Box::new(answers) });
        Ok(())
    }

    /// The environment variables through which tests find the addresses.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.variables.iter().map(|(name, address)| (*name, &**address))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // The server may have ended already.
            let _ = server.child.kill();
            let _ = server.child.wait();
        }
    }
}

impl Server {
    /// Waits until the server answers.
    fn wait(&mut self, logs: &Path) -> anyhow::Result<()> {
        let started = Instant::now();
        while !(self.answers)() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || started.elapsed() > PATIENCE {
                let log = logs.join(format!("{}.log", self.name));
                let said = fs::read_to_string(&log).unwrap_or_default();
                let how = ended.map_or("does not answer".to_owned(), |status| status.to_string());
                bail!("the server {} {how}; its log:\n{said}", self.name);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Kept {
    /// Creates an empty directory below `parent`.
    fn new(parent: &Path, name: &str) -> anyhow::Result<Self> {
        let prefix = format!("task-host-{name}-");
        for entry in fs::read_dir(parent)?.flatten() {
            let file = entry.file_name();
            let Some(pid) = file.to_str().and_then(|name| name.strip_prefix(&prefix)) else {
                continue;
            };
            if !Path::new("/proc").join(pid).exists() {
                // Another process may be removing the same directory.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = parent.join(format!("{prefix}{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A command that the kernel kills when this program ends for any reason.
fn with_us(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// Whether a server on this port answers over HTTP, with any status.
fn answers(port: u16) -> bool {
    let ask = || {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        greets(&mut TcpStream::connect_timeout(&address, Duration::from_secs(1))?)
    };
    ask().unwrap_or(false)
}

/// Whether the other end answers over HTTP, with any status.
fn greets(stream: &mut (impl Read + Write)) -> std::io::Result<bool> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
    let mut start = [0; 5];
    stream.read_exact(&mut start)?;
    Ok(&start == b"HTTP/")
}

/// A free port.
fn port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
