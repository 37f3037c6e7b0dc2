//! Tasks that options describe: one task, or a task for each object of a listing.

use task_host::config::parse;
use task_host::key::Prefix;
use task_host::message::{self, DecodeError, Draft};
use task_host::transfer::objects::{self, Ids, PLACEHOLDERS, Pattern, TaskTemplate};

use super::exit_code::Advice;

/// How to keep a placeholder as text.
const HOW_TO_KEEP_BRACES: &str =
    "to keep it as it is, write its brace as \\u007b, which JSON reads as {";

/// The options of [`Described`], for options that exclude all of them. Excluding only `--name` is
/// not enough: clap does not ask for a required option that is excluded, so it would accept the
/// others.
pub(crate) const DESCRIBED: [&str; 7] =
    ["name", "base_directory", "inputs", "payload", "id", "each", "ids"];
/// [`DESCRIBED`] without `--name`, which can also choose among existing tasks.
pub(crate) const DESCRIBED_BUT_NAME: [&str; 6] =
    ["base_directory", "inputs", "payload", "id", "each", "ids"];

/// Options that describe tasks.
#[derive(Debug, clap::Args)]
pub(crate) struct Described {
    /// Name of the task and of its component
    #[arg(long, help_heading = "Tasks from flags")]
    pub(crate) name: Option<String>,
    /// Prefix of the keys of inputs and outputs in the bucket
    #[arg(long, value_name = "PREFIX", requires = "name", help_heading = "Tasks from flags")]
    base_directory: Option<String>,
    /// Key of an input, relative to the base directory; repeat it for more inputs
    #[arg(
        long = "input",
        value_name = "KEY",
        requires = "name",
        help_heading = "Tasks from flags"
    )]
    inputs: Vec<String>,
    /// Parameters for the component: JSON, or @FILE to read them from a file
    #[arg(long, value_name = "JSON", requires = "name", help_heading = "Tasks from flags")]
    payload: Option<String>,
    /// Id of the task; with --each, the id of the first task [default: none; with --each, 0]
    #[arg(
        long,
        value_name = "N",
        requires = "name",
        value_parser = parse::id,
        help_heading = "Tasks from flags"
    )]
    id: Option<i64>,
    /// Create a task for each object in the bucket that matches
    #[arg(long, value_name = "PATTERN", requires = "name", help_heading = "Tasks from flags")]
    each: Option<String>,
    /// With --each, where ids come from: listing numbers the objects in their order, from --id; key
    /// gives an object the same id each time, regardless of other objects
    #[arg(
        long,
        value_name = "HOW",
        requires = "each",
        default_value = "listing",
        value_parser = ["listing", "key"],
        hide_possible_values = true,
        help_heading = "Tasks from flags"
    )]
    ids: String,
}

impl Described {
    /// The message of the task that the options describe. None without `--name`.
    pub(crate) fn task(&self) -> anyhow::Result<Option<String>> {
        let Some(name) = &self.name else { return Ok(None) };
        let payload = self.payload()?;
        if let Some(payload) = &payload {
            message::check_payload(payload).map_err(draft_error)?;
            if let Some(word) = objects::braced(payload).find(|word| PLACEHOLDERS.contains(word)) {
                return Err(Advice::usage(format!(
                    "--payload has {word}, which only --each replaces"
                ))
                .hint(HOW_TO_KEEP_BRACES)
                .into());
            }
        }
        let Some(base_directory) = &self.base_directory else {
            return Err(Advice::usage("--base-directory is missing")
                .hint("it is the prefix in the bucket that inputs and outputs are relative to")
                .into());
        };
        let inputs: Vec<&str> = self.inputs.iter().map(String::as_str).collect();
        let payload = payload.as_deref();
        let draft = Draft { id: self.id, name, base_directory, inputs: &inputs, payload };
        Ok(Some(message::encode(&draft).map_err(draft_error)?))
    }

    fn payload(&self) -> anyhow::Result<Option<String>> {
        self.payload.as_deref().map(payload).transpose()
    }

    /// The name of the tasks, and the inputs that are the same for all objects, with the base
    /// directory if it is known.
    pub(crate) fn literal(&self) -> Option<(&str, Option<&str>, &[String])> {
        Some((self.name.as_deref()?, self.base_directory.as_deref(), &self.inputs))
    }

    /// The pattern of the objects to create tasks for: `--each`.
    pub(crate) fn pattern(&self) -> anyhow::Result<Option<Pattern>> {
        let pattern = self.each.as_deref().map(Pattern::new).transpose();
        Ok(pattern.map_err(|error| Advice::usage(format!("--each: {error}")))?)
    }

    /// The template of the tasks that `--each` creates.
    pub(crate) fn template(&self) -> anyhow::Result<TaskTemplate> {
        let base = |base: &String| {
            Prefix::new(base.trim_end_matches('/'))
                .map_err(|e| Advice::usage(format!("--base-directory: {base:?} {e}")))
        };
        let payload = self.payload()?;
        let words = payload.iter().flat_map(|payload| objects::braced(payload));
        if let Some(word) = words.into_iter().find(|word| !PLACEHOLDERS.contains(word)) {
            return Err(Advice::usage(format!(
                "--payload has {word}, which is not replaced; the placeholders are {}",
                PLACEHOLDERS.join(", ")
            ))
            .hint(HOW_TO_KEEP_BRACES)
            .into());
        }
        Ok(TaskTemplate {
            name: self.name.clone().unwrap_or_default(),
            base_directory: self.base_directory.as_ref().map(base).transpose()?,
            more_inputs: self.inputs.clone(),
            payload,
            ids: match (&*self.ids, self.id) {
                ("key", Some(_)) => {
                    return Err(Advice::usage("--id and --ids key exclude each other").into());
                }
                ("key", None) => Ids::OfKeys,
                (_, id) => Ids::From(id.unwrap_or(0)),
            },
        })
    }
}

/// The error for options that do not describe a valid task.
pub(crate) fn draft_error(error: DecodeError) -> Advice {
    if error.at == message::PAYLOAD {
        Advice::usage(format!("--payload {}", error.problem))
            .hint("a text needs its quotes: --payload '\"text\"'")
    } else {
        Advice::usage(error.to_string())
    }
}

/// The payload: the text of `--payload` itself, or for `@FILE` the contents of the file.
pub(crate) fn payload(text: &str) -> anyhow::Result<String> {
    let Some(file) = text.strip_prefix('@') else { return Ok(text.to_owned()) };
    let read = std::fs::read_to_string(file);
    Ok(read.map_err(|e| Advice::usage(format!("--payload {text}: {file}: {e}")))?)
}
