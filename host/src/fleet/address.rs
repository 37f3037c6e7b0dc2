//! Parses the URL of an engine.
//!
//! ```text
//! docker://                this machine, or what DOCKER_HOST or the current context names
//! docker://CONTEXT         a context of the docker command
//! slurm://                 the default partition
//! slurm://PARTITION        a partition
//! batch://QUEUE            a job queue of AWS Batch, by its name
//! ecs://CLUSTER            a cluster of AWS ECS
//! k8s://NAMESPACE          a namespace of the cluster of kubectl's current context
//! k8s://CONTEXT/NAMESPACE  a namespace of the cluster of another context
//! ```

use std::fmt;
use std::str::FromStr;

/// An engine, and the part of it that runs the workers. `Display` is its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Containers of a Docker daemon.
    Docker {
        /// A context of the docker command; `None` for the current one.
        context: Option<String>,
    },
    /// Jobs of Slurm.
    Slurm {
        /// The partition; `None` for the default one.
        partition: Option<String>,
    },
    /// Jobs of AWS Batch.
    Batch {
        /// The job queue.
        queue: String,
    },
    /// Tasks of AWS ECS.
    Ecs {
        /// The cluster.
        cluster: String,
    },
    /// Pods of Kubernetes.
    Kubernetes {
        /// A context of kubectl; `None` for the current one.
        context: Option<String>,
        /// The namespace.
        namespace: String,
    },
}

/// The error for a text that is not the URL of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct AddressError {
    /// What is wrong with the text, and what to write instead.
    pub problem: String,
}

const KNOWN: &str = "docker://, slurm://PARTITION, batch://QUEUE, ecs://CLUSTER or k8s://NAMESPACE";

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(url: &str) -> Result<Self, AddressError> {
        let wrong = |problem: String| AddressError { problem };
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(wrong(format!("is not the URL of an engine; write {KNOWN}")));
        };
        let rest = rest.trim_end_matches('/');
        // Names become arguments of commands and parts of requests.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@/".contains(c);
        if rest.starts_with(['-', '/']) || !rest.chars().all(is_plain) {
            return Err(wrong(format!("has characters that no engine allows; write {KNOWN}")));
        }
        let given = || Some(rest.to_owned()).filter(|name| !name.is_empty());
        let needed = |what: &str| given().ok_or_else(|| wrong(format!("has no {what}")));
        match scheme {
            "docker" => Ok(Self::Docker { context: given() }),
            "slurm" => Ok(Self::Slurm { partition: given() }),
            "batch" => Ok(Self::Batch { queue: needed("job queue; write batch://QUEUE")? }),
            "ecs" => Ok(Self::Ecs {
                cluster: needed("cluster; write ecs://CLUSTER, such as ecs://default")?,
            }),
            "k8s" => {
                let name = needed("namespace; write k8s://NAMESPACE, like k8s://default")?;
                // Contexts of cloud providers contain slashes, namespaces do not.
                let (context, namespace) = match name.rsplit_once('/') {
                    Some((context, namespace)) => (Some(context.to_owned()), namespace.to_owned()),
                    None => (None, name),
                };
                Ok(Self::Kubernetes { context, namespace })
            }
            _ => Err(wrong(format!("is not the URL of an engine; write {KNOWN}"))),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker { context } => {
                write!(f, "docker://{}", context.as_deref().unwrap_or_default())
            }
            Self::Slurm { partition } => {
                write!(f, "slurm://{}", partition.as_deref().unwrap_or_default())
            }
            Self::Batch { queue } => write!(f, "batch://{queue}"),
            Self::Ecs { cluster } => write!(f, "ecs://{cluster}"),
            Self::Kubernetes { context: None, namespace } => write!(f, "k8s://{namespace}"),
            Self::Kubernetes { context: Some(context), namespace } => {
                write!(f, "k8s://{context}/{namespace}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written() {
        let good = [
            "docker://",
            "docker://desktop",
            "slurm://",
            "slurm://main",
            "batch://spot",
            "ecs://default",
            "k8s://jobs",
            "k8s://arn:aws:eks:us-east-1:1:cluster/a/jobs",
        ];
        for url in good {
            let address: Address = url.parse().expect(url);
            assert_eq!(address.to_string(), url);
        }
        let eks: Address = good[7].parse().unwrap();
        let context = Some("arn:aws:eks:us-east-1:1:cluster/a".to_owned());
        assert_eq!(eks, Address::Kubernetes { context, namespace: "jobs".to_owned() });
    }

    #[test]
    fn other_texts_are_errors_that_say_what_to_write() {
        for (url, want) in [
            ("", "is not the URL of an engine"),
            ("slurm", "is not the URL of an engine"),
            ("lsf://night", "is not the URL of an engine"),
            ("batch://", "has no job queue; write batch://QUEUE"),
            ("ecs:///", "has no cluster"),
            ("k8s://", "has no namespace"),
            ("slurm://--wrap=x", "has characters that no engine allows"),
            ("slurm://a b", "has characters that no engine allows"),
            ("docker://a;b", "has characters that no engine allows"),
        ] {
            let error = url.parse::<Address>().expect_err(url).to_string();
            assert!(error.starts_with(want), "{url}: {error}");
        }
    }
}
