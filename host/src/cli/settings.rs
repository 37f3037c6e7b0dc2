//! The settings of one command: collects them from flags, `HOST_*` variables and `host.toml`, and
//! remembers the source of each.
//!
//! [`Config`] and [`DisplaySettings`] declare the settings. This module treats all settings alike.
//! It names settings only in the groups below, for the queues, and if a default depends on other
//! settings.

mod display;
mod file;
mod fleet;
mod overlaps;
#[cfg(test)]
pub(crate) mod reference;
mod tables;

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use bytesize::ByteSize;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Id};
use task_host::activity::snapshot::Setting;
use task_host::bucket;
use task_host::config::parse::{self, Parsed};
use task_host::config::{
    CacheSettings, CloudSettings, CompileSettings, Config, DataSettings, QueueSettings, TaskLimits,
};
use task_host::environment;
use task_host::identity;
use task_host::machine::Machine;
use task_host::queue;

use super::exit_code::Advice;

pub(crate) use display::{DisplaySettings, LogFormat, When, address};
pub(crate) use fleet::FleetTable;
pub(crate) use overlaps::{Overlap, overlaps};

/// The prefix of the variables. Many other programs use the same prefix.
const PREFIX: &str = "HOST_";
/// The variable with the path of the file.
const CONFIG: &str = "HOST_CONFIG";
/// The variable with the contents of a file, for workers without a file.
const CONFIG_TEXT: &str = "HOST_CONFIG_TEXT";
/// Variables of workers that are not settings.
const OTHERS: [&str; 2] = [CONFIG, CONFIG_TEXT];

/// The argument that names the task queue.
const QUEUE: &str = "queue-argument";

/// A command with more settings than this shows only the usual ones with `-h`.
const MANY: usize = 12;
/// The settings that most users need.
const COMMON: [&str; 13] = [
    "queue",
    "error-queue",
    "bucket",
    "components",
    "region",
    "parallel",
    "exit-when-empty",
    "max-tasks",
    "max-attempts",
    "memory",
    "timeout",
    "log-level",
    "listen",
];

/// All settings, in the order of `--help`.
static DECLARED: LazyLock<Vec<Arg>> = LazyLock::new(|| {
    let command = DisplaySettings::augment_args(Config::augment_args(Command::new("host")));
    command.get_arguments().cloned().collect()
});

/// The command with only the usual settings in its help, if it has many.
pub(crate) fn brief(mut command: Command) -> Command {
    let is_setting = |arg: &&Arg| DECLARED.iter().any(|setting| setting.get_id() == arg.get_id());
    let settings = command.get_arguments().filter(is_setting);
    let settings: Vec<Id> = settings.map(|arg| arg.get_id().clone()).collect();
    let is_common = |id: &Id| {
        let setting = DECLARED.iter().find(|setting| setting.get_id() == id);
        setting.is_some_and(|setting| COMMON.contains(&name(setting)))
    };
    if settings.len() > MANY {
        for id in settings.into_iter().filter(|id| !is_common(id)) {
            command = command.mut_arg(id, |arg| arg.hide(true));
        }
    }
    command
}

/// The name of a setting, which is also its flag and its key in `host.toml`.
fn name(setting: &Arg) -> &str {
    setting.get_long().unwrap_or_default()
}

fn variable(setting: &Arg) -> String {
    format!("{PREFIX}{}", name(setting).replace('-', "_").to_uppercase())
}

fn is_switch(setting: &Arg) -> bool {
    matches!(setting.get_action(), ArgAction::SetTrue)
}

/// True if the option's parser returns a number, a time or a size.
fn is_measure(arg: &Arg) -> bool {
    let parsed = arg.get_value_parser().type_id();
    let measures = [
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<i64>(),
        TypeId::of::<usize>(),
        TypeId::of::<Duration>(),
        TypeId::of::<ByteSize>(),
    ];
    measures.iter().any(|measure| parsed == *measure)
}

/// Lets options take values that begin with a hyphen if these can't be options. The error is then
/// about the value: otherwise `-1` in `--parallel -1` would be an unexpected argument.
pub(crate) fn with_negative_values(command: Command) -> Command {
    command.mut_args(|arg| match arg.get_action().takes_values() && !arg.is_positional() {
        true if is_measure(&arg) => arg.allow_hyphen_values(true),
        true => arg.allow_negative_numbers(true),
        false => arg,
    })
}

