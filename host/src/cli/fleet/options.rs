//! The options of a fleet: flags, and the table `[fleet]` of `host.toml`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Command, FromArgMatches};
use task_host::config::parse;
use task_host::fleet::Address;
use task_host::fleet::policy::Wanted;

use super::super::exit_code::Advice;
use super::super::settings::Settings;

/// Which engine, how many workers, and what they are.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Fleet")]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) engine: EngineOption,
    /// Number of workers: N, or MIN..MAX to continue with at least MIN, or auto or auto..MAX for as many
    /// as the tasks in the queue need [default: 1]
    #[arg(long, value_name = "N", value_parser = Workers::from_str)]
    pub(super) workers: Option<Workers>,
    /// For --workers auto: number of tasks for each task that runs at the same time [default: 10]
    #[arg(long, value_name = "N", value_parser = parse::positive)]
    pub(super) tasks_per_slot: Option<u64>,
    /// Cores of a worker [default: --parallel, or 1]
    #[arg(long, value_name = "N", value_parser = parse::small_positive)]
    pub(super) cpus: Option<u32>,
    /// Memory of a worker [default: enough for --parallel tasks of --memory]
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub(super) mem: Option<ByteSize>,
    /// Image that contains `host`, for engines that run containers [default: the public image of this
    /// version]
    #[arg(long, value_name = "IMAGE")]
    pub(super) image: Option<String>,
    /// The program `host` on the machines of the engine, for slurm [default: this program]
    #[arg(long, value_name = "FILE")]
    pub(super) program: Option<PathBuf>,
    /// Time after which the engine ends a worker; the worker drains before that [default: the
    /// engine's]
    #[arg(long, value_name = "TIME", value_parser = parse::positive_duration)]
    pub(super) walltime: Option<Duration>,
    /// Number of workers that run one after another in place of one, each with the walltime
    /// [default: 1]
    #[arg(long, value_name = "N", value_parser = parse::small_positive)]
    pub(super) relay: Option<u32>,
    /// Environment variable of this command to pass to the workers, such as AWS_PROFILE; for docker
    /// and slurm; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) pass_env: Vec<String>,
    /// Option of the engine itself, such as account=lab for slurm; may be repeated
    #[arg(long = "option", short = 'o', value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) options: Vec<(String, String)>,
}

/// Which engine.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Fleet")]
pub(super) struct EngineOption {
    /// Engine that runs the workers: docker://, slurm://PARTITION, batch://QUEUE, ecs://CLUSTER or
    /// k8s://NAMESPACE
    #[arg(long = "on", value_name = "URL", value_parser = Address::from_str)]
    on: Option<Address>,
}

impl EngineOption {
    /// The engine that the flag names, or else `host.toml`.
    pub(super) fn address(&self, settings: &Settings) -> anyhow::Result<Address> {
        let file =
            || -> anyhow::Result<Option<Address>> { Ok(Options::of_file(settings)?.engine.on) };
        let address = match &self.on {
            Some(address) => Some(address.clone()),
            None => file()?,
        };
        address.ok_or_else(|| {
            Advice::usage("no engine is given")
                .hint("name it with --on, such as --on slurm://PARTITION or --on docker://")
                .into()
        })
    }
}

impl Options {
    /// The table `[fleet]` of `host.toml`.
    pub(super) fn of_file(settings: &Settings) -> anyhow::Result<Self> {
        let table = settings.fleet();
        let command = Command::new("host").no_binary_name(true).disable_help_flag(true);
        let matches = Self::augment_args(command).try_get_matches_from(table.args()?);
        let parsed = matches.and_then(|matches| Self::from_arg_matches(&matches));
        parsed.map_err(|error| table.wrong(error))
    }

    /// The flags, completed with the values in `host.toml`.
    pub(super) fn complete(self, settings: &Settings) -> anyhow::Result<Self> {
        let file = Self::of_file(settings)?;
        let or = |flag: Vec<String>, file| if flag.is_empty() { file } else { flag };
        let mut options = file.options;
        // A flag replaces all values in the file for the same option.
        options.retain(|(name, _)| self.options.iter().all(|(flag, _)| flag != name));
        options.extend(self.options);
        Ok(Self {
            engine: EngineOption { on: self.engine.on.or(file.engine.on) },
            workers: self.workers.or(file.workers),
            tasks_per_slot: self.tasks_per_slot.or(file.tasks_per_slot),
            cpus: self.cpus.or(file.cpus),
            mem: self.mem.or(file.mem),
            image: self.image.or(file.image),
            program: self.program.or(file.program),
            walltime: self.walltime.or(file.walltime),
            relay: self.relay.or(file.relay),
            pass_env: or(self.pass_env, file.pass_env),
            options,
        })
    }
}

/// The number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workers {
    Number(Wanted),
    /// The number that the tasks in the queue need, up to a maximum if one is given.
    Auto(Option<u32>),
}

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "is not a number of workers: write N, MIN..MAX, auto or auto..MAX, such as 4..10"
                .to_owned()
        };
        let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
        let (least, most) = match text.split_once("..") {
            None if text == "auto" => return Ok(Self::Auto(None)),
            None => (number(text)?, number(text)?),
            Some(("auto", most)) => return Ok(Self::Auto(Some(number(most)?))),
            Some((least, most)) => (number(least)?, number(most)?),
        };
        if least > most {
            return Err(format!("asks for at least {least} and at most {most} workers"));
        }
        Ok(Self::Number(Wanted { least, most }))
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("is not NAME=VALUE")?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.starts_with('-') || !name.chars().all(is_plain) {
        return Err("has no name of an option before =".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_workers_are_read() {
        let number = |least, most| Ok(Workers::Number(Wanted { least, most }));
        for (text, want) in [
            ("10", number(10, 10)),
            ("0", number(0, 0)),
            ("4..10", number(4, 10)),
            ("auto", Ok(Workers::Auto(None))),
            ("auto..7", Ok(Workers::Auto(Some(7)))),
        ] {
            assert_eq!(text.parse::<Workers>(), want, "{text}");
        }
        for text in ["", "-1", "a", "4..", "..4", "4..a", "auto..", "1.5", "4...10"] {
            let error = text.parse::<Workers>().expect_err(text);
            assert!(error.contains("is not a number of workers"), "{error}");
        }
        let error = "5..4".parse::<Workers>().expect_err("more than the most");
        assert_eq!(error, "asks for at least 5 and at most 4 workers");
    }

    #[test]
    fn options_are_pairs() {
        let owned = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(pair("account=lab"), owned("account", "lab"));
        assert_eq!(pair("volume=/a:/b=c"), owned("volume", "/a:/b=c"));
        for wrong in ["account", "=lab", "--account=lab", "a b=c"] {
            assert!(pair(wrong).is_err(), "{wrong}");
        }
    }
}
