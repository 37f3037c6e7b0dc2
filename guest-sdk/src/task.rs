//! One task: what the producer said about it, its inputs, and where its outputs go.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::output::{self, Record};
use crate::{Context, Error, Ignored, Outcome, Output, Result, wire};

/// One task, with its payload as a `P`.
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
    /// The producer's number for the task, -1 when it gave none.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// The name that chose this guest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bucket prefix that inputs and outputs are relative to, such as `datasets/cells`. For
    /// information: a guest has no way to the bucket.
    pub fn base_directory(&self) -> &str {
        &self.base_directory
    }

    /// Which execution of this task this is, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The task's own parameters.
    pub fn payload(&self) -> &P {
        &self.payload
    }

    /// The payload as it was sent, character for character; none if the message had none.
    pub fn payload_json(&self) -> Option<&str> {
        self.payload_json.as_deref()
    }

    /// The inputs, in the message's order.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = Input> + '_ {
        self.inputs.iter().map(|key| Input::new(&self.inputs_dir, key))
    }

    /// The one input of a task that takes exactly one.
    ///
    /// # Errors
    /// Rejects a task with none or several.
    pub fn single_input(&self) -> Result<Input> {
        match &self.inputs[..] {
            [key] => Ok(Input::new(&self.inputs_dir, key)),
            inputs => Err(Error::reject(format!(
                "this task takes exactly one input, and the message lists {}",
                inputs.len()
            ))),
        }
    }

    /// Begins an output: the file at `key`, such as `0_output/4.dat`, and the directories it is
    /// in. It replaces what is there.
    ///
    /// # Errors
    /// Rejects a key that is not a relative path; fails if the file can't be made.
    pub fn output(&self, key: &str) -> Result<Output> {
        Output::create(&self.outputs_dir, key, &self.record)
    }

    /// Writes a whole output at once.
    ///
    /// # Errors
    /// As [`output`](Self::output), and if the contents can't be written.
    pub fn write(&self, key: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        let path = output::locate(&self.outputs_dir, key)?;
        fs::write(path, contents).with_context(|| format!("output {key}"))?;
        self.record.finish(key);
        Ok(())
    }

    /// The path of an output that something else is to write (a library that takes a path), with
    /// its directories made. The output counts as written: [`done`](Self::done) lists it, and the
    /// host fails the task if it is not there in the end.
    ///
    /// # Errors
    /// Rejects a key that is not a relative path; fails if a directory can't be made.
    pub fn output_path(&self, key: &str) -> Result<PathBuf> {
        let path = output::locate(&self.outputs_dir, key)?;
        self.record.finish(key);
        Ok(path)
    }

    /// The directory with the inputs: `/inputs` in the host, read-only.
    pub fn inputs_dir(&self) -> &Path {
        &self.inputs_dir
    }

    /// The directory for the outputs: `/outputs` in the host, empty at the start.
    pub fn outputs_dir(&self) -> &Path {
        &self.outputs_dir
    }

    /// The task is done: a good result, with every output that was written through this task.
    pub fn done(&self) -> Outcome {
        Outcome::success(self.record.finished())
    }

    pub(crate) fn check_outputs(&self) -> Result<()> {
        self.record.check_all_finished()
    }
}

impl<P: DeserializeOwned> Task<P> {
    /// The task as the host describes it, between two directories.
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

/// A payload that is absent is `null`, so that `()`, an `Option` and a `Value` accept it.
fn parse_payload<P: DeserializeOwned>(json: Option<&str>) -> Result<P> {
    let text = json.unwrap_or("null");
    serde_json::from_str(text).map_err(|error| {
        // Keeping track of the path costs a little, so it is done only when there is an error.
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let path = match serde_path_to_error::deserialize::<_, P>(&mut deserializer) {
            Err(error) if error.path().iter().len() > 0 => format!(", at {}", error.path()),
            _ => String::new(),
        };
        let absent = if json.is_none() { " (the message has none)" } else { "" };
        Error::reject(format!("the payload{absent} does not fit this task{path}: {error}"))
    })
}

/// One input of a task: a file to read.
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

    /// The last part of the key without its extension: `4`. As [`Path::file_stem`].
    pub fn file_stem(&self) -> &str {
        match self.file_name().rsplit_once('.') {
            Some((stem, _)) if !stem.is_empty() => stem,
            _ => self.file_name(),
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes.
    ///
    /// # Errors
    /// If the system can't tell.
    pub fn size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path).with_context(|| self.to_string())?.len())
    }

    /// Opens it for reading, buffered.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn open(&self) -> Result<BufReader<File>> {
        let file = File::open(&self.path).with_context(|| self.to_string())?;
        // Larger than the default of 8 KiB: each read of a guest is a call of the host.
        Ok(BufReader::with_capacity(64 * 1024, file))
    }

    /// All of it.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn read(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).with_context(|| self.to_string())
    }

    /// All of it, as text.
    ///
    /// # Errors
    /// If it can't be read, or is not UTF-8.
    pub fn read_to_string(&self) -> Result<String> {
        fs::read_to_string(&self.path).with_context(|| self.to_string())
    }

    /// All of it, as JSON.
    ///
    /// # Errors
    /// If it can't be read, or is not JSON of that shape.
    pub fn read_json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.read()?).with_context(|| self.to_string())
    }
}

/// `input 0_input/4.dat`, as error texts name it.
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
    fn an_absent_payload_is_null() {
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
            "the payload (the message has none) does not fit this task: \
             invalid type: null, expected struct Complex at line 1 column 4",
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
