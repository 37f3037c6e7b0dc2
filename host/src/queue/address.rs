//! The URL of a queue, taken apart. Pure, but that `~` is the home directory.
//!
//! ```text
//! fq://DIR, or a path                                   a directory
//! sqs://NAME                                            SQS, account and region as configured
//! https://sqs.REGION.amazonaws.com/ACCOUNT/NAME         SQS, or what speaks its protocol
//! arn:aws:sqs:REGION:ACCOUNT:NAME                       SQS
//! pubsub://projects/P/topics/T/subscriptions/S          Pub/Sub
//! ```

use std::path::PathBuf;

use super::QueueError;
use crate::home::with_home;

/// Where a queue is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A directory.
    File {
        /// What to call the queue.
        url: String,
        /// The directory.
        path: PathBuf,
    },
    /// A queue of SQS.
    Sqs(Sqs),
    /// A topic and a subscription of Pub/Sub.
    PubSub(PubSub),
}

/// A queue of SQS, as it was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sqs {
    /// By its name alone.
    Name(String),
    /// By its queue URL.
    Url(String),
    /// By its ARN.
    Arn {
        /// The region it is in.
        region: String,
        /// The account it belongs to.
        account: String,
        /// Its name.
        name: String,
    },
}

/// A topic and a subscription of Pub/Sub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PubSub {
    /// The project.
    pub project: String,
    /// The topic that messages are sent to.
    pub topic: String,
    /// The subscription that they are leased from. None for a queue that is only sent to.
    pub subscription: Option<String>,
}

impl Address {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] for what is no queue's URL, with what would be one.
    pub fn parse(url: &str) -> Result<Self, QueueError> {
        let invalid = |problem: String| QueueError::Invalid { queue: url.to_owned(), problem };
        if let Some(arn) = url.strip_prefix("arn:") {
            return Ok(Self::Sqs(sqs_arn(arn).ok_or_else(|| {
                invalid("is no queue's ARN; one is arn:aws:sqs:REGION:ACCOUNT:NAME".to_owned())
            })?));
        }
        match url.split_once("://") {
            None | Some(("fq", "")) if url.is_empty() || url == "fq://" => Err(invalid(
                "no directory is given; a queue is fq://DIR, like fq://./queue".to_owned(),
            )),
            None => directory(url).map_err(invalid),
            Some(("fq", path)) => directory(path).map_err(invalid),
            Some(("sqs", name)) if is_sqs_name(name) => Ok(Self::Sqs(Sqs::Name(name.to_owned()))),
            Some(("sqs", _)) => Err(invalid(
                "has a name that no queue can have: 1 to 80 letters, digits, - and _, and .fifo at \
                 the end for a FIFO queue, without a slash"
                    .to_owned(),
            )),
            Some(("http" | "https", rest))
                if rest.split('/').filter(|s| !s.is_empty()).count() > 1 =>
            {
                Ok(Self::Sqs(Sqs::Url(url.trim_end_matches('/').to_owned())))
            }
            Some(("http" | "https", _)) => Err(invalid(
                "is no queue's URL; one is https://sqs.REGION.amazonaws.com/ACCOUNT/NAME"
                    .to_owned(),
            )),
            Some(("pubsub", path)) => Ok(Self::PubSub(pubsub(path).ok_or_else(|| {
                invalid(
                    "is not pubsub://projects/PROJECT/topics/TOPIC/subscriptions/SUBSCRIPTION"
                        .to_owned(),
                )
            })?)),
            Some(_) => Err(invalid(
                "is no queue; there are fq://DIR, sqs://NAME and \
                 pubsub://projects/PROJECT/topics/TOPIC/subscriptions/SUBSCRIPTION"
                    .to_owned(),
            )),
        }
    }

    /// The URL of the queue for reports of failed tasks that goes with this one: with
    /// `-errors` at the end of its name. None when it has no name to add to.
    pub fn errors(&self) -> Option<String> {
        match self {
            Self::File { url, path } => {
                // `.`, `..` and `/` have no name to add to.
                path.file_name()?;
                Some(format!("{}-errors", url.trim_end_matches('/')))
            }
            Self::Sqs(sqs) => Some(match sqs {
                Sqs::Name(name) => format!("sqs://{}", errors_of(name)),
                Sqs::Url(url) => errors_of(url),
                Sqs::Arn { .. } => errors_of(&sqs.to_string()),
            }),
            Self::PubSub(PubSub { project, topic, subscription }) => {
                let errors = format!("pubsub://projects/{project}/topics/{}", errors_of(topic));
                Some(match subscription {
                    Some(name) => format!("{errors}/subscriptions/{}", errors_of(name)),
                    None => errors,
                })
            }
        }
    }
}

impl Sqs {
    /// True for a FIFO queue.
    pub fn is_fifo(&self) -> bool {
        self.name().ends_with(FIFO)
    }

    /// The name alone.
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) | Self::Arn { name, .. } => name,
            Self::Url(url) => url.rsplit('/').next().unwrap_or(url),
        }
    }
}