/// The value of a setting that is not given.
fn default(setting: &Arg) -> Option<String> {
    let value = setting.get_default_values().first().map(|text| text.to_string_lossy().into());
    value.or_else(|| is_switch(setting).then(|| "false".to_owned()))
}

/// The settings that a command takes as flags.
pub(crate) trait Group {
    /// The names of the settings; `None` for all settings.
    const SETTINGS: Option<&'static [&'static str]>;
    /// Whether the command also takes the queue as its argument.
    const NAMES_QUEUE: bool = false;

    /// Whether the command takes this setting.
    fn takes(setting: &Arg) -> bool {
        Self::SETTINGS.is_none_or(|settings| settings.contains(&name(setting)))
    }
}

/// All settings, for commands about a host.
#[derive(Debug)]
pub(crate) struct Everything;
impl Group for Everything {
    const SETTINGS: Option<&'static [&'static str]> = None;
    const NAMES_QUEUE: bool = true;
}

/// All settings, for commands about the workers of a fleet. Their argument is the fleet's name and
/// not a queue.
#[derive(Debug)]
pub(crate) struct OfWorkers;
impl Group for OfWorkers {
    const SETTINGS: Option<&'static [&'static str]> = None;
}

/// For commands about one queue.
#[derive(Debug)]
pub(crate) struct QueueOnly;
impl Group for QueueOnly {
    const SETTINGS: Option<&'static [&'static str]> =
        Some(&["queue", "region", "create-queues", "message-bucket", "message-group", "progress"]);
}

/// For commands that name their queues by arguments.
#[derive(Debug)]
pub(crate) struct QueueAccess;
impl Group for QueueAccess {
    const SETTINGS: Option<&'static [&'static str]> =
        Some(&["region", "create-queues", "message-bucket", "message-group", "progress"]);
}

/// For commands that send tasks.
#[derive(Debug)]
pub(crate) struct QueueAndBucket;
impl Group for QueueAndBucket {
    const SETTINGS: Option<&'static [&'static str]> = Some(&[
        "queue",
        "bucket",
        "input-bucket",
        "components",
        "component-prefix",
        "region",
        "create-queues",
        "message-bucket",
        "message-group",
        "anonymous",
        "requester-pays",
        "progress",
    ]);
}

/// For commands about the bucket.
#[derive(Debug)]
pub(crate) struct BucketOnly;
impl Group for BucketOnly {
    const SETTINGS: Option<&'static [&'static str]> =
        Some(&["bucket", "region", "anonymous", "requester-pays", "progress"]);
}

/// For commands about components.
#[derive(Debug)]
pub(crate) struct Components;
impl Group for Components {
    const SETTINGS: Option<&'static [&'static str]> = Some(&[
        "bucket",
        "region",
        "components",
        "component-prefix",
        "component-keys",
        "compile-memory",
        "compile-timeout",
        "cache-dir",
        "cache-size",
    ]);
}

/// For commands that execute one task.
#[derive(Debug)]
pub(crate) struct Execution;
impl Group for Execution {
    const SETTINGS: Option<&'static [&'static str]> = Some(&[
        "bucket",
        "input-bucket",
        "components",
        "component-prefix",
        "readable",
        "component-keys",
        "stored-encoding",
        "gzip-outputs",
        "region",
        "message-bucket",
        "anonymous",
        "requester-pays",
        "deterministic",
        "memory",
        "timeout",
        "cpu-time",
        "max-output",
        "max-output-files",
        "output-memory",
        "output-file-memory",
        "max-open-files",
        "max-log",
        "host-memory",
        "compile-memory",
        "compile-timeout",
        "cache-dir",
        "cache-size",
    ]);
}

/// For commands that execute tasks of a bucket again.
#[derive(Debug)]
pub(crate) struct Audits;
impl Group for Audits {
    const SETTINGS: Option<&'static [&'static str]> = Some(&[
        "bucket",
        "input-bucket",
        "components",
        "component-prefix",
        "readable",
        "stored-encoding",
        "region",
        "anonymous",
        "requester-pays",
        "parallel",
        "memory",
        "timeout",
        "max-output",
        "max-output-files",
        "output-memory",
        "output-file-memory",
        "compile-memory",
        "compile-timeout",
        "cache-dir",
        "cache-size",
        "progress",
    ]);
}

