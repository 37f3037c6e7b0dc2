//! Sends a task for each object of a bucket that matches a pattern.

use futures_util::StreamExt;
use globset::{GlobBuilder, GlobMatcher};

use super::MessageOrigin;
use super::send::{BulkSend, SendError, Sent};
use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::key::{BucketKey, KeyError, Prefix};
use crate::message::{self, DecodeError, Draft};
use crate::queue::QueueError;

/// The parts that all tasks have in common.
#[derive(Debug)]
pub struct TaskTemplate {
    /// The name of the tasks.
    pub name: String,
    /// The base directory. `None`: the part of an object's key before the first segment that ends
    /// with `_input`.
    pub base_directory: Option<Prefix>,
    /// Keys of inputs after the object.
    pub more_inputs: Vec<String>,
    /// JSON in which `{key}`, `{input}`, `{name}`, `{stem}` and `{id}` are replaced by the values
    /// for the object.
    pub payload: Option<String>,
    /// How the ids of the tasks are chosen.
    pub ids: Ids,
}

/// How the ids of tasks are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// The tasks are numbered from this id in the order of the listing.
    From(i64),
    /// The id is the first 53 bits of the SHA-256 of the object's key. Programs that read numbers
    /// as floating-point numbers don't change such an id.
    OfKeys,
}

impl Ids {
    /// The id of the task for an object, when `others` other tasks come before it.
    fn of(self, key: &BucketKey, others: i64) -> Option<i64> {
        match self {
            Self::From(first) => first.checked_add(others),
            Self::OfKeys => {
                let digest = Digest::of(key.as_str().as_bytes());
                let mut first = [0; 8];
                first.copy_from_slice(&digest.0[..8]);
                i64::try_from(u64::from_be_bytes(first) >> 11).ok()
            }
        }
    }
}

/// Selects the objects that get a task.
#[derive(Debug)]
pub struct Pattern {
    text: String,
    matcher: GlobMatcher,
    /// All keys that match are below this prefix.
    prefix: Prefix,
}

/// The problem with a pattern.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// The syntax is wrong.
    #[error("{0:?} is not a pattern: {1}")]
    Syntax(String, globset::ErrorKind),
    /// The pattern begins with text that no key begins with.
    #[error("{0:?} {1}")]
    Key(String, KeyError),
}

/// Why no task can be made of an object.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The base directory was given, and the object is elsewhere.
    #[error("is not below the base directory {0}")]
    Outside(Prefix),
    /// The base directory was not given, and the key does not show it.
    #[error("has no base directory: no segment of its key ends with `_input`")]
    NoInputSegment,
    /// The message would not be a task.
    #[error(transparent)]
    Task(#[from] DecodeError),
}

/// Why tasks were not sent, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// The payload can't become JSON for any object.
    #[error(transparent)]
    Payload(DecodeError),
    /// No object matches.
    #[error("no object of {bucket} matches {pattern:?}")]
    NoMatch {
        /// The bucket.
        bucket: String,
        /// The pattern.
        pattern: String,
    },
    /// No task can be made of any object that matches. The error is that of the first.
    #[error("{key} {problem}")]
    NoTask {
        /// The object's key.
        key: BucketKey,
        /// Why.
        problem: ObjectError,
    },
    /// Listing or sending failed.
    #[error(transparent)]
    Send(#[from] SendError),
}

impl From<QueueError> for ObjectsError {
    fn from(error: QueueError) -> Self {
        Self::Send(error.into())
    }
}

impl Pattern {
    /// A glob over whole keys: `*` and `?` stay within a segment, and `**` does not.
    ///
    /// # Errors
    /// If the text is not a glob, or matches no key.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        let glob = glob.map_err(|e| PatternError::Syntax(text.to_owned(), e.kind().clone()))?;
        let prefix = literal_prefix(text).map_err(|e| PatternError::Key(text.to_owned(), e))?;
        Ok(Self { text: text.to_owned(), matcher: glob.compile_matcher(), prefix })
    }

    fn matches(&self, key: &str) -> bool {
        self.matcher.is_match(key)
    }
}

