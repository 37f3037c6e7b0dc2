//! The address of a queue, as its URL.
//!
//! ```text
//! fq://DIR, or a path                                   a directory
//! sqs://NAME                                            SQS; region and account as configured
//! https://sqs.REGION.amazonaws.com/ACCOUNT/NAME         SQS, or a server with the same protocol
//! arn:aws:sqs:REGION:ACCOUNT:NAME                       SQS
//! pubsub://projects/P/topics/T/subscriptions/S          Pub/Sub
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::environment::with_home;
use crate::scheme;

/// The address of a queue. `Display` is its URL, and [`FromStr`] parses one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A directory.
    Directory(PathBuf),
    /// An SQS queue.
    Sqs(Sqs),
    /// A Pub/Sub topic and subscription.
    PubSub(PubSub),
}

/// An SQS queue, as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sqs {
    /// By its name alone.
    Name(String),
    /// By its queue URL.
    Url(String),
    /// By its ARN.
    Arn {
        /// The partition: `aws`, `aws-cn`, `aws-us-gov`.
        partition: String,
        /// The region.
        region: String,
        /// The account that owns the queue.
        account: String,
        /// The queue's name.
        name: String,
    },
}

/// A Pub/Sub topic and subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PubSub {
    /// The project.
    pub project: String,
    /// The topic that messages are sent to.
    pub topic: String,
    /// The subscription that messages are leased from. `None` for a queue that is only used to
    /// send.
    pub subscription: Option<String>,
}

/// A text that is not the URL of a queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {problem}")]
pub struct AddressError {
    /// The text.
    pub url: String,
    /// What is wrong with it, and what to write instead.
    pub problem: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(url: &str) -> Result<Self, AddressError> {
        parse(url).map_err(|problem| AddressError { url: url.to_owned(), problem })
    }
}

fn parse(url: &str) -> Result<Address, String> {
    if let Some(arn) = url.strip_prefix("arn:") {
        return sqs_arn(arn).map(Address::Sqs).ok_or_else(|| {
            "is not the ARN of an SQS queue; write arn:aws:sqs:REGION:ACCOUNT:NAME".to_owned()
        });
    }
    let directory = |path: &str| match path {
        "" => Err("contains no directory; write fq://DIR, such as fq://./queue".to_owned()),
        path => {
            scheme::check_path(path)?;
            Ok(Address::Directory(with_home(path)?.into()))
        }
    };
    let Some((scheme, rest)) = scheme::split(url) else { return directory(url) };
    match (&*scheme, rest) {
        ("fq", path) => directory(path),
        ("sqs", name) if is_sqs_name(name) => Ok(Address::Sqs(Sqs::Name(name.to_owned()))),
        ("sqs", _) => Err("is not a valid queue name: write 1 to 80 letters, digits, - and \
                                 _, with .fifo at the end for a FIFO queue"
            .to_owned()),
        ("http" | "https", rest) if rest.split('/').filter(|s| !s.is_empty()).count() > 1 => {
            let rest = rest.trim_end_matches('/');
            Ok(Address::Sqs(Sqs::Url(format!("{scheme}://{rest}"))))
        }
        ("http" | "https", _) => Err("is not the URL of an SQS queue; write \
                                            https://sqs.REGION.amazonaws.com/ACCOUNT/NAME"
            .to_owned()),
        ("pubsub", path) => pubsub(path).map(Address::PubSub).ok_or_else(|| {
            "is not a Pub/Sub queue; write \
             pubsub://projects/PROJECT/topics/TOPIC/subscriptions/SUBSCRIPTION"
                .to_owned()
        }),
        _ => Err("is not the URL of a queue; write fq://DIR, sqs://NAME or \
                        pubsub://projects/PROJECT/topics/TOPIC/subscriptions/SUBSCRIPTION"
            .to_owned()),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "fq://{}", path.display()),
            Self::Sqs(queue) => queue.fmt(f),
            Self::PubSub(queue) => queue.fmt(f),
        }
    }
}