/// For commands about the cache.
#[derive(Debug)]
pub(crate) struct CacheOnly;
impl Group for CacheOnly {
    const SETTINGS: Option<&'static [&'static str]> = Some(&["cache-dir"]);
}

/// For commands that take settings only from variables and the file.
#[derive(Debug)]
pub(crate) struct NoSetting;
impl Group for NoSetting {
    const SETTINGS: Option<&'static [&'static str]> = Some(&[]);
}

/// The settings of a group that were given on the command line.
#[derive(Debug)]
pub(crate) struct Flags<G> {
    given: Vec<(&'static str, Given)>,
    config: Option<PathBuf>,
    group: PhantomData<G>,
}

/// The text of a setting, and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    text: String,
    origin: Origin,
}

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag(String),
    Variable(String),
    File(PathBuf),
    /// A table of a file.
    Table(PathBuf, String),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Variable(name) => f.write_str(name),
            Self::File(path) | Self::Table(path, _) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

impl<G: Group> Args for Flags<G> {
    /// Adds the flags. Their texts are parsed only when a command asks for the values, so that
    /// errors are the same for all sources.
    fn augment_args(mut command: Command) -> Command {
        let is_declared = |wanted: &&str| DECLARED.iter().any(|setting| name(setting) == *wanted);
        debug_assert!(G::SETTINGS.is_none_or(|settings| settings.iter().all(is_declared)));
        for (place, setting) in DECLARED.iter().enumerate() {
            if !G::takes(setting) {
                continue;
            }
            let mut flag = setting.clone().required(false).display_order(2 * place);
            if !is_switch(setting) {
                let is_measure = is_measure(&flag);
                flag = flag.value_parser(clap::value_parser!(String));
                flag = flag.allow_hyphen_values(is_measure);
            }
            command = command.arg(flag);
            if name(setting) == "queue" {
                let fq = Arg::new("fq")
                    .long("fq")
                    .value_name("DIR")
                    .conflicts_with("queue")
                    .help_heading(setting.get_help_heading())
                    .display_order(2 * place + 1)
                    .help("Short for --queue fq://DIR");
                command = command.arg(fq);
            }
        }
        if G::NAMES_QUEUE {
            let queue = Arg::new(QUEUE)
                .value_name("QUEUE")
                .conflicts_with_all(["queue", "fq"])
                .help("URL or directory of the task queue, instead of --queue or --fq");
            command = command.arg(queue);
        }
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("File with settings [default: ./host.toml, if it exists]");
        command.arg(file)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<G: Group> clap::FromArgMatches for Flags<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flag =
            |text: String, flag: &str| Given { text, origin: Origin::Flag(format!("--{flag}")) };
        let mut given = Vec::new();
        for setting in DECLARED.iter().filter(|setting| G::takes(setting)) {
            let (id, name) = (setting.get_id().as_str(), name(setting));
            if matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let text = match is_switch(setting) {
                true => Some("true".to_owned()),
                false => matches.get_one::<String>(id).cloned(),
            };
            given.extend(text.map(|text| (name, flag(text, name))));
        }
        if let Some(dir) = matches.try_get_one::<String>("fq").ok().flatten() {
            // `ptq` accepts a directory with its scheme, so `--fq` does too. The parser of
            // `--queue` rejects anything that is not a queue.
            let url = if dir.contains("://") { dir.clone() } else { format!("fq://{dir}") };
            given.push(("queue", flag(url, "fq")));
        }
        if let Some(url) = matches.try_get_one::<String>(QUEUE).ok().flatten() {
            let origin = Origin::Flag("QUEUE".to_owned());
            given.push(("queue", Given { text: url.clone(), origin }));
        }
        let config = matches.get_one::<PathBuf>("config").cloned();
        Ok(Self { given, config, group: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The settings of one command, from all sources.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    given: BTreeMap<&'static str, Given>,
    /// The tables of the file for the tasks of one name.
    tables: tables::Tables,
    fleet: FleetTable,
    has_file: bool,
    misspelt: Vec<String>,
}

impl<G: Group> Flags<G> {
    /// Collects the settings: a flag overrides a variable, a variable overrides the file, and the
    /// file overrides the user's own file.
    pub(crate) fn load(&self) -> anyhow::Result<Settings> {
        let variables: BTreeMap<String, OsString> = environment::variables(PREFIX).collect();
        let value = |name: &str| match variables.get(name).cloned().map(OsString::into_string) {
            // An empty variable counts as unset, because scripts unset variables this way.
            Some(Ok(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(Err(_)) => Err(Advice::usage(format!("{name}: is not UTF-8 text"))),
            None => Ok(None),
        };
        let config = match &self.config {
            Some(path) => Some((path.clone(), "--config")),
            None => value(CONFIG)?.map(|path| (PathBuf::from(path), CONFIG)),
        };
        let is_named = config.is_some();
        let (file, users) = match value(CONFIG_TEXT)? {
            // A worker has only the settings that it was started with.
            Some(text) if !is_named => (file::of_text(CONFIG_TEXT, &text)?, file::File::default()),
            _ if is_named => (file::read(config)?, file::File::default()),
            _ => (file::read(None)?, file::read_users()?),
        };
        let (mut given, mut tables) = (users.given, users.tables);
        given.extend(file.given);
        tables.extend(file.tables);
        let fleet = if file.is_there { file.fleet } else { users.fleet };
        let has_file = file.is_there || users.is_there;
        for setting in &*DECLARED {
            let variable = variable(setting);
            if let Some(text) = value(&variable)? {
                given.insert(name(setting), Given { text, origin: Origin::Variable(variable) });
            }
        }
        given.extend(self.given.iter().cloned());
        let misspelt = variables.keys().filter_map(|name| misspelt(name)).collect();
        let settings = Settings { given, tables, fleet, has_file, misspelt };
        Ok(settings.with_defaults(Machine::of_process()))
    }
}

/// A warning if the variable's name is similar to one of ours. Many programs have variables that
/// start with `HOST_`, so a short name must be more similar than a long one.
fn misspelt(name: &str) -> Option<String> {
    let others = OTHERS.into_iter().chain(identity::VARIABLES);
    let ours = DECLARED.iter().map(variable).chain(others.map(str::to_owned));
    let distance = |ours: &String| strsim::damerau_levenshtein(ours, name);
    let nearest = ours.min_by_key(distance)?;
    let letters = nearest.len().min(name.len()) - PREFIX.len().min(name.len());
    let slips = match letters {
        0..4 => 0,
        4..8 => 1,
        _ => 2,
    };
    let is_slip = (1..=slips).contains(&distance(&nearest));
    is_slip.then(|| format!("the variable {name} has no effect; did you mean {nearest}?"))
}

/// The setting with the most similar name.
fn nearest(text: &str) -> Option<&'static str> {
    let likeness = |name: &&'static str| strsim::jaro_winkler(name, text);
    let names = DECLARED.iter().map(name);
    let best = names.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) > 0.75).then_some(best)
}

/// The text of a value in a file, as a flag would have it. `place` describes where the value is,
/// for errors.
fn text_of(place: &str, value: toml::Value) -> Result<String, Advice> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(n) => Ok(n.to_string()),
        toml::Value::Boolean(on) => Ok(on.to_string()),
        other => Err(Advice::usage(format!(
            "{place}: expected a string, a whole number, true or false; found {} {other}",
            other.type_str()
        ))),
    }
}

