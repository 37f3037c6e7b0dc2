//! What can be set, and where each value came from: flags, then `HOST_*` variables, then
//! `host.toml`, then defaults.
//!
//! [`ALL`] in `settings/all.rs` is the one list: a setting's name is its flag, its variable and its key in the
//! file. A command takes those of its [`Group`].

mod all;
mod checked;
mod file;
mod places;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches};

use super::exit_code::Advice;
use super::values::{Parsed, switch};

pub(crate) use all::*;
pub(crate) use checked::{fq_path, queue_url};
pub(crate) use places::{Overlap, overlaps};

/// Something that can be set.
#[derive(Debug)]
pub(crate) struct Setting {
    /// `max-tasks`: `--max-tasks`, `HOST_MAX_TASKS`, `max-tasks = …`.
    pub(crate) name: &'static str,
    /// What stands for the value in help; nothing for a switch.
    pub(crate) value: &'static str,
    /// The value unless it is given, as text that could be given.
    pub(crate) default: Option<&'static str>,
    help: &'static str,
    short: Option<char>,
}

impl Setting {
    fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.replace('-', "_").to_uppercase())
    }

    fn is_switch(&self) -> bool {
        self.value.is_empty()
    }

    /// What it is listed under in the help.
    fn heading(&self) -> &'static str {
        match self.name {
            "queue" | "bucket" | "input-bucket" | "components" | "component-prefix"
            | "error-queue" | "done-queue" | "durable" | "sync-every" => "Queues and data",
            "region" | "create-queues" | "message-bucket" | "message-group" | "anonymous"
            | "requester-pays" | "stored-encoding" | "gzip-outputs" => "Clouds",
            "parallel" | "prefetch" | "prefetch-bytes" | "lease" => "Work",
            "exit-when-empty" | "max-tasks" | "for" | "grace" => "Stopping",
            "memory" | "timeout" | "max-output" | "max-output-files" => "Limits of a task",
            "compile-memory" | "compile-timeout" => "Limits of compiling a component",
            "max-attempts" | "retry-after" => "Failures",
            "cache-dir" | "cache-size" | "freshness" => "Cache",
            _ => "What is shown",
        }
    }

    fn arg(&self) -> Arg {
        let help = match self.default {
            Some(default) if !self.is_switch() => format!("{} [default: {default}]", self.help),
            _ => self.help.to_owned(),
        };
        let mut arg = Arg::new(self.name).long(self.name).help(help).help_heading(self.heading());
        if let Some(short) = self.short {
            arg = arg.short(short);
        }
        if self.is_switch() {
            arg.action(ArgAction::SetTrue)
        } else {
            arg.value_name(self.value).action(ArgAction::Set)
        }
    }
}

/// The settings that a command takes as flags.
pub(crate) trait Group {
    /// Which.
    const SETTINGS: &'static [&'static Setting];
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Everything;
impl Group for Everything {
    const SETTINGS: &'static [&'static Setting] = &ALL;
}

/// Where messages are.
#[derive(Debug)]
pub(crate) struct QueueOnly;
impl Group for QueueOnly {
    const SETTINGS: &'static [&'static Setting] =
        &[&QUEUE, &REGION, &CREATE_QUEUES, &MESSAGE_BUCKET, &MESSAGE_GROUP, &PROGRESS];
}

/// How queues that are named otherwise are reached.
#[derive(Debug)]
pub(crate) struct QueueAccess;
impl Group for QueueAccess {
    const SETTINGS: &'static [&'static Setting] =
        &[&REGION, &CREATE_QUEUES, &MESSAGE_BUCKET, &MESSAGE_GROUP, &PROGRESS];
}

/// Where messages and data are.
#[derive(Debug)]
pub(crate) struct QueueAndBucket;
impl Group for QueueAndBucket {
    const SETTINGS: &'static [&'static Setting] = &[
        &QUEUE,
        &BUCKET,
        &REGION,
        &CREATE_QUEUES,
        &MESSAGE_BUCKET,
        &MESSAGE_GROUP,
        &ANONYMOUS,
        &REQUESTER_PAYS,
        &PROGRESS,
    ];
}

