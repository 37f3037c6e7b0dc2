//! Measures what an SQS queue costs: the client's processor time per sent task, compared with
//! python-task-queue, and the requests of a host.
//!
//! The server runs on the same machine and limits the rates, so processor time is what
//! distinguishes the clients.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::series::Series;
use super::table::Table;
use crate::project::Project;
use crate::servers::{Servers, Which};

const PYTHON: &str = "
import sys
from taskqueue import TaskQueue, MockTask
url, endpoint, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
tq = TaskQueue(url, region_name='us-east-1', endpoint_url=endpoint, progress=False)
assert tq.insert((MockTask(n=i) for i in range(count)), total=count) == count
";

/// How long an idle host is observed, in seconds.
const IDLE: u64 = 60;

pub(super) struct Sqs {
    dir: PathBuf,
    host: PathBuf,
    python: PathBuf,
    aws: PathBuf,
    servers: Servers,
    queues: usize,
}

/// The time that a program took, and its output.
struct Took {
    seconds: f64,
    processor: f64,
    stdout: String,
}

impl Sqs {
    pub(super) fn new(
        project: &Project,
        host: &Path,
        python: &Path,
        guest: &Path,
    ) -> anyhow::Result<Self> {
        let servers = Servers::start(project, Which::Clouds)?;
        let dir = project.target.join("bench").join(format!("sqs-{}", std::process::id()));
        fs::create_dir_all(dir.join("bucket/components"))?;
        fs::copy(guest, dir.join("bucket/components/NO_OP.wasm"))?;
        fs::write(dir.join("send.py"), PYTHON)?;
        let aws = project.target.join("aws/bin/aws");
        Ok(Self { dir, host: host.to_owned(), python: python.to_owned(), aws, servers, queues: 0 })
    }

    /// Returns tables for people, and all series.
    pub(super) fn measure(
        &mut self,
        rounds: usize,
        count: usize,
    ) -> anyhow::Result<(String, Vec<Series>)> {
        let rate = |who: &str| Series::new(&format!("{who}, sent to SQS"), "per second");
        let cost = |who: &str| Series::new(&format!("{who}, for each task"), "microseconds of CPU");
        let (mut python_rate, mut host_rate) = (rate("python"), rate("host"));
        let (mut python_cost, mut host_cost) = (cost("python"), cost("host"));
        let mut requests = Series::new("host at work", "requests a task");
        let mut work_rate = Series::new("host at work", "per second");
        for _ in 0..rounds {
            let took = self.python_sends(count)?;
            python_rate.push(count as f64 / took.seconds);
            python_cost.push(took.processor / count as f64 * 1e6);
            let (queue, took) = self.host_sends(count)?;
            host_rate.push(count as f64 / took.seconds);
            host_cost.push(took.processor / count as f64 * 1e6);

            let summary = self.host_runs(&queue, &["--max-tasks", &count.to_string()])?;
            let done = summary["done"].as_f64().context("`done` of the summary")?;
            requests.push(all_requests(&summary)? / done);
            let per_second = summary["tasks_per_second"].as_f64();
            work_rate.push(per_second.context("`tasks_per_second` of the summary")?);
        }
        let queue = self.new_queue()?;
        let mut idle = Series::new("idle host", "requests a day");
        let summary = self.host_runs(&queue, &["--for", &format!("{IDLE}s")])?;
        let seconds = summary["seconds"].as_f64().context("`seconds` of the summary")?;
        idle.push(all_requests(&summary)? / seconds * 86_400.0);

        let mut sent = Table::new(
            "Tasks sent to SQS, one program each: tasks per second, and processor time of the \
             client",
            &["", "python", "`host submit`", "ratio"],
        );
        let ratio = |a: &Series, b: &Series| format!("{:.1}", a.median() / b.median());
        sent.row([
            "tasks per second".to_owned(),
            python_rate.shown(),
            host_rate.shown(),
            ratio(&host_rate, &python_rate),
        ]);
        sent.row([
            "µs of CPU a task".to_owned(),
            python_cost.shown(),
            host_cost.shown(),
            ratio(&python_cost, &host_cost),
        ]);
        let mut made = Table::new("Requests of `host run` to SQS", &["", ""]);
        made.row(["at work on no-ops: requests a task".to_owned(), requests.shown()]);
        made.row(["tasks per second meanwhile".to_owned(), work_rate.shown()]);
        made.row(["idle: requests a day".to_owned(), idle.shown()]);
        let series =
            vec![python_rate, host_rate, python_cost, host_cost, requests, work_rate, idle];
        Ok((format!("{sent}\n{made}\n"), series))
    }

