//! Decodes the text of a message into a [`Task`], and encodes a task as text. No I/O.
//!
//! Two producers' formats are supported. SimpleTasks writes
//! `{"basic_info": {…}, "payload_info": …}`. python-task-queue writes
//! `{"payload": P, "queueName": …, "id": …}`, where P is a SimpleTasks task, a registered task
//! `{"class": "Name", …}`, or a function call `[["module", "fn"], args, kwargs, id]`.

mod content;

use std::borrow::Cow;

use crate::json::{self, Fields, Value};
use crate::key::{self, BucketKey, KeyError, Prefix, TaskName};

pub use content::content;

/// The most bytes of a message that is a task.
pub const LONGEST: usize = 16 << 20;
/// The most inputs of a task.
pub const MOST_INPUTS: usize = 100_000;

/// A task as its producer described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The producer's number for the task; -1 if there is none.
    pub id: i64,
    /// Selects the component.
    pub name: TaskName,
    /// The prefix that inputs and outputs are relative to. The bucket's root for
    /// python-task-queue's registered tasks and function calls, which have no base directory.
    pub base_directory: Prefix,
    /// The inputs, in the order of the message.
    pub inputs: Vec<BucketKey>,
    /// The JSON text of `payload_info`, byte for byte.
    pub payload: Option<String>,
}

/// The place where a message is not a task, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {problem}")]
pub struct DecodeError {
    /// The place, such as `basic_info.inputs[2]`, or `message`.
    pub at: String,
    /// What was found and what was expected.
    pub problem: String,
}

impl DecodeError {
    /// The error for a message whose text could not be read.
    pub(crate) fn unread(problem: &str) -> Self {
        Self::new("message", problem)
    }

    fn new(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { at: at.into(), problem: problem.into() }
    }

    fn expected(at: impl Into<String>, expected: &str, found: Value<'_>) -> Self {
        Self::new(at, format!("expected {expected}, found {}", describe(found.text())))
    }
}

/// Decodes the body of a message.
///
/// # Errors
/// Says which part of the message is wrong, and what was expected. A retry can't help.
pub fn decode(body: &[u8]) -> Result<Task, DecodeError> {
    if body.len() > LONGEST {
        let size = body.len();
        let problem =
            format!("has {size} bytes; a task may have {LONGEST}: put large data into an input");
        return Err(DecodeError::new("message", problem));
    }
    let text = std::str::from_utf8(body).map_err(|e| {
        let problem = match body {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "is UTF-16 text; it has to be UTF-8".to_owned(),
            _ => format!("is not UTF-8 text (byte {})", e.valid_up_to()),
        };
        DecodeError::new("message", problem)
    })?;
    let message = json::parse(without_mark(text))
        .map_err(|e| DecodeError::new("message", format!("is not JSON: {e}")))?;
    let fields = object("message", message)?;
    match pick("message", fields, ["basic_info", "payload_info", "payload"])? {
        [Some(info), payload_info, _] => simple_task("", info, payload_info),
        [None, _, Some(payload)] => python_task(payload),
        [None, _, None] => Err(DecodeError::new(
            "message",
            "has neither `basic_info` (a SimpleTasks task) nor `payload` (a python-task-queue task)",
        )),
    }
}

/// A task before it is encoded. Its fields are not checked yet.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// The producer's number for the task.
    pub id: Option<i64>,
    /// The name, which selects the component.
    pub name: &'a str,
    /// The prefix that inputs and outputs are relative to.
    pub base_directory: &'a str,
    /// Keys of inputs.
    pub inputs: &'a [&'a str],
    /// The payload: standard JSON or Python's JSON.
    pub payload: Option<&'a str>,
}

/// Encodes a task as the text of a message, in SimpleTasks' format.
///
/// # Errors
/// Says which part of the draft is not valid. For the payload, [`at`](DecodeError::at) is
/// [`PAYLOAD`].
pub fn encode(draft: &Draft<'_>) -> Result<String, DecodeError> {
    let payload = draft.payload.map(check_payload).transpose()?;
    let text = text_of(&Draft { payload, ..*draft });
    decode(text.as_bytes()).map(|_| text)
}

