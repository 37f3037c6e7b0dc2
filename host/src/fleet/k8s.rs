//! Fleets in Kubernetes. They use `kubectl`, and so the contexts, logins and proxies of its user.
//!
//! Each start creates an Indexed Job; the first one of the fleet `night` is `night-1`. A fleet
//! consists of all jobs and pods with its label. Nothing else is stored.

mod manifest;
mod objects;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::program::Program;
use super::{
    Address, Capacity, Engine, EngineError, FleetName, Line, Logs, Spec, Status, Stop, Times,
};
use objects::Objects;

/// The label with the fleet's name, on all jobs and pods of a fleet.
const LABEL: &str = "task-host/fleet";
/// The annotation with [`Spec::digest`], on all jobs and pods of a fleet.
const DIGEST: &str = "task-host/digest";
/// The name of the container in a pod.
const CONTAINER: &str = "host";
/// The usual time until workers run. The cluster may have to start a node first.
const START: Duration = Duration::from_secs(10 * 60);
/// The number of logs that `kubectl` may follow at the same time: enough for all pods.
const FOLLOWED: &str = "--max-log-requests=100000";

/// A namespace of a cluster.
pub(super) struct Kubernetes {
    program: Program,
    /// The flags that select the context and the namespace in each call.
    place: Vec<String>,
}

impl Kubernetes {
    /// The namespace at an address.
    pub(super) fn new(address: &Address, context: Option<&str>, namespace: &str) -> Self {
        let program = Program {
            engine: address.to_string(),
            name: "kubectl",
            install: "install kubectl: https://kubernetes.io/docs/tasks/tools/",
        };
        let context = context.map(|context| format!("--context={context}"));
        let place = context.into_iter().chain([format!("--namespace={namespace}")]).collect();
        Self { program, place }
    }

    fn args(&self, verb: &[&str]) -> Vec<String> {
        verb.iter().map(|arg| (*arg).to_owned()).chain(self.place.iter().cloned()).collect()
    }

    async fn call(&self, doing: &str, verb: &[&str], input: &str) -> Result<String, EngineError> {
        self.program.run(doing, &self.args(verb), input).await
    }

    /// All jobs and pods that a selector selects.
    async fn objects(&self, selector: &str) -> Result<Objects, EngineError> {
        let doing = "listing jobs and pods";
        let selector = format!("--selector={selector}");
        let json = self.call(doing, &["get", "jobs,pods", &selector, "--output=json"], "").await?;
        Objects::read(&json).map_err(|problem| self.program.failed(doing, problem, None))
    }

    /// Creates a job, or checks whether it could be created. Returns its name.
    async fn create(&self, spec: &Spec, workers: u32, how: &[&str]) -> Result<String, EngineError> {
        let doing = "creating a job";
        let selector = selector(&spec.fleet);
        let job = self.objects(&selector).await?.next_job(&spec.fleet);
        let manifest = manifest::render(spec, &job, workers)?;
        let args = self.args(&[&["create", "--filename=-", "--output=name"], how].concat());
        let answer = self.program.ask(doing, &args, &manifest).await?;
        if answer.success {
            return Ok(format!("job {job}"));
        }
        // All launchers that start this fleet at the same time choose the same name.
        let exists = answer.stderr.contains("(AlreadyExists)");
        if exists && self.objects(&selector).await?.has_job(&job) {
            return Ok(format!("job {job}, which another launcher has created"));
        }
        Err(self.program.failed(doing, answer.stderr.trim(), None))
    }
}

/// The selector of a fleet.
fn selector(fleet: &FleetName) -> String {
    format!("{LABEL}={fleet}")
}

#[async_trait]
impl Engine for Kubernetes {
    fn times(&self) -> Times {
        Times { stop: None, start: START }
    }

    async fn check(&self, spec: &Spec) -> Result<Option<Capacity>, EngineError> {
        self.create(spec, 1, &["--dry-run=server"]).await?;
        // The room that autoscalers could add is unknown.
        Ok(None)
    }

    fn render(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        manifest::render(spec, &objects::job(&spec.fleet, 1), workers)
    }

