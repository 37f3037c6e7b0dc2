//! Builds the requests to AWS ECS as JSON documents.

use serde_json::{Value, json};

use crate::fleet::aws::{self, Aws, Options};
use crate::fleet::{EngineError, FleetName, Spec};

/// The options that this engine knows.
const KNOWN: [&str; 10] = [
    "assign-public-ip",
    "capacity-provider",
    "ephemeral-storage",
    "execution-role",
    "launch-type",
    "log-group",
    "network-mode",
    "security-groups",
    "subnets",
    "task-role",
];
/// The name of the container.
pub(super) const CONTAINER: &str = "host";
/// The option for the log group.
pub(super) const GROUP: &str = "awslogs-group";
/// The option for the prefix of the log streams' names.
pub(super) const STREAMS: &str = "awslogs-stream-prefix";
/// The default address of a worker's health check.
const LISTEN: (&str, &str) = ("HOST_LISTEN", "127.0.0.1:8080");

/// The launch type of ECS tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Launch {
    Fargate,
    Ec2,
    External,
}

impl Launch {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fargate => "FARGATE",
            Self::Ec2 => "EC2",
            Self::External => "EXTERNAL",
        }
    }
}

/// The settings of a request to a cluster.
pub(super) struct Request<'a> {
    aws: &'a Aws,
    spec: &'a Spec,
    options: Options<'a>,
    launch: Launch,
    network: &'static str,
}

impl<'a> Request<'a> {
    /// Checks that ECS can run such workers.
    pub(super) fn new(aws: &'a Aws, spec: &'a Spec) -> Result<Self, EngineError> {
        aws.check(spec)?;
        if spec.walltime.is_some() {
            return Err(aws.unfit("--walltime is not supported", "leave it out, or use batch://"));
        }
        let options = Options::new(aws, &spec.options, &KNOWN)?;
        let provider = options.get("capacity-provider");
        let launch = match options.one_of("launch-type", &["FARGATE", "EC2", "EXTERNAL"])? {
            Some(_) if provider.is_some() => {
                return Err(
                    options.useless("launch-type", "the capacity provider already determines it")
                );
            }
            Some("EC2") => Launch::Ec2,
            Some("EXTERNAL") => Launch::External,
            Some(_) => Launch::Fargate,
            None if provider.is_none_or(|name| name.starts_with("FARGATE")) => Launch::Fargate,
            None => Launch::Ec2,
        };
        let subnets = !options.list("subnets").is_empty();
        let usual = if launch == Launch::Fargate || subnets { "awsvpc" } else { "bridge" };
        let asked = options.one_of("network-mode", &["awsvpc", "bridge", "host", "none"])?;
        let network = asked.unwrap_or(usual);
        let request = Self { aws, spec, options, launch, network };
        request.check(subnets)?;
        Ok(request)
    }

    fn check(&self, subnets: bool) -> Result<(), EngineError> {
        let Self { options, launch, network, .. } = self;
        if *launch == Launch::Fargate {
            self.aws.fargate(self.spec)?;
            if *network != "awsvpc" {
                let why = "tasks on Fargate have the network mode awsvpc";
                return Err(options.useless("network-mode", why));
            }
            if options.get("execution-role").is_none() {
                let why = "tasks on Fargate need a role that pulls images and writes logs";
                return Err(options.needed("execution-role", "ARN", why));
            }
        } else if options.get("ephemeral-storage").is_some() {
            return Err(options.useless("ephemeral-storage", "it is for tasks on Fargate"));
        }
        if *network == "awsvpc" && !subnets {
            let why = "tasks with the network mode awsvpc need subnets";
            return Err(options.needed("subnets", "SUBNET,SUBNET", why));
        }
        let of_vpc = ["subnets", "security-groups", "assign-public-ip"];
        if *network != "awsvpc"
            && let Some(name) = of_vpc.into_iter().find(|name| options.get(name).is_some())
        {
            return Err(options.useless(name, "it is for the network mode awsvpc"));
        }
        options.switch("assign-public-ip")?;
        options.gibibytes("ephemeral-storage")?;
        Ok(())
    }

    /// The default log group, which this program may have to create. `None` if the user names a
    /// group.
    pub(super) fn own_log_group(&self) -> Option<String> {
        self.options.get("log-group").is_none().then(|| log_group(&self.spec.fleet))
    }