/// The message of a task in SimpleTasks' format, whatever format it was decoded from. The payload
/// keeps the text that the producer sent.
pub fn of_task(task: &Task) -> String {
    let inputs: Vec<&str> = task.inputs.iter().map(BucketKey::as_str).collect();
    text_of(&Draft {
        id: Some(task.id),
        name: task.name.as_str(),
        base_directory: task.base_directory.as_str(),
        inputs: &inputs,
        payload: task.payload.as_deref(),
    })
}

/// The text of a message. Checks nothing.
fn text_of(draft: &Draft<'_>) -> String {
    let json = |text: &str| serde_json::Value::from(text).to_string();
    let inputs: Vec<String> = draft.inputs.iter().map(|input| json(input)).collect();
    let id = draft.id.map(|id| id.to_string());
    let (name, base) = (json(draft.name), json(draft.base_directory));
    let inputs = format!("[{}]", inputs.join(","));
    let fields = [("\"name\"", &name), ("\"base_directory\"", &base), ("\"inputs\"", &inputs)];
    let fields = id.iter().map(|id| ("\"id\"", id)).chain(fields);
    let info = write_object(fields.map(|(name, value)| (name, &**value)));
    let payload = draft.payload.map(|text| ("\"payload_info\"", text));
    write_object([Some(("\"basic_info\"", &*info)), payload].into_iter().flatten())
}

/// The value of [`DecodeError::at`] for a task's payload.
pub const PAYLOAD: &str = "payload_info";

/// Checks that a payload is JSON. Returns it without the white space around it.
///
/// # Errors
/// Says where the payload is not JSON.
pub fn check_payload(payload: &str) -> Result<&str, DecodeError> {
    json::parse(payload).map(Value::text).map_err(|error| {
        DecodeError::new(PAYLOAD, format!("is not JSON: {error}: {}", shorten(payload)))
    })
}

/// Removes the byte order mark that some editors put before a text.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Decodes a task with `basic_info`. `at` is the task's place in the message: empty, or
/// `payload.`.
fn simple_task(at: &str, info: Value<'_>, payload: Option<Value<'_>>) -> Result<Task, DecodeError> {
    let place = format!("{at}basic_info");
    let fields = object(&place, info)?;
    const KNOWN: [&str; 4] = ["id", "name", "base_directory", "inputs"];
    let is_known = |name: &Value<'_>| KNOWN.iter().any(|known| name.is(known));
    if let Some((unknown, _)) = fields.clone().find(|(name, _)| !is_known(name)) {
        let unknown = unknown.string().unwrap_or(Cow::Borrowed(unknown.text()));
        return Err(DecodeError::new(
            &place,
            format!(
                "has an unknown field `{}`; it takes `id`, `name`, `base_directory` and `inputs` \
                 (a task's own parameters belong in `payload_info`)",
                shorten(&unknown).escape_default()
            ),
        ));
    }
    let [number, name, base, keys] = pick(&place, fields, KNOWN)?;
    let text = |field: &str, value: Option<Value<'_>>| -> Result<String, DecodeError> {
        let at = format!("{place}.{field}");
        match value {
            Some(value) => string(&at, value).map(Cow::into_owned),
            None => Err(DecodeError::new(at, "is missing; expected a string")),
        }
    };
    let name = text("name", name)?;
    let base = text("base_directory", base)?;
    let task = Task {
        id: number.map_or(Ok(-1), |v| id(&format!("{place}.id"), v))?,
        name: TaskName::new(&name).map_err(|e| bad_key(format!("{place}.name"), &name, &e))?,
        base_directory: Prefix::new(&base)
            .and_then(|prefix| key::check_not_reserved(&base).map(|()| prefix))
            .map_err(|e| bad_key(format!("{place}.base_directory"), &base, &e))?,
        inputs: keys.map_or(Ok(Vec::new()), |v| inputs(&format!("{place}.inputs"), v))?,
        payload: payload.map(|p| p.text().to_owned()),
    };
    for (i, input) in task.inputs.iter().enumerate() {
        let key = task.base_directory.join(input);
        BucketKey::new(key.as_str())
            .map_err(|e| bad_key(format!("{place}.inputs[{i}]"), key.as_str(), &e))?;
    }
    Ok(task)
}

