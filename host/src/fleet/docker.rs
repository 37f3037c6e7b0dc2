//! Docker: the workers are containers, which are found by their labels.

mod container;
mod mounts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};

use super::last_words::last_words;
use super::program::{Answer, Program};
use super::{
    Access, Capacity, Counts, Engine, EngineError, FleetName, Line, Logs, Spec, Status, Stop,
    Times, Trouble, reasons,
};
use container::{Container, Place, State};

/// The labels of a container.
const FLEET: &str = "task-host.fleet";
const WORKER: &str = "task-host.worker";
const DIGEST: &str = "task-host.digest";

/// The number of containers that are started concurrently.
const AT_A_TIME: usize = 8;
/// The number of failed workers whose last log lines are read.
const ASKED: usize = 3;

/// A Docker daemon, used through the command `docker`.
pub(super) struct Docker {
    url: String,
    context: Option<String>,
    access: Access,
    /// The containers at the last [`Engine::status`]. Newer containers belong to another launcher,
    /// which starts the same workers.
    seen: Mutex<Vec<Container>>,
}

impl Docker {
    pub(super) fn new(url: String, context: Option<String>, access: Access) -> Self {
        Self { url, context, access, seen: Mutex::default() }
    }

    fn program(&self) -> Program {
        Program {
            engine: self.url.clone(),
            name: "docker",
            install: "install Docker's command line tool, from https://docs.docker.com/engine/install",
        }
    }