    /// The address of a worker's health check. `None` if there can be none.
    fn listens(&self) -> Option<&str> {
        let asked = self.spec.environment.get(LISTEN.0).map(String::as_str);
        match asked {
            Some(address) => Some(address).filter(|address| !address.ends_with(":0")),
            // Workers that share the machine's network can't all listen on the same port.
            None => Some(LISTEN.1).filter(|_| !["host", "none"].contains(&self.network)),
        }
    }

    /// The task definition to register.
    pub(super) fn definition(&self) -> Result<Value, EngineError> {
        let Self { aws, spec, options, launch, network } = self;
        let listens = self.listens();
        let added = listens.filter(|_| !spec.environment.contains_key(LISTEN.0));
        let added = added.map(|address| (LISTEN.0, address));
        let own_group = log_group(&spec.fleet);
        let group = options.get("log-group").unwrap_or(&own_group);
        let mut container = json!({
            "name": CONTAINER,
            "image": spec.image,
            "essential": true,
            "command": ["run"],
            "environment": aws::variables(aws::environment(spec).chain(added)),
            "stopTimeout": spec.stop_time.as_secs(),
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": {GROUP: group, "awslogs-region": aws.region, STREAMS: "worker"},
            },
        });
        if listens.is_some() {
            container["healthCheck"] = json!({
                "command": ["CMD", "/host", "health"],
                "interval": 30, "timeout": 5, "retries": 3, "startPeriod": 60,
            });
        }
        let (cpus, memory) = match launch {
            Launch::Fargate => aws.fargate(spec)?,
            Launch::Ec2 | Launch::External => (spec.cpus, aws::mebibytes(spec.memory)),
        };
        let mut definition = json!({
            "family": aws::name(&spec.fleet),
            "requiresCompatibilities": [launch.as_str()],
            "networkMode": network,
            "cpu": (u64::from(cpus) * 1024).to_string(),
            "memory": memory.to_string(),
            "containerDefinitions": [container],
        });
        if let Some(role) = options.get("task-role") {
            definition["taskRoleArn"] = json!(role);
        }
        if let Some(role) = options.get("execution-role") {
            definition["executionRoleArn"] = json!(role);
        }
        if let Some(size) = options.gibibytes("ephemeral-storage")? {
            definition["ephemeralStorage"] = json!({"sizeInGiB": size});
        }
        definition["tags"] = json!([
            {"key": aws::FLEET, "value": spec.fleet},
            {"key": aws::DEFINITION, "value": aws::digest(&definition)},
        ]);
        Ok(definition)
    }

    /// The ECS task of a worker. Each worker has its own number, so each needs its own request.
    pub(super) fn task(
        &self,
        cluster: &str,
        definition: &str,
        worker: u32,
    ) -> Result<Value, EngineError> {
        let Self { spec, options, launch, network, .. } = self;
        let number = worker.to_string();
        let mut task = json!({
            "cluster": cluster,
            "taskDefinition": definition,
            "count": 1,
            "startedBy": started_by(&spec.fleet, &spec.digest()),
            "propagateTags": "TASK_DEFINITION",
            "overrides": {"containerOverrides": [{
                "name": CONTAINER,
                "environment": aws::variables([(aws::WORKER_INDEX, &*number)]),
            }]},
        });
        match options.get("capacity-provider") {
            Some(name) => {
                let provider = json!({"capacityProvider": name, "weight": 1});
                task["capacityProviderStrategy"] = json!([provider]);
            }
            None => task["launchType"] = json!(launch.as_str()),
        }
        if *network == "awsvpc" {
            let mut vpc = json!({"subnets": options.list("subnets")});
            let groups = options.list("security-groups");
            if !groups.is_empty() {
                vpc["securityGroups"] = json!(groups);
            }
            let public = options.switch("assign-public-ip")?;
            // On EC2 machines, these tasks have no public addresses.
            if *launch == Launch::Fargate || public.is_some() {
                vpc["assignPublicIp"] = json!(public.unwrap_or("DISABLED"));
            }
            task["networkConfiguration"] = json!({"awsvpcConfiguration": vpc});
        }
        Ok(task)
    }
}

/// The default log group of a fleet.
fn log_group(fleet: &FleetName) -> String {
    format!("/task-host/{fleet}")
}

/// The `startedBy` of a task: the fleet and the digest of its options.
fn started_by(fleet: &FleetName, digest: &str) -> String {
    format!("task-host/{fleet}/{digest}")
}

/// The digest of the options of a task's fleet.
pub(super) fn digest_of(started_by: &str) -> Option<&str> {
    started_by.strip_prefix("task-host/")?.split_once('/').map(|(_, digest)| digest)
}
