//! The parts that AWS Batch and AWS ECS share: clients, errors, options, sizes, and requests that
//! are sent exactly as `render` shows them.

#[cfg(test)]
pub(super) mod fake;
pub(super) mod logs;
mod options;

use std::error::Error;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_batch::config::http::{HttpRequest, HttpResponse};
use aws_sdk_batch::error::{ProvideErrorMetadata, SdkError};
use bytesize::ByteSize;
use serde_json::{Value, json};

use super::{Access, EngineError, FleetName, Spec};
use crate::aws::{self, NO_CREDENTIALS, chain, reasons};
use crate::digest::Digest;
use crate::shell;

pub(super) use options::{Options, whole};

/// The time limit of one attempt of a request. ECS is slow to stop tasks.
const ATTEMPT: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(5);
/// Tags of a fleet's resources.
pub(super) const FLEET: &str = "task-host.fleet";
pub(super) const DIGEST: &str = "task-host.digest";
/// Tag of a definition: the digest of its content.
pub(super) const DEFINITION: &str = "task-host.definition";
/// The variable with a worker's number, for engines that set no variable themselves.
pub(super) const WORKER_INDEX: &str = "HOST_WORKER_INDEX";
/// The prefix of the names of definitions and jobs.
pub(super) const PREFIX: &str = "task-host-";
/// The number of concurrent requests about single workers.
pub(super) const AT_A_TIME: usize = 10;
/// Why workers were stopped, as the AWS console shows it.
pub(super) const STOPPED: &str = "stopped by `host fleet`";

/// An AWS account and region, for one engine.
#[derive(Debug, Clone)]
pub(super) struct Aws {
    /// The engine's address, for errors.
    pub(super) engine: String,
    pub(super) region: String,
    pub(super) config: SdkConfig,
}

impl Aws {
    /// Finds the region and credentials as the AWS tools do.
    pub(super) async fn connect(engine: String, access: &Access) -> Result<Self, EngineError> {
        let region = access.region.clone();
        let config = aws::settings(region, None, &access.environment, None, None).await;
        let config = config.ok_or_else(|| EngineError::Unfit {
            problem: format!("{engine}: no region is set"),
            cure: Some(
                "give --region, or set AWS_REGION or the region of your profile in ~/.aws/config"
                    .to_owned(),
            ),
        })?;
        Ok(Self::of(engine, config))
    }

    pub(super) fn of(engine: String, config: SdkConfig) -> Self {
        let region = config.region().map(ToString::to_string).unwrap_or_default();
        let retries = aws::retries(&config);
        let timeouts = TimeoutConfig::builder();
        let timeouts = timeouts.connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT);
        let config = config.into_builder().retry_config(retries).timeout_config(timeouts.build());
        Self { engine, region, config: config.build() }
    }

    /// The error of a request.
    pub(super) fn failed<E>(&self, doing: &str, error: &SdkError<E, HttpResponse>) -> EngineError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let (problem, cure) = match error {
            SdkError::ServiceError(service) => {
                let code = service.err().code().unwrap_or_default();
                let code = code.rsplit('#').next().unwrap_or_default();
                let problem = match (code, service.err().message()) {
                    ("", None) => {
                        format!(
                            "HTTP status {} without an error code",
                            service.raw().status().as_u16()
                        )
                    }
                    ("", Some(message)) => message.to_owned(),
                    (code, None | Some("")) => code.to_owned(),
                    (code, Some(message)) => format!("{code}: {message}"),
                };
                (problem, cure(code))
            }
            SdkError::TimeoutError(_) => ("no answer in time".to_owned(), None),
            error if chain(error).any(|error| error.to_string().contains("credential")) => {
                (reasons(error), Some(NO_CREDENTIALS))
            }
            SdkError::DispatchFailure(_) => (
                reasons(error),
                Some("check the network, the region, and AWS_ENDPOINT_URL if it is set"),
            ),
            error => (reasons(error), None),
        };
        EngineError::Failed {
            engine: self.engine.clone(),
            doing: doing.to_owned(),
            problem,
            cure: cure.map(str::to_owned),
        }
    }

    /// The error for a request that does not fit the engine.
    pub(super) fn unfit(&self, problem: impl std::fmt::Display, cure: &str) -> EngineError {
        EngineError::Unfit {
            problem: format!("{}: {problem}", self.engine),
            cure: Some(cure.to_owned()),
        }
    }

    /// Rejects settings that containers in a cloud can't have.
    pub(super) fn check(&self, spec: &Spec) -> Result<(), EngineError> {
        if let Some(path) = spec.paths.first() {
            return Err(self.unfit(
                format_args!("workers in AWS can't reach {} of this machine", path.display()),
                "use a queue and a bucket of the cloud: --queue sqs://NAME --bucket s3://NAME",
            ));
        }
        if let Some(name) = spec.pass.first() {
            return Err(self.unfit(
                format_args!(
                    "--pass-env {name}: everybody who may list the workers could read its value"
                ),
                "give the workers a role instead, which needs no secrets",
            ));
        }
        if spec.relay > 1 {
            return Err(self.unfit("--relay is not supported", "leave it out, or use slurm://"));
        }
        Ok(())
    }

    /// The AWS command that sends a document.
    pub(super) fn command(&self, operation: &str, document: &Value) -> String {
        let document = format!("{document:#}");
        format!(
            "aws {operation} --region {} --cli-input-json {}\n",
            shell::quoted(&self.region),
            shell::quoted(&document)
        )
    }
}

