//! A task for each object of the bucket that matches a pattern.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use globset::{GlobBuilder, GlobMatcher};
use task_host::bucket;
use task_host::key::{BucketKey, Prefix};

use super::super::exit_code::Advice;
use super::super::progress_line::ProgressLine;
use super::super::refusals::{Place, Refusals};
use super::super::sender::Sender;
use super::{Outcome, Template, To};

/// Lists the bucket and sends a task for each match, with ids from `first_id`.
pub(super) async fn send(
    bucket: &str,
    access: &bucket::Access,
    pattern: &str,
    template: &Template,
    first_id: i64,
    rejects: Option<&Path>,
    to: &To<'_>,
) -> anyhow::Result<Outcome> {
    let matcher = matcher(pattern)?;
    let bucket = bucket::open(&bucket.parse()?, access).await?;
    let below = literal_prefix(pattern)?;
    let base = match &template.base_directory {
        Some(base) => Some(
            Prefix::new(base.trim_end_matches('/'))
                .map_err(|e| Advice::usage(format!("--base-directory: {base:?} {e}")))?,
        ),
        None => None,
    };
    template.check_filled(|payload| {
        let samples = ["d/0_input/1", "d/0_input/a"];
        let keys = samples.into_iter().filter_map(|key| BucketKey::new(key).ok());
        keys.map(|key| fill(payload, &key, "0_input", first_id)).collect()
    })?;
    let mut listing = bucket.list(&below);
    let refusals = Arc::new(Refusals::new(to.screen, rejects)?);
    let mut sender = None;
    let mut id = first_id;
    // Why no task could be made of an object, and why the listing ended.
    let (mut first_problem, mut unlisted) = (None, None);
    while let Some(object) = listing.next().await {
        let key = match object {
            Ok(object) => object.key,
            Err(error) => {
                unlisted = Some(error);
                break;
            }
        };
        if !matcher.is_match(key.as_path()) {
            continue;
        }
        let body = match task(template, &key, base.as_ref(), id) {
            Ok(body) => body,
            Err(error) => {
                refusals.add(&Place::Named(key.to_string()), &error, None);
                first_problem.get_or_insert(error);
                continue;
            }
        };
        // A queue is not made for tasks that there are none of.
        let sender = match &mut sender {
            Some(sender) => sender,
            none => {
                let meter = ProgressLine::new(to.screen, "tasks", "sent", None);
                none.insert(Sender::new(to.open().await?, refusals.clone(), meter))
            }
        };
        if !sender.push(body.into(), Place::Named(key.to_string())).await {
            break;
        }
        id = id
            .checked_add(1)
            .ok_or_else(|| Advice::usage("--id: there are too many tasks for it"))?;
    }
    let outcome = match (sender, first_problem) {
        (Some(sender), _) => {
            let (sent, refused) = sender.finish("task").await?;
            to.outcome(sent, refused)
        }
        (None, Some(problem)) => {
            refusals.finish()?;
            return Err(problem);
        }
        (None, None) => {
            refusals.finish()?;
            if let Some(error) = unlisted {
                return Err(error.into());
            }
            return Err(Advice::failed(format!("no object of {bucket} matches {pattern:?}"))
                .hint("the pattern is matched with whole keys from the bucket's root; quote it for the shell")
                .into());
        }
    };
    match unlisted {
        None => Ok(outcome),
        // What was listed before is sent, and said.
        Some(error) => {
            outcome.tell(to.screen, to.dry_run);
            Err(error.into())
        }
    }
}

/// The text of the task for this object.
fn task(
    template: &Template,
    key: &BucketKey,
    base: Option<&Prefix>,
    id: i64,
) -> anyhow::Result<String> {
    let (base, input) = split(key, base)?;
    let payload = template.payload.as_deref().map(|payload| fill(payload, key, &input, id));
    let inputs: Vec<String> =
        std::iter::once(input).chain(template.inputs.iter().cloned()).collect();
    template.task(Some(id), &base, &inputs, payload.as_deref())
}

fn matcher(pattern: &str) -> anyhow::Result<GlobMatcher> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    let glob = glob
        .map_err(|e| Advice::usage(format!("--each: {pattern:?} is no pattern: {}", e.kind())))?;
    Ok(glob.compile_matcher())
}

/// The segments before the first that is a pattern: no more has to be listed.
fn literal_prefix(pattern: &str) -> anyhow::Result<Prefix> {
    let dirs = pattern.rsplit_once('/').map_or("", |(dirs, _)| dirs);
    let literal: Vec<&str> =
        dirs.split('/').take_while(|s| !s.contains(['*', '?', '[', '{', '\\'])).collect();
    let literal = literal.join("/");
    if literal.is_empty() && !pattern.starts_with('/') {
        return Ok(Prefix::root());
    }
    Ok(Prefix::new(&literal).map_err(|e| Advice::usage(format!("--each: {pattern:?} {e}")))?)
}

/// The base directory and the input of a task for this object.
fn split(key: &BucketKey, base: Option<&Prefix>) -> anyhow::Result<(String, String)> {
    if let Some(base) = base {
        let input = key.as_str().strip_prefix(base.as_str()).and_then(|k| k.strip_prefix('/'));
        return match input {
            Some(input) => Ok((base.to_string(), input.to_owned())),
            None => {
                Err(Advice::usage(format!("{key} is not below the base directory {base}")).into())
            }
        };
    }
    let mut start = 0;
    for segment in key.as_str().split('/') {
        let end = start + segment.len();
        // The object itself is not a place for inputs.
        if segment.ends_with("_input") && start > 0 && end < key.as_str().len() {
            let (base, input) = key.as_str().split_at(start);
            return Ok((base.trim_end_matches('/').to_owned(), input.to_owned()));
        }
        start = end + 1;
    }
    Err(Advice::usage(format!(
        "{key}: its base directory can't be told, because no segment ends with `_input`"
    ))
    .hint("give --base-directory")
    .into())
}

/// Puts what is known of the object into the payload, as the inside of JSON texts.
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
    // From left to right, so that what was put in is not looked at again.
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
            let got = split(&key(k), base.as_ref()).ok();
            let want = want.map(|(b, i)| (b.to_owned(), i.to_owned()));
            assert_eq!(got, want, "{k}");
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
            assert_eq!(matcher(pattern).unwrap().is_match(k), want, "{pattern} {k}");
        };
        check("d/0_input/*.png", "d/0_input/a.png", true);
        check("d/0_input/*.png", "d/0_input/x/a.png", false);
        check("d/0_input/**/*.png", "d/0_input/x/a.png", true);
        check("d/*/0_input/?.png", "d/y/0_input/a.png", true);
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