    /// Adds the arguments that come before all others.
    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let context = self.context.as_deref().map(|context| ["--context", context]);
        context.into_iter().flatten().chain(args.iter().copied()).collect()
    }

    async fn run(&self, doing: &str, args: &[&str]) -> Result<String, EngineError> {
        self.program().run(doing, &self.args(args), "").await
    }

    async fn ask(&self, doing: &str, args: &[&str]) -> Result<Answer, EngineError> {
        self.program().ask(doing, &self.args(args), "").await
    }

    /// All containers of a fleet, sorted by worker number.
    async fn containers(&self, fleet: &FleetName) -> Result<Vec<Container>, EngineError> {
        let doing = "looking at containers";
        let label = format!("label={FLEET}={fleet}");
        let list = ["ps", "--all", "--no-trunc", "--quiet", "--filter", &label];
        let ids = self.run(doing, &list).await?;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        // `docker inspect` fails if a container was removed meanwhile, but still describes the
        // others.
        let answer =
            self.ask(doing, &[&["inspect", "--type=container"], &ids[..]].concat()).await?;
        let containers: Result<Vec<Container>, _> = serde_json::from_str(&answer.stdout);
        let mut containers = containers.map_err(|_| {
            let words = answer.words();
            self.program().failed(doing, format!("docker inspect answered: {words}"), None)
        })?;
        containers.sort_by_key(Container::worker);
        Ok(containers)
    }

    /// Whether the daemon has access to the files of this machine.
    async fn is_here(&self) -> Result<bool, EngineError> {
        let endpoint = ["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"];
        let mut endpoint = endpoint.to_vec();
        endpoint.extend(self.context.as_deref());
        let endpoint = self.program().run("looking at its context", &endpoint, "").await?;
        Ok(endpoint.trim().starts_with("unix://"))
    }

    /// The arguments of `docker run` that are the same for all workers of a fleet.
    fn create(&self, spec: &Spec, is_here: bool) -> Result<Vec<String>, EngineError> {
        let walltime = spec.walltime.map(|_| "--walltime");
        if let Some(option) = walltime.or((spec.relay > 1).then_some("--relay")) {
            return Err(EngineError::Unfit {
                problem: format!("{option}: Docker sets no limit to the time of a container"),
                cure: Some("use --for, after which a worker takes no new tasks".to_owned()),
            });
        }
        let mut args: Vec<String> = Vec::new();
        let mut set = |name: &str, value: &str| args.push(format!("--{name}={value}"));
        set("label", &format!("{FLEET}={}", spec.fleet));
        set("label", &format!("{DIGEST}={}", spec.digest()));
        set("cpus", &spec.cpus.to_string());
        let memory = spec.memory.as_u64().to_string();
        set("memory", &memory);
        // Without swap, only the task that needs too much memory fails.
        set("memory-swap", &memory);
        set("stop-timeout", &spec.stop_time.as_secs().to_string());
        set("cap-drop", "ALL");
        set("security-opt", "no-new-privileges");
        set("read-only", "true");
        set("tmpfs", "/tmp");
        set("mount", "type=volume,target=/cache");
        if is_here && !spec.paths.is_empty() {
            let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
            set("user", &format!("{}:{}", user.as_raw(), group.as_raw()));
        }
        set("workdir", mounts::text(&spec.directory)?);
        for path in mounts::roots(&spec.paths) {
            set("mount", &mounts::bind(mounts::text(path)?));
        }
        // The command's environment has the values.
        for name in spec.environment.keys().chain(&spec.pass) {
            set("env", name);
        }
        for (name, values) in &spec.options {
            if let Some((_, ours)) = OURS.iter().find(|(ours, _)| ours == name) {
                return Err(EngineError::Unfit {
                    problem: format!("the option {name} of Docker is set by {ours}"),
                    cure: None,
                });
            }
            for value in values {
                set(name, value);
            }
        }
        Ok(args)
    }

    /// Starts the worker with this number, unless another launcher has started it.
    async fn start_one(
        &self,
        spec: &Spec,
        create: &[String],
        variables: &BTreeMap<String, String>,
        place: Place,
    ) -> Result<(), EngineError> {
        let name = place.name(&spec.fleet);
        let mut variables = variables.clone();
        variables.insert("HOST_WORKER".to_owned(), name.clone());
        variables.insert("HOST_WORKER_INDEX".to_owned(), place.worker.to_string());
        let given = format!("--name={name}");
        let label = format!("--label={WORKER}={}", place.worker);
        let mut args = vec!["run", "--detach", &given, &label];
        args.extend(["--env=HOST_WORKER", "--env=HOST_WORKER_INDEX"]);
        args.extend(create.iter().map(String::as_str));
        args.extend([&*spec.image, "run"]);
        let doing = "starting a container";
        let answer =
            self.program().ask_with(doing, &self.args(&args), "", Some(&variables)).await?;
        if answer.success {
            return Ok(());
        }
        // Either another launcher was faster, or the container could not be started and holds the
        // reason.
        let mut containers = self.containers(&spec.fleet).await?;
        // Docker reserves a name before it lists its container.
        for _ in 0..LISTED_WITHIN {
            let is_listed = containers.iter().any(|container| container.name() == name);
            if is_listed || !answer.stderr.contains("is already in use by container") {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            containers = self.containers(&spec.fleet).await?;
        }
        match containers.iter().find(|container| container.name() == name) {
            Some(container) if container.label(DIGEST) == Some(&spec.digest()) => Ok(()),
            Some(_) => Err(EngineError::Unfit {
                problem: format!(
                    "another launcher has just started fleet {} with other options",
                    spec.fleet
                ),
                cure: Some("use another name".to_owned()),
            }),
            None => Err(self.program().failed(doing, answer.words(), None)),
        }
    }

    /// The last error in a worker's log, or the last line of the log.
    async fn last_words(&self, id: &str) -> Option<String> {
        let answer = self.ask("reading logs", &["logs", "--tail=5", id]).await.ok()?;
        last_words(&answer.stderr)
    }

    /// Starts the containers that were created but not started because their launcher was
    /// interrupted. Returns their number.
    async fn start_created(&self, containers: &[Container]) -> Result<u32, EngineError> {
        let created = containers.iter().filter(|container| container.state() == State::Created);
        let mut ids: Vec<&str> = created.map(Container::id).collect();
        let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        if count > 0 {
            ids.insert(0, "start");
            self.run("starting a container", &ids).await?;
        }
        Ok(count)
    }
}

/// Seconds until Docker lists a container whose name it has reserved.
const LISTED_WITHIN: u32 = 30;