/// Lists the bucket and sends a task for each object that matches.
///
/// # Errors
/// If the bucket can't be listed to its end, no object matches, no task can be made of any, or the
/// queue can't be used. The queue is created only if there is a task to send.
pub async fn send(
    bucket: &dyn Bucket,
    pattern: &Pattern,
    template: &TaskTemplate,
    to: BulkSend,
) -> Result<Sent, ObjectsError> {
    template.check_payload().map_err(ObjectsError::Payload)?;
    let mut listing = bucket.list(&pattern.prefix);
    let mut sender = None;
    let mut tasks = 0;
    let mut first_problem = None;
    // Why the listing ended early.
    let mut unlisted: Option<Box<dyn std::error::Error + Send + Sync>> = None;
    let mut is_interrupted = false;
    loop {
        let object = tokio::select! {
            biased;
            () = to.stop.cancelled() => {
                is_interrupted = true;
                break;
            }
            object = listing.next() => object,
        };
        let Some(object) = object else { break };
        let key = match object {
            Ok(object) => object.key,
            Err(error) => {
                unlisted = Some(error.into());
                break;
            }
        };
        if key.is_reserved() || !pattern.matches(key.as_str()) {
            continue;
        }
        let Some(id) = template.ids.of(&key, tasks) else {
            unlisted = Some("there are more objects than ids".into());
            break;
        };
        let origin = MessageOrigin::Named(key.to_string());
        let body = match template.task(&key, id) {
            Ok(body) => body,
            Err(problem) => {
                to.refusals.add(&origin, &problem, None);
                first_problem.get_or_insert((key, problem));
                continue;
            }
        };
        let sender = match &mut sender {
            Some(sender) => sender,
            none => none.insert(to.start(None).await?),
        };
        tasks += 1;
        if !sender.push(body.into(), origin).await {
            break;
        }
    }
    let Some(sender) = sender else {
        if is_interrupted {
            return Err(to.interrupted().into());
        }
        to.finish()?;
        return Err(match (first_problem, unlisted) {
            (_, Some(source)) => SendError::Input { source, done: None }.into(),
            (Some((key, problem)), None) => ObjectsError::NoTask { key, problem },
            (None, None) => {
                ObjectsError::NoMatch { bucket: bucket.to_string(), pattern: pattern.text.clone() }
            }
        });
    };
    if is_interrupted {
        return Err(sender.interrupted().await.into());
    }
    let done = sender.finish().await?;
    match unlisted {
        None => Ok(done),
        Some(source) => Err(SendError::Input { source, done: Some(done) }.into()),
    }
}

impl TaskTemplate {
    /// Checks that the payload becomes JSON for at least one of two sample keys, whose names are a
    /// number and a word.
    fn check_payload(&self) -> Result<(), DecodeError> {
        let Some(payload) = &self.payload else { return Ok(()) };
        let samples = ["d/0_input/1", "d/0_input/a"].into_iter();
        let keys = samples.filter_map(|key| BucketKey::new(key).ok());
        let mut checked = keys.map(|key| {
            let id = self.ids.of(&key, 0).unwrap_or_default();
            let filled = fill(payload, &key, "0_input", id);
            message::check_payload(&filled).map(drop)
        });
        match checked.next() {
            Some(Err(error)) if !checked.any(|checked| checked.is_ok()) => Err(error),
            _ => Ok(()),
        }
    }

    /// The message of the task for this object.
    fn task(&self, key: &BucketKey, id: i64) -> Result<String, ObjectError> {
        let (base, input) = split(key, self.base_directory.as_ref())?;
        let payload = self.payload.as_deref().map(|payload| fill(payload, key, input, id));
        let inputs: Vec<&str> =
            std::iter::once(input).chain(self.more_inputs.iter().map(String::as_str)).collect();
        Ok(message::encode(&Draft {
            id: Some(id),
            name: &self.name,
            base_directory: base,
            inputs: &inputs,
            payload: payload.as_deref(),
        })?)
    }
}

/// The segments before the first one with a wildcard. Only keys below them have to be listed.
fn literal_prefix(pattern: &str) -> Result<Prefix, KeyError> {
    let dirs = pattern.rsplit_once('/').map_or("", |(dirs, _)| dirs);
    let literal: Vec<&str> =
        dirs.split('/').take_while(|s| !s.contains(['*', '?', '[', '{', '\\'])).collect();
    let literal = literal.join("/");
    if literal.is_empty() && !pattern.starts_with('/') {
        return Ok(Prefix::root());
    }
    Prefix::new(&literal)
}

/// The base directory and the input of a task for this object.
fn split<'a>(
    key: &'a BucketKey,
    base: Option<&'a Prefix>,
) -> Result<(&'a str, &'a str), ObjectError> {
    let key = key.as_str();
    if let Some(base) = base {
        let input = key.strip_prefix(base.as_str()).and_then(|key| key.strip_prefix('/'));
        return match input {
            Some(input) => Ok((base.as_str(), input)),
            None => Err(ObjectError::Outside(base.clone())),
        };
    }
    let mut start = 0;
    for segment in key.split('/') {
        let end = start + segment.len();
        // The last segment is the object itself.
        if segment.ends_with("_input") && start > 0 && end < key.len() {
            let (base, input) = key.split_at(start);
            return Ok((base.trim_end_matches('/'), input));
        }
        start = end + 1;
    }
    Err(ObjectError::NoInputSegment)
}

/// The placeholders that [`TaskTemplate::payload`] may have.
pub const PLACEHOLDERS: [&str; 5] = ["{key}", "{input}", "{name}", "{stem}", "{id}"];

/// The words in braces of a payload, in their order, whether or not they are placeholders.
pub fn braced(payload: &str) -> impl Iterator<Item = &str> {
    payload.match_indices('{').filter_map(|(at, _)| {
        let rest = &payload[at..];
        let (word, _) = rest[1..].split_once('}')?;
        let is_word = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '-');
        (!word.is_empty() && word.chars().all(is_word)).then(|| &rest[..word.len() + 2])
    })
}

