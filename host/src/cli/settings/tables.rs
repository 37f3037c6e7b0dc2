//! The tables `[tasks.NAME]` of `host.toml`: limits of the tasks of one name. Settings that a table
//! leaves out have the same values as for all tasks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use clap::{Args, Command};
use task_host::config::{NamedTask, TaskSettings, Tasks};
use task_host::digest::Digest;
use task_host::key::TaskName;
use task_host::sandbox::Table;

use super::super::exit_code::Advice;
use super::{DECLARED, Given, Origin, Settings, name, text_of};

/// The key for the digests of the components that may run under the name of a table.
const COMPONENTS: &str = "components";
/// The key of all tables.
pub(super) const TASKS: &str = "tasks";

/// The tables, by the names of their tasks.
pub(super) type Tables = BTreeMap<TaskName, BTreeMap<&'static str, Given>>;

/// The settings that a table can have.
static OF_TASKS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let command = TaskSettings::augment_args(Command::new("host"));
    let is_of_tasks = |setting: &&str| command.get_arguments().any(|arg| name(arg) == *setting);
    DECLARED.iter().map(name).filter(is_of_tasks).collect()
});

pub(super) fn parse(path: &Path, value: toml::Value) -> Result<Tables, Advice> {
    let shown = path.display();
    let toml::Value::Table(tables) = value else {
        return Err(Advice::usage(format!(
            "{shown}: {TASKS}: expected tables, found {} {value}",
            value.type_str()
        ))
        .hint(EXAMPLE));
    };
    let mut parsed = Tables::new();
    for (task, value) in tables {
        let task = TaskName::new(&task).map_err(|error| {
            Advice::usage(format!("{shown}: [tasks.{task:?}]: the name {error}"))
        })?;
        let header = header(&task);
        let toml::Value::Table(table) = value else {
            return Err(Advice::usage(format!(
                "{shown}: {header}: expected a table, found {} {value}",
                value.type_str()
            ))
            .hint(EXAMPLE));
        };
        let mut given = BTreeMap::new();
        for (key, value) in table {
            if key == COMPONENTS {
                let place = format!("{shown}: {header}: {key}");
                let text = digests_of(&place, &value)?;
                let origin = Origin::Table(path.to_owned(), header.clone());
                given.insert(COMPONENTS, Given { text, origin });
                continue;
            }
            let setting = setting(&key).map_err(|hint| {
                let problem = match DECLARED.iter().any(|setting| name(setting) == key) {
                    true => format!("`{key}` is not a setting for the tasks of one name"),
                    false => format!("there is no setting `{key}`"),
                };
                Advice::usage(format!("{shown}: {header}: {problem}")).hint(hint)
            })?;
            let text = text_of(&format!("{shown}: {header}: {key}"), value)?;
            let origin = Origin::Table(path.to_owned(), header.clone());
            given.insert(setting, Given { text, origin });
        }
        parsed.insert(task, given);
    }
    Ok(parsed)
}

/// The tables as text for `host.toml`.
pub(super) fn text(tables: &Tables) -> String {
    let mut file = toml::Table::new();
    for (task, given) in tables {
        let value = |(key, given): (&&str, &Given)| {
            let value = match *key {
                COMPONENTS => {
                    given.text.split(' ').map(toml::Value::from).collect::<Vec<_>>().into()
                }
                _ => given.text.as_str().into(),
            };
            ((*key).to_owned(), value)
        };
        let table: toml::Table = given.iter().map(value).collect();
        file.insert(task.to_string(), table.into());
    }
    let all = toml::Table::from_iter([(TASKS.to_owned(), toml::Value::Table(file))]);
    all.to_string()
}

const EXAMPLE: &str = "write for example [tasks.NAME] and, below it, memory = \"2GiB\"";

/// The digests of a list, separated by spaces.
fn digests_of(place: &str, value: &toml::Value) -> Result<String, Advice> {
    let wrong = |problem: String| {
        Advice::usage(format!("{place}: {problem}")).hint(
            "write for example components = [\"9f86…0f00\"]; `sha256sum FILE` prints a digest",
        )
    };
    let digests = match value {
        toml::Value::Array(digests) if !digests.is_empty() => digests,
        other => {
            return Err(wrong(format!("expected a list of digests, found {other}")));
        }
    };
    let digests: Result<Vec<String>, Advice> = digests
        .iter()
        .map(|digest| {
            let text = digest.as_str().unwrap_or_default();
            let parsed: Result<Digest, _> = text.parse();
            parsed
                .map(|digest| digest.to_string())
                .map_err(|error| wrong(format!("{digest} {error}")))
        })
        .collect();
    Ok(digests?.join(" "))
}

