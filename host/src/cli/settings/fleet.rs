//! The table `[fleet]` of `host.toml`, and the settings that are passed to workers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use task_host::config::Config;

use super::super::exit_code::Advice;
use super::{CONFIG_TEXT, DECLARED, Given, Origin, Settings, name, tables, text_of, variable};

/// The name of the table.
pub(super) const FLEET: &str = "fleet";
/// The name of its inner table with options of the engine.
const OPTIONS: &str = "options";
/// Settings of `host fleet` itself, which are not passed to workers.
const OWN: [&str; 1] = ["progress"];

/// The table `[fleet]`: options of `host fleet`, by the names of their flags.
#[derive(Debug, Clone, Default)]
pub(crate) struct FleetTable {
    path: PathBuf,
    table: toml::Table,
}

impl FleetTable {
    pub(super) fn parse(path: &Path, value: toml::Value) -> Result<Self, Advice> {
        match value {
            toml::Value::Table(table) => Ok(Self { path: path.to_owned(), table }),
            other => Err(Advice::usage(format!(
                "{}: fleet: expected a table [fleet], found {other}",
                path.display()
            ))),
        }
    }

    fn place(&self) -> String {
        format!("{}: [fleet]", self.path.display())
    }

    /// The table as flags.
    ///
    /// # Errors
    /// If a value has a type that a flag can't have.
    pub(crate) fn args(&self) -> Result<Vec<String>, Advice> {
        let mut args = Vec::new();
        for (key, value) in &self.table {
            let place = format!("{}: {key}", self.place());
            match value {
                toml::Value::Table(options) if key == OPTIONS => {
                    for (name, value) in options {
                        let place = format!("{place}: {name}");
                        for text in texts(&place, value)? {
                            args.push(format!("--option={name}={text}"));
                        }
                    }
                }
                value => {
                    for text in texts(&place, value)? {
                        args.push(format!("--{key}={text}"));
                    }
                }
            }
        }
        Ok(args)
    }

    /// Turns an error of clap about these flags into one about the table.
    pub(crate) fn wrong(&self, error: clap::Error) -> anyhow::Error {
        let flag = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(flag)) => flag.trim_start_matches('-').to_owned(),
            _ => return Advice::usage(format!("{}: {error}", self.place())).into(),
        };
        let key = flag.split([' ', '=']).next().unwrap_or_default();
        let place = self.place();
        let problem = match std::error::Error::source(&error) {
            Some(problem) => match error.get(ContextKind::InvalidValue) {
                Some(ContextValue::String(text)) => format!("{place}: {key}: {text:?} {problem}"),
                _ => format!("{place}: {key}: {problem}"),
            },
            None => format!("{place}: there is no option `{key}`"),
        };
        Advice::usage(problem).hint("`host fleet up --help` lists the options of a fleet").into()
    }
}

fn texts(place: &str, value: &toml::Value) -> Result<Vec<String>, Advice> {
    match value {
        toml::Value::Array(values) => {
            values.iter().map(|value| text_of(place, value.clone())).collect()
        }
        value => Ok(vec![text_of(place, value.clone())?]),
    }
}

impl Settings {
    /// The table `[fleet]` of `host.toml`.
    pub(crate) fn fleet(&self) -> &FleetTable {
        &self.fleet
    }

    /// The text of a setting that was given. Ignores defaults, because they depend on this machine
    /// and not on the workers'.
    fn given(&self, name: &str) -> Option<&str> {
        let given = self.given.get(name).filter(|given| given.origin != Origin::Default);
        given.map(|given| &*given.text)
    }