/// Options of `docker run` that are set for every worker, and the setting that determines each.
const OURS: &[(&str, &str)] = &[
    ("cpus", "--cpus"),
    ("detach", "the fleet"),
    ("env", "--pass-env, or an option of `host run`"),
    ("env-file", "--pass-env, or an option of `host run`"),
    ("label", "the fleet"),
    ("memory", "--mem"),
    ("memory-swap", "--mem"),
    ("name", "the fleet"),
    ("restart", "the fleet"),
    ("rm", "the fleet"),
    ("stop-timeout", "--grace"),
    ("workdir", "the directory of the command"),
];

#[async_trait]
impl Engine for Docker {
    fn times(&self) -> Times {
        Times { stop: None, start: Duration::from_secs(60) }
    }

    async fn check(&self, spec: &Spec) -> Result<Option<Capacity>, EngineError> {
        let doing = "asking for its resources";
        let info = self.run(doing, &["info", "--format={{.NCPU}} {{.MemTotal}}"]).await?;
        let unfit = |problem: String, cure: &str| EngineError::Unfit {
            problem: format!("{}: {problem}", self.url),
            cure: Some(cure.to_owned()),
        };
        let mut numbers = info.split_whitespace().map(|number| number.parse::<u64>().ok());
        if let (Some(Some(cpus)), Some(Some(memory))) = (numbers.next(), numbers.next()) {
            if u64::from(spec.cpus) > cpus {
                let problem = format!("the machine has {cpus} cores, fewer than {}", spec.cpus);
                return Err(unfit(problem, "use a smaller --cpus or --parallel"));
            }
            if spec.memory.as_u64() > memory {
                let problem = format!(
                    "the machine has {} of memory, less than {}",
                    bytesize::ByteSize::b(memory).display().iec(),
                    spec.memory.display().iec()
                );
                return Err(unfit(problem, "use a smaller --mem, --memory or --parallel"));
            }
        }
        let is_here = self.is_here().await?;
        self.create(spec, is_here)?;
        if let Some(missing) = mounts::missing(spec).filter(|_| is_here) {
            return Err(unfit(
                format!("{} does not exist, but workers need it", missing.display()),
                "check the path, or create it",
            ));
        }
        let doing = "looking for the image";
        if !self.ask(doing, &["image", "inspect", "--format={{.Id}}", &spec.image]).await?.success {
            self.run("pulling the image", &["pull", "--quiet", &spec.image]).await?;
        }
        Ok(None)
    }

    fn render(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        let is_remote = |host: &str| !host.starts_with("unix://");
        let is_here = !self.access.environment.get("DOCKER_HOST").is_some_and(is_remote);
        let create = self.create(spec, is_here)?;
        Ok(container::script(spec, &self.args(&["run", "--detach"]), &create, workers))
    }

    async fn start(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        let is_here = self.is_here().await?;
        if is_here {
            mounts::make(spec).map_err(|problem| EngineError::Unfit { problem, cure: None })?;
        }
        let create = self.create(spec, is_here)?;
        let mut variables: BTreeMap<String, String> = self
            .access
            .environment
            .starting("")
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        variables.extend(spec.environment.clone());

        let there = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let again = self.start_created(&there).await?;
        let new = Place::free(&there).take(workers.saturating_sub(again) as usize);
        let starts = new.map(|place| self.start_one(spec, &create, &variables, place));
        let started: Vec<_> = stream::iter(starts).buffer_unordered(AT_A_TIME).collect().await;
        let count = started.iter().filter(|one| one.is_ok()).count();
        let failure = started.into_iter().find_map(Result::err);
        match (count, failure) {
            (0, Some(error)) if again == 0 => Err(error),
            (_, failure) => {
                let count = count + again as usize;
                let why = failure.map_or(String::new(), |error| format!("; {error}"));
                Ok(format!("{count} container{}{why}", if count == 1 { "" } else { "s" }))
            }
        }
    }