/// Decodes python-task-queue's `payload`.
fn python_task(payload: Value<'_>) -> Result<Task, DecodeError> {
    match payload.text().as_bytes().first() {
        Some(b'{') => {
            let fields = object("payload", payload)?;
            let names = ["basic_info", "payload_info", "class"];
            let class = match pick("payload", fields.clone(), names)? {
                [Some(info), payload_info, _] => {
                    return simple_task("payload.", info, payload_info);
                }
                [None, _, Some(class)] => class,
                [None, _, None] => {
                    return Err(DecodeError::new(
                        "payload",
                        "is an object with neither `basic_info` nor `class`",
                    ));
                }
            };
            let rest = fields.filter(|(name, _)| !name.is("class"));
            let rest = rest.map(|(name, value)| (name.text(), value.text()));
            bare_task("payload.class", &string("payload.class", class)?, write_object(rest))
        }
        Some(b'[') => {
            let expected = "a function task `[[module, function], args, kwargs, id]`";
            let parts: Vec<_> = payload.items().into_iter().flatten().take(5).collect();
            let [function, args, kwargs, _id] = parts[..] else {
                return Err(DecodeError::expected("payload", expected, payload));
            };
            let path = function.items().into_iter().flatten().take(3);
            let path: Option<Vec<_>> = path.map(Value::string).collect();
            let Some([module, function]) = path.as_deref() else {
                return Err(DecodeError::expected("payload[0]", "`[module, function]`", function));
            };
            let call = [("\"args\"", args.text()), ("\"kwargs\"", kwargs.text())];
            bare_task("payload[0]", &format!("{module}.{function}"), write_object(call.into_iter()))
        }
        _ => Err(DecodeError::expected("payload", "an object or an array", payload)),
    }
}

/// Makes a task without base directory and inputs.
fn bare_task(at: &str, name: &str, payload: String) -> Result<Task, DecodeError> {
    Ok(Task {
        id: -1,
        name: TaskName::new(name).map_err(|e| bad_key(at.to_owned(), name, &e))?,
        base_directory: Prefix::root(),
        inputs: Vec::new(),
        payload: Some(payload),
    })
}

fn id(at: &str, value: Value<'_>) -> Result<i64, DecodeError> {
    let expected = "a 64-bit integer, or a string that contains one";
    let wrong = || DecodeError::expected(at, expected, value);
    if value.is_string() {
        string(at, value)?.parse().map_err(|_| wrong())
    } else {
        value.text().parse().map_err(|_| wrong())
    }
}

fn inputs(at: &str, value: Value<'_>) -> Result<Vec<BucketKey>, DecodeError> {
    if value.text() == "null" {
        return Ok(Vec::new());
    }
    let items =
        value.items().ok_or_else(|| DecodeError::expected(at, "an array of keys", value))?;
    let mut keys = Vec::new();
    for (i, item) in items.enumerate() {
        if i == MOST_INPUTS {
            let problem = format!("has more than {MOST_INPUTS} keys, which is the maximum");
            return Err(DecodeError::new(at, problem));
        }
        let place = || format!("{at}[{i}]");
        let text = match item.string() {
            Some(text) => text,
            None => string(&place(), item)?,
        };
        keys.push(BucketKey::new(&text).map_err(|e| bad_key(place(), &text, &e))?);
    }
    Ok(keys)
}

fn string<'a>(at: &str, value: Value<'a>) -> Result<Cow<'a, str>, DecodeError> {
    value.string().ok_or_else(|| match value.is_string() {
        true => DecodeError::expected(at, "whole characters (no half of a surrogate pair)", value),
        false => DecodeError::expected(at, "a string", value),
    })
}

fn bad_key(at: String, text: &str, error: &KeyError) -> DecodeError {
    DecodeError::new(at, format!("{:?} {error}", shorten(text)))
}

