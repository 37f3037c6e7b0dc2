//! Settings files: the parser of each setting reads its value, and accepted values are within their
//! documented limits.

use std::sync::LazyLock;
use std::time::Duration;

use clap::{Args, Command, FromArgMatches};
use task_host::config::Config;
use task_host::key::BucketKey;

use crate::memory::bounded;

static COMMAND: LazyLock<Command> = LazyLock::new(|| {
    let command = Command::new("host").no_binary_name(true).disable_help_flag(true);
    let mut command = Config::augment_args(command);
    command.build();
    command
});

pub(crate) fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(table) = text.parse::<toml::Table>() else { return };
    let mut line = vec!["--queue=fq://q".to_owned(), "--error-queue=fq://e".to_owned()];
    for (key, value) in table {
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(true) => {
                line.push(format!("--{key}"));
                continue;
            }
            _ => continue,
        };
        // A value replaces the earlier value of its setting. The queues are required.
        line.retain(|word| !word.starts_with(&format!("--{key}=")));
        line.push(format!("--{key}={value}"));
    }
    // A glob pattern is compiled to an automaton of at most 10 MB.
    let parsed = bounded(64 << 20, || {
        let matches = COMMAND.clone().try_get_matches_from(line);
        matches.and_then(|matches| Config::from_arg_matches(&matches))
    });
    match parsed {
        Ok(config) => limits(&config),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Checks the limits that the settings' documentation states.
fn limits(config: &Config) {
    let lease = config.work.lease;
    assert!((Duration::from_secs(2)..=Duration::from_secs(12 * 3600)).contains(&lease));
    assert!((1..=4096).contains(&config.work.parallel));
    assert!((64 << 10..=4 << 30).contains(&config.task.memory.as_u64()));
    assert!(config.compile.memory.as_u64() >= 64 << 20);
    let components = BucketKey::new(config.data.component_prefix.as_str());
    assert!(components.is_ok_and(|prefix| !prefix.is_reserved()));
    if let Some(bucket) = &config.queue_options.message_bucket {
        assert!(bucket.path().is_none());
    }
}
