//! What of the machine a run depends on.

use std::path::Path;

use bytesize::ByteSize;
use rustix::fs::{Access, AtFlags, CWD, accessat, statvfs};
use rustix::process::{Resource, getrlimit};
use task_host::config::Config;
use task_host::sandbox;

use super::rules::{Finding, Level};

/// Open files of a host that has nothing to do: its queues, its cache, its connections.
const BASE_FILES: u64 = 128;
/// Open files of one task: its directories, what is read, written, fetched and published.
const TASK_FILES: u64 = 16;

/// Looks at the disk, the kernel and the limits of this process.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    vec![cache(config), kernel(), files(config)]
}

/// The nearest directory on the way to `path` that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."))
}

fn cache(config: &Config) -> Finding {
    let subject = format!("cache {}", config.cache_dir.display());
    let place = existing(&config.cache_dir);
    if let Err(error) = accessat(CWD, place, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        let text = format!("{} can't be written to: {error}", place.display());
        return Finding::new(Level::Problem, &subject, text)
            .cure("name a directory of your own with --cache-dir");
    }
    let free = match statvfs(place) {
        Ok(stat) => ByteSize(stat.f_bavail.saturating_mul(stat.f_frsize)),
        Err(error) => {
            let text = format!("its disk can't be looked at: {error}");
            return Finding::new(Level::Warn, &subject, text);
        }
    };
    let (shown, size) = (free.display().iec(), config.cache_size.display().iec());
    if free < config.cache_size && !config.cache_dir.join("blobs").is_dir() {
        return Finding::new(
            Level::Warn,
            &subject,
            format!("it may grow to {size}, and its disk has {shown} left"),
        )
        .cure(format!("set --cache-size below {shown}, or another --cache-dir"));
    }
    let text = format!("can be written; up to {size}, and its disk has {shown} left");
    Finding::new(Level::Ok, &subject, text)
}

fn kernel() -> Finding {
    if sandbox::kernel_can_confine() {
        return Finding::new(
            Level::Ok,
            "kernel",
            "keeps tasks to their directories too (Landlock)",
        );
    }
    Finding::new(
        Level::Warn,
        "kernel",
        "does not confine tasks (no Landlock of version 3): the sandbox does, and inputs are \
         copied for each task",
    )
    .cure("use Linux 6.2 or newer with landlock among its security modules")
}

fn files(config: &Config) -> Finding {
    let tasks = (config.parallel + config.least_prefetch()) as u64;
    let needed = BASE_FILES + TASK_FILES * tasks;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => {
            let text = format!(
                "this process may have {limit} open, and {tasks} tasks under way may need {needed}"
            );
            Finding::new(Level::Warn, "files", text)
                .cure(format!("`ulimit -n {needed}`, LimitNOFILE={needed} in a systemd unit, or a lower --parallel"))
        }
        Some(limit) => Finding::new(
            Level::Ok,
            "files",
            format!("{limit} may be open, enough for {tasks} tasks"),
        ),
        None => Finding::new(Level::Ok, "files", "any number may be open"),
    }
}