impl Settings {
    /// Adds the defaults that depend on the machine and on other settings.
    fn with_defaults(mut self, machine: &Machine) -> Self {
        // Ignore wrong values here. A command that needs the value reports the error.
        if let (Ok(task), Ok(tables)) = (self.get(), self.tasks()) {
            let parallel = TaskLimits::new(&task, &tables).places(machine);
            self.add_default("parallel", parallel.to_string());
        }
        if let Ok(CompileSettings { memory: usual, .. }) = self.get() {
            let memory = machine.to_compile(usual);
            if memory < usual {
                self.add_default("compile-memory", memory.display().iec().to_string());
            }
        }
        self
    }

    fn add_default(&mut self, name: &'static str, text: String) {
        self.given.entry(name).or_insert(Given { text, origin: Origin::Default });
    }

    /// The values of some settings.
    ///
    /// # Errors
    /// If a value is wrong. The error names the value, its source, and what would be right. A wrong
    /// value of a setting that `T` does not have is not an error.
    pub(crate) fn get<T: Args>(&self) -> anyhow::Result<T> {
        let command = Command::new("host").no_binary_name(true).disable_help_flag(true);
        let command = T::augment_args(command);
        let mut line = Vec::new();
        for setting in command.get_arguments() {
            let name = name(setting);
            if is_switch(setting) {
                let is_on = self.value(name, parse::switch)?.unwrap_or(false);
                line.extend(is_on.then(|| format!("--{name}")));
            } else if let Some(Given { text, .. }) = self.given.get(name) {
                line.push(format!("--{name}={text}"));
            }
        }
        let matches = command.try_get_matches_from(line);
        let parsed = matches.and_then(|matches| T::from_arg_matches(&matches));
        parsed.map_err(|error| self.explain(error))
    }

