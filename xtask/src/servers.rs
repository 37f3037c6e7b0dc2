//! The servers for tests: real ones, or independent implementations of AWS, Google and Microsoft
//! services.
//!
//! All listen on free ports of this machine only, and stop when `Servers` is dropped. Tests find
//! their addresses in variables.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::command::styled;
use crate::project::Project;
use crate::setup;

/// How long a server may take to answer. Java is slow on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Running servers.
pub(crate) struct Servers {
    servers: Vec<Server>,
}

struct Server {
    name: &'static str,
    child: Child,
    /// The variable with the address for tests, and the address.
    variable: &'static str,
    address: String,
}

impl Servers {
    /// Installs what is missing and starts all servers.
    pub(crate) fn start(project: &Project) -> anyhow::Result<Self> {
        let aws = setup::aws_server(project)?;
        let azure = setup::azure_server(project)?;
        let pubsub = setup::pubsub_server()?;
        let python = aws.join("bin/python");
        let logs = project.target.join("servers");
        fs::create_dir_all(&logs)?;

        let (aws_port, gcs_port, azure_port, pubsub_port) = (port()?, port()?, port()?, port()?);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let mut servers = Self { servers: Vec::new() };
        let mut start = |name, command: &mut Command, variable, address| {
            let log = File::create(logs.join(format!("{name}.log")))?;
            let child = command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .with_context(|| format!("cannot start the server {name}"))?;
            servers.servers.push(Server { name, child, variable, address });
            anyhow::Ok(())
        };
        start(
            "aws",
            Command::new(aws.join("bin/ministack"))
                .env("BIND_HOST", "127.0.0.1")
                .env("GATEWAY_PORT", aws_port.to_string())
                .env("MINISTACK_HOST", "127.0.0.1")
                .env("LOG_LEVEL", "WARNING"),
            "TASK_HOST_TEST_AWS",
            url(aws_port),
        )?;
        start(
            "gcs",
            Command::new(&python)
                .arg(project.root.join("tests/servers/gcs.py"))
                .args([gcs_port.to_string(), aws_port.to_string()]),
            "TASK_HOST_TEST_GCS",
            url(gcs_port),
        )?;
        start(
            "azure",
            Command::new(azure)
                .args(["--blobHost", "127.0.0.1", "--blobPort", &azure_port.to_string()])
                .args(["--inMemoryPersistence", "--silent", "--skipApiVersionCheck"]),
            "TASK_HOST_TEST_AZURE",
            url(azure_port),
        )?;
        start(
            "pubsub",
            Command::new(pubsub)
                .args(["--host=127.0.0.1".to_owned(), format!("--port={pubsub_port}")]),
            "TASK_HOST_TEST_PUBSUB",
            format!("127.0.0.1:{pubsub_port}"),
        )?;
        for server in &mut servers.servers {
            server.wait(&logs)?;
        }
        let shown = servers.variables().map(|(name, address)| format!("{name}={address}"));
        eprintln!("{}", styled("2", &shown.collect::<Vec<_>>().join(" ")));
        Ok(servers)
    }

    /// The variables with the addresses for tests.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.servers.iter().map(|server| (server.variable, &*server.address))
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
        let address = self.address.trim_start_matches("http://");
        let address: SocketAddr = address.parse().context("a server's address")?;
        let started = Instant::now();
        while !answers(address) {
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

/// Whether a server answers over HTTP, with any status.
fn answers(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut start = [0; 5];
        stream.read_exact(&mut start)?;
        std::io::Result::Ok(&start == b"HTTP/")
    };
    ask().unwrap_or(false)
}

/// A free port.
fn port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