    async fn start(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        self.create(spec, workers, &[]).await
    }

    async fn status(&self, fleet: &FleetName) -> Result<Option<Status>, EngineError> {
        let mut objects = self.objects(&selector(fleet)).await?;
        if objects.lack_pods() {
            // Only the events of a job tell why it has no pods.
            let doing = "listing events";
            let fields = "--field-selector=type=Warning,involvedObject.kind=Job";
            let json = self.call(doing, &["get", "events", fields, "--output=json"], "").await?;
            objects
                .add_events(&json)
                .map_err(|problem| self.program.failed(doing, problem, None))?;
        }
        Ok(objects.status())
    }

    async fn fleets(&self) -> Result<BTreeSet<FleetName>, EngineError> {
        Ok(self.objects(LABEL).await?.fleets().collect())
    }

    async fn logs(
        &self,
        fleet: &FleetName,
        wanted: &Logs,
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError> {
        let mut selector = format!("--selector={}", selector(fleet));
        if let Some(worker) = wanted.worker {
            selector.push_str(&format!(",{}={worker}", objects::INDEX));
        }
        let tail = match wanted.tail {
            Some(lines) => format!("--tail={lines}"),
            None => "--tail=-1".to_owned(),
        };
        let container = format!("--container={CONTAINER}");
        let mut verb = vec!["logs", &selector, &container, &tail, "--prefix"];
        // Pods that have not started have no log.
        verb.extend(["--ignore-errors", FOLLOWED]);
        if wanted.follow {
            verb.push("--follow");
        }
        let lines = self.program.lines("reading logs", "", &self.args(&verb))?;
        Ok(lines.map(|line| line.map(named)).boxed())
    }

    async fn stop(&self, fleet: &FleetName, which: Stop) -> Result<(), EngineError> {
        let selector = format!("--selector={}", selector(fleet));
        let delete = |what, how: &'static [&'static str]| {
            let verb = ["delete", what, &selector, "--wait=false", "--ignore-not-found"];
            self.args(&[&verb[..], how].concat())
        };
        // A job whose deletion has begun creates no more pods.
        let (jobs, pods) = match which {
            // The job remains until its pods have stopped, so that others can see them.
            Stop::All => (delete("jobs", &["--cascade=foreground"]), delete("pods", &[])),
            // The running pods continue without a job, and nothing replaces them.
            Stop::Waiting => (
                delete("jobs", &["--cascade=orphan"]),
                delete("pods", &["--field-selector=status.phase=Pending"]),
            ),
        };
        self.program.run("deleting jobs", &jobs, "").await?;
        self.program.run("deleting pods", &pods, "").await?;
        Ok(())
    }
}

/// Splits a line of `kubectl logs --prefix`, which begins with `[pod/POD/CONTAINER]`.
fn named(line: Line) -> Line {
    let end = format!("/{CONTAINER}] ");
    let parts = line.text.strip_prefix("[pod/").and_then(|rest| rest.split_once(&end));
    match parts {
        Some((pod, text)) => Line { worker: pod.to_owned(), text: text.to_owned() },
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_their_pods() {
        let line =
            |worker: &str, text: &str| Line { worker: worker.to_owned(), text: text.to_owned() };
        let read = named(line("", "[pod/night-x7k2p-3-abcde/host] {\"level\": \"[pod/a/host] \"}"));
        assert_eq!(read, line("night-x7k2p-3-abcde", "{\"level\": \"[pod/a/host] \"}"));
        let other = line("", "error: the pod is gone");
        assert_eq!(named(other.clone()), other);
    }

    #[test]
    fn each_call_names_the_namespace() {
        let address: Address = "k8s://arn:aws:eks:eu-west-1:1:cluster/a/jobs".parse().unwrap();
        let Address::Kubernetes { context, namespace } = &address else { panic!("{address}") };
        let kubernetes = Kubernetes::new(&address, context.as_deref(), namespace);
        let place = ["get", "--context=arn:aws:eks:eu-west-1:1:cluster/a", "--namespace=jobs"];
        assert_eq!(kubernetes.args(&["get"]), place);
    }
}
