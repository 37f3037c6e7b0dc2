//! Builds the requests to AWS Batch as JSON documents.

use serde_json::{Value, json};

use crate::fleet::aws::{self, Aws, Options};
use crate::fleet::{EngineError, Spec};

/// The options that this engine knows.
const KNOWN: [&str; 7] = [
    "assign-public-ip",
    "definition",
    "ephemeral-storage",
    "execution-role",
    "job-role",
    "log-group",
    "platform",
];
/// The shortest time limit of a job, in seconds.
const SHORTEST_WALLTIME: u64 = 60;
/// The maximum number of starts of a worker whose machine is taken away.
const ATTEMPTS: u32 = 10;

/// The kind of machine that containers run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Platform {
    Fargate,
    Ec2,
}

/// The settings of a request to a job queue.
pub(super) struct Request<'a> {
    aws: &'a Aws,
    spec: &'a Spec,
    options: Options<'a>,
}

impl<'a> Request<'a> {
    /// Checks that Batch can run such workers.
    pub(super) fn new(aws: &'a Aws, spec: &'a Spec) -> Result<Self, EngineError> {
        aws.check(spec)?;
        let options = Options::new(aws, &spec.options, &KNOWN)?;
        if let Some(time) = spec.walltime.filter(|time| time.as_secs() < SHORTEST_WALLTIME) {
            let time = humantime::format_duration(time);
            let problem = format!("--walltime {time} is shorter than the minimum of one minute");
            return Err(aws.unfit(problem, "use --walltime 1m or longer"));
        }
        let request = Self { aws, spec, options };
        if request.own_definition().is_some() {
            let others = KNOWN.iter().filter(|name| **name != "definition");
            if let Some(other) = others.into_iter().find(|name| options.get(name).is_some()) {
                return Err(options.useless(other, "your own job definition already sets it"));
            }
            if spec.walltime.is_some() {
                let problem = "--walltime: your own job definition already sets it";
                return Err(aws.unfit(problem, "leave it out"));
            }
        }
        request.platform()?;
        Ok(request)
    }

    /// The user's own job definition.
    pub(super) fn own_definition(&self) -> Option<&'a str> {
        self.options.get("definition")
    }

    /// The requested platform.
    pub(super) fn platform(&self) -> Result<Option<Platform>, EngineError> {
        let word = self.options.one_of("platform", &["FARGATE", "EC2"])?;
        Ok(word.map(|word| if word == "FARGATE" { Platform::Fargate } else { Platform::Ec2 }))
    }

    /// The vCPUs of a worker.
    pub(super) fn vcpus(&self, platform: Platform) -> Result<u32, EngineError> {
        match platform {
            Platform::Fargate => Ok(self.aws.fargate(self.spec)?.0),
            Platform::Ec2 => Ok(self.spec.cpus),
        }
    }

    /// The job definition to register, for this platform.
    pub(super) fn definition(&self, platform: Platform) -> Result<Value, EngineError> {
        let Self { aws, spec, options } = self;
        let (vcpus, memory) = match platform {
            Platform::Fargate => aws.fargate(spec)?,
            Platform::Ec2 => (spec.cpus, aws::mebibytes(spec.memory)),
        };
        let mut container = json!({
            "image": spec.image,
            "command": ["run"],
            "resourceRequirements": [
                {"type": "VCPU", "value": vcpus.to_string()},
                {"type": "MEMORY", "value": memory.to_string()},
            ],
            "environment": aws::variables(aws::environment(spec)),
        });
        if let Some(role) = options.get("job-role") {
            container["jobRoleArn"] = json!(role);
        }
        if let Some(group) = options.get("log-group") {
            let options = json!({"awslogs-group": group, "awslogs-stream-prefix": "worker"});
            container["logConfiguration"] = json!({"logDriver": "awslogs", "options": options});
        }
        let execution_role = options.get("execution-role");
        if let Some(role) = execution_role {
            container["executionRoleArn"] = json!(role);
        }
        let public = options.switch("assign-public-ip")?;
        let storage = options.gibibytes("ephemeral-storage")?;
        if platform == Platform::Fargate {
            if execution_role.is_none() {
                let why = "jobs on Fargate need a role that pulls images and writes logs";
                return Err(options.needed("execution-role", "ARN", why));
            }
            let public = public.unwrap_or("DISABLED");
            container["networkConfiguration"] = json!({"assignPublicIp": public});
            if let Some(size) = storage {
                container["ephemeralStorage"] = json!({"sizeInGiB": size});
            }
        } else if public.is_some() {
            return Err(options.useless("assign-public-ip", "it is for jobs on Fargate"));
        } else if storage.is_some() {
            return Err(options.useless("ephemeral-storage", "it is for jobs on Fargate"));
        }
        let mut definition = json!({
            "jobDefinitionName": aws::name(&spec.fleet),
            "type": "container",
            "platformCapabilities": [match platform {
                Platform::Fargate => "FARGATE",
                Platform::Ec2 => "EC2",
            }],
            "containerProperties": container,
            // Failed tasks are retried through the queue. Batch restarts only a worker whose
            // machine was taken away.
            "retryStrategy": {
                "attempts": ATTEMPTS,
                "evaluateOnExit": [
                    {"onStatusReason": "Host EC2*", "action": "RETRY"},
                    {"onStatusReason": "Your Spot Task was interrupted*", "action": "RETRY"},
                    {"onReason": "*", "action": "EXIT"},
                ],
            },
            "propagateTags": true,
        });
        if let Some(time) = spec.walltime {
            definition["timeout"] = json!({"attemptDurationSeconds": time.as_secs()});
        }
        definition["tags"] = json!({
            aws::FLEET: spec.fleet,
            aws::DEFINITION: aws::digest(&definition),
        });
        Ok(definition)
    }

    /// The job, or the array of jobs, to submit to a queue.
    pub(super) fn job(&self, queue: &str, definition: &str, workers: u32) -> Value {
        let mut job = json!({
            "jobName": aws::name(&self.spec.fleet),
            "jobQueue": queue,
            "jobDefinition": definition,
            "propagateTags": true,
            "tags": {aws::FLEET: self.spec.fleet, aws::DIGEST: self.spec.digest()},
        });
        if workers > 1 {
            job["arrayProperties"] = json!({"size": workers});
        }
        let own = self.own_definition().map(|_| aws::environment(self.spec));
        // Batch sets an index only for the jobs of an array.
        let index = (workers == 1).then_some((aws::WORKER_INDEX, "0"));
        let variables = aws::variables(own.into_iter().flatten().chain(index));
        if variables.as_array().is_some_and(|variables| !variables.is_empty()) {
            job["containerOverrides"] = json!({"environment": variables});
        }
        job
    }
}