    fn endpoint(&self) -> anyhow::Result<String> {
        let found = self.servers.variables().find(|(name, _)| *name == "TASK_HOST_TEST_AWS");
        Ok(found.context("a server of SQS")?.1.to_owned())
    }

    /// The directory in which the measured programs run.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command for `host`, with the address of the server in its environment.
    pub(super) fn host(&self) -> anyhow::Result<Command> {
        let mut host = Command::new(&self.host);
        host.current_dir(&self.dir).envs(self.variables()?).stdin(Stdio::null());
        Ok(host)
    }

    fn variables(&self) -> anyhow::Result<[(&'static str, String); 5]> {
        Ok([
            ("AWS_ENDPOINT_URL", self.endpoint()?),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_DEFAULT_REGION", "us-east-1".to_owned()),
        ])
    }

    pub(super) fn new_queue(&mut self) -> anyhow::Result<String> {
        self.queues += 1;
        let name = format!("bench-{}-{}", std::process::id(), self.queues);
        let mut aws = Command::new(&self.aws);
        // Version 1 of `aws` uses AWS's own address without this option.
        aws.args(["--endpoint-url", &self.endpoint()?]);
        aws.args(["sqs", "create-queue", "--queue-name", &name]);
        self.took(&mut aws)?;
        Ok(name)
    }

    fn python_sends(&mut self, count: usize) -> anyhow::Result<Took> {
        let queue = format!("sqs://{}", self.new_queue()?);
        let mut python = Command::new(&self.python);
        python.args(["send.py", &queue, &self.endpoint()?, &count.to_string()]);
        self.took(&mut python)
    }

    /// Also returns the queue, which holds the tasks.
    fn host_sends(&mut self, count: usize) -> anyhow::Result<(String, Took)> {
        let mut lines = std::io::BufWriter::new(fs::File::create(self.dir.join("tasks.jsonl"))?);
        for id in 0..count {
            let task = json!({"basic_info": {"id": id, "name": "NO_OP", "base_directory": "data"}});
            writeln!(lines, "{task}")?;
        }
        lines.flush()?;
        let queue = self.new_queue()?;
        let mut submit = Command::new(&self.host);
        submit.args(["submit", "--queue", &format!("sqs://{queue}"), "tasks.jsonl"]);
        let took = self.took(&mut submit)?;
        Ok((queue, took))
    }

    fn host_runs(&self, queue: &str, args: &[&str]) -> anyhow::Result<Value> {
        let mut run = Command::new(&self.host);
        run.args(["run", "--queue", &format!("sqs://{queue}"), "--error-queue", "./errors"]);
        run.args(["--bucket", "./bucket", "--cache-dir", "./cache", "--json"]).args(args);
        let took = self.took(&mut run)?;
        Ok(serde_json::from_str(&took.stdout)?)
    }

    /// Runs a command, which must succeed, in a shell that measures its time.
    fn took(&self, command: &mut Command) -> anyhow::Result<Took> {
        let timed = "TIMEFORMAT='%R %U %S'; time \"$@\"";
        let output = Command::new("bash")
            .args(["-c", timed, "bash"])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(&self.dir)
            .envs(self.variables()?)
            .stdin(Stdio::null())
            .output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
        let times = stderr.lines().last().context("what the program took")?;
        let times: Vec<f64> = times.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [seconds, user, system] = times[..] else {
            anyhow::bail!("the shell said {times:?}");
        };
        let stdout = String::from_utf8(output.stdout)?;
        Ok(Took { seconds, processor: user + system, stdout })
    }
}

impl Drop for Sqs {
    fn drop(&mut self) {
        // A directory that remains in the build directory is not worth a failure.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn all_requests(summary: &Value) -> anyhow::Result<f64> {
    let requests = summary["queue_requests"].as_object().context("`queue_requests`")?;
    Ok(requests.values().filter_map(Value::as_f64).sum())
}