/// The setting of that name. The error is a hint about what to write instead.
fn setting(key: &str) -> Result<&'static str, String> {
    if let Some(setting) = OF_TASKS.iter().find(|setting| **setting == key) {
        return Ok(setting);
    }
    let likeness = |setting: &&&str| strsim::jaro_winkler(setting, &key.replace('_', "-"));
    let best = OF_TASKS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    Err(match best.filter(|best| likeness(best) > 0.75) {
        Some(best) => format!("did you mean `{best}`?"),
        None => format!("a table can have {} and {COMPONENTS}", OF_TASKS.join(", ")),
    })
}

/// The header of a task's table.
fn header(task: &TaskName) -> String {
    Table { name: task.clone(), settings: Default::default() }.to_string()
}

impl Settings {
    /// The settings of all tables, by the names of their tasks.
    ///
    /// # Errors
    /// Like [`Settings::get`].
    pub(crate) fn tasks(&self) -> anyhow::Result<Tasks> {
        self.tables.keys().map(|name| Ok((name.clone(), self.task(name)?))).collect()
    }

    /// The settings for the tasks of one name, with or without a table.
    ///
    /// # Errors
    /// Like [`Settings::get`].
    pub(crate) fn task(&self, name: &TaskName) -> anyhow::Result<NamedTask> {
        let Some(table) = self.tables.get(name) else {
            let own = Default::default();
            return Ok(NamedTask { limits: self.get()?, own, components: None });
        };
        let mut settings = self.clone();
        let limits = table.iter().filter(|(setting, _)| **setting != COMPONENTS);
        let own = limits.clone().map(|(setting, _)| *setting).collect();
        settings.given.extend(limits.map(|(setting, given)| (*setting, given.clone())));
        let digests = table.get(COMPONENTS).map(|given| given.text.split(' '));
        let components = digests.map(|digests| digests.filter_map(|d| d.parse().ok()).collect());
        Ok(NamedTask { limits: settings.get()?, own, components })
    }

    /// The rows for the tables in `host config`.
    pub(super) fn shown_tables(&self) -> impl Iterator<Item = (String, Option<String>, Origin)> {
        self.tables.iter().flat_map(|(task, table)| {
            let header = header(task);
            let table_name = header.trim_matches(['[', ']']).to_owned();
            table.iter().map(move |(setting, given)| {
                let name = format!("{table_name}.{setting}");
                (name, Some(given.text.clone()), given.origin.clone())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Tables, String> {
        let mut table: toml::Table = toml::from_str(text).unwrap();
        let tables = table.remove(TASKS).unwrap();
        parse(Path::new("host.toml"), tables).map_err(|error| format!("{error}"))
    }

    #[track_caller]
    fn refused(text: &str, want: &str) {
        assert_eq!(parsed(text).unwrap_err(), want, "{text}");
    }

    #[test]
    fn a_table_has_limits_of_the_tasks_of_one_name() {
        let text = "[tasks.shrink]\nmemory = \"2GiB\"\nmax-output-files = 3\n[tasks.\"a.b/c\"]\n";
        let tables = parsed(text).unwrap();
        let shown: Vec<_> = tables
            .iter()
            .map(|(name, given)| {
                let given = given.iter().map(|(k, v)| (*k, v.text.as_str()));
                (name.as_str(), given.collect::<Vec<_>>())
            })
            .collect();
        let want = vec![("max-output-files", "3"), ("memory", "2GiB")];
        assert_eq!(shown, [("a.b/c", vec![]), ("shrink", want)]);
    }

    #[test]
    fn a_table_that_means_nothing_is_an_error() {
        refused("tasks = 3", "host.toml: tasks: expected tables, found integer 3");
        refused(
            "[tasks]\nmemory = \"1GiB\"",
            "host.toml: [tasks.memory]: expected a table, found string \"1GiB\"",
        );
        refused("[tasks.\"../x\"]", "host.toml: [tasks.\"../x\"]: the name has a `..` segment");
        refused("[tasks.a]\nmemmory = 1", "host.toml: [tasks.a]: there is no setting `memmory`");
        refused(
            "[tasks.\"a.b\"]\nparallel = 1",
            "host.toml: [tasks.\"a.b\"]: `parallel` is not a setting for the tasks of one name",
        );
        refused(
            "[tasks.a]\nmemory = 1.5",
            "host.toml: [tasks.a]: memory: expected a string, a whole number, true or false; \
             found float 1.5",
        );
        assert_eq!(setting("memmory"), Err("did you mean `memory`?".to_owned()));
        assert!(setting("parallel").unwrap_err().starts_with("a table can have memory, timeout, "));
    }
}
