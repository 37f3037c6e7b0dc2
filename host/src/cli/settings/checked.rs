//! From texts to a checked [`Config`], and to the parts of it that single commands need.

use std::path::PathBuf;

use task_host::bucket::StoredEncoding;
use task_host::catalog::CompileLimits;
use task_host::config::{self, Config};
use task_host::environment::{Environment, default_cache_dir, with_home};
use task_host::key::Prefix;
use task_host::queue::Address;
use task_host::queue::sqs::check_body_bucket;
use task_host::sandbox::{Limits, MOST_OPEN_FILES};
use task_host::verdict::Policy;

use super::super::exit_code::Advice;
use super::super::values;
use super::*;

impl Settings {
    /// What `host run` works by.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let queue = self.queue()?;
        let parallel = self.parallel()?;
        Ok(Config {
            error_queue: self.error_queue(&queue)?,
            done_queue: self.value(&DONE_QUEUE, queue_url)?,
            queue,
            queue_access: task_host::queue::Access { is_report: None, ..self.queue_access()? },
            bucket: self.bucket()?,
            input_bucket: self.value(&INPUT_BUCKET, bucket_url)?,
            bucket_access: task_host::bucket::Access {
                gzip_outputs: self.value(&GZIP_OUTPUTS, glob)?,
                ..self.bucket_access()?
            },
            freshness: self.defaulted(&FRESHNESS, values::duration)?,
            components: self.value(&COMPONENTS, values::path)?,
            component_prefix: self.component_prefix()?,
            cache_dir: self.cache_dir()?,
            cache_size: self.defaulted(&CACHE_SIZE, values::size)?,
            parallel,
            prefetch: self.value(&PREFETCH, prefetch)?,
            prefetch_bytes: self.defaulted(&PREFETCH_BYTES, values::size)?,
            durable: self.is_on(&DURABLE)?,
            lease: self.defaulted(&LEASE, lease)?,
            limits: self.limits()?,
            compile_limits: self.compile_limits()?,
            policy: self.policy()?,
            exit_when_empty: self.is_on(&EXIT_WHEN_EMPTY)?,
            max_tasks: self.value(&MAX_TASKS, values::positive)?,
            run_for: self.value(&FOR, values::some_time)?,
            grace: self.defaulted(&GRACE, values::duration)?,
        })
    }

    /// The same, for whoever is about to work by it: its directories are apart.
    ///
    /// # Errors
    /// Names two directories that lie in each other, and what would come of it.
    pub(crate) fn config_to_run(&self) -> anyhow::Result<Config> {
        let config = self.config()?;
        match overlaps(&config).into_iter().next() {
            Some(Overlap { problem, cure }) => Err(Advice::usage(problem).hint(cure).into()),
            None => Ok(config),
        }
    }

    /// The queue, which has no default: a host that guessed would work on the wrong one.
    pub(crate) fn queue(&self) -> anyhow::Result<String> {
        match self.value(&QUEUE, queue_url)? {
            Some(url) => Ok(url),
            None => Err(Advice::usage("no queue is given")
                .hint("give a directory with --fq ./queue, or set HOST_QUEUE")
                .into()),
        }
    }

    /// Where reports of tasks that are given up go.
    pub(crate) fn error_queue(&self, queue: &str) -> anyhow::Result<String> {
        if let Some(url) = self.value(&ERROR_QUEUE, queue_url)? {
            return Ok(url);
        }
        // What is no queue at all needs no error queue.
        queue.parse::<Address>()?.errors().map(|errors| errors.to_string()).ok_or_else(|| {
            Advice::usage(format!("there is no name for the error queue of {queue}"))
                .hint("give one with --error-queue")
                .into()
        })
    }

    pub(crate) fn bucket(&self) -> anyhow::Result<String> {
        self.defaulted(&BUCKET, |text| {
            if text.is_empty() {
                Err("is empty; write a directory".into())
            } else {
                bucket_url(text)
            }
        })
    }

    /// How queues are reached.
    pub(crate) fn queue_access(&self) -> anyhow::Result<task_host::queue::Access> {
        let text = |text: &str| Ok(text.to_owned());
        Ok(task_host::queue::Access {
            region: self.value(&REGION, text)?,
            create: self.is_on(&CREATE_QUEUES)?,
            body_bucket: self.message_bucket()?,
            is_report: Some(task_host::report::is_report),
            group: self.value(&MESSAGE_GROUP, text)?,
            environment: Environment::of_process(),
        })
    }

    /// The place of large messages, which has to be apart from the data: what a task publishes
    /// must not become a message, nor what a message points to be data.
    fn message_bucket(&self) -> anyhow::Result<Option<String>> {
        let place = |text: &str| check_body_bucket(text).map(|()| text.to_owned());
        let Some(messages) = self.value(&MESSAGE_BUCKET, place)? else { return Ok(None) };
        for data in [&BUCKET, &INPUT_BUCKET] {
            let Some(url) = self.value(data, bucket_url)? else { continue };
            let address = messages
                .parse::<task_host::bucket::Address>()
                .map_err(|error| Advice::usage(format!("--message-bucket: {error}")))?;
            if url.parse().is_ok_and(|data| address.overlaps(&data)) {
                return Err(Advice::usage(format!(
                    "--message-bucket {messages} and --{} {url} overlap: tasks could read and \
                     replace messages, and messages could name data to be deleted",
                    data.name
                ))
                .hint(
                    "use another bucket, or a prefix for each: --bucket s3://BUCKET/data \
                     --message-bucket s3://BUCKET/messages",
                )
                .into());
            }
        }
        Ok(Some(messages))
    }

    /// How buckets are reached.
    pub(crate) fn bucket_access(&self) -> anyhow::Result<task_host::bucket::Access> {
        Ok(task_host::bucket::Access {
            region: self.value(&REGION, |text| Ok(text.to_owned()))?,
            anonymous: self.is_on(&ANONYMOUS)?,
            requester_pays: self.is_on(&REQUESTER_PAYS)?,
            sync_every: self.defaulted(&SYNC_EVERY, values::duration)?,
            environment: Environment::of_process(),
            stored_encoding: self.defaulted(&STORED_ENCODING, stored_encoding)?,
            largest_decoded: self.cache_size()?.as_u64(),
            gzip_outputs: None,
        })
    }

    /// Where probes are answered, if anywhere.
    pub(crate) fn listen(&self) -> anyhow::Result<Option<std::net::SocketAddr>> {
        self.value(&LISTEN, |text| {
            text.parse().map_err(|_| "is no address; one is 127.0.0.1:8080".to_owned())
        })
    }

    pub(crate) fn component_prefix(&self) -> anyhow::Result<Prefix> {
        self.defaulted(&COMPONENT_PREFIX, values::prefix)
    }

    pub(crate) fn cache_dir(&self) -> anyhow::Result<PathBuf> {
        Ok(self.value(&CACHE_DIR, values::path)?.unwrap_or_else(default_cache_dir))
    }

    pub(crate) fn cache_size(&self) -> anyhow::Result<bytesize::ByteSize> {
        self.defaulted(&CACHE_SIZE, values::size)
    }

    pub(crate) fn limits(&self) -> anyhow::Result<Limits> {
        Ok(Limits {
            memory: self.defaulted(&MEMORY, memory)?,
            time: self.defaulted(&TIMEOUT, values::some_time)?,
            output_bytes: self.defaulted(&MAX_OUTPUT, values::size)?,
            output_files: self.defaulted(&MAX_OUTPUT_FILES, values::whole)?,
            open_files: MOST_OPEN_FILES,
        })
    }

    pub(crate) fn compile_limits(&self) -> anyhow::Result<CompileLimits> {
        Ok(CompileLimits {
            memory: self.defaulted(&COMPILE_MEMORY, compile_memory)?,
            time: self.defaulted(&COMPILE_TIMEOUT, values::some_time)?,
        })
    }

    pub(crate) fn policy(&self) -> anyhow::Result<Policy> {
        let longest = Policy::default().longest_retry;
        let first_retry = self.defaulted(&RETRY_AFTER, values::duration)?;
        let max_attempts = self.defaulted(&MAX_ATTEMPTS, attempts)?;
        Ok(Policy {
            max_attempts,
            max_deaths: max_attempts.saturating_mul(2),
            first_retry,
            longest_retry: longest.max(first_retry),
        })
    }

    fn parallel(&self) -> anyhow::Result<usize> {
        Ok(self.value(&PARALLEL, parallel)?.unwrap_or_else(config::default_parallel))
    }

    /// Every setting as `host config` shows it, defaults worked out.
    pub(crate) fn shown(&self) -> anyhow::Result<Vec<(&'static str, Option<String>, Origin)>> {
        // What can't be used can't be shown either.
        if !self.is_default(&QUEUE) {
            self.config_to_run()?;
        }
        let shown = |setting: &&'static Setting| {
            let given = self.get(setting);
            let text = match setting.name {
                name if given.is_some() && name != QUEUE.name => {
                    given.as_ref().map(|g| g.text.clone())
                }
                "queue" => self.value(&QUEUE, queue_url)?,
                "error-queue" => {
                    let errors = |queue: String| queue.parse::<Address>().ok()?.errors();
                    self.queue().ok().and_then(errors).map(|errors| errors.to_string())
                }
                "parallel" => Some(self.parallel()?.to_string()),
                "prefetch" => Some((self.parallel()? * 2).to_string()),
                "cache-dir" => Some(self.cache_dir()?.display().to_string()),
                _ => None,
            };
            Ok((setting.name, text, given.map_or(Origin::Default, |g| g.origin)))
        };
        ALL.iter().map(shown).collect()
    }
}

