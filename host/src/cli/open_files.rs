//! Raises this process's limit on open files, and adapts the configuration to the limit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use task_host::config::{Config, MORE_PREFETCH, TaskSettings, Tasks};

/// The number of files that a host always has open: queues, directories, connections.
const FILES: u64 = 48;
/// The number of files that a task has open from its lease to its end, without the files that its
/// guest opens.
const FILES_OF_TASK: u64 = 8;
/// The minimum limit with which a host can run one task.
pub(super) const LEAST_FILES: u64 = FILES + FILES_OF_TASK;
/// The minimum number of files that each guest may open, if the limit allows that for one task.
const LEAST_OPEN: u64 = 32;
/// The maximum number of files that hold the initial memory of compiled components. They take at
/// most a quarter of the limit.
const COMPONENTS: u64 = 256;

/// Raises the limit, and adapts the configuration to it.
pub(crate) fn prepare(config: Config) -> Config {
    match raise_open_files() {
        Some(most) => fit(config, most),
        None => config,
    }
}

/// Raises the limit, and adapts the settings to it, for `parallel` tasks at a time without a host.
pub(crate) fn prepare_for(parallel: usize, task: &mut TaskSettings, tables: &mut Tasks) {
    if let Some(most) = raise_open_files() {
        share(open_files(for_tasks(most), parallel, 0), task, tables);
    }
}

/// Lets each guest open `open` files.
fn share(open: u64, task: &mut TaskSettings, tables: &mut Tasks) {
    for task in tables.values_mut().map(|table| &mut table.limits).chain([task]) {
        task.process_files = open;
    }
}

/// The number of files that `parallel` running and `ahead` prefetched tasks may need.
pub(super) fn needed(parallel: usize, ahead: usize) -> u64 {
    let tasks = of_tasks(parallel, ahead);
    FILES + tasks + tasks.div_ceil(3).min(COMPONENTS)
}

/// The number of files that a limit of `most` leaves for tasks.
fn for_tasks(most: u64) -> u64 {
    let left = most.saturating_sub(FILES);
    left - (left / 4).min(COMPONENTS)
}

fn of_tasks(parallel: usize, ahead: usize) -> u64 {
    let (parallel, ahead) = (parallel as u64, ahead as u64);
    let running = parallel.saturating_mul(FILES_OF_TASK + LEAST_OPEN);
    running.saturating_add(ahead.saturating_mul(FILES_OF_TASK))
}

/// The number of files that each guest may open.
fn open_files(for_tasks: u64, parallel: usize, ahead: usize) -> u64 {
    let (parallel, ahead) = (parallel as u64, ahead as u64);
    let left = for_tasks.saturating_sub(FILES_OF_TASK.saturating_mul(parallel + ahead));
    (left / parallel.max(1)).max(1)
}

/// Raises the soft limit on open files to the hard limit. Returns the limit, or none if there is
/// none.
fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!("can't raise the limit of open files: {error}");
    }
    getrlimit(Resource::Nofile).current
}

/// Lowers the numbers of running and prefetched tasks until the limit is enough, and divides the
/// remaining files among the guests.
fn fit(mut config: Config, most: u64) -> Config {
    let (parallel, ahead, left) = (config.work.parallel, config.usual_prefetch(), for_tasks(most));
    if of_tasks(parallel, ahead) > left {
        let whole = |files: u64| usize::try_from(files).unwrap_or(usize::MAX);
        config.work.parallel = parallel.min(whole(left / of_tasks(1, 1))).max(1);
        let for_ahead = left.saturating_sub(of_tasks(config.work.parallel, 0)) / FILES_OF_TASK;
        config.work.most_prefetch = ahead.min(whole(for_ahead));
        let runs = match config.work.parallel {
            1 => "1 task runs".to_owned(),
            n => format!("{n} tasks run"),
        };
        tracing::warn!(
            "this process may open {most} files: {runs} at a time instead of {parallel}, and at \
             most {} are prefetched instead of {ahead}; raise `ulimit -n`",
            config.work.most_prefetch,
        );
    }
    let ahead = config.usual_prefetch();
    let is_most = config.work.prefetch.is_some() || config.work.most_prefetch <= ahead;
    let most_ahead = if is_most { ahead } else { ahead + MORE_PREFETCH };
    let mut open = open_files(left, config.work.parallel, most_ahead);
    if open < LEAST_OPEN {
        // Fewer prefetched tasks are better than guests that can't open their inputs.
        config.work.most_prefetch = ahead;
        open = open_files(left, config.work.parallel, ahead);
    }
    share(open, &mut config.task, &mut config.tasks);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_together_fit_the_limit() {
        for most in [64, 100, 256, 1024, 4096, 1 << 20] {
            for parallel in [1, 4, 64] {
                let ahead = 2 * parallel;
                let left = for_tasks(most);
                let open = open_files(left, parallel, ahead);
                if most >= needed(parallel, ahead) {
                    let all = (parallel as u64) * open
                        + FILES_OF_TASK * (parallel + ahead) as u64
                        + FILES
                        + (most - FILES - left);
                    assert!(all <= most, "{all} of {most}");
                    assert!(open >= LEAST_OPEN, "{open} of {most}");
                }
            }
        }
        assert!(open_files(for_tasks(1 << 20), 8, 16) > 10_000);
    }
}
