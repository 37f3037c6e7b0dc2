//! Computes the room of a job queue from its compute environments.

use aws_sdk_batch::types::{
    CeState, CeStatus, CeType, ComputeEnvironmentDetail, JobQueueDetail, JqState, JqStatus,
};

use super::request::Platform;
use crate::fleet::aws::whole;

/// The room of a job queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Room {
    /// The maximum number of vCPUs of its compute environments. `None` if one sets no limit.
    pub(super) vcpus: Option<u32>,
    /// The vCPUs that EC2 machines have now or will have soon.
    desired: u32,
    /// The platform of its first usable compute environment.
    pub(super) platform: Option<Platform>,
    /// Why no worker can run at all.
    pub(super) trouble: Option<String>,
    /// What is wrong with some of the compute environments.
    warnings: Vec<String>,
}

impl Room {
    pub(super) fn new(queue: &JobQueueDetail, environments: &[ComputeEnvironmentDetail]) -> Self {
        let mut room = Self {
            vcpus: Some(0),
            desired: 0,
            platform: None,
            trouble: None,
            warnings: Vec::new(),
        };
        let mut is_usable = false;
        for environment in environments {
            let name = environment.compute_environment_name().unwrap_or_default();
            if environment.state() == Some(&CeState::Disabled) {
                room.warnings.push(format!("compute environment {name} is disabled"));
                continue;
            }
            let status = environment.status().unwrap_or(&CeStatus::Valid);
            if !matches!(status, CeStatus::Valid | CeStatus::Updating) {
                let reason = environment.status_reason().unwrap_or("without a reason");
                let status = status.as_str();
                room.warnings.push(format!("compute environment {name} is {status}: {reason}"));
                continue;
            }
            is_usable = true;
            let resources = environment.compute_resources();
            let kind = resources.and_then(|it| it.r#type()).map(|it| it.as_str().to_owned());
            let is_fargate = kind.is_some_and(|kind| kind.starts_with("FARGATE"));
            let platform = if is_fargate { Platform::Fargate } else { Platform::Ec2 };
            room.platform = room.platform.or(Some(platform));
            let most = resources.and_then(|it| it.maxv_cpus()).map(whole);
            let most = most.filter(|_| environment.r#type() != Some(&CeType::Unmanaged));
            room.vcpus = room.vcpus.zip(most).map(|(sum, more)| sum + more);
            room.desired += resources.and_then(|it| it.desiredv_cpus()).map_or(0, whole);
        }
        let name = queue.job_queue_name().unwrap_or_default();
        let reason = queue.status_reason().unwrap_or("without a reason");
        room.trouble = match (queue.state(), queue.status()) {
            (Some(JqState::Disabled), _) => Some(format!("job queue {name} is disabled")),
            (_, Some(JqStatus::Invalid)) => Some(format!("job queue {name} is INVALID: {reason}")),
            _ if is_usable => None,
            _ if environments.is_empty() => Some(format!("job queue {name} has no environment")),
            _ => Some(room.warnings.join("; ")),
        };
        room
    }

    /// Why workers of `vcpus` vCPUs wait while `running` others run, if the queue's room is the
    /// reason.
    pub(super) fn why(&self, running: u32, vcpus: u32) -> Option<String> {
        if let Some(trouble) = &self.trouble {
            return Some(trouble.clone());
        }
        let all = self.vcpus?;
        let ours = running.saturating_mul(vcpus);
        if ours + vcpus > all {
            return Some(format!("{ours} of {all} vCPUs in use by this fleet"));
        }
        if self.desired >= all && all > 0 {
            return Some(format!("{} of {all} vCPUs in use", self.desired));
        }
        self.warnings.first().cloned()
    }
}