/// A queue's URL; a plain path is a directory.
pub(crate) fn queue_url(text: &str) -> Parsed<String> {
    let address = text.parse::<Address>().map_err(|error| error.problem)?;
    Ok(address.to_string())
}

/// A bucket's URL, with the home directory in the place of `~`.
fn bucket_url(text: &str) -> Parsed<String> {
    match text.strip_prefix("file://") {
        Some(path) => Ok(format!("file://{}", with_home(path)?)),
        None => with_home(text),
    }
}

/// The directory of a file queue's URL.
pub(crate) fn fq_path(url: &str) -> Option<PathBuf> {
    Some(url.parse::<Address>().ok()?.directory()?.to_owned())
}

/// Memory of a task: a component's addresses have 32 bits, and its memory comes in pages of
/// 64 KiB.
fn memory(text: &str) -> Parsed<bytesize::ByteSize> {
    match values::size(text)? {
        size if size > bytesize::ByteSize::gib(4) => Err(
            "is more than a task can use: a component has addresses of 32 bits, so 4GiB is the most"
                .to_owned(),
        ),
        size if size < bytesize::ByteSize::kib(64) => {
            Err("is too little for any task; 64KiB is the least".to_owned())
        }
        size => Ok(size),
    }
}

/// Memory of a process that compiles: some of it is there before it begins.
fn compile_memory(text: &str) -> Parsed<bytesize::ByteSize> {
    match values::size(text)? {
        size if size < bytesize::ByteSize::mib(64) => {
            Err("is too little to compile anything; 64MiB is the least".to_owned())
        }
        size => Ok(size),
    }
}

