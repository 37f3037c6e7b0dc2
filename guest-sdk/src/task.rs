//! One task: its message, its inputs and its outputs.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::output::{self, Record};
use crate::{Context, Error, Ignored, Outcome, Output, Result, wire};

/// One task with a payload of type `P`.
#[derive(Debug)]
pub struct Task<P = Ignored> {
    id: i64,
    name: String,
    base_directory: String,
    inputs: Vec<String>,
    payload: P,
    payload_json: Option<String>,
    attempt: u32,
    inputs_dir: PathBuf,
    outputs_dir: PathBuf,
    record: Arc<Record>,
}

impl<P> Task<P> {
    /// The producer's number for the task; -1 if it gave none.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// The name that selected this component.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key prefix that inputs and outputs are relative to, such as `datasets/cells`. It is only
    /// information, because a guest cannot access the bucket.
    pub fn base_directory(&self) -> &str {
        &self.base_directory
    }

    /// The number of this attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The task's own parameters.
    pub fn payload(&self) -> &P {
        &self.payload
    }

    /// The payload's text, exactly as it was sent; `None` if the message has none.
    pub fn payload_json(&self) -> Option<&str> {
        self.payload_json.as_deref()
    }

    /// The inputs: first the message's inputs in their order, then the inputs that the task's plan
    /// asked for.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = Input> + '_ {
        self.inputs.iter().map(|key| Input::new(&self.inputs_dir, key))
    }

    /// The input of that key, as the message or the task's plan names it; `None` if it does not
    /// exist.
    pub fn input(&self, key: &str) -> Option<Input> {
        let input = Input::new(&self.inputs_dir, key.strip_prefix('/').unwrap_or(key));
        input.path().is_file().then_some(input)
    }

    /// The input of a task that takes exactly one input.
    ///
    /// # Errors
    /// Rejects a task with no input or several.
    pub fn single_input(&self) -> Result<Input> {
        match &self.inputs[..] {
            [key] => Ok(Input::new(&self.inputs_dir, key)),
            inputs => Err(Error::reject(format!(
                "this task takes exactly one input, and the message lists {}",
                inputs.len()
            ))),
        }
    }

    /// Creates the output `key`, such as `0_output/4.dat`, and its directories. Replaces an
    /// existing file.
    ///
    /// # Errors
    /// Rejects a key that is not a relative path. Fails if the file cannot be created.
    pub fn output(&self, key: &str) -> Result<Output> {
        Output::create(&self.outputs_dir, key, &self.record)
    }

    /// Writes a whole output.
    ///
    /// # Errors
    /// As for [`output`](Self::output), and if the contents cannot be written.
    pub fn write(&self, key: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        let path = output::locate(&self.outputs_dir, key)?;
        fs::write(path, contents).with_context(|| format!("output {key}"))?;
        self.record.finish(key);
        Ok(())
    }

    /// The path of an output, for libraries that take a path. Creates its directories. The output
    /// counts as written: [`done`](Self::done) lists it, and the task fails if it does not exist at
    /// the end.
    ///
    /// # Errors
    /// Rejects a key that is not a relative path. Fails if a directory cannot be created.
    pub fn output_path(&self, key: &str) -> Result<PathBuf> {
        let path = output::locate(&self.outputs_dir, key)?;
        self.record.finish(key);
        Ok(path)
    }

    /// The directory of the inputs, read-only: `/inputs` in the host.
    pub fn inputs_dir(&self) -> &Path {
        &self.inputs_dir
    }

    /// The directory for the outputs, empty at the start: `/outputs` in the host.
    pub fn outputs_dir(&self) -> &Path {
        &self.outputs_dir
    }

    /// A successful outcome that lists every output written through this task.
    pub fn done(&self) -> Outcome {
        Outcome::success(self.record.finished())
    }

    pub(crate) fn check_outputs(&self) -> Result<()> {
        self.record.check_all_finished()
    }
}

impl<P: DeserializeOwned> Task<P> {
    /// Converts the host's record, and parses the payload.
    pub(crate) fn new(task: wire::Task, inputs_dir: PathBuf, outputs_dir: PathBuf) -> Result<Self> {
        let wire::Task { info, payload, attempt } = task;
        Ok(Self {
            id: info.id,
            name: info.name,
            base_directory: info.base_directory,
            inputs: info.inputs,
            payload: parse_payload(payload.as_deref())?,
            payload_json: payload,
            attempt,
            inputs_dir,
            outputs_dir,
            record: Arc::default(),
        })
    }
}

/// Parses a payload. Reads a missing payload as `null`, which `()`, an `Option` and a `Value`
/// accept, and otherwise as `{}`, which a type accepts if all of its fields have defaults.
fn parse_payload<P: DeserializeOwned>(json: Option<&str>) -> Result<P> {
    let Some(text) = json else {
        return serde_json::from_str("null").or_else(|_| serde_json::from_str("{}")).map_err(
            |error: serde_json::Error| {
                let error = error.to_string();
                // The position in `{}` would not help the user.
                let problem = error.split(" at line ").next().unwrap_or(&error);
                Error::reject(format!(
                    "the task has no payload, and needs one: {problem}; the message gives it as \
                     `payload_info`, and `host try` and `host submit` as `--payload JSON`"
                ))
            },
        );
    };
    serde_json::from_str(text).map_err(|error| {
        // Finds the position in a second pass, because tracking it costs time.
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let path = match serde_path_to_error::deserialize::<_, P>(&mut deserializer) {
            Err(error) if error.path().iter().len() > 0 => format!(", at {}", error.path()),
            _ => String::new(),
        };
        Error::reject(format!("the payload does not fit this task{path}: {error}"))
    })
}

