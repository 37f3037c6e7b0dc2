//! Publishes the files that a guest left in `/outputs`: puts them into the bucket.
//!
//! All outputs are checked before the first is put. If one of them can't be published, none is.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::task::Poll;

use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};

use crate::blocking::{SMALL, blocking};
use crate::bucket::{Bucket, BucketError, Content, PutTag};
use crate::digest::Digest;
use crate::fault::{self, Step};
use crate::key::{BucketKey, KeyError, MAX_KEY_BYTES, Prefix, lowercase};
use crate::plain;
use crate::sandbox::Output;
use crate::turns::Turns;

/// More outputs than this are checked on a thread that may block.
const CHECKED_INLINE: usize = 128;
/// How many outputs of one task are put at once into a bucket that is not local.
const AT_ONCE: usize = 8;

/// The outputs that a task has published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// The keys, in alphabetical order.
    pub keys: Vec<BucketKey>,
    /// Their total size in bytes.
    pub bytes: u64,
}

/// An output that is in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutOutput {
    /// Its key, from the bucket's root.
    pub key: BucketKey,
    /// The digest of its bytes, as the task wrote them.
    pub sha256: Digest,
    /// The number of bytes.
    pub size: u64,
    /// The tag of the object's version; empty if the store gave none.
    pub version: PutTag,
}

/// Why outputs can't be published, by the consequence for the task.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The task left an output that can never be published.
    #[error("{output}: {problem}")]
    Invalid {
        /// `output /outputs/…`, or `outputs`.
        output: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The bucket or the local disk failed. The task is not the cause, and a retry may help. Some
    /// outputs may already be published, each of them whole.
    #[error("{output}: {source}")]
    Unavailable {
        /// `output /outputs/…`.
        output: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The lease ended before all outputs were put. Another worker may have the task by now, and
    /// publish its outputs.
    #[error("{output}: the lease ended before it was published")]
    LeaseOver {
        /// `output /outputs/…`.
        output: String,
    },
}

/// The checked outputs of a task, and which of them are published.
#[derive(Debug)]
pub struct Outputs {
    all: Vec<Output>,
    keys: Vec<BucketKey>,
    /// For each of `all`, the facts if it is in the bucket.
    put: Vec<Option<PutFacts>>,
    /// Digests are computed.
    digests: bool,
}

/// The facts of an output that is in the bucket.
#[derive(Debug, Clone)]
struct PutFacts {
    version: PutTag,
    digest: Option<Digest>,
}

impl Outputs {
    /// Checks that the outputs `all`, sorted by path, can be put into `bucket` under `base`.
    /// Refuses an output whose key is in a protected part.
    ///
    /// # Errors
    /// [`PublishError::Invalid`] for an output that can never be published.
    pub async fn check(
        all: Vec<Output>,
        base: &Prefix,
        protected: &[Protected],
        bucket: &dyn Bucket,
    ) -> Result<Self, PublishError> {
        let (base, protected) = (base.clone(), protected.to_vec());
        let is_short = all.len() <= CHECKED_INLINE;
        let check = move || {
            check_case(&all)?;
            let keys = keys(&all, &base, &protected)?;
            Ok((all, keys))
        };
        let (all, keys) = if is_short { check()? } else { blocking(check).await? };
        let mut turns = Turns::begin();
        // A single output needs no check before it is put. The keys can't collide with each other,
        // because they come from files of one directory.
        if keys.len() > 1 {
            for (output, key) in all.iter().zip(&keys) {
                turns.pass().await;
                bucket.accepts(key).await.map_err(|error| refused(output, error))?;
            }
        }
        let put = vec![None; all.len()];
        Ok(Self { all, keys, put, digests: false })
    }

    /// Computes the digests of outputs when they are put.
    #[must_use]
    pub fn with_digests(self, digests: bool) -> Self {
        Self { digests, ..self }
    }

    /// True when the host's file with an unpublished output was removed.
    pub fn are_lost(&self) -> bool {
        let is_lost = |output: &Output| match &output.content {
            Content::File { file, .. } => file.is_lost(),
            Content::Bytes(_) => false,
        };
        self.all.iter().zip(&self.put).any(|(output, put)| put.is_none() && is_lost(output))
    }

    /// Puts the outputs that are not in `bucket` yet. Calls `may_put` before each step that makes
    /// an output visible.
    ///
    /// # Errors
    /// The first failure. Another call puts the outputs that are still missing.
    pub async fn put(
        &mut self,
        bucket: &dyn Bucket,
        may_put: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), PublishError> {
        let at_once = if bucket.is_local() { 1 } else { AT_ONCE };
        let mut under_way = FuturesUnordered::new();
        let mut first_failure = None;
        let mut rest =
            (0..self.all.len()).filter(|n| self.put[*n].is_none()).collect::<VecDeque<_>>();
        let mut done = Vec::with_capacity(rest.len());
        let mut turns = Turns::begin();
        loop {
            turns.pass().await;
            // After a failure, puts in progress are completed and no others begin.
            while first_failure.is_none() && under_way.len() < at_once {
                let Some(n) = rest.pop_front() else { break };
                // A stream of mapped outputs can't be used here, because the compiler does not
                // accept its future as `Send`.
                let (output, key, digests) = (&self.all[n], &self.keys[n], self.digests);
                under_way.push(put(output, n, key, digests, bucket, may_put));
            }
            match under_way.next().await {
                Some(Ok(one)) => {
                    done.push(one);
                    fault::point(step(done.len(), rest.len() + under_way.len()));
                }
                Some(Err(error)) => drop(first_failure.get_or_insert(error)),
                None => break,
            }
        }
        drop(under_way);
        for (n, facts) in done {
            self.put[n] = Some(facts);
        }
        first_failure.map_or(Ok(()), Err)
    }

    /// The outputs that are in the bucket and have digests.
    pub fn facts(&self) -> Vec<PutOutput> {
        let facts = self.all.iter().zip(&self.keys).zip(&self.put);
        let facts = facts.filter_map(|((output, key), put)| {
            let PutFacts { version, digest } = put.clone()?;
            let size = output.content.size();
            Some(PutOutput { key: key.clone(), sha256: digest?, size, version })
        });
        facts.collect()
    }

    /// The keys and sizes of all outputs, once they are published.
    pub fn published(self) -> Published {
        let bytes = self.all.iter().map(|output| output.content.size()).sum();
        Published { bytes, keys: self.keys }
    }
}

/// A part of a bucket that no task may write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protected {
    /// The keys at and below this prefix.
    pub prefix: Prefix,
    /// The content of the part, for messages.
    pub content: &'static str,
}