/// Replaces the placeholders of a payload. Values are escaped as the inside of JSON strings.
fn fill(payload: &str, key: &BucketKey, input: &str, id: i64) -> String {
    let name = key.as_str().rsplit('/').next().unwrap_or_default();
    let stem =
        name.rsplit_once('.').map_or(name, |(stem, _)| if stem.is_empty() { name } else { stem });
    let escaped = |text: &str| {
        let quoted = serde_json::Value::from(text).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    };
    let values = [
        ("{key}", escaped(key.as_str())),
        ("{input}", escaped(input)),
        ("{name}", escaped(name)),
        ("{stem}", escaped(stem)),
        ("{id}", id.to_string()),
    ];
    // Replaces from left to right, so that no text in a value is taken for a placeholder.
    let mut filled = String::new();
    let mut rest = payload;
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        match values.iter().find(|(placeholder, _)| rest.starts_with(placeholder)) {
            Some((placeholder, value)) => {
                filled.push_str(value);
                rest = &rest[placeholder.len()..];
            }
            None => {
                filled.push('{');
                rest = &rest[1..];
            }
        }
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> BucketKey {
        BucketKey::new(text).unwrap()
    }

    #[test]
    fn the_base_directory_stands_before_the_inputs() {
        let check = |k: &str, base: Option<&str>, want: Option<(&str, &str)>| {
            let base = base.map(|b| Prefix::new(b).unwrap());
            assert_eq!(split(&key(k), base.as_ref()).ok(), want, "{k}");
        };
        check("datasets/cells/0_input/a.png", None, Some(("datasets/cells", "0_input/a.png")));
        check("d/12_input/x/0_input/a", None, Some(("d", "12_input/x/0_input/a")));
        check("d/x/a.png", None, None);
        check("0_input/a.png", None, None);
        check("d/0_input", None, None);
        check("d/x/a.png", Some("d"), Some(("d", "x/a.png")));
        check("dd/x/a.png", Some("d"), None);
    }

    #[test]
    fn a_star_stays_within_its_segment() {
        let check = |pattern: &str, k: &str, want: bool| {
            assert_eq!(Pattern::new(pattern).unwrap().matches(k), want, "{pattern} {k}");
        };
        check("d/0_input/*.png", "d/0_input/a.png", true);
        check("d/0_input/*.png", "d/0_input/x/a.png", false);
        check("d/0_input/**/*.png", "d/0_input/x/a.png", true);
        check("d/*/0_input/?.png", "d/y/0_input/a.png", true);
        // A star also matches a leading dot, unlike in a shell, as the reference says.
        check("d/0_input/*", "d/0_input/.a", true);
        check("d/0_input/[!.]*", "d/0_input/.a", false);
        check("d/0_input/[!.]*", "d/0_input/a", true);
    }

    #[test]
    fn no_more_is_listed_than_the_pattern_can_match() {
        let check = |pattern: &str, want: &str| {
            assert_eq!(literal_prefix(pattern).unwrap().as_str(), want, "{pattern}");
        };
        check("d/e/0_input/*.png", "d/e/0_input");
        check("d/*/0_input/a.png", "d");
        check("*.png", "");
        check("a.png", "");
        assert!(literal_prefix("../x/*.png").is_err());
        assert!(literal_prefix("/x/*.png").is_err());
    }

    #[test]
    fn ids_of_keys_depend_on_nothing_else_and_every_program_can_read_them() {
        let id = |k: &str, others| Ids::OfKeys.of(&key(k), others).unwrap();
        assert_eq!(id("d/0_input/a", 0), id("d/0_input/a", 7));
        assert_ne!(id("d/0_input/a", 0), id("d/0_input/b", 0));
        for n in 0..100 {
            let id = id(&format!("d/0_input/{n}"), 0);
            assert!((0..1 << 53).contains(&id), "{id}");
        }
        // printf d/0_input/a | sha256sum: the first 16 digits, shifted by 11 bits.
        assert_eq!(id("d/0_input/a", 0), 5_388_332_299_529_484);
        assert_eq!(Ids::From(5).of(&key("a"), 2), Some(7));
        assert_eq!(Ids::From(i64::MAX).of(&key("a"), 1), None);
    }

    #[test]
    fn words_in_braces_are_told_from_objects() {
        let found: Vec<&str> =
            braced(r#"{"a": {}, "b": "{stem} {steem}", "c": {id}, {"d"}}"#).collect();
        assert_eq!(found, ["{stem}", "{steem}", "{id}"]);
    }

    #[test]
    fn placeholders_become_the_inside_of_json_texts() {
        let filled = fill(
            r#"{"k": "{key}", "n": {id}, "o": {"{stem}": "{x}"}}"#,
            &key("d/a\"{id}.b.png"),
            "i",
            7,
        );
        assert_eq!(filled, r#"{"k": "d/a\"{id}.b.png", "n": 7, "o": {"a\"{id}.b": "{x}"}}"#);
    }
}
