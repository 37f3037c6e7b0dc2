//! Checks that components may run under the digests in `host.toml` and the public keys.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek};

use task_host::bucket::{Bucket, BucketError};
use task_host::catalog::{MAX_SIGNATURE, Policy, Unverified};
use task_host::digest::Digest;
use task_host::fit::{Finding, Level};
use task_host::key::{BucketKey, Prefix, TaskName};

/// Checks the components `names` in a bucket. Returns a finding for each problem, or one finding if
/// all may run.
pub(super) async fn look(
    policy: &Policy,
    names: &BTreeSet<TaskName>,
    bucket: &dyn Bucket,
    prefix: &Prefix,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut trusted = 0;
    for name in names {
        let subject = format!("component {name}");
        match problem(policy, name, bucket, prefix).await {
            Ok(None) => trusted += 1,
            Ok(Some(problem)) => {
                let text = format!("may not run: {problem}");
                findings.push(Finding::new(Level::Problem, &subject, text));
            }
            Err(BucketError::NotFound { .. }) => {
                let text = "host.toml has a table for it, and there is no such component";
                findings.push(Finding::new(Level::Warn, &subject, text));
            }
            Err(error) => {
                findings.push(Finding::new(Level::Problem, &subject, error.to_string()));
            }
        }
    }
    if findings.is_empty() {
        let text = format!("may run: {}", super::output::count(trusted, "component"));
        findings.push(Finding::new(Level::Ok, "trust", text));
    }
    findings
}

async fn problem(
    policy: &Policy,
    name: &TaskName,
    bucket: &dyn Bucket,
    prefix: &Prefix,
) -> Result<Option<String>, BucketError> {
    let key = prefix.join(&name.file());
    let mut wasm = download(bucket, &key).await?;
    let failed = |source: io::Error| unread(bucket, &key, source);
    let (digest, _) = Digest::of_reader(&wasm).map_err(failed)?;
    if let Some(problem) = policy.refuses(name, digest) {
        return Ok(Some(problem));
    }
    let Some(keys) = &policy.keys else { return Ok(None) };
    let signature = match download(bucket, &prefix.join(&name.signature_file())).await {
        Ok(file) => file,
        Err(BucketError::NotFound { .. }) => return Ok(Some("it has no signature".to_owned())),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    signature.take(MAX_SIGNATURE).read_to_end(&mut text).map_err(failed)?;
    wasm.rewind().map_err(failed)?;
    match keys.verify(name, wasm, &text) {
        Ok(_) => Ok(None),
        Err(Unverified::Invalid(problem)) => Ok(Some(problem)),
        Err(Unverified::Unread(error)) => Err(unread(bucket, &key, error)),
    }
}

async fn download(bucket: &dyn Bucket, key: &BucketKey) -> Result<std::fs::File, BucketError> {
    let failed = |source: io::Error| unread(bucket, key, source);
    let mut file = tempfile::tempfile().map_err(failed)?;
    bucket.get(key, file.try_clone().map_err(failed)?).await?;
    file.rewind().map_err(failed)?;
    Ok(file)
}

fn unread(bucket: &dyn Bucket, key: &BucketKey, source: io::Error) -> BucketError {
    BucketError::Unavailable {
        bucket: bucket.to_string(),
        doing: "reading",
        key: key.to_string(),
        source: source.into(),
    }
}
