//! `host receipts show`: shows the receipt of the task that left an output.

use std::io::Write;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use task_host::bucket::{Bucket, BucketError};
use task_host::key::BucketKey;
use task_host::receipt::{Found, Receipt, Receipts, content_of};

use super::super::console::Console;
use super::super::exit_code::{Advice, Exit};
use super::super::output;
use super::super::progress_line::ProgressLine;
use super::super::settings::{BucketOnly, DisplaySettings, Flags};
use super::super::submit::open_bucket;

pub(super) const HELP: &str = "\
KEY is the key of an output, from the bucket's root, or the key of a receipt (_receipts/…). To find
an output, the command reads all receipts of the bucket. If several tasks left an output under one
key, it shows all their receipts, and says which of them the object matches now.

Example:
  host receipts show --bucket s3://my-data datasets/cells/1_mask/7.png";

/// Options of `host receipts show`.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Key of an output or of a receipt
    #[arg(value_name = "KEY")]
    key: String,
    /// Print each receipt as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<BucketOnly>,
}

/// A receipt, and whether an output matches it. The fields are what `--json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    /// Whether the object has the digest in the receipt; null if KEY is a receipt.
    matches: Option<bool>,
    receipt: &'a RawValue,
}

impl Show {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let settings = self.flags.load()?;
        let console = Console::plain(settings.get::<DisplaySettings>()?.progress);
        let key = BucketKey::new(&self.key)
            .map_err(|error| Advice::usage(format!("KEY: {:?} {error}", self.key)))?;
        super::super::runtime()?.block_on(async {
            let bucket = open_bucket(&settings).await?;
            let receipts = Receipts::new(bucket.clone());
            let (object, found) = match content_of(&key) {
                Some(_) => (None, vec![named(&receipts, &key).await?]),
                None => {
                    let mut line = ProgressLine::new(&console, "receipts", "read", None);
                    let found = receipts.of_output(&key, |read| line.at(read, read)).await?;
                    drop(line);
                    (Some(object(&*bucket, &key).await?), found)
                }
            };
            if found.is_empty() {
                return Err(Advice::failed(format!("no receipt in {bucket} has output {key}"))
                    .hint("only a host that runs with --receipts leaves receipts")
                    .into());
            }
            for (receipt, bytes) in &found {
                let matches = object.map(|object| {
                    let output = receipt.outputs.iter().find(|output| output.key == key);
                    output.is_some_and(|output| object == Some(output.sha256))
                });
                if self.json {
                    let receipt = serde_json::from_slice(bytes)?;
                    output::json(&Shown { matches, receipt })?;
                } else {
                    print(matches, bytes)?;
                }
            }
            Ok(Exit::Done)
        })
    }
}

/// The digest of an object. None if there is no such object.
async fn object(
    bucket: &dyn Bucket,
    key: &BucketKey,
) -> Result<Option<task_host::digest::Digest>, BucketError> {
    match bucket.digest(key).await {
        Ok((digest, _)) => Ok(Some(digest)),
        Err(BucketError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The receipt with that key.
async fn named(receipts: &Receipts, key: &BucketKey) -> anyhow::Result<(Receipt, Bytes)> {
    let content = content_of(key).ok_or_else(|| Advice::usage("KEY: is not a receipt"))?;
    match receipts.find(&content).await? {
        Found::Receipt { receipt, bytes, .. } => Ok((receipt, bytes)),
        Found::Nothing => {
            Err(Advice::failed(format!("there is no receipt {key} in {}", receipts.bucket()))
                .into())
        }
        Found::Unusable { why, .. } => {
            Err(Advice::failed(format!("the receipt {key} {why}")).into())
        }
    }
}

/// Prints a receipt for people: its fields in their order, and lists with one entry per line.
fn print(matches: Option<bool>, bytes: &[u8]) -> anyhow::Result<()> {
    let receipt: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes)?;
    let mut rows = Vec::new();
    if let Some(matches) = matches {
        let text = if matches { "matches this receipt" } else { "does not match this receipt" };
        rows.push(vec!["object".to_owned(), text.to_owned()]);
    }
    for (name, value) in &receipt {
        let parts = match value {
            serde_json::Value::Array(parts) => parts.iter().map(line).collect(),
            value => vec![line(value)],
        };
        let mut name = name.clone();
        for part in parts {
            rows.push(vec![std::mem::take(&mut name), part]);
        }
    }
    let mut out = output::out();
    output::table(&mut out, &rows)?;
    Ok(writeln!(out)?)
}

/// A value on one line: an object as `name value, name value`.
fn line(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Object(fields)
            if fields.values().all(|field| !field.is_object() && !field.is_array()) =>
        {
            let fields = fields.iter().map(|(name, field)| format!("{name} {}", line(field)));
            fields.collect::<Vec<_>>().join(", ")
        }
        value => value.to_string(),
    }
}