impl Protected {
    /// Where the components are.
    pub fn components(prefix: Prefix) -> Self {
        Self { prefix, content: "the components" }
    }

    /// Where the logs of tasks are.
    pub fn logs(prefix: Prefix) -> Self {
        Self { prefix, content: "the logs of tasks" }
    }
}

/// Checks all outputs and puts them.
///
/// # Errors
/// With [`PublishError::Invalid`], nothing is published.
pub async fn outputs(
    all: Vec<Output>,
    base: &Prefix,
    protected: &[Protected],
    bucket: &dyn Bucket,
    may_put: &(dyn Fn() -> bool + Sync),
) -> Result<Published, PublishError> {
    let mut all = Outputs::check(all, base, protected, bucket).await?;
    all.put(bucket, may_put).await?;
    Ok(all.published())
}

/// The outputs as a receipt would list them, without publishing them.
///
/// # Errors
/// [`PublishError::Invalid`] for an output that could not be published under `base`.
pub async fn unpublished(all: &[Output], base: &Prefix) -> Result<Vec<PutOutput>, PublishError> {
    check_case(all)?;
    let keys = keys(all, base, &[])?;
    let mut facts = Vec::with_capacity(all.len());
    for (output, key) in all.iter().zip(keys) {
        let (sha256, size) = (digest(output).await?, output.content.size());
        facts.push(PutOutput { key, sha256, size, version: PutTag::new() });
    }
    Ok(facts)
}

async fn put(
    output: &Output,
    number: usize,
    key: &BucketKey,
    digests: bool,
    bucket: &dyn Bucket,
    may_put: &(dyn Fn() -> bool + Sync),
) -> Result<(usize, PutFacts), PublishError> {
    let digest = match digests {
        true => Some(digest(output).await?),
        false => None,
    };
    let mut putting = bucket.put(key, &output.content, &output.path);
    std::future::poll_fn(|context| {
        if !may_put() {
            return Poll::Ready(Err(PublishError::LeaseOver { output: shown(&output.path) }));
        }
        putting.as_mut().poll(context).map_err(|error| refused(output, error))
    })
    .await
    .map(|version| (number, PutFacts { version, digest }))
}