impl Address {
    /// The directory of a directory queue.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) => Some(path),
            Self::Sqs(_) | Self::PubSub(_) => None,
        }
    }

    /// Whether the queue belongs to a service that is reached over the network.
    pub fn is_remote(&self) -> bool {
        self.directory().is_none()
    }

    /// Whether the queue delivers messages in the order in which they are sent, if they are sent to
    /// `group`.
    pub fn keeps_order(&self, group: Option<&str>) -> bool {
        match self {
            Self::Directory(_) => false,
            // SQS keeps no order within a group of a standard queue.
            Self::Sqs(queue) => queue.is_fifo(),
            Self::PubSub(_) => group.is_some(),
        }
    }

    /// The default error queue: the same address with `-errors` at the end of the name. `None`
    /// for a directory without a name: `.`, `..` and `/`.
    pub fn errors(&self) -> Option<Self> {
        Some(match self {
            Self::Directory(path) => {
                let mut name = path.file_name()?.to_owned();
                name.push(ERRORS);
                Self::Directory(path.with_file_name(name))
            }
            Self::Sqs(queue) => Self::Sqs(match queue.clone() {
                Sqs::Name(name) => Sqs::Name(errors_of(&name)),
                Sqs::Url(url) => Sqs::Url(errors_of(&url)),
                Sqs::Arn { partition, region, account, name } => {
                    Sqs::Arn { partition, region, account, name: errors_of(&name) }
                }
            }),
            Self::PubSub(PubSub { project, topic, subscription }) => Self::PubSub(PubSub {
                project: project.clone(),
                topic: errors_of(topic),
                subscription: subscription.as_deref().map(errors_of),
            }),
        })
    }

    /// The queue whose default error queue this is. `None` if the name does not end with `-errors`.
    pub fn tasks(&self) -> Option<Self> {
        Some(match self {
            Self::Directory(path) => {
                let name = path.file_name()?.to_str()?;
                Self::Directory(path.with_file_name(tasks_of(name)?))
            }
            Self::Sqs(queue) => Self::Sqs(match queue {
                Sqs::Name(name) => Sqs::Name(tasks_of(name)?),
                Sqs::Url(url) => Sqs::Url(tasks_of(url)?),
                Sqs::Arn { partition, region, account, name } => Sqs::Arn {
                    partition: partition.clone(),
                    region: region.clone(),
                    account: account.clone(),
                    name: tasks_of(name)?,
                },
            }),
            Self::PubSub(PubSub { project, topic, subscription }) => Self::PubSub(PubSub {
                project: project.clone(),
                topic: tasks_of(topic)?,
                subscription: match subscription {
                    Some(subscription) => Some(tasks_of(subscription)?),
                    None => None,
                },
            }),
        })
    }
}

impl Sqs {
    /// Whether this is a FIFO queue.
    pub fn is_fifo(&self) -> bool {
        self.name().ends_with(FIFO)
    }

    /// The queue's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) | Self::Arn { name, .. } => name,
            Self::Url(url) => url.rsplit('/').next().unwrap_or(url),
        }
    }
}

impl fmt::Display for Sqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "sqs://{name}"),
            Self::Url(url) => f.write_str(url),
            Self::Arn { partition, region, account, name } => {
                write!(f, "arn:{partition}:sqs:{region}:{account}:{name}")
            }
        }
    }
}

impl fmt::Display for PubSub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pubsub://projects/{}/topics/{}", self.project, self.topic)?;
        match &self.subscription {
            Some(subscription) => write!(f, "/subscriptions/{subscription}"),
            None => Ok(()),
        }
    }
}

const FIFO: &str = ".fifo";
/// The end of the name of an error queue.
const ERRORS: &str = "-errors";

fn errors_of(name: &str) -> String {
    match name.strip_suffix(FIFO) {
        Some(stem) => format!("{stem}{ERRORS}{FIFO}"),
        None => format!("{name}{ERRORS}"),
    }
}

