//! Decides which components may run: by lists of digests, and by signatures.
//!
//! A signature is a minisign signature of the component's bytes. Its trusted comment, which is also
//! signed, must have the field `file:NAME.wasm`. minisign writes this field for a file of that
//! name. So a signed component can't replace a component of another name.
//!
//! The host verifies the bytes of one digest, and then compiles and runs the component of this
//! digest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use minisign_verify::{Error, PublicKey, Signature, StreamVerifier};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::digest::Digest;
use crate::key::TaskName;

/// The most bytes of a signature file.
pub const MAX_SIGNATURE: u64 = 16 << 10;
/// How long a component and its signature may mismatch before this is logged. While both are being
/// replaced, a host may see one old and one new file.
const REPLACING: Duration = Duration::from_secs(10);
/// How long a problem of a component is reported after a task last asked for the component.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// Public keys of minisign.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Vec<PublicKey>>);

impl Keys {
    /// Reads keys in minisign's format: one line of Base64 for each key, and comments.
    ///
    /// # Errors
    /// Names the line that is not a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_comment = |line: &str| {
            line.is_empty() || line.starts_with('#') || line.starts_with("untrusted comment:")
        };
        let lines = text.lines().map(str::trim).enumerate();
        let keys: Result<Vec<_>, String> = lines
            .filter(|(_, line)| !is_comment(line))
            .map(|(n, line)| {
                PublicKey::from_base64(line)
                    .map_err(|_| format!("line {} is not a minisign public key", n + 1))
            })
            .collect();
        match keys? {
            keys if keys.is_empty() => Err("has no minisign public key".to_owned()),
            keys => Ok(Self(Arc::new(keys))),
        }
    }

    /// Checks that `signature` is for the component `name` with the bytes of `wasm`. Returns the
    /// digest of the bytes.
    ///
    /// # Errors
    /// Why the signature is not valid, or the error of reading `wasm`.
    pub fn verify(
        &self,
        name: &TaskName,
        wasm: impl Read,
        signature: &[u8],
    ) -> Result<Digest, Unverified> {
        let signature = decode(signature).map_err(Unverified::Invalid)?;
        let invalid = |problem: &str| Err(Unverified::Invalid(problem.to_owned()));
        let mut verifiers = Vec::new();
        for key in &*self.0 {
            match key.verify_stream(&signature) {
                Ok(verifier) => verifiers.push(verifier),
                Err(Error::UnsupportedLegacyMode) => {
                    return invalid(
                        "its signature has minisign's old format; sign it with `minisign -SH`",
                    );
                }
                Err(_) => {}
            }
        }
        if verifiers.is_empty() {
            return invalid("its signature is by a key that is not among the --component-keys");
        }
        let mut reader = Verifying { wasm, verifiers };
        let (digest, _) = Digest::of_reader(&mut reader).map_err(Unverified::Unread)?;
        if !reader.verifiers.iter_mut().any(|verifier| verifier.finalize().is_ok()) {
            return invalid(
                "its signature does not match its bytes: one of them was changed, or is of another \
                 version",
            );
        }
        match name_problem(name, &signature) {
            None => Ok(digest),
            Some(problem) => Err(Unverified::Invalid(problem)),
        }
    }
}

/// Why a signature could not be verified.
#[derive(Debug)]
pub enum Unverified {
    /// The signature is not valid for the bytes. The text says why.
    Invalid(String),
    /// The bytes could not be read.
    Unread(io::Error),
}

/// The signature in the bytes of a `.minisig` file.
fn decode(signature: &[u8]) -> Result<Signature, String> {
    let text = std::str::from_utf8(signature).ok();
    let decoded = text.and_then(|text| Signature::decode(text).ok());
    decoded.ok_or_else(|| "its signature is not a minisign signature file".to_owned())
}

/// Returns the trusted comment of a signature, and what is wrong with the signature for a component
/// of that name. Does not check the component's bytes or the key.
///
/// # Errors
/// When the bytes are not a signature.
pub fn look_at_signature(
    name: &TaskName,
    signature: &[u8],
) -> Result<(String, Option<String>), String> {
    let signature = decode(signature)?;
    let comment = signature.trusted_comment().to_owned();
    Ok((comment, name_problem(name, &signature)))
}

fn name_problem(name: &TaskName, signature: &Signature) -> Option<String> {
    let (comment, field) = (signature.trusted_comment(), format!("file:{}", name.file()));
    (!comment.split('\t').any(|part| part == field)).then(|| {
        format!(
            "its signature is for another component: the trusted comment is {comment:?}, without \
             `{field}`"
        )
    })
}

/// A reader that passes everything it reads to verifiers.
struct Verifying<'a, R> {
    wasm: R,
    verifiers: Vec<StreamVerifier<'a>>,
}

impl<R: Read> Read for Verifying<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.wasm.read(buffer)?;
        for verifier in &mut self.verifiers {
            verifier.update(&buffer[..read]);
        }
        Ok(read)
    }
}

/// The settings that decide which components may run.
#[derive(Debug, Default)]
pub struct Policy {
    /// The allowed digests of each name. A name that is not listed may have any digest.
    pub digests: BTreeMap<TaskName, BTreeSet<Digest>>,
    /// If set, each component needs a signature by one of these keys.
    pub keys: Option<Keys>,
    /// If set, tasks of other names are rejected.
    pub names: Option<BTreeSet<TaskName>>,
}

