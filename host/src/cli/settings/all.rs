//! Everything that can be set.

use super::Setting;

const fn setting(
    name: &'static str,
    value: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Setting {
    Setting { name, value, default, help, short: None }
}

pub(crate) const QUEUE: Setting = setting(
    "queue",
    "URL",
    None,
    "Queue of tasks: fq://DIR, sqs://NAME, pubsub://projects/P/topics/T/subscriptions/S, or a \
     directory, which is made",
);
pub(crate) const BUCKET: Setting = setting(
    "bucket",
    "URL",
    Some("./bucket"),
    "Bucket with inputs, outputs and components: s3://, gs:// or az://NAME/PREFIX, or a directory",
);
pub(crate) const COMPONENTS: Setting =
    setting("components", "DIR", None, "Take components DIR/NAME.wasm, instead of the bucket's");
pub(crate) const COMPONENT_PREFIX: Setting = setting(
    "component-prefix",
    "PREFIX",
    Some("components"),
    "Where in the bucket components are: PREFIX/NAME.wasm",
);
pub(crate) const ERROR_QUEUE: Setting = setting(
    "error-queue",
    "URL",
    None,
    "Queue for reports of tasks that are given up [default: the queue's name and `-errors`]",
);
pub(crate) const DONE_QUEUE: Setting =
    setting("done-queue", "URL", None, "Queue for reports of tasks that are done [default: none]");
pub(crate) const DURABLE: Setting = setting(
    "durable",
    "",
    Some("false"),
    "Force outputs in a directory to the disk before their task is acknowledged",
);
pub(crate) const SYNC_EVERY: Setting = setting(
    "sync-every",
    "TIME",
    Some("5s"),
    "Without --durable: force outputs in a directory to the disk this often; 0 is never",
);
pub(crate) const PARALLEL: Setting =
    setting("parallel", "N", None, "Tasks that run at the same time [default: the cores]");
pub(crate) const PREFETCH: Setting = setting(
    "prefetch",
    "N",
    None,
    "Tasks beyond those that are made ready ahead [default: twice --parallel]",
);
pub(crate) const PREFETCH_BYTES: Setting =
    setting("prefetch-bytes", "SIZE", Some("1GiB"), "Bytes of inputs that may be coming in ahead");
pub(crate) const LEASE: Setting =
    setting("lease", "TIME", Some("5m"), "Time of a lease; renewed for as long as a task is held");
pub(crate) const EXIT_WHEN_EMPTY: Setting = Setting {
    name: "exit-when-empty",
    value: "",
    default: Some("false"),
    help: "Stop when the queue is empty and nobody holds a task of it",
    short: Some('x'),
};
pub(crate) const MAX_TASKS: Setting =
    setting("max-tasks", "N", None, "Stop after so many tasks are done or given up");
pub(crate) const FOR: Setting =
    setting("for", "TIME", None, "Take no more tasks after this time, and stop");
pub(crate) const GRACE: Setting = setting(
    "grace",
    "TIME",
    Some("30s"),
    "How long running tasks may go on after SIGTERM or Ctrl-C",
);
pub(crate) const CACHE_DIR: Setting = setting(
    "cache-dir",
    "DIR",
    None,
    "Where inputs and compiled components are kept [default: task-host in the user's cache folder]",
);
pub(crate) const CACHE_SIZE: Setting =
    setting("cache-size", "SIZE", Some("10GiB"), "What the inputs kept there may take");
pub(crate) const MAX_ATTEMPTS: Setting =
    setting("max-attempts", "N", Some("5"), "Attempts after which a task is given up");
pub(crate) const RETRY_AFTER: Setting = setting(
    "retry-after",
    "TIME",
    Some("1s"),
    "Wait before the second attempt at a task; twice that before the third, and so on",
);
pub(crate) const MEMORY: Setting =
    setting("memory", "SIZE", Some("1GiB"), "Memory that a task may use");
pub(crate) const TIMEOUT: Setting =
    setting("timeout", "TIME", Some("1h"), "Time that a task may take");
pub(crate) const MAX_OUTPUT: Setting =
    setting("max-output", "SIZE", Some("4GiB"), "Bytes that a task may write to /outputs");
pub(crate) const MAX_OUTPUT_FILES: Setting = setting(
    "max-output-files",
    "N",
    Some("10000"),
    "Files and directories that a task may create in /outputs",
);
pub(crate) const COMPILE_MEMORY: Setting = setting(
    "compile-memory",
    "SIZE",
    Some("2GiB"),
    "Memory that compiling a component may use; its compiled code may have a sixteenth of that",
);
pub(crate) const COMPILE_TIMEOUT: Setting = setting(
    "compile-timeout",
    "TIME",
    Some("5m"),
    "Processor time that compiling a component may take; by the clock, four times that",
);
pub(crate) const LOG_LEVEL: Setting = setting(
    "log-level",
    "LEVEL",
    Some("info"),
    "error, warn, info, debug (shows what tasks print) or trace; or filters: info,guest=debug",
);
pub(crate) const LOG_FORMAT: Setting = setting(
    "log-format",
    "FORMAT",
    Some("auto"),
    "human, json or auto: human on a terminal, JSON otherwise",
);
pub(crate) const PROGRESS: Setting = setting(
    "progress",
    "WHEN",
    Some("auto"),
    "auto, always or never: a live line on a terminal, a line every 10 s otherwise",
);

pub(crate) const INPUT_BUCKET: Setting = setting(
    "input-bucket",
    "URL",
    None,
    "Bucket that inputs are taken from, also https://… [default: the bucket]",
);
pub(crate) const ANONYMOUS: Setting =
    setting("anonymous", "", Some("false"), "Read buckets without credentials, as everybody may");
pub(crate) const REQUESTER_PAYS: Setting =
    setting("requester-pays", "", Some("false"), "Pay for requests to buckets whose owner doesn't");
pub(crate) const STORED_ENCODING: Setting = setting(
    "stored-encoding",
    "WHAT",
    Some("decode"),
    "Inputs stored with Content-Encoding: gzip: decode them, or keep the bytes as they are stored",
);
pub(crate) const GZIP_OUTPUTS: Setting = setting(
    "gzip-outputs",
    "GLOB",
    None,
    "Outputs stored compressed, with Content-Encoding: gzip, like '**/*.json' [default: none]",
);
pub(crate) const FRESHNESS: Setting = setting(
    "freshness",
    "TIME",
    Some("0s"),
    "How long an input in the cache is used without asking the bucket whether it has changed",
);
pub(crate) const REGION: Setting = setting(
    "region",
    "REGION",
    None,
    "Region of SQS queues and S3 buckets [default: as for the AWS tools]",
);
pub(crate) const CREATE_QUEUES: Setting =
    setting("create-queues", "", Some("false"), "Make cloud queues that are not there");
pub(crate) const MESSAGE_BUCKET: Setting = setting(
    "message-bucket",
    "URL",
    None,
    "Bucket for messages too large for SQS; pointers to no other one are followed",
);
pub(crate) const MESSAGE_GROUP: Setting = setting(
    "message-group",
    "NAME",
    None,
    "Group that sent messages belong to: FIFO order, or a tenant of a fair queue",
);

pub(crate) const LISTEN: Setting = setting(
    "listen",
    "ADDRESS",
    None,
    "Answer /healthz and /readyz over HTTP there, like 127.0.0.1:8080 [default: nowhere]",
);

/// All settings, in the order in which they are shown.
pub(crate) const ALL: [&Setting; 40] = [
    &QUEUE,
    &BUCKET,
    &INPUT_BUCKET,
    &COMPONENTS,
    &COMPONENT_PREFIX,
    &ERROR_QUEUE,
    &DONE_QUEUE,
    &DURABLE,
    &SYNC_EVERY,
    &REGION,
    &CREATE_QUEUES,
    &MESSAGE_BUCKET,
    &MESSAGE_GROUP,
    &ANONYMOUS,
    &REQUESTER_PAYS,
    &STORED_ENCODING,
    &GZIP_OUTPUTS,
    &PARALLEL,
    &PREFETCH,
    &PREFETCH_BYTES,
    &LEASE,
    &EXIT_WHEN_EMPTY,
    &MAX_TASKS,
    &FOR,
    &GRACE,
    &MAX_ATTEMPTS,
    &RETRY_AFTER,
    &MEMORY,
    &TIMEOUT,
    &MAX_OUTPUT,
    &MAX_OUTPUT_FILES,
    &COMPILE_MEMORY,
    &COMPILE_TIMEOUT,
    &CACHE_DIR,
    &CACHE_SIZE,
    &FRESHNESS,
    &LOG_LEVEL,
    &LOG_FORMAT,
    &PROGRESS,
    &LISTEN,
];