/// Writes a JSON object. Names and values are JSON texts.
fn write_object<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::from("{");
    for (name, value) in fields {
        if text.len() > 1 {
            text.push(',');
        }
        text.extend([name, ":", value]);
    }
    text.push('}');
    text
}

fn object<'a>(at: &str, value: Value<'a>) -> Result<Fields<'a>, DecodeError> {
    value.fields().ok_or_else(|| DecodeError::expected(at, "an object", value))
}

/// The values of the fields with these names. A duplicate field is an error, because readers
/// disagree on which one counts.
fn pick<'a, const N: usize>(
    at: &str,
    fields: Fields<'a>,
    names: [&str; N],
) -> Result<[Option<Value<'a>>; N], DecodeError> {
    let mut found = [None; N];
    for (field, value) in fields {
        let Some(n) = names.iter().position(|name| field.is(name)) else { continue };
        if found[n].replace(value).is_some() {
            return Err(DecodeError::new(at, format!("has `{}` twice", names[n])));
        }
    }
    Ok(found)
}

fn describe(json: &str) -> String {
    let kind = match json.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "the string",
        Some(b't' | b'f') => "the boolean",
        Some(b'n') => return "null".to_owned(),
        _ => "the number",
    };
    format!("{kind} {}", shorten(json))
}