impl Policy {
    /// Why a component with this digest may not run as `name`. Ignores its signature.
    pub fn refuses(&self, name: &TaskName, digest: Digest) -> Option<String> {
        let allowed = self.digests.get(name).filter(|allowed| !allowed.contains(&digest))?;
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        Some(format!(
            "its digest is {digest}, and `components` in the table for {name} of host.toml allows \
             {}; add the digest there if this version may run, or push one that may",
            allowed.join(", ")
        ))
    }
}

/// The result of checking a component.
#[derive(Debug)]
enum Found {
    Trusted(Digest),
    Distrusted(Distrusted),
}

#[derive(Debug)]
struct Distrusted {
    digest: Digest,
    /// The digest of its signature, if it has one.
    signature: Option<Digest>,
    problem: String,
    since: Instant,
    last: Instant,
    is_told: bool,
}

/// The policy, and the result of the last check of each name.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) policy: Policy,
    found: Mutex<HashMap<TaskName, Found>>,
    /// Held while a component is read and verified.
    pub(super) verifying: tokio::sync::Mutex<()>,
}

impl Trust {
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy, found: Mutex::default(), verifying: tokio::sync::Mutex::default() }
    }

    /// Whether a check found that the component may run.
    pub(super) fn is_trusted(&self, name: &TaskName, digest: Digest) -> bool {
        matches!(self.found.lock().get(name), Some(Found::Trusted(known)) if *known == digest)
    }

    /// The problem that the last check found, if the digest and the signature are still the same.
    pub(super) fn known_problem(
        &self,
        name: &TaskName,
        digest: Digest,
        signature: Option<Digest>,
    ) -> Option<String> {
        match self.found.lock().get(name)? {
            Found::Distrusted(known) if (known.digest, known.signature) == (digest, signature) => {
                Some(known.problem.clone())
            }
            _ => None,
        }
    }

    pub(super) fn trusts(&self, name: &TaskName, digest: Digest) {
        let before = self.found.lock().insert(name.clone(), Found::Trusted(digest));
        if matches!(before, Some(Found::Distrusted(Distrusted { is_told: true, .. }))) {
            tracing::info!("component {name} ({digest}) may run");
        }
    }

    /// Records and logs why a component may not run now. Returns how long this has been the case.
    pub(super) fn distrusts(
        &self,
        now: Instant,
        name: &TaskName,
        digest: Digest,
        signature: Option<Digest>,
        problem: &str,
        is_of_signature: bool,
    ) -> Duration {
        let mut all = self.found.lock();
        let (since, was_told) = match all.get(name) {
            Some(Found::Distrusted(known)) if known.digest == digest => {
                (known.since, known.is_told && known.problem == problem)
            }
            _ => (now, false),
        };
        let is_told = was_told || !is_of_signature || now - since >= REPLACING;
        if is_told && !was_told {
            tracing::error!(
                "component {name} ({digest}) may not run, and its tasks are released until it may: \
                 {problem}"
            );
        }
        let problem = problem.to_owned();
        let found = Distrusted { digest, signature, problem, since, last: now, is_told };
        all.insert(name.clone(), Found::Distrusted(found));
        now - since
    }

    /// The problems that were logged and still exist, as far as is known.
    pub(super) fn problems(&self) -> Vec<String> {
        let all = self.found.lock();
        let mut problems: Vec<String> = all
            .iter()
            .filter_map(|(name, found)| match found {
                Found::Distrusted(it) if it.is_told && it.last.elapsed() < REMEMBERED => {
                    Some(format!("component {name} may not run: {}", it.problem))
                }
                _ => None,
            })
            .collect();
        problems.sort();
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A key from the tests of minisign-verify.
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    #[test]
    fn keys_are_read_as_minisign_writes_them() {
        let file = format!("untrusted comment: minisign public key\n{KEY}\n\n# another\n{KEY}\n");
        assert_eq!(Keys::parse(&file).unwrap().0.len(), 2);
        assert_eq!(Keys::parse("").unwrap_err(), "has no minisign public key");
        let wrong = Keys::parse(&format!("{KEY}\nnonsense")).unwrap_err();
        assert_eq!(wrong, "line 2 is not a minisign public key");
    }

    #[test]
    fn only_listed_digests_are_allowed() {
        let [a, b] = ["a", "b"].map(|name| TaskName::new(name).unwrap());
        let [one, two] = [b"1", b"2"].map(|bytes| Digest::of(bytes));
        let digests = [(a.clone(), [one].into())].into();
        let policy = Policy { digests, ..Policy::default() };
        assert_eq!(policy.refuses(&a, one), None);
        assert_eq!(policy.refuses(&b, two), None);
        let problem = policy.refuses(&a, two).unwrap();
        assert!(problem.contains(&one.to_string()) && problem.contains(&two.to_string()));
    }

    #[test]
    fn a_signature_that_is_being_replaced_is_no_problem_at_once() {
        let name = TaskName::new("a").unwrap();
        let digest = Digest::of(b"1");
        let trust = Trust::new(Policy::default());
        let (now, problem) = (Instant::now(), "it has no signature");
        let distrust = |now| trust.distrusts(now, &name, digest, None, problem, true);
        assert_eq!((distrust(now), trust.problems().len()), (Duration::ZERO, 0));
        assert_eq!((distrust(now + REPLACING), trust.problems().len()), (REPLACING, 1));
        trust.trusts(&name, digest);
        assert!(trust.problems().is_empty() && trust.is_trusted(&name, digest));
        // A digest that is not listed is a problem at once.
        trust.distrusts(now, &name, Digest::of(b"2"), None, "its digest is not listed", false);
        assert_eq!(trust.problems(), ["component a may not run: its digest is not listed"]);
    }
}