/// One input of a task.
#[derive(Clone, Debug)]
pub struct Input {
    key: String,
    path: PathBuf,
}

impl Input {
    fn new(directory: &Path, key: &str) -> Self {
        Self { key: key.to_owned(), path: directory.join(key) }
    }

    /// The input's key, relative to the task's base directory: `0_input/4.dat`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The last part of the key: `4.dat`.
    pub fn file_name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or(&self.key)
    }

    /// The last part of the key without its extension: `4`. Like [`Path::file_stem`].
    pub fn file_stem(&self) -> &str {
        match self.file_name().rsplit_once('.') {
            Some((stem, _)) if !stem.is_empty() => stem,
            _ => self.file_name(),
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size in bytes.
    ///
    /// # Errors
    /// If the file's metadata cannot be read.
    pub fn size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path).with_context(|| self.to_string())?.len())
    }

    /// Opens the file for buffered reading.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(&self) -> Result<BufReader<File>> {
        let file = File::open(&self.path).with_context(|| self.to_string())?;
        // The buffer is larger than the default of 8 KiB, because each read calls the host.
        Ok(BufReader::with_capacity(64 * 1024, file))
    }

    /// Reads the whole file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).with_context(|| self.to_string())
    }

    /// Reads the whole file as text.
    ///
    /// # Errors
    /// If the file cannot be read or is not UTF-8.
    pub fn read_to_string(&self) -> Result<String> {
        fs::read_to_string(&self.path).with_context(|| self.to_string())
    }

    /// Reads the whole file as JSON.
    ///
    /// # Errors
    /// If the file cannot be read or is not JSON that `T` accepts.
    pub fn read_json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.read()?).with_context(|| self.to_string())
    }
}

/// `input 0_input/4.dat`, for error texts.
impl std::fmt::Display for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "input {}", self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Complex {
        #[serde(rename = "complexID")]
        complex_id: i64,
        thresholds: Vec<i64>,
    }

    #[track_caller]
    fn rejected<P: DeserializeOwned + std::fmt::Debug>(json: Option<&str>, expected: &str) {
        let error = parse_payload::<P>(json).unwrap_err();
        assert!(!error.is_retry());
        assert_eq!(error.text(), expected);
    }

    #[test]
    fn an_absent_payload_is_null_or_has_no_fields() {
        #[derive(Debug, Deserialize, PartialEq)]
        struct Defaults {
            #[serde(default)]
            top: u32,
        }
        assert_eq!(parse_payload::<Defaults>(None).unwrap(), Defaults { top: 0 });
        assert_eq!(parse_payload::<Option<Defaults>>(None).unwrap(), None);
        parse_payload::<()>(None).unwrap();
        parse_payload::<Ignored>(None).unwrap();
        assert_eq!(parse_payload::<Option<Complex>>(None).unwrap(), None);
        assert_eq!(parse_payload::<serde_json::Value>(None).unwrap(), serde_json::Value::Null);
    }

    #[test]
    fn a_payload_keeps_its_digits() {
        let exact =
            parse_payload::<Box<serde_json::value::RawValue>>(Some("0.10000000000000000000001"))
                .unwrap();
        assert_eq!(exact.get(), "0.10000000000000000000001");
        let complex: Complex =
            parse_payload(Some(r#"{"complexID": 9223372036854775807, "thresholds": [1]}"#))
                .unwrap();
        assert_eq!(complex.complex_id, i64::MAX);
    }

    #[test]
    fn a_payload_that_does_not_fit_is_rejected_where_it_does_not() {
        rejected::<Complex>(
            Some(r#"{"complexID": 1, "thresholds": [64, "x"]}"#),
            "the payload does not fit this task, at thresholds[1]: \
             invalid type: string \"x\", expected i64 at line 1 column 39",
        );
        rejected::<Complex>(
            Some(r#"{"thresholds": []}"#),
            "the payload does not fit this task: missing field `complexID` at line 1 column 18",
        );
        rejected::<Complex>(
            None,
            "the task has no payload, and needs one: missing field `complexID`; the message gives \
             it as `payload_info`, and `host try` and `host submit` as `--payload JSON`",
        );
    }

    #[test]
    fn names_of_an_input() {
        let input = |key| Input::new(Path::new("/inputs"), key);
        assert_eq!(input("0_input/a/4.tar.gz").file_name(), "4.tar.gz");
        assert_eq!(input("0_input/a/4.tar.gz").file_stem(), "4.tar");
        assert_eq!(input(".hidden").file_stem(), ".hidden");
        assert_eq!(input("0_input/a/4").path(), Path::new("/inputs/0_input/a/4"));
    }
}