    async fn status(&self, fleet: &FleetName) -> Result<Option<Status>, EngineError> {
        let containers = self.containers(fleet).await?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&containers);
        let Some(newest) = containers.last() else { return Ok(None) };
        let mut counts = Counts::default();
        let mut all = Vec::new();
        let mut asked = 0;
        for container in &containers {
            match container.state() {
                State::Running => counts.running += 1,
                State::Ended => counts.ended += 1,
                // The next start of the fleet starts it.
                State::Created => {
                    counts.failed += 1;
                    all.push((Trouble::Failed, "it was created but not started".to_owned()));
                }
                State::Failed(mut reason) => {
                    counts.failed += 1;
                    if asked < ASKED && container.has_run() {
                        asked += 1;
                        if let Some(words) = self.last_words(container.id()).await {
                            reason = format!("{reason}: {words}");
                        }
                    }
                    all.push((Trouble::Failed, reason));
                }
            }
        }
        Ok(Some(Status {
            counts,
            reasons: reasons(all),
            since: containers.iter().filter_map(Container::created).min(),
            digest: newest.label(DIGEST).unwrap_or_default().to_owned(),
            environment: newest.environment(),
        }))
    }

    async fn fleets(&self) -> Result<BTreeSet<FleetName>, EngineError> {
        let filter = format!("label={FLEET}");
        let format = format!("{{{{.Label \"{FLEET}\"}}}}");
        let list = ["ps", "--all", "--filter", &filter, "--format", &format];
        let names = self.run("looking at containers", &list).await?;
        Ok(names.lines().filter_map(|name| name.trim().parse().ok()).collect())
    }

    async fn logs(
        &self,
        fleet: &FleetName,
        wanted: &Logs,
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError> {
        let containers = self.containers(fleet).await?;
        let of = |container: &&Container| {
            wanted.worker.is_none_or(|worker| container.worker() == Some(worker))
        };
        let tail = wanted.tail.map(|lines| format!("--tail={lines}"));
        let mut sources = Vec::new();
        for container in containers.iter().filter(of) {
            let mut args = vec!["logs"];
            args.extend(wanted.follow.then_some("--follow"));
            args.extend(tail.as_deref());
            args.push(container.id());
            let args: Vec<String> = self.args(&args).into_iter().map(str::to_owned).collect();
            let worker = container.worker().map_or("?".to_owned(), |number| number.to_string());
            sources.push((worker, args));
        }
        let program = self.program();
        let open = move |(worker, args): (String, Vec<String>)| {
            program.error_lines("reading logs", &worker, &args)
        };
        if wanted.follow {
            let all: Result<Vec<_>, _> = sources.into_iter().map(open).collect();
            return Ok(stream::select_all(all?).boxed());
        }
        // One container after the other.
        Ok(stream::iter(sources.into_iter().map(open)).try_flatten().boxed())
    }

    async fn stop(&self, fleet: &FleetName, which: Stop) -> Result<(), EngineError> {
        let containers = self.containers(fleet).await?;
        let ids = |is: &dyn Fn(&State) -> bool| -> Vec<&str> {
            containers.iter().filter(|one| is(&one.state())).map(Container::id).collect()
        };
        let running = ids(&|state| *state == State::Running);
        // A fleet that has ended is removed together with its logs.
        let gone = match which {
            Stop::All if running.is_empty() => ids(&|_| true),
            _ => ids(&|state| *state == State::Created),
        };
        if !gone.is_empty() {
            let remove = ["rm", "--force", "--volumes"];
            self.run("removing containers", &[&remove, &gone[..]].concat()).await?;
        }
        if which == Stop::Waiting || running.is_empty() {
            return Ok(());
        }
        // `docker stop` would wait until the containers end. A host enforces its grace period
        // itself.
        let doing = "stopping containers";
        let answer = self.ask(doing, &[&["kill", "--signal=TERM"], &running[..]].concat()).await?;
        let has_ended = |line: &str| ["is not running", "No such"].iter().any(|w| line.contains(w));
        if answer.success || answer.stderr.lines().all(has_ended) {
            return Ok(());
        }
        Err(self.program().failed(doing, answer.words(), None))
    }
}