fn stored_encoding(text: &str) -> Parsed<StoredEncoding> {
    match text {
        "decode" => Ok(StoredEncoding::Decode),
        "keep" => Ok(StoredEncoding::Keep),
        _ => Err("is neither decode nor keep".to_owned()),
    }
}

fn glob(text: &str) -> Parsed<globset::GlobMatcher> {
    let glob = globset::GlobBuilder::new(text).literal_separator(true).build();
    Ok(glob.map_err(|error| format!("is not a pattern: {error}"))?.compile_matcher())
}

fn lease(text: &str) -> Parsed<std::time::Duration> {
    let time = values::duration(text)?;
    let (shortest, longest) =
        (std::time::Duration::from_secs(2), std::time::Duration::from_secs(43_200));
    if (shortest..=longest).contains(&time) {
        Ok(time)
    } else {
        Err("has to be from 2s to 12h".to_owned())
    }
}

fn parallel(text: &str) -> Parsed<usize> {
    match values::positive(text)? {
        n @ 1..=4096 => Ok(n as usize),
        _ => Err("is more than a host can do; 4096 is the most".to_owned()),
    }
}

fn prefetch(text: &str) -> Parsed<usize> {
    match values::whole(text)? {
        n @ 0..=100_000 => Ok(n as usize),
        _ => Err("is more than a host can hold; 100000 is the most".to_owned()),
    }
}

fn attempts(text: &str) -> Parsed<u32> {
    u32::try_from(values::positive(text)?).map_err(|_| "is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_file_queue() {
        assert_eq!(queue_url("./queue").unwrap(), "fq://./queue");
        assert_eq!(queue_url("sqs://x").unwrap(), "sqs://x");
        let home = std::env::var("HOME").unwrap();
        let home = home.trim_end_matches('/');
        assert_eq!(queue_url("~/q").unwrap(), format!("fq://{home}/q"));
        assert_eq!(bucket_url("file://~/b").unwrap(), format!("file://{home}/b"));
        assert_eq!(bucket_url("s3://b/~").unwrap(), "s3://b/~");
        assert_eq!(values::path("~/c").unwrap(), std::path::Path::new(home).join("c"));
        assert!(queue_url("fq://").is_err());
        assert!(queue_url("").is_err());
    }

    #[test]
    fn a_task_has_the_memory_that_a_component_can_use() {
        assert_eq!(memory("4GiB"), Ok(bytesize::ByteSize::gib(4)));
        assert!(memory("5GB").unwrap_err().contains("4GiB is the most"));
        assert!(memory("0").unwrap_err().contains("64KiB is the least"));
    }
}
