//! What a host is told to do, checked. Opens nothing.
//!
//! This is also the one place that reads the environment; the rest of the library is given
//! what it needs.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;

use crate::bucket;
use crate::catalog::{CompileLimits, Compiler};
use crate::environment::Environment;
use crate::key::Prefix;
use crate::queue;
use crate::sandbox::Limits;
use crate::verdict::Policy;

/// A checked configuration of `host run`.
#[derive(Debug, Clone)]
pub struct Config {
    /// URL of the queue that tasks are leased from.
    pub queue: String,
    /// URL of the queue that gets the reports of tasks that are given up.
    pub error_queue: String,
    /// URL of the queue that gets the reports of tasks that are done, if any.
    pub done_queue: Option<String>,
    /// How these queues are reached.
    pub queue_access: queue::Access,
    /// URL of the bucket with inputs and outputs.
    pub bucket: String,
    /// URL of the bucket that inputs are in, if it is another.
    pub input_bucket: Option<String>,
    /// How these buckets are reached.
    pub bucket_access: bucket::Access,
    /// For how long an object of a remote bucket is taken to be what it was when it was last
    /// looked at.
    pub freshness: Duration,
    /// A directory that components are taken from, instead of the bucket.
    pub components: Option<PathBuf>,
    /// Where in the bucket components are.
    pub component_prefix: Prefix,
    /// Where inputs, components and compiled code are kept.
    pub cache_dir: PathBuf,
    /// What the inputs and components in the cache may take.
    pub cache_size: ByteSize,
    /// Guests that run at the same time.
    pub parallel: usize,
    /// Tasks beyond those running that are leased and made ready ahead. None: twice as many
    /// as run, and more while tasks are short and the queue is asked in batches.
    pub prefetch: Option<usize>,
    /// Bytes of inputs that may be coming in ahead of execution.
    pub prefetch_bytes: ByteSize,
    /// Whether outputs are on the disk before their task is acknowledged, where the bucket is
    /// a directory.
    pub durable: bool,
    /// How long a lease lasts when it is not renewed.
    pub lease: Duration,
    /// What one execution may use.
    pub limits: Limits,
    /// What compiling one component may use.
    pub compile_limits: CompileLimits,
    /// How often and how fast a task is tried again.
    pub policy: Policy,
    /// Stop when the queue holds no message any more.
    pub exit_when_empty: bool,
    /// Stop after this many tasks are done or given up.
    pub max_tasks: Option<u64>,
    /// Stop leasing after this time.
    pub run_for: Option<Duration>,
    /// How long running tasks may go on when the host is told to stop.
    pub grace: Duration,
}

impl Config {
    /// The fewest tasks that are made ready ahead.
    pub fn least_prefetch(&self) -> usize {
        self.prefetch.unwrap_or(self.parallel * 2)
    }
}

/// The cache directory unless another is named, the first of these that there is: `task-host` in
/// `$XDG_CACHE_HOME` or in `~/.cache`, the cache of a systemd service (`$CACHE_DIRECTORY`),
/// `.cache/task-host` in the home directory that the system knows for this user,
/// `/var/cache/task-host` for root, and a directory of this user's own in the system's temporary
/// directory.
pub fn default_cache_dir() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let known_home = std::env::home_dir().filter(|home| {
        std::fs::metadata(home).is_ok_and(|meta| meta.is_dir() && meta.uid() == user)
    });
    let temporary = std::env::temp_dir();
    cache_dir_of(|name| std::env::var_os(name), known_home, user, &temporary)
}

fn cache_dir_of(
    variable: impl Fn(&str) -> Option<OsString>,
    known_home: Option<PathBuf>,
    user: u32,
    temporary: &Path,
) -> PathBuf {
    const NAME: &str = "task-host";
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let below_home = |home: PathBuf| home.join(".cache").join(NAME);
    // A service may have several, with colons between them.
    let of_service = || {
        let all = variable("CACHE_DIRECTORY")?.into_string().ok()?;
        all.split(':').next().map(PathBuf::from).filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .map(|caches| caches.join(NAME))
        .or_else(|| absolute("HOME").map(below_home))
        .or_else(of_service)
        .or_else(|| known_home.filter(|home| home.is_absolute()).map(below_home))
        .or_else(|| (user == 0).then(|| Path::new("/var/cache").join(NAME)))
        .unwrap_or_else(|| temporary.join(format!("{NAME}-{user}")))
}

/// The variables of this process, for what is told by them: credentials, regions, endpoints.
/// Those that are not text are left out.
pub fn environment() -> Environment {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// The program that compiles components, and its arguments: this one, whatever its file has become
/// since it was started. Its hidden command calls
/// [`compile_for_parent`](crate::catalog::compile_for_parent).
pub fn compiler(limits: CompileLimits) -> Compiler {
    Compiler::new(PathBuf::from("/proc/self/exe"), vec!["compile-component".into()], limits)
}

/// Who runs this host, for reports: `$USER`, or the user's number.
pub fn user_name() -> String {
    std::env::var("USER")
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// The number of guests that run at the same time unless it is given: one for each core.
pub fn default_parallel() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_only_this_user_is() {
        let check = |variables: &[(&str, &str)], home: Option<&str>, user, want: &str| {
            let variable = |name: &str| {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(OsString::from(value))
            };
            let dir = cache_dir_of(variable, home.map(PathBuf::from), user, Path::new("/tmp"));
            assert_eq!(dir, Path::new(want), "{variables:?} {home:?} {user}");
        };
        let (xdg, home) = (("XDG_CACHE_HOME", "/c"), ("HOME", "/home/ana"));
        let service = ("CACHE_DIRECTORY", "/var/cache/tasks:/var/cache/more");
        check(&[xdg, home, service], Some("/home/ana"), 7, "/c/task-host");
        check(&[home, service], Some("/home/ana"), 7, "/home/ana/.cache/task-host");
        check(&[("XDG_CACHE_HOME", "c"), home], None, 7, "/home/ana/.cache/task-host");
        check(&[service], Some("/home/ana"), 7, "/var/cache/tasks");
        check(&[("HOME", ""), service], Some(""), 7, "/var/cache/tasks");
        check(&[], Some("/home/ana"), 7, "/home/ana/.cache/task-host");
        check(&[], Some("/root"), 0, "/root/.cache/task-host");
        check(&[], None, 0, "/var/cache/task-host");
        // Never a name that somebody else may have taken without it being seen.
        check(&[], None, 7, "/tmp/task-host-7");
        check(&[("HOME", "")], Some(""), 7, "/tmp/task-host-7");
    }
}