    /// Whether a setting was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.given(name).is_some()
    }

    /// Sets a value for a setting that was not given.
    pub(crate) fn or(&mut self, name: &'static str, text: impl Into<String>) {
        debug_assert!(DECLARED.iter().any(|setting| super::name(setting) == name), "{name}");
        if !self.has(name) {
            let origin = Origin::Flag(format!("--{name}"));
            self.given.insert(name, Given { text: text.into(), origin });
        }
    }

    /// The settings that were given, as variables for workers. Paths of queues and buckets are
    /// absolute, so that other commands find them too.
    pub(crate) fn variables(&self, config: &Config) -> anyhow::Result<BTreeMap<String, String>> {
        let given = |setting| Some((variable(setting), self.given(name(setting))?.to_owned()));
        let shared = DECLARED.iter().filter(|setting| !OWN.contains(&name(setting)));
        let mut variables: BTreeMap<String, String> = shared.filter_map(given).collect();
        if self.has_file {
            // Set this even without tables: a worker that finds the same file must not read it,
            // because the file may have changed.
            variables.insert(CONFIG_TEXT.to_owned(), tables::text(&self.tables));
        }
        let queues = [
            ("HOST_QUEUE", Some(&config.queue)),
            ("HOST_ERROR_QUEUE", Some(&config.error_queue)),
            ("HOST_DONE_QUEUE", config.done_queue.as_ref()),
        ];
        let queues = queues
            .into_iter()
            .filter_map(|(name, queue)| Some((name, "fq://", queue?.directory()?)));
        let buckets = [
            ("HOST_BUCKET", Some(&config.data.bucket)),
            ("HOST_INPUT_BUCKET", config.data.input_bucket.as_ref()),
        ];
        let buckets =
            buckets.into_iter().filter_map(|(name, bucket)| Some((name, "", bucket?.path()?)));
        for (name, scheme, path) in queues.chain(buckets) {
            let path = std::path::absolute(path)?;
            let Some(path) = path.to_str() else {
                let problem = format!("{name}: {} is not UTF-8 text", path.display());
                return Err(Advice::usage(problem).into());
            };
            variables.insert(name.to_owned(), format!("{scheme}{path}"));
        }
        Ok(variables)
    }

    /// The settings in the variables of a worker.
    pub(crate) fn of_variables(variables: &BTreeMap<String, String>) -> Self {
        let given = |setting| {
            let variable = variable(setting);
            let text = variables.get(&variable)?.clone();
            Some((name(setting), Given { text, origin: Origin::Variable(variable) }))
        };
        Self {
            given: DECLARED.iter().filter_map(given).collect(),
            tables: tables::Tables::new(),
            fleet: FleetTable::default(),
            has_file: false,
            misspelt: Vec::new(),
        }
    }

    /// The absolute paths of the files and directories that a host with these settings uses.
    pub(crate) fn paths(&self, config: &Config) -> anyhow::Result<BTreeSet<PathBuf>> {
        let queues = [Some(&config.queue), Some(&config.error_queue), config.done_queue.as_ref()];
        let queues = queues.into_iter().flatten().filter_map(|queue| queue.directory());
        let buckets = [Some(&config.data.bucket), config.data.input_bucket.as_ref()];
        let buckets = buckets.into_iter().flatten().filter_map(|bucket| bucket.path());
        let allowed = config.confinement.confine_allow.iter().flat_map(|paths| &paths.0);
        let given = ["component-keys", "cache-dir"]
            .into_iter()
            .filter_map(|name| self.given.get(name).map(|given| Path::new(&given.text)));
        let components = config.data.components.as_deref();
        let all = queues.chain(buckets).chain(components).chain(given);
        let all = all.chain(allowed.map(PathBuf::as_path));
        Ok(all.map(std::path::absolute).collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn table(text: &str) -> FleetTable {
        file::of_text("host.toml", text).expect("a file").fleet
    }

    #[test]
    fn a_table_is_read_as_flags() {
        let fleet = table(
            "[fleet]\non = \"slurm://main\"\ncpus = 8\npass-env = [\"A\", \"B\"]\n\
             [fleet.options]\naccount = \"lab\"\nconstraint = [\"a\", \"b\"]\n",
        );
        let want = [
            "--cpus=8",
            "--on=slurm://main",
            "--option=account=lab",
            "--option=constraint=a",
            "--option=constraint=b",
            "--pass-env=A",
            "--pass-env=B",
        ];
        assert_eq!(fleet.args().expect("flags"), want);
        assert!(table("parallel = 2").args().expect("no flags").is_empty());
    }

    #[test]
    fn a_table_that_means_nothing_is_an_error() {
        let error = file::of_text("host.toml", "fleet = 3").expect_err("no table").to_string();
        assert_eq!(error, "host.toml: fleet: expected a table [fleet], found 3");
        let error = table("[fleet.options]\na = { b = 1 }").args().expect_err("a table");
        let want = "host.toml: [fleet]: options: a: expected a string";
        assert!(error.to_string().starts_with(want), "{error}");
    }

    #[test]
    fn tables_for_tasks_reach_a_worker_as_they_are() {
        let digest = "ab".repeat(32);
        let text = format!(
            "[tasks.\"a.b\"]\nmemory = \"2GiB\"\nmax-open-files = 7\ncomponents = [\"{digest}\"]\n\
             [tasks.c]\n"
        );
        let here = file::of_text("host.toml", &text).expect("a file").tables;
        let sent = tables::text(&here);
        let there = file::of_text(CONFIG_TEXT, &sent).expect("a file").tables;
        let texts = |tables: &tables::Tables| -> Vec<String> {
            let given = |(key, given): (&&str, &Given)| format!("{key}={}", given.text);
            let table = |(name, table): (_, &BTreeMap<&str, Given>)| {
                format!("{name}: {:?}", table.iter().map(given).collect::<Vec<_>>())
            };
            tables.iter().map(table).collect()
        };
        assert_eq!(texts(&there), texts(&here), "{sent}");
        assert_eq!(here.len(), 2);
        assert!(!tables::text(&tables::Tables::new()).is_empty(), "an empty variable is not set");
    }
}