/// What to do about an error of AWS.
fn cure(code: &str) -> Option<&'static str> {
    let is = |parts: &[&str]| parts.iter().any(|part| code.contains(part));
    if is(&["AccessDenied", "Unauthorized", "NotAuthorized"]) {
        return Some("allow it: deploy/aws/launcher-policy.json lists all that a launcher needs");
    }
    if is(&["ExpiredToken", "UnrecognizedClient", "InvalidClientToken", "Signature"]) {
        return Some("check your credentials with `aws sts get-caller-identity`");
    }
    if is(&["Throttl", "TooManyRequests", "RequestLimit"]) {
        return Some("AWS limits the rate of requests: try again in a minute");
    }
    None
}

/// Replaces the body of a request with this document, so that AWS receives exactly what `render`
/// shows.
pub(super) fn sending(document: &Value) -> impl Fn(&mut HttpRequest) + Send + Sync + 'static {
    let text = document.to_string();
    move |request| {
        let length = text.len().to_string();
        request.headers_mut().insert("content-length", length);
        *request.body_mut() = text.clone().into();
    }
}

/// The name of a fleet's jobs and definitions.
pub(super) fn name(fleet: &FleetName) -> String {
    format!("{PREFIX}{fleet}")
}

/// The fleet that a name belongs to.
pub(super) fn fleet(name: &str) -> Option<FleetName> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// A digest of a definition. It shows whether an existing definition has the same content.
pub(super) fn digest(definition: &Value) -> String {
    Digest::of(definition.to_string().as_bytes()).to_string()[..16].to_owned()
}

/// Environment variables, in the format of both services.
pub(super) fn variables<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    let pair = |(name, value): (&str, &str)| json!({"name": name, "value": value});
    pairs.into_iter().map(pair).collect()
}

/// The variables of workers.
pub(super) fn environment(spec: &Spec) -> impl Iterator<Item = (&str, &str)> {
    spec.environment.iter().map(|(name, value)| (&**name, &**value))
}

/// Whole MiB, the unit of memory of both services.
pub(super) fn mebibytes(memory: ByteSize) -> u64 {
    memory.as_u64().div_ceil(1 << 20)
}

/// The smallest Fargate size that is large enough, as vCPUs and MiB. `None` if there is none. The
/// sizes are those in the ECS Developer Guide.
pub(super) fn fargate_size(cpus: u32, memory: ByteSize) -> Option<(u32, u64)> {
    // The vCPUs, then the minimum, the maximum and the step of memory in GiB.
    const SIZES: [(u32, u64, u64, u64); 5] =
        [(1, 2, 8, 1), (2, 4, 16, 1), (4, 8, 30, 1), (8, 16, 60, 4), (16, 32, 120, 8)];
    let needed = memory.as_u64().div_ceil(1 << 30);
    SIZES.iter().filter(|size| size.0 >= cpus).find_map(|&(vcpus, least, most, step)| {
        let size = least + needed.saturating_sub(least).div_ceil(step) * step;
        (size <= most).then_some((vcpus, size << 10))
    })
}

impl Aws {
    /// The size of a worker on Fargate.
    pub(super) fn fargate(&self, spec: &Spec) -> Result<(u32, u64), EngineError> {
        fargate_size(spec.cpus, spec.memory).ok_or_else(|| {
            self.unfit(
                format_args!(
                    "Fargate has no size with {} vCPUs and {}",
                    spec.cpus,
                    spec.memory.display().iec()
                ),
                "use at most 16 cores and 120 GiB, or machines of EC2",
            )
        })
    }
}

/// Describes an exit code.
pub(super) fn exit(code: i32) -> String {
    match code {
        137 => "exit code 137 (killed: out of memory, or too slow to stop?)".to_owned(),
        code => format!("exit code {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_fargate_are_the_next_larger_ones() {
        let check = |cpus, gib: f64, size: Option<(u32, u64)>| {
            let memory = ByteSize::b((gib * f64::from(1 << 30)) as u64);
            assert_eq!(fargate_size(cpus, memory), size, "{cpus} cores, {gib} GiB");
        };
        check(1, 0.5, Some((1, 2048)));
        check(1, 2.5, Some((1, 3072)));
        check(1, 9.0, Some((2, 9 * 1024)));
        check(3, 8.0, Some((4, 8 * 1024)));
        check(5, 17.0, Some((8, 20 * 1024)));
        check(16, 120.0, Some((16, 120 * 1024)));
        check(16, 121.0, None);
        check(17, 1.0, None);
    }
}
