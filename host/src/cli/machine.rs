//! What `host run` asks of the machine before it starts: as many open files as it may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use task_host::config::Config;

/// Files that a host has open whatever it works on: queues, directories, connections.
pub(super) const FILES: u64 = 48;
/// Files that a task has open, from its lease to its end.
pub(super) const FILES_OF_TASK: u64 = 8;

/// Prepares the process, and fits the configuration to what it may use.
pub(crate) fn prepare(config: Config) -> Config {
    match raise_open_files() {
        Some(most) => fit(config, most),
        None => config,
    }
}

/// Raises the soft limit of open files to the hard one. Returns the limit; none if it has none.
fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!("the limit of open files stays: {error}");
    }
    getrlimit(Resource::Nofile).current
}

/// Runs and prefetches no more tasks than the process may have files open for.
fn fit(mut config: Config, most: u64) -> Config {
    let tasks = usize::try_from(most.saturating_sub(FILES) / FILES_OF_TASK).unwrap_or(usize::MAX);
    let (parallel, ahead) = (config.parallel, config.least_prefetch());
    if parallel.saturating_add(ahead) > tasks {
        config.parallel = parallel.min(tasks.div_ceil(2)).max(1);
        config.prefetch = Some(ahead.min(tasks.saturating_sub(config.parallel)));
        tracing::warn!(
            "this process may have {most} files open: {} tasks run at a time instead of \
             {parallel}, and {} are prefetched instead of {ahead}; raise `ulimit -n`",
            config.parallel,
            config.prefetch.unwrap_or_default(),
        );
    }
    config
}