/// Where components are.
#[derive(Debug)]
pub(crate) struct Components;
impl Group for Components {
    const SETTINGS: &'static [&'static Setting] = &[
        &BUCKET,
        &REGION,
        &COMPONENTS,
        &COMPONENT_PREFIX,
        &COMPILE_MEMORY,
        &COMPILE_TIMEOUT,
        &CACHE_DIR,
        &CACHE_SIZE,
    ];
}

/// What one execution is given.
#[derive(Debug)]
pub(crate) struct Execution;
impl Group for Execution {
    const SETTINGS: &'static [&'static Setting] = &[
        &MEMORY,
        &TIMEOUT,
        &MAX_OUTPUT,
        &MAX_OUTPUT_FILES,
        &COMPILE_MEMORY,
        &COMPILE_TIMEOUT,
        &CACHE_DIR,
        &CACHE_SIZE,
    ];
}

/// What of a group was given on the command line.
#[derive(Debug)]
pub(crate) struct Flags<G> {
    given: Vec<(&'static str, Given)>,
    config: Option<PathBuf>,
    group: PhantomData<G>,
}

/// A setting's text, and who gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) text: String,
    pub(crate) origin: Origin,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This flag.
    Flag(String),
    /// The variable of this name.
    Variable(String),
    /// This file.
    File(PathBuf),
    /// Nobody gave it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::Variable(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

impl<G: Group> clap::Args for Flags<G> {
    fn augment_args(command: clap::Command) -> clap::Command {
        let mut command = command;
        for setting in G::SETTINGS {
            command = command.arg(setting.arg());
            if setting.name == QUEUE.name {
                command = command.arg(
                    Arg::new("fq")
                        .long("fq")
                        .value_name("DIR")
                        .conflicts_with(QUEUE.name)
                        .help_heading(setting.heading())
                        .help("The same as --queue fq://DIR"),
                );
            }
        }
        command.arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("File of settings [default: ./host.toml, if it is there]"),
        )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<G: Group> clap::FromArgMatches for Flags<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        let mut add = |name: &'static str, text: String, flag: &str| {
            given.push((name, Given { text, origin: Origin::Flag(format!("--{flag}")) }));
        };
        for setting in G::SETTINGS {
            let name = setting.name;
            if setting.is_switch() {
                if matches.get_flag(name) {
                    add(name, "true".to_owned(), name);
                }
            } else if let Some(text) = matches.get_one::<String>(name) {
                add(name, text.clone(), name);
            }
        }
        if let Some(dir) = matches.try_get_one::<String>("fq").ok().flatten() {
            // As `ptq` takes it, with the scheme; another scheme is for --queue to judge.
            let url = if dir.contains("://") { dir.clone() } else { format!("fq://{dir}") };
            add(QUEUE.name, url, "fq");
        }
        let config = matches.get_one::<PathBuf>("config").cloned();
        Ok(Self { given, config, group: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The settings of one call, from all sources.
#[derive(Debug)]
pub(crate) struct Settings {
    given: BTreeMap<&'static str, Given>,
    misspelt: Vec<String>,
}

impl<G: Group> Flags<G> {
    /// Puts the flags before the variables before the file.
    pub(crate) fn load(&self) -> anyhow::Result<Settings> {
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .filter_map(|(name, value)| match value.into_string() {
                Ok(value) => Some(Ok((name, value))),
                Err(_) if is_ours(&name) => {
                    Some(Err(Advice::usage(format!("{name}: is not UTF-8 text"))))
                }
                // Other programs' variables are their affair.
                Err(_) => None,
            })
            .collect::<Result<_, _>>()?;
        let config = self.config.clone().map(|path| (path, "--config")).or_else(|| {
            let path = variables.iter().find(|(name, value)| name == CONFIG && !value.is_empty());
            path.map(|(_, path)| (PathBuf::from(path), CONFIG))
        });
        let mut given = file::read(config)?;
        for setting in ALL {
            let name = setting.variable();
            // An empty variable is one that is not set: that is how scripts unset them.
            let set = variables.iter().find(|(n, value)| *n == name && !value.is_empty());
            if let Some((name, text)) = set {
                let origin = Origin::Variable(name.clone());
                given.insert(setting.name, Given { text: text.clone(), origin });
            }
        }
        given.extend(self.given.iter().cloned());
        let misspelt = variables.iter().filter_map(|(name, _)| misspelt(name)).collect();
        Ok(Settings { given, misspelt })
    }
}

/// What the names of our variables begin with; and those of many others.
const PREFIX: &str = "HOST_";
/// The variable that names the file.
const CONFIG: &str = "HOST_CONFIG";

/// The names of our variables.
fn variables() -> impl Iterator<Item = String> {
    ALL.iter().map(|setting| setting.variable()).chain([CONFIG.to_owned()])
}

fn is_ours(name: &str) -> bool {
    variables().any(|ours| ours == name)
}

/// A variable that almost is one of ours. Many programs have variables that begin with `HOST_`,
/// so a short name has to be nearer than a long one.
fn misspelt(name: &str) -> Option<String> {
    let distance = |ours: &String| strsim::damerau_levenshtein(ours, name);
    let nearest = variables().min_by_key(distance)?;
    let letters = nearest.len().min(name.len()) - PREFIX.len().min(name.len());
    let slips = match letters {
        0..4 => 0,
        4..8 => 1,
        _ => 2,
    };
    let is_slip = (1..=slips).contains(&distance(&nearest));
    is_slip.then(|| format!("{name} is not a variable of this program; did you mean {nearest}?"))
}

/// The setting whose name is most like this one.
fn nearest(name: &str) -> Option<&'static str> {
    let alike = |s: &&'static str| strsim::jaro_winkler(s, name);
    let best = ALL.iter().map(|s| s.name).max_by(|a, b| alike(a).total_cmp(&alike(b)))?;
    (alike(&best) > 0.75).then_some(best)
}

impl Settings {
    /// What was given, or the default if there is one.
    pub(crate) fn get(&self, setting: &Setting) -> Option<Given> {
        self.given.get(setting.name).cloned().or_else(|| {
            let text = setting.default?.to_owned();
            Some(Given { text, origin: Origin::Default })
        })
    }

    /// The value, or an error that says who gave it.
    pub(crate) fn value<T>(
        &self,
        setting: &Setting,
        parse: fn(&str) -> Parsed<T>,
    ) -> anyhow::Result<Option<T>> {
        let Some(Given { text, origin }) = self.get(setting) else { return Ok(None) };
        match parse(&text) {
            Ok(value) => Ok(Some(value)),
            Err(problem) => {
                let place = match &origin {
                    Origin::Flag(flag) => flag.clone(),
                    Origin::Variable(name) => name.clone(),
                    Origin::File(path) => format!("{}: {}", path.display(), setting.name),
                    Origin::Default => format!("--{}", setting.name),
                };
                Err(Advice::usage(format!("{place}: {text:?} {problem}")).into())
            }
        }
    }

    /// The value of a setting that has a default.
    fn defaulted<T>(&self, setting: &Setting, parse: fn(&str) -> Parsed<T>) -> anyhow::Result<T> {
        match self.value(setting, parse)? {
            Some(value) => Ok(value),
            None => Err(anyhow::anyhow!("--{} has no default", setting.name)),
        }
    }

    /// True when nobody gave it.
    pub(crate) fn is_default(&self, setting: &Setting) -> bool {
        !self.given.contains_key(setting.name)
    }

    /// What looks like a slip, though it is no error.
    pub(crate) fn misspelt(&self) -> &[String] {
        &self.misspelt
    }

    /// A switch is on.
    pub(crate) fn is_on(&self, setting: &Setting) -> anyhow::Result<bool> {
        self.defaulted(setting, switch)
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
        for setting in ALL {
            check(&setting.variable(), None);
        }
        for others in [
            "HOST_OS",
            "HOST_IP",
            "HOST_NAME",
            "HOST_PORT",
            "HOST_ID",
            "HOST_USER",
            "HOST_UID",
            "HOST_GID",
            "HOST_HOME",
            "HOST_PWD",
            "HOST_ARCH",
            "HOST_TYPE",
            "HOST_ADDR",
            "HOST_TOR",
            "HOST_ENV",
            "HOST_URL",
            "HOST_FORM",
            "HOST_CC",
            "HOST_",
            "HOST_TIME",
            "HOST_MEM",
        ] {
            check(others, None);
        }
    }
}
