//! The signatures of components, as `host component` checks and shows them.

use std::path::Path;

use task_host::catalog::{Keys, MAX_SIGNATURE, Unverified, look_at_signature};
use task_host::config::TrustSettings;
use task_host::key::TaskName;

use super::super::exit_code::Advice;
use super::super::output;
use super::super::settings::Settings;
use super::read;

/// The bytes of the signature to push with a component. If keys are configured, the signature must
/// be valid under one of them.
pub(super) fn to_push(
    settings: &Settings,
    name: &TaskName,
    wasm: &[u8],
    file: Option<&Path>,
) -> anyhow::Result<Option<Vec<u8>>> {
    let keys = settings.get::<TrustSettings>()?.component_keys;
    let Some(file) = file else {
        return match keys {
            None => Ok(None),
            Some(_) => Err(Advice::usage(
                "hosts with these --component-keys run no component without a signature",
            )
            .hint("sign the component, and name the signature with --signature")
            .into()),
        };
    };
    let signature = read(file)?;
    let problem = if signature.len() as u64 > MAX_SIGNATURE {
        Some(format!("its signature is larger than {MAX_SIGNATURE} bytes"))
    } else {
        match &keys {
            Some(keys) => problem(keys, name, wasm, &signature)?,
            None => look_at_signature(name, &signature).map_or_else(Some, |(_, problem)| problem),
        }
    };
    match problem {
        None => Ok(Some(signature)),
        Some(problem) => Err(Advice::failed(format!(
            "hosts would not run {name} with the signature {}: {problem}",
            output::path(file)
        ))
        .into()),
    }
}

/// The state of a signature, in words.
pub(super) fn state(
    settings: &Settings,
    name: &TaskName,
    wasm: &[u8],
    signature: &[u8],
) -> anyhow::Result<String> {
    let keys = settings.get::<TrustSettings>()?.component_keys;
    Ok(match (look_at_signature(name, signature), keys) {
        (Err(problem), _) => format!("not valid: {problem}"),
        (Ok((comment, _)), Some(keys)) => match problem(&keys, name, wasm, signature)? {
            Some(problem) => format!("not valid: {problem}"),
            None => format!("valid: {comment}"),
        },
        (Ok((_, Some(problem))), None) => format!("not valid: {problem}"),
        (Ok((comment, None)), None) => format!("not verified without --component-keys: {comment}"),
    })
}

fn problem(
    keys: &Keys,
    name: &TaskName,
    wasm: &[u8],
    signature: &[u8],
) -> anyhow::Result<Option<String>> {
    match keys.verify(name, wasm, signature) {
        Ok(_) => Ok(None),
        Err(Unverified::Invalid(problem)) => Ok(Some(problem)),
        Err(Unverified::Unread(error)) => Err(error.into()),
    }
}