/// The beginning of a text, long enough to recognise it in an error.
fn shorten(text: &str) -> Cow<'_, str> {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Id, name, base directory, inputs, payload.
    type Parts<'a> = (i64, &'a str, &'a str, &'a [&'a str], Option<&'a str>);

    fn check(body: &str, want: Result<Parts<'_>, &str>) {
        match (decode(body.as_bytes()), want) {
            (Ok(task), Ok((id, name, base, inputs, payload))) => {
                let got: Vec<&str> = task.inputs.iter().map(BucketKey::as_str).collect();
                assert_eq!(
                    (task.id, task.name.as_str(), task.base_directory.as_str(), &got[..]),
                    (id, name, base, inputs),
                    "{body}"
                );
                assert_eq!(task.payload.as_deref(), payload, "{body}");
            }
            (Err(error), Err(want)) => assert_eq!(error.to_string(), want, "{body}"),
            (got, want) => panic!("{body}\n got {got:?}\nwant {want:?}"),
        }
    }

    #[test]
    fn simple_tasks_messages() {
        check(
            r#"{"basic_info": {"id": 4, "name": "NO_OP", "base_directory": "datasets\/noop_dataset",
                "inputs": ["0_input\/4.dat", "0_input\/5.dat"]}, "payload_info": "NoOp Task for 4:5"}"#,
            Ok((
                4,
                "NO_OP",
                "datasets/noop_dataset",
                &["0_input/4.dat", "0_input/5.dat"],
                Some("\"NoOp Task for 4:5\""),
            )),
        );
        // No inputs; an extra field of the producer; an id as a string; an escape in a field's
        // name.
        check(
            r#"{"z": [1], "basic_info": {"id": "-7", "n\u0061me": "a.b", "base_directory": "d"}}"#,
            Ok((-7, "a.b", "d", &[], None)),
        );
        check(
            r#"{"basic_info": {"name": "A", "base_directory": "d", "inputs": null}, "payload_info": null}"#,
            Ok((-1, "A", "d", &[], Some("null"))),
        );
    }

    #[test]
    fn a_task_has_one_form_whatever_its_producer_is() {
        let check = |body: &str, want: &str| {
            let task = decode(body.as_bytes()).unwrap();
            assert_eq!(of_task(&task), want);
        };
        check(
            r#"{"extra": 1, "payload_info": {"a":  1.50}, "basic_info": {"name": "A", "base_directory": "d"}}"#,
            r#"{"basic_info":{"id":-1,"name":"A","base_directory":"d","inputs":[]},"payload_info":{"a":  1.50}}"#,
        );
        check(
            r#"{"payload": {"class": "Print", "txt": "\u0061"}, "queueName": "q", "id": "x"}"#,
            r#"{"basic_info":{"id":-1,"name":"Print","base_directory":"","inputs":[]},"payload_info":{"txt":"\u0061"}}"#,
        );
        let whole =
            r#"{"basic_info":{"id":7,"name":"A","base_directory":"d","inputs":["a/\"b\"","c"]}}"#;
        check(whole, whole);
    }

    #[test]
    fn what_is_encoded_is_decoded_again() {
        let draft = Draft {
            id: Some(7),
            name: "A",
            base_directory: "d/\"e\"",
            inputs: &["0_input/a.png", "é"],
            payload: Some(" [NaN, 1.50] "),
        };
        let text = encode(&draft).unwrap();
        let want: Parts<'_> = (7, "A", "d/\"e\"", &["0_input/a.png", "é"], Some("[NaN, 1.50]"));
        check(&text, Ok(want));
        let bare = Draft { id: None, inputs: &[], payload: None, ..draft };
        let text = encode(&bare).unwrap();
        assert_eq!(text, r#"{"basic_info":{"name":"A","base_directory":"d/\"e\"","inputs":[]}}"#);
        // A payload can't add a field to the message.
        let error = encode(&Draft { payload: Some("1}, \"x\": {"), ..draft }).unwrap_err();
        assert_eq!(error.at, PAYLOAD);
        let error = encode(&Draft { base_directory: "../d", ..draft }).unwrap_err();
        assert_eq!(error.to_string(), "basic_info.base_directory: \"../d\" has a `..` segment");
    }

    #[test]
    fn a_payload_keeps_every_character() {
        for payload in [
            "12345678901234567890123",
            "0.10000000000000000000001",
            "1e400",
            "NaN",
            "[ -Infinity, Infinity ]",
            r#"{"x": [NaN, "NaN", "\ud800"]}"#,
            r#"{ "a" : [ 1 , 9007199254740993 ], "b":"\u00e9\/" }"#,
        ] {
            let body = format!(
                r#"{{"basic_info": {{"name": "A", "base_directory": "d"}}, "payload_info": {payload}}}"#
            );
            check(&body, Ok((-1, "A", "d", &[], Some(payload))));
        }
    }

    #[test]
    fn python_task_queue_messages() {
        check(
            r#"{"payload": {"basic_info": {"id": 1, "name": "N", "base_directory": "d", "inputs": ["a"]},
                "payload_info": {"t": [1.50]}, "class": "Any"}, "queueName": "q", "id": "5f0c"}"#,
            Ok((1, "N", "d", &["a"], Some(r#"{"t": [1.50]}"#))),
        );
        check(
            r#"{"payload": {"class": "PrintTask", "txt": 0, "big": 12345678901234567890}, "queueName": "q", "id": "u"}"#,
            Ok((-1, "PrintTask", "", &[], Some(r#"{"txt":0,"big":12345678901234567890}"#))),
        );
        check(
            r#"{"payload": [["mod.sub", "fn"], [1, "x"], {"k": 2.0}, -1], "queueName": "q", "id": "u"}"#,
            Ok((-1, "mod.sub.fn", "", &[], Some(r#"{"args":[1, "x"],"kwargs":{"k": 2.0}}"#))),
        );
    }

    #[test]
    fn numbers_of_python_and_half_characters_are_no_error_where_nobody_looks() {
        check(
            r#"{"a": NaN, "b\udc00": {"c": [-Infinity, "\ud800"]}, "basic_info": {"name": "A", "base_directory": "d"}}"#,
            Ok((-1, "A", "d", &[], None)),
        );
        check(
            r#"{"payload": {"class": "PrintTask", "t\ud800": NaN, "b": Infinity}}"#,
            Ok((-1, "PrintTask", "", &[], Some(r#"{"t\ud800":NaN,"b":Infinity}"#))),
        );
        check(
            r#"{"payload": [["m", "f"], [NaN], {"k": -Infinity}, -1], "queueName": NaN}"#,
            Ok((-1, "m.f", "", &[], Some(r#"{"args":[NaN],"kwargs":{"k": -Infinity}}"#))),
        );
        check(
            r#"{"basic_info": {"id": NaN, "name": "A", "base_directory": "d"}}"#,
            Err(
                "basic_info.id: expected a 64-bit integer, or a string that contains one, found the number NaN",
            ),
        );
        check(
            r#"{"basic_info": {"name": "A\ud800", "base_directory": "d"}}"#,
            Err(
                "basic_info.name: expected whole characters (no half of a surrogate pair), found the string \"A\\ud800\"",
            ),
        );
    }

    #[test]
    fn a_mark_of_an_editor_is_no_error() {
        let task = r#"{"basic_info": {"name": "A", "base_directory": "d"}}"#;
        check(&format!("\u{feff}{task}"), Ok((-1, "A", "d", &[], None)));
        let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let error = decode(&utf16).unwrap_err().to_string();
        assert_eq!(error, "message: is UTF-16 text; it has to be UTF-8");
    }

    #[test]
    fn wrong_messages_say_where_and_what_was_expected() {
        let info = |inner: &str| format!(r#"{{"basic_info": {{{inner}}}}}"#);
        check(
            "",
            Err(
                "message: is not JSON: the text ends where a value was expected at line 1 column 1",
            ),
        );
        check("[1]", Err("message: expected an object, found an array [1]"));
        check(
            "{}",
            Err(
                "message: has neither `basic_info` (a SimpleTasks task) nor `payload` (a python-task-queue task)",
            ),
        );
        check(r#"{"basic_info": 3}"#, Err("basic_info: expected an object, found the number 3"));
        check(
            &info(r#""base_directory": "d""#),
            Err("basic_info.name: is missing; expected a string"),
        );
        check(
            &info(r#""name": "A""#),
            Err("basic_info.base_directory: is missing; expected a string"),
        );
        check(
            &info(r#""name": " ", "base_directory": "d""#),
            Err("basic_info.name: \" \" is blank"),
        );
        check(
            &info(r#""name": "A", "base_directory": "/d""#),
            Err("basic_info.base_directory: \"/d\" is an absolute path; it has to be relative"),
        );
        check(
            &info(r#""name": "A", "base_directory": "_Receipts/a""#),
            Err(
                "basic_info.base_directory: \"_Receipts/a\" is in `_receipts` or `_hosts`, which are reserved for the host",
            ),
        );
        check(
            &info(r#""name": "A", "base_directory": "d", "inputs": ["a", "../b"]"#),
            Err("basic_info.inputs[1]: \"../b\" has a `..` segment"),
        );
        check(
            &info(r#""name": "A", "base_directory": "d", "inputs": "a""#),
            Err("basic_info.inputs: expected an array of keys, found the string \"a\""),
        );
        check(
            &info(r#""name": "A", "base_directory": "d", "inputs": [7]"#),
            Err("basic_info.inputs[0]: expected a string, found the number 7"),
        );
        check(
            &info(r#""name": "A", "base_directory": "d", "id": 1.5"#),
            Err(
                "basic_info.id: expected a 64-bit integer, or a string that contains one, found the number 1.5",
            ),
        );
        check(
            &info(r#""name": "A", "base_directory": "d", "id": 9223372036854775808"#),
            Err(
                "basic_info.id: expected a 64-bit integer, or a string that contains one, found the number 9223372036854775808",
            ),
        );
        check(
            &info(r#""name": "A", "name": "B", "base_directory": "d""#),
            Err("basic_info: has `name` twice"),
        );
        check(
            &info(r#""name": "A", "base_directory": "d", "thresholds": [1]"#),
            Err(
                "basic_info: has an unknown field `thresholds`; it takes `id`, `name`, `base_directory` and `inputs` (a task's own parameters belong in `payload_info`)",
            ),
        );
        check(
            r#"{"payload": {"txt": 1}}"#,
            Err("payload: is an object with neither `basic_info` nor `class`"),
        );
        check(
            r#"{"payload": [["m"], [], {}, 1]}"#,
            Err("payload[0]: expected `[module, function]`, found an array [\"m\"]"),
        );
        check(
            r#"{"payload": [1]}"#,
            Err(
                "payload: expected a function task `[[module, function], args, kwargs, id]`, found an array [1]",
            ),
        );
        check(
            r#"{"payload": {"basic_info": {"name": "../x", "base_directory": "d"}}}"#,
            Err("payload.basic_info.name: \"../x\" has a `..` segment"),
        );
        assert_eq!(decode(b"\xff").unwrap_err().to_string(), "message: is not UTF-8 text (byte 0)");
    }

    #[test]
    fn a_message_made_to_exhaust_a_host_is_refused_or_taken_as_it_is() {
        let check = |body: &str, want: &str| {
            let error = decode(body.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(want) && error.len() < 500, "{error:.600}");
        };
        let info = |inner: &str| {
            format!(r#"{{"basic_info": {{"name": "A", "base_directory": "d", {inner}}}}}"#)
        };
        // Deep nesting must not exhaust the stack.
        check(&format!("{{\"basic_info\": {}", "[".repeat(10_000_000)), "message: is not JSON");
        check(&"[".repeat(LONGEST + 1), "message: has 16777217 bytes");
        let keys = |n: usize| info(&format!(r#""inputs": [{}"a"]"#, r#""a","#.repeat(n - 1)));
        check(&keys(4_000_000), "basic_info.inputs: has more than 100000 keys");
        assert_eq!(decode(keys(MOST_INPUTS).as_bytes()).unwrap().inputs.len(), MOST_INPUTS);
        let digits = "9".repeat(10_000_000);
        check(&info(&format!(r#""id": {digits}"#)), "basic_info.id: expected a 64-bit integer");
        check(&info(&format!(r#""id": "{digits}""#)), "basic_info.id: expected a 64-bit integer");
        check(&info(&format!(r#""inputs": ["{digits}"]"#)), "basic_info.inputs[0]: ");
        check(&info(&format!(r#""{digits}": 1"#)), "basic_info: has an unknown field");
        check(&format!(r#"{{"payload": [{}1]}}"#, "1,".repeat(5_000_000)), "payload: expected");
        check(&format!("{{{}\"\": 1}}", r#""":1,"#.repeat(2_000_000)), "message: has neither");
        let many = r#""":1,"#.repeat(2_000_000);
        let body = format!(r#"{{"payload": {{{many}"class": "A"}}}}"#);
        assert_eq!(decode(body.as_bytes()).unwrap().payload.unwrap().len(), many.len() + 1);
    }

    /// Texts that follow the format of a message in part.
    fn almost_a_message() -> impl Strategy<Value = String> {
        let value = prop_oneof![
            Just("null".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            ".{0,20}".prop_map(|text| serde_json::Value::from(text).to_string()),
            r#"\[("a(/b)?",?){0,3}\]"#,
            r#"\[\["m","f"\],\[\],\{\},1\]"#,
            r#"\{"(class|basic_info|name)":"[a-zA-Z./\\]{0,8}"\}"#,
        ];
        let key = "(id|name|base_directory|inputs|payload|class|basic_info|payload_info|x)";
        let object = proptest::collection::vec((key, value), 0..6).prop_map(|fields| {
            let fields: Vec<_> = fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
            format!("{{{}}}", fields.join(","))
        });
        (object, "(basic_info|payload)", ".{0,10}")
            .prop_map(|(object, key, rest)| format!("{{\"{key}\":{object}}}{rest}"))
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_task_or_an_error(body: Vec<u8>) {
            let _ = decode(&body);
        }

        #[test]
        fn names_of_a_task_are_safe_whatever_the_message(body in almost_a_message()) {
            if let Ok(task) = decode(body.as_bytes()) {
                prop_assert!(TaskName::new(task.name.as_str()).is_ok());
                for input in &task.inputs {
                    prop_assert!(BucketKey::new(task.base_directory.join(input).as_str()).is_ok());
                }
                if let Some(payload) = &task.payload {
                    prop_assert!(json::parse(payload).is_ok());
                }
            }
        }
    }
}