/// The step of a publication after `put` outputs, when `left` remain.
fn step(put: usize, left: usize) -> Step {
    match (put, left) {
        (_, 0) => Step::LastOutputPut,
        (1, _) => Step::FirstOutputPut,
        _ => Step::MiddleOutputPut,
    }
}

async fn digest(output: &Output) -> Result<Digest, PublishError> {
    let content = output.content.clone();
    let digest = move || content.digest();
    let digest = match output.content.size() <= SMALL {
        true => digest(),
        false => blocking(digest).await,
    };
    digest.map_err(|error| PublishError::Unavailable {
        output: shown(&output.path),
        source: error.into(),
    })
}

fn refused(output: &Output, error: BucketError) -> PublishError {
    match error {
        BucketError::Invalid { .. } => invalid(&output.path, error.to_string()),
        error => PublishError::Unavailable { output: shown(&output.path), source: error.into() },
    }
}

/// True when the guest left a file at `path`, or files below it.
pub fn has(all: &[Output], path: &str) -> bool {
    let is_at = |output: &Output| {
        let rest = output.path.as_str().strip_prefix(path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let from = all.partition_point(|output| output.path.as_str() < path);
    // All paths that sort between `path` and the paths below it begin with `path`.
    let may_be = |output: &&Output| output.path.as_str().starts_with(path);
    all[from..].iter().take_while(may_be).any(is_at)
}

/// Waits until all published outputs are on the disk, if the bucket is a directory.
///
/// # Errors
/// [`PublishError::Unavailable`]. Published outputs may then be lost.
pub async fn sync(bucket: &dyn Bucket) -> Result<(), PublishError> {
    bucket.sync().await.map_err(|error| PublishError::Unavailable {
        output: "outputs".into(),
        source: error.into(),
    })
}

/// Refuses outputs whose paths differ only in case, or would be a file and a directory of one name
/// if case were ignored. A bucket or a download on a file system that ignores case would keep only
/// one of them.
fn check_case(found: &[Output]) -> Result<(), PublishError> {
    if found.len() < 2 || found.iter().all(|output| is_lowercase(output.path.as_str())) {
        return Ok(());
    }
    let mut by_name = HashMap::with_capacity(found.len());
    let clash = |file: &BucketKey, other: &BucketKey| {
        let problem = format!(
            "differs only in case from the output /outputs/{other}; a file system that ignores \
             case keeps only one of them"
        );
        Err(invalid(file, problem))
    };
    for Output { path: file, .. } in found {
        if let Some(other) = by_name.insert(lowercase(file.as_str()), file) {
            return clash(file, other);
        }
    }
    for Output { path: file, .. } in found {
        let name = lowercase(file.as_str());
        let above = name.match_indices('/').find_map(|(end, _)| by_name.get(&name[..end]));
        if let Some(other) = above {
            return clash(file, other);
        }
    }
    Ok(())
}

fn is_lowercase(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c.to_lowercase().eq([c]))
}

fn keys(
    found: &[Output],
    base: &Prefix,
    protected: &[Protected],
) -> Result<Vec<BucketKey>, PublishError> {
    let key = |output: &Output| {
        let key = base.join(&output.path);
        if key.as_str().len() > MAX_KEY_BYTES {
            let len = key.as_str().len();
            let problem = format!("its key has {len} bytes, the limit is {MAX_KEY_BYTES}");
            return Err(invalid(&output.path, problem));
        }
        if key.is_reserved() {
            let problem = format!("its key `{key}` {}", KeyError::Reserved);
            return Err(invalid(&output.path, problem));
        }
        match protected.iter().find(|part| key.starts_with(&part.prefix)) {
            Some(Protected { prefix, content }) => {
                let problem = format!(
                    "its key `{key}` is below `{prefix}`, where {content} are; \
                     a task can't replace them"
                );
                Err(invalid(&output.path, problem))
            }
            None => Ok(key),
        }
    };
    found.iter().map(key).collect()
}

/// The path as the guest sees it. Characters that could mislead a reader are escaped.
fn shown(file: &(impl fmt::Display + ?Sized)) -> String {
    format!("output /outputs/{}", plain::escape(&file.to_string()))
}

fn invalid(file: &(impl fmt::Display + ?Sized), problem: impl Into<String>) -> PublishError {
    PublishError::Invalid { output: shown(file), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use object_store::memory::InMemory;

    use super::*;
    use crate::bucket::DirBucket;
    use crate::bucket::tests::conformance::in_memory;
    use crate::spill::SpillDir;

    struct Fixture {
        _root: tempfile::TempDir,
        bucket: DirBucket,
        outputs: Vec<Output>,
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let bucket = DirBucket::create(&root.path().join("bucket")).unwrap();
        Fixture { _root: root, bucket, outputs: Vec::new() }
    }

    impl Fixture {
        fn write(&mut self, path: &str, text: &'static str) {
            let path = BucketKey::of_output(path).unwrap();
            self.outputs.push(Output { path, content: text.into() });
            self.outputs.sort_by(|a, b| a.path.cmp(&b.path));
        }

        async fn publish(&mut self, base: &str) -> Result<Published, PublishError> {
            let components = Protected::components(Prefix::new("components").unwrap());
            let base = Prefix::new(base).unwrap();
            let all = std::mem::take(&mut self.outputs);
            outputs(all, &base, &[components], &self.bucket, &|| true).await
        }
    }

    fn keys_of(published: &Published) -> Vec<&str> {
        published.keys.iter().map(BucketKey::as_str).collect()
    }

    #[tokio::test]
    async fn every_file_is_published() {
        let mut f = fixture();
        assert_eq!(f.publish("d").await.unwrap(), Published::default());
        for (file, text) in [("0_output/4.dat", "four"), ("0_output/deep/er/x", ""), ("y", "y")] {
            f.write(file, text);
        }
        let published = f.publish("d").await.unwrap();
        assert_eq!(keys_of(&published), ["d/0_output/4.dat", "d/0_output/deep/er/x", "d/y"]);
        assert_eq!(published.bytes, 5);
        assert_eq!(std::fs::read(f.bucket.path().join("d/0_output/4.dat")).unwrap(), b"four");
    }

    #[tokio::test]
    async fn a_large_output_is_moved_and_not_copied() {
        let mut f = fixture();
        let root = tempfile::tempdir_in(f.bucket.path().parent().unwrap()).unwrap();
        let spill = SpillDir::new(root.path()).unwrap();
        let (file, open) = spill.create().unwrap();
        open.set_len(1 << 20).unwrap();
        let number = |of: std::fs::Metadata| std::os::unix::fs::MetadataExt::ino(&of);
        let content = Content::File { file: Arc::new(file), size: 1 << 20 };
        f.outputs.push(Output { path: BucketKey::of_output("large").unwrap(), content });
        assert_eq!(f.publish("d").await.unwrap().bytes, 1 << 20);
        let put = std::fs::metadata(f.bucket.path().join("d/large")).unwrap();
        assert_eq!(number(put), number(open.metadata().unwrap()));
    }

    #[tokio::test]
    async fn an_output_never_replaces_a_component() {
        for (base, file) in [("components", "NO_OP.wasm"), ("components/x", "y")] {
            let mut f = fixture();
            f.write(file, "evil");
            let error = f.publish(base).await.unwrap_err();
            let want = format!("output /outputs/{file}: its key `{base}/{file}` is below");
            assert!(error.to_string().starts_with(&want), "{error}");
            assert_eq!(std::fs::read_dir(f.bucket.path()).unwrap().count(), 0);
        }
        let mut f = fixture();
        f.write("x", "fine");
        assert_eq!(keys_of(&f.publish("components-of-mine").await.unwrap()).len(), 1);
    }

    #[tokio::test]
    async fn an_output_that_has_no_place_in_the_bucket_means_that_none_is_published() {
        type Make = fn(&mut Fixture);
        let make: [(&str, Make); 3] = [
            ("has a segment `.task-host-tmp`", |f| f.write("z/.task-host-tmp/x", "x")),
            ("key `d/z` is a directory", |f| {
                std::fs::create_dir(f.bucket.path().join("d/z")).unwrap();
                f.write("z", "x");
            }),
            ("key `d/z/x` can't be written: a part of its path is an object", |f| {
                std::fs::write(f.bucket.path().join("d/z"), "old").unwrap();
                f.write("z/x", "x");
            }),
        ];
        for (want, make) in make {
            let mut f = fixture();
            std::fs::create_dir(f.bucket.path().join("d")).unwrap();
            std::fs::write(f.bucket.path().join("d/good"), "old").unwrap();
            f.write("good", "new");
            make(&mut f);
            let error = f.publish("d").await.unwrap_err();
            assert!(matches!(error, PublishError::Invalid { .. }), "{error}");
            assert!(error.to_string().contains(want), "{want}: {error}");
            assert_eq!(std::fs::read(f.bucket.path().join("d/good")).unwrap(), b"old", "{want}");
        }
    }

    #[tokio::test]
    async fn nothing_is_put_after_the_lease_has_ended() {
        let mut f = fixture();
        for n in 0..10 {
            f.write(&n.to_string(), "x");
        }
        let asked = std::sync::atomic::AtomicU32::new(0);
        let may_put = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 4;
        let base = Prefix::new("d").unwrap();
        let error = outputs(f.outputs, &base, &[], &f.bucket, &may_put).await;
        assert!(matches!(error, Err(PublishError::LeaseOver { .. })), "{error:?}");
        let put = std::fs::read_dir(f.bucket.path().join("d")).unwrap().count();
        assert_eq!(put, 4, "each was allowed by itself");
    }

    /// A host that is stopped while a large output is copied must not make it visible later.
    #[tokio::test]
    async fn an_output_whose_lease_ends_while_it_is_copied_does_not_become_visible() {
        let mut f = fixture();
        let content = Content::Bytes(Bytes::from(vec![7; 1 << 20]));
        f.outputs.push(Output { path: BucketKey::of_output("large").unwrap(), content });
        let asked = std::sync::atomic::AtomicU32::new(0);
        // Allows the put to begin.
        let may_put = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        let base = Prefix::new("d").unwrap();
        let error = outputs(f.outputs, &base, &[], &f.bucket, &may_put).await.unwrap_err();
        let want = "output /outputs/large: the lease ended before it was published";
        assert_eq!(error.to_string(), want);
        assert!(!f.bucket.path().join("d/large").exists());
    }

    #[tokio::test]
    async fn a_base_directory_of_any_name_takes_outputs() {
        let mut f = fixture();
        f.write("x", "x");
        let published = f.publish("old\u{202e}name").await.unwrap();
        assert_eq!(keys_of(&published), ["old\u{202e}name/x"]);
    }

    #[tokio::test]
    async fn outputs_that_differ_only_in_case_are_refused() {
        for (names, want) in [
            (&["Result.txt", "result.txt"][..], Some(("result.txt", "Result.txt"))),
            (&["x", "0_output/É", "0_output/é"], Some(("0_output/é", "0_output/É"))),
            (&["D/x", "d/X", "y"], Some(("d/X", "D/x"))),
            (&["A", "a/b/c"], Some(("a/b/c", "A"))),
            (&["A/x", "a/y", "B", "c", "ΔF", "日本"], None),
        ] {
            let mut f = fixture();
            for name in names {
                f.write(name, "x");
            }
            match (f.publish("b").await, want) {
                (Ok(published), None) => assert_eq!(published.keys.len(), names.len()),
                (Err(error), Some((second, first))) => {
                    assert!(matches!(error, PublishError::Invalid { .. }), "{error}");
                    let want = format!(
                        "output /outputs/{second}: differs only in case from the output \
                         /outputs/{first}; "
                    );
                    assert!(error.to_string().starts_with(&want), "{error}");
                    assert!(!f.bucket.path().join("b").exists());
                }
                (got, want) => panic!("{names:?}: {got:?}, {want:?}"),
            }
        }
    }

    #[test]
    fn what_a_guest_lists_is_found_whatever_is_beside_it() {
        let mut f = fixture();
        for name in ["a", "b-c", "b.d/x", "b/x", "c"] {
            f.write(name, "");
        }
        for (path, is_there) in
            [("a", true), ("b", true), ("b/x", true), ("b-", false), ("b/", false), ("d", false)]
        {
            assert_eq!(has(&f.outputs, path), is_there, "{path}");
        }
    }

    #[tokio::test]
    async fn many_outputs_reach_a_bucket_that_is_not_local() {
        let mut f = fixture();
        for n in 0..2 * CHECKED_INLINE {
            f.write(&format!("{n:03}"), "seventeen letters");
        }
        let bucket = in_memory(Arc::new(InMemory::new()));
        // On the runtime's own threads, as the host does it.
        let (all, store) = (f.outputs, bucket.clone());
        let published = tokio::spawn(async move {
            outputs(all, &Prefix::new("d").unwrap(), &[], &store, &|| true).await
        });
        let published = published.await.unwrap().unwrap();
        let count = 2 * CHECKED_INLINE;
        assert_eq!((published.keys.len(), published.bytes), (count, 17 * count as u64));
        for key in &published.keys {
            assert_eq!(bucket.head(key).await.unwrap().size, 17);
        }
    }
}