    /// Adds the source of the wrong value to an error of clap.
    fn explain(&self, error: clap::Error) -> anyhow::Error {
        let problem = std::error::Error::source(&error).map(ToString::to_string);
        let name = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(flag)) => {
                flag.trim_start_matches('-').split([' ', '=']).next().map(str::to_owned)
            }
            _ => None,
        };
        match name.zip(problem) {
            Some((name, problem)) => self.wrong(&name, &problem).into(),
            None => error.into(),
        }
    }

    /// The value of one setting, if it was given.
    fn value<T>(&self, name: &str, parse: fn(&str) -> Parsed<T>) -> anyhow::Result<Option<T>> {
        let value = self.given.get(name).map(|given| parse(&given.text)).transpose();
        value.map_err(|problem| self.wrong(name, &problem).into())
    }

    /// An error about a value that was given.
    fn wrong(&self, name: &str, problem: &str) -> Advice {
        let Some(Given { text, origin }) = self.given.get(name) else {
            return Advice::usage(format!("--{name}: {problem}"));
        };
        let place = match origin {
            Origin::Flag(flag) => flag.clone(),
            Origin::Variable(name) => name.clone(),
            Origin::File(path) => format!("{}: {name}", path.display()),
            Origin::Table(path, table) => format!("{}: {table}: {name}", path.display()),
            Origin::Default => format!("--{name}"),
        };
        Advice::usage(format!("{place}: {text:?} {problem}"))
    }

    /// The settings of a host.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let mut settings = self.clone();
        let errors = self.error_queue(&self.queue()?)?;
        settings.add_default("error-queue", errors.to_string());
        let config = Config { tasks: self.tasks()?, ..settings.get()? };
        overlaps::check_message_bucket(&config.queue_options, &config.data)?;
        overlaps::check_logs(&config.data)?;
        Ok(config)
    }

    /// The settings of a host that is about to run. Also checks that its directories do not
    /// overlap.
    pub(crate) fn config_to_run(&self) -> anyhow::Result<Config> {
        let config = self.config()?;
        match overlaps(&config).into_iter().next() {
            Some(Overlap { problem, cure }) => Err(Advice::usage(problem).hint(cure).into()),
            None => Ok(config),
        }
    }

    /// The task queue. It has no default, because a host must not work on a queue by accident.
    pub(crate) fn queue(&self) -> anyhow::Result<queue::Address> {
        self.value("queue", parse::queue)?.ok_or_else(|| {
            Advice::usage("no queue is given")
                .hint("give a directory with --fq ./queue, or set HOST_QUEUE")
                .into()
        })
    }

    /// The queue for reports of failed tasks.
    pub(crate) fn error_queue(&self, queue: &queue::Address) -> anyhow::Result<queue::Address> {
        let given = self.value("error-queue", parse::queue)?;
        given.or_else(|| queue.errors()).ok_or_else(|| {
            Advice::usage(format!("{queue} has no name to derive the error queue's name from"))
                .hint("name the error queue with --error-queue")
                .into()
        })
    }

    /// The access to queues.
    pub(crate) fn queue_access(&self) -> anyhow::Result<queue::Access> {
        let options: QueueSettings = self.get()?;
        if options.message_bucket.is_some() {
            overlaps::check_message_bucket(&options, &self.get()?)?;
        }
        Ok(options.access(&self.get::<CloudSettings>()?))
    }

    /// The access to buckets.
    pub(crate) fn bucket_access(&self) -> anyhow::Result<bucket::Access> {
        let data: DataSettings = self.get()?;
        Ok(data.access(&self.get::<CloudSettings>()?, &self.get::<CacheSettings>()?))
    }

    /// True if no bucket is given.
    pub(crate) fn has_default_bucket(&self) -> bool {
        !self.given.contains_key("bucket")
    }

    /// Warnings about variables whose names are similar to those of settings.
    pub(crate) fn misspelt(&self) -> &[String] {
        &self.misspelt
    }

    /// The settings in effect, for the status page.
    pub(crate) fn effective(&self) -> anyhow::Result<Vec<Setting>> {
        let setting = |(name, value, origin): (String, Option<String>, Origin)| Setting {
            name,
            value: value.unwrap_or_else(|| "(none)".to_owned()),
            source: origin.to_string(),
        };
        Ok(self.shown()?.into_iter().map(setting).collect())
    }

    /// The name, the value and the source of every setting, for `host config`.
    pub(crate) fn shown(&self) -> anyhow::Result<Vec<(String, Option<String>, Origin)>> {
        let config = match self.given.contains_key("queue") {
            true => Some(self.config_to_run()?),
            false => {
                // Use any queue, to check the other values.
                let mut with_queue = self.clone();
                with_queue.add_default("queue", "fq://./queue".to_owned());
                with_queue.config()?;
                None
            }
        };
        self.get::<DisplaySettings>()?;
        let shown = |setting: &'static Arg| {
            let given = self.given.get(name(setting)).cloned();
            let text = match (name(setting), &config) {
                ("queue", Some(config)) => Some(config.queue.to_string()),
                ("error-queue", Some(config)) => Some(config.error_queue.to_string()),
                ("prefetch", _) if given.is_none() => Some("(soon)".to_owned()),
                _ => given.as_ref().map(|given| given.text.clone()).or_else(|| default(setting)),
            };
            (name(setting).to_owned(), text, given.map_or(Origin::Default, |given| given.origin))
        };
        Ok(DECLARED.iter().map(shown).chain(self.shown_tables()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_from_a_variable_of_another_program() {
        let check = |name: &str, want: Option<&str>| {
            let told = misspelt(name);
            match want {
                Some(want) => {
                    let told = told.unwrap_or_else(|| panic!("nothing is said of {name}"));
                    assert!(told.ends_with(&format!("did you mean {want}?")), "{told}");
                }
                None => assert_eq!(told, None),
            }
        };
        check("HOST_PARALEL", Some("HOST_PARALLEL"));
        check("HOST_MAXTASKS", Some("HOST_MAX_TASKS"));
        check("HOST_BUKCET", Some("HOST_BUCKET"));
        check("HOST_QUEUES", Some("HOST_QUEUE"));
        check("HOST_LEESE", Some("HOST_LEASE"));
        check("HOST_CONFG", Some("HOST_CONFIG"));
        check("HOST_WORKER_IDX", Some("HOST_WORKER_INDEX"));
        check("HOST_FLEET", None);
        for setting in &*DECLARED {
            check(&variable(setting), None);
        }
        let others = "HOST_OS HOST_IP HOST_NAME HOST_PORT HOST_ID HOST_USER HOST_UID HOST_GID \
            HOST_HOME HOST_PWD HOST_ARCH HOST_TYPE HOST_ADDR HOST_TOR HOST_ENV HOST_URL HOST_FORM \
            HOST_CC HOST_ HOST_TIME HOST_MEM";
        for other in others.split(' ') {
            check(other, None);
        }
    }

    #[test]
    fn every_setting_is_documented_once_under_a_heading() {
        for setting in &*DECLARED {
            let name = name(setting);
            assert!(setting.get_help().is_some() && setting.get_help_heading().is_some(), "{name}");
            assert_eq!(DECLARED.iter().filter(|other| other.get_long() == Some(name)).count(), 1);
        }
    }

    /// The tables of the reference: one for each heading.
    fn tables() -> String {
        let mut text = String::new();
        let mut heading = None;
        for setting in &*DECLARED {
            if setting.get_help_heading() != heading {
                heading = setting.get_help_heading();
                let heading = heading.unwrap_or_default();
                text.push_str(&format!("\n### {heading}\n\n{}", reference::HEADER));
            }
            text.push_str(&reference::row(setting));
        }
        text
    }

    #[test]
    fn the_reference_lists_every_setting() {
        reference::is_on_the_page("settings", &tables());
    }
}