/// The opposite of [`errors_of`], for a name or a URL.
fn tasks_of(name: &str) -> Option<String> {
    let (stem, end) = match name.strip_suffix(FIFO) {
        Some(stem) => (stem, FIFO),
        None => (name, ""),
    };
    let stem = stem.strip_suffix(ERRORS).filter(|stem| !stem.is_empty() && !stem.ends_with('/'))?;
    Some(format!("{stem}{end}"))
}

fn is_sqs_name(name: &str) -> bool {
    let stem = name.strip_suffix(FIFO).unwrap_or(name);
    let ok = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !stem.is_empty() && name.len() <= 80 && stem.chars().all(ok)
}

/// `PARTITION:sqs:REGION:ACCOUNT:NAME`
fn sqs_arn(text: &str) -> Option<Sqs> {
    let [partition, service, region, account, name] =
        text.split(':').collect::<Vec<_>>().try_into().ok()?;
    let is_queue = service == "sqs" && !region.is_empty() && is_sqs_name(name);
    let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    (is_queue && is_account).then(|| Sqs::Arn {
        partition: partition.to_owned(),
        region: region.to_owned(),
        account: account.to_owned(),
        name: name.to_owned(),
    })
}

fn pubsub(path: &str) -> Option<PubSub> {
    let parts: Vec<&str> = path.split('/').collect();
    let (project, topic, subscription) = match *parts {
        ["projects", project, "topics", topic] => (project, topic, None),
        ["projects", project, "topics", topic, "subscriptions", name] => {
            (project, topic, Some(name))
        }
        _ => return None,
    };
    let named = |text: &str| !text.is_empty();
    (named(project) && named(topic) && subscription.is_none_or(named)).then(|| PubSub {
        project: project.to_owned(),
        topic: topic.to_owned(),
        subscription: subscription.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Address {
        url.parse().unwrap()
    }

    #[test]
    fn a_directory_is_named_by_a_url_or_a_path() {
        let check = |text: &str, url: &str, path: &str| {
            let found = address(text);
            assert_eq!(found, Address::Directory(path.into()));
            assert_eq!((found.to_string(), found.is_remote()), (url.to_owned(), false));
        };
        check("fq://./queue", "fq://./queue", "./queue");
        check("fq:///a/b", "fq:///a/b", "/a/b");
        check("fq://a b", "fq://a b", "a b");
        check("./queue", "fq://./queue", "./queue");
        let home = std::env::var("HOME").unwrap();
        let home = home.trim_end_matches('/');
        for url in ["~/q", "fq://~/q"] {
            check(url, &format!("fq://{home}/q"), &format!("{home}/q"));
            assert_eq!(address(url).errors(), Some(address(&format!("{home}/q-errors"))));
        }
        let error = "fq://~bob/q".parse::<Address>().unwrap_err().to_string();
        assert!(error.starts_with("fq://~bob/q: ") && error.contains("./~bob/q"), "{error}");
    }

    #[test]
    fn an_sqs_queue_is_named_by_its_name_its_url_or_its_arn() {
        let check = |url: &str, expected: Sqs| {
            assert_eq!(address(url), Address::Sqs(expected));
            assert_eq!(address(url).to_string(), url);
            assert!(address(url).is_remote());
        };
        check("sqs://my-tasks", Sqs::Name("my-tasks".to_owned()));
        check("sqs://my-tasks.fifo", Sqs::Name("my-tasks.fifo".to_owned()));
        let url = "https://sqs.eu-west-1.amazonaws.com/123456789012/my-tasks";
        check(url, Sqs::Url(url.to_owned()));
        let url = "http://127.0.0.1:9324/queue/default";
        check(url, Sqs::Url(url.to_owned()));
        check(
            "arn:aws-cn:sqs:cn-north-1:123456789012:my-tasks",
            Sqs::Arn {
                partition: "aws-cn".to_owned(),
                region: "cn-north-1".to_owned(),
                account: "123456789012".to_owned(),
                name: "my-tasks".to_owned(),
            },
        );
    }

    #[test]
    fn a_pubsub_queue_is_a_topic_and_perhaps_a_subscription() {
        let check = |url: &str, subscription: Option<&str>| {
            let expected = PubSub {
                project: "p".to_owned(),
                topic: "t".to_owned(),
                subscription: subscription.map(str::to_owned),
            };
            assert_eq!(address(url), Address::PubSub(expected));
            assert_eq!(address(url).to_string(), url);
        };
        check("pubsub://projects/p/topics/t/subscriptions/s", Some("s"));
        check("pubsub://projects/p/topics/t", None);
    }

    #[test]
    fn a_scheme_may_be_in_capitals() {
        for (url, want) in [
            ("FQ://./q", "fq://./q"),
            ("SQS://My-Tasks", "sqs://My-Tasks"),
            ("HTTPS://sqs.us-east-1.amazonaws.com/1/T", "https://sqs.us-east-1.amazonaws.com/1/T"),
            ("PubSub://projects/p/topics/T", "pubsub://projects/p/topics/T"),
            ("./sqs:x", "fq://./sqs:x"),
        ] {
            assert_eq!(address(url).to_string(), want);
        }
    }

    #[test]
    fn an_error_names_the_url_and_says_what_to_write() {
        let check = |url: &str, problem: &str| {
            let error = url.parse::<Address>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("{url}: ")), "{error}");
            assert!(error.problem.contains(problem), "{error}");
        };
        check("s3://bucket", "write fq://DIR");
        check("fq://", "contains no directory");
        check("", "contains no directory");
        check("sqs://", "1 to 80 letters");
        check("sqs://a/b", "1 to 80 letters");
        check("https://sqs.eu-west-1.amazonaws.com/", "not the URL of an SQS queue");
        check("arn:aws:s3:::bucket", "not the ARN of an SQS queue");
        check("pubsub://projects/p/topics/t/subscriptions/", "write pubsub://projects/");
        check("pubsub://topics/t", "write pubsub://projects/");
        check("sqs:/tasks", "write sqs://NAME");
        check("sqs:tasks", "./sqs:tasks");
        check("fq://sqs:/tasks", "write sqs://NAME");
        check("s3:/bucket", "looks like a mistyped URL");
    }

    #[test]
    fn the_error_queue_is_beside_its_queue() {
        let check = |queue: &str, want: Option<&str>| {
            let errors = address(queue).errors().map(|errors| errors.to_string());
            assert_eq!(errors.as_deref(), want, "{queue}");
            let tasks = errors.map(|errors| address(&errors).tasks());
            assert_eq!(tasks, want.map(|_| Some(address(queue))), "{queue}");
        };
        check("fq://./queue", Some("fq://./queue-errors"));
        check("fq:///a/b/", Some("fq:///a/b-errors"));
        check("fq://.", None);
        check("fq:///", None);
        check("sqs://name", Some("sqs://name-errors"));
        check("sqs://name.fifo", Some("sqs://name-errors.fifo"));
        check("http://localhost:1/2/name", Some("http://localhost:1/2/name-errors"));
        check(
            "arn:aws:sqs:us-east-1:123456789012:name",
            Some("arn:aws:sqs:us-east-1:123456789012:name-errors"),
        );
        check(
            "pubsub://projects/p/topics/t/subscriptions/s",
            Some("pubsub://projects/p/topics/t-errors/subscriptions/s-errors"),
        );
        for no_errors in [
            "fq://./queue",
            "fq://-errors",
            "sqs://-errors",
            "sqs://-errors.fifo",
            "sqs://errors",
            "http://localhost:1/2/-errors",
            "pubsub://projects/p/topics/t-errors/subscriptions/s",
        ] {
            assert_eq!(address(no_errors).tasks(), None, "{no_errors}");
        }
    }
}
