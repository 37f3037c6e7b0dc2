//! `--confine`: lets this process use only the files and ports that its settings need. The kernel
//! refuses everything else.

use std::net::SocketAddr;
use std::path::Path;

use task_host::config::Config;
use task_host::confinement::{self, Confine, InForce, Rules};
use task_host::environment::Environment;
use task_host::fit::Level;

use super::super::doctor;
use super::super::exit_code::Advice;
use super::super::output;
use super::super::settings::Settings;

/// Confines this process as its settings require. No other thread may run yet.
///
/// # Errors
/// If a directory can't be created, or if the kernel does not support what `--confine require`
/// needs.
pub(super) fn confine(
    settings: &Settings,
    config: &Config,
    listen: Option<SocketAddr>,
) -> anyhow::Result<InForce> {
    let confine = config.confinement.confine;
    if confine == Confine::Off {
        return Ok(InForce::NOTHING);
    }
    if confine == Confine::Require {
        let found = doctor::machine::kernel(config);
        if found.level != Level::Ok {
            let problem = format!("--confine require: the kernel {}", found.text);
            return Err(Advice::usage(problem).hint(found.cure.unwrap_or_default()).into());
        }
    }
    Ok(confinement::confine(&rules(settings, config, listen)?))
}

fn rules(
    settings: &Settings,
    config: &Config,
    listen: Option<SocketAddr>,
) -> anyhow::Result<Rules> {
    let mut rules = Rules::of(&Environment::of_process());
    let mut own = |dir: &Path, is_made| {
        rules.own(dir, is_made).map_err(|error| {
            Advice::failed(format!("could not create the directory {}: {error}", output::path(dir)))
        })
    };
    own(&config.cache.dir, true)?;
    let queues = [Some(&config.queue), Some(&config.error_queue), config.done_queue.as_ref()];
    for queue in queues.iter().flatten().filter_map(|queue| queue.directory()) {
        own(queue, true)?;
    }
    let data = &config.data;
    if let Some(bucket) = data.bucket.path() {
        own(bucket, settings.has_default_bucket())?;
        rules.follow_links(bucket, true);
    }
    let read =
        [data.input_bucket.as_ref().and_then(|bucket| bucket.path()), data.components.as_deref()];
    for dir in read.into_iter().flatten() {
        rules.read(dir);
        rules.follow_links(dir, false);
    }
    for path in config.confinement.confine_allow.iter().flat_map(|paths| &paths.0) {
        rules.allow(path);
    }
    for queue in queues.into_iter().flatten() {
        rules.connect(&queue.to_string());
    }
    for bucket in [Some(&data.bucket), data.input_bucket.as_ref()].into_iter().flatten() {
        rules.connect(&bucket.to_string());
    }
    if let Some(address) = listen {
        rules.listen(address.port());
    }
    Ok(rules)
}