impl std::fmt::Display for Sqs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(f, "sqs://{name}"),
            Self::Url(url) => f.write_str(url),
            Self::Arn { region, account, name } => {
                write!(f, "arn:aws:sqs:{region}:{account}:{name}")
            }
        }
    }
}

/// A directory's path. What begins with `~` is called by its whole path from here on.
fn directory(path: &str) -> Result<Address, String> {
    let path = with_home(path)?;
    Ok(Address::File { url: format!("fq://{path}"), path: PathBuf::from(path) })
}

const FIFO: &str = ".fifo";

fn errors_of(name: &str) -> String {
    match name.strip_suffix(FIFO) {
        Some(stem) => format!("{stem}-errors{FIFO}"),
        None => format!("{name}-errors"),
    }
}

fn is_sqs_name(name: &str) -> bool {
    let stem = name.strip_suffix(FIFO).unwrap_or(name);
    let ok = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !stem.is_empty() && name.len() <= 80 && stem.chars().all(ok)
}

/// `aws:sqs:REGION:ACCOUNT:NAME`, of any partition.
fn sqs_arn(text: &str) -> Option<Sqs> {
    let mut parts = text.split(':');
    let (_partition, service) = (parts.next()?, parts.next()?);
    let (region, account, name) = (parts.next()?, parts.next()?, parts.next()?);
    let is_queue = service == "sqs" && !region.is_empty() && is_sqs_name(name);
    let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    (is_queue && is_account && parts.next().is_none()).then(|| Sqs::Arn {
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

    #[test]
    fn a_url_names_the_directory_it_says() {
        let check = |text: &str, url: &str, path: &str| {
            let expected = Address::File { url: url.to_owned(), path: PathBuf::from(path) };
            assert_eq!(Address::parse(text).unwrap(), expected);
        };
        check("fq://./queue", "fq://./queue", "./queue");
        check("fq:///a/b", "fq:///a/b", "/a/b");
        check("fq://a b", "fq://a b", "a b");
        check("./queue", "fq://./queue", "./queue");
    }

    #[test]
    fn a_tilde_is_the_home_directory_and_nothing_else() {
        let home = std::env::var("HOME").unwrap();
        for url in ["~/q", "fq://~/q"] {
            let queue = Address::parse(url).unwrap();
            let expected = format!("{}/q", home.trim_end_matches('/'));
            let Address::File { url, path } = &queue else { panic!("{queue:?}") };
            assert_eq!((url, path), (&format!("fq://{expected}"), &PathBuf::from(&expected)));
            assert_eq!(queue.errors().unwrap(), format!("fq://{expected}-errors"));
        }
        let error = Address::parse("fq://~bob/q").unwrap_err().to_string();
        assert!(error.starts_with("fq://~bob/q: ") && error.contains("./~bob/q"), "{error}");
    }

    #[test]
    fn a_queue_of_sqs_has_three_names() {
        let check = |text: &str, expected: Sqs| {
            assert_eq!(Address::parse(text).unwrap(), Address::Sqs(expected));
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
                region: "cn-north-1".to_owned(),
                account: "123456789012".to_owned(),
                name: "my-tasks".to_owned(),
            },
        );
    }

    #[test]
    fn a_queue_of_pubsub_is_a_topic_and_a_subscription() {
        let parse = |text: &str| match Address::parse(text).unwrap() {
            Address::PubSub(pubsub) => pubsub,
            other => panic!("{other:?}"),
        };
        let both = parse("pubsub://projects/p/topics/t/subscriptions/s");
        assert_eq!((&*both.project, &*both.topic), ("p", "t"));
        assert_eq!(both.subscription.as_deref(), Some("s"));
        assert_eq!(parse("pubsub://projects/p/topics/t").subscription, None);
    }

    #[test]
    fn what_is_no_queue_is_refused_with_what_would_be_one() {
        let check = |url: &str, problem: &str| match Address::parse(url) {
            Err(error @ QueueError::Invalid { .. }) => {
                assert!(error.to_string().contains(problem), "{error}");
            }
            other => panic!("{url}: {other:?}"),
        };
        check("s3://bucket", "is no queue; there are fq://DIR");
        check("fq://", "no directory is given");
        check("", "no directory is given");
        check("sqs://", "1 to 80 letters");
        check("sqs://a/b", "1 to 80 letters");
        check("https://sqs.eu-west-1.amazonaws.com/", "is no queue's URL");
        check("arn:aws:s3:::bucket", "is no queue's ARN");
        check("pubsub://projects/p/topics/t/subscriptions/", "is not pubsub://projects/");
        check("pubsub://topics/t", "is not pubsub://projects/");
    }

    #[test]
    fn the_error_queue_stands_beside_its_queue() {
        let check = |queue: &str, want: Option<&str>| {
            assert_eq!(Address::parse(queue).unwrap().errors().as_deref(), want, "{queue}");
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
    }
}
