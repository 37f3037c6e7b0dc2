//! A task's inputs, from the bucket through the cache into its inputs directory.

use std::collections::HashSet;

use bytesize::ByteSize;
use cap_std::fs::Dir;
use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::bucket::{Bucket, BucketError, Version};
use crate::cache::{Cache, CacheError, Sharing};
use crate::key::{BucketKey, Prefix};
use crate::workspace::Workspace;

/// Inputs of one task that are fetched at once.
const AT_ONCE: usize = 8;
/// How often an input is fetched again that another host removed before it was placed.
const FETCHES: usize = 5;

/// Bounds the bytes of inputs that are brought in for tasks that do not run yet.
#[derive(Debug)]
pub struct Ahead {
    kibibytes: Semaphore,
    most: u32,
}

impl Ahead {
    /// At most `bytes` at a time. A task that needs more than that on its own waits until it
    /// is the only one, and gets it.
    pub fn new(bytes: ByteSize) -> Self {
        let most = u32::try_from(bytes.as_u64() >> 10).unwrap_or(u32::MAX).max(1);
        let most = most.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { kibibytes: Semaphore::new(most as usize), most }
    }

    async fn take(&self, bytes: u64) -> SemaphorePermit<'_> {
        let kibibytes = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        match self.kibibytes.acquire_many(kibibytes.min(self.most)).await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }
}

/// What bringing in a task's inputs came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// The bytes of all inputs.
    pub bytes: u64,
    /// Inputs that were in the cache.
    pub hits: u32,
    /// Inputs that had to be downloaded.
    pub misses: u32,
}

/// What it means for the task that its inputs can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PrefetchError {
    /// An input is not there: not yet, or never.
    #[error("input {input}: {bucket} has no object `{key}`")]
    NotFound {
        /// As the task names it.
        input: BucketKey,
        /// The bucket.
        bucket: String,
        /// Its key there.
        key: BucketKey,
    },
    /// The bucket or the local disk failed. Not the task's fault; trying again may help.
    #[error("input {input}: {source}")]
    Unavailable {
        /// As the task names it.
        input: BucketKey,
        /// The cause.
        #[source]
        source: CacheError,
    },
    /// The task's inputs can't be right, however often it is tried.
    #[error("input {input}: {problem}")]
    Invalid {
        /// As the task names it.
        input: BucketKey,
        /// What is wrong.
        problem: String,
    },
}

/// Brings `inputs`, which are relative to `base`, into the empty inputs directory of a
/// workspace. One that is named twice is brought once. The permit stands for their bytes: it
/// is to be dropped when the task runs.
///
/// # Errors
/// For the first input that fails; the directory may hold some of the others then.
pub async fn inputs<'a>(
    cache: &Cache,
    bucket: &dyn Bucket,
    base: &Prefix,
    inputs: &[BucketKey],
    workspace: &Workspace,
    sharing: Sharing,
    ahead: &'a Ahead,
) -> Result<(Fetched, Option<SemaphorePermit<'a>>), PrefetchError> {
    let into = &workspace.inputs;
    if let [input] = inputs {
        workspace.make_parents([input]);
        let found = Found::find(bucket, base, input).await?;
        let permit = ahead.take(found.version.size).await;
        return Ok((bring(cache, bucket, found, into, sharing).await?, Some(permit)));
    }
    // All sizes are known before anything is fetched: two tasks that each held a part of the
    // bytes they need would wait for each other.
    let distinct = distinct(inputs)?;
    workspace.make_parents(distinct.iter().copied());
    let finds: Vec<_> = distinct.iter().map(|input| Found::find(bucket, base, input)).collect();
    let found: Vec<Found<'_>> = stream::iter(finds).buffered(AT_ONCE).try_collect().await?;
    let permit = ahead.take(found.iter().map(|found| found.version.size).sum()).await;
    let mut sum = Fetched::default();
    let mut under_way = FuturesUnordered::new();
    // Not a stream of mapped inputs: the future of that is not `Send` to the compiler.
    for found in found {
        if under_way.len() == AT_ONCE
            && let Some(one) = under_way.try_next().await?
        {
            sum = sum.plus(one);
        }
        under_way.push(bring(cache, bucket, found, into, sharing));
    }
    while let Some(one) = under_way.try_next().await? {
        sum = sum.plus(one);
    }
    Ok((sum, Some(permit)))
}

/// An input that is in the bucket.
struct Found<'a> {
    input: &'a BucketKey,
    key: BucketKey,
    version: Version,
}

impl<'a> Found<'a> {
    async fn find(
        bucket: &dyn Bucket,
        base: &Prefix,
        input: &'a BucketKey,
    ) -> Result<Self, PrefetchError> {
        let key = base.join(input);
        match bucket.head(&key).await {
            Ok(version) => Ok(Self { input, key, version }),
            Err(error) => Err(PrefetchError::from_cache(input, &key, error.into())),
        }
    }
}

async fn bring(
    cache: &Cache,
    bucket: &dyn Bucket,
    found: Found<'_>,
    into: &Dir,
    sharing: Sharing,
) -> Result<Fetched, PrefetchError> {
    // A task with many small inputs takes turns with others.
    tokio::task::consume_budget().await;
    let Found { input, key, mut version } = found;
    let failed = |error| PrefetchError::from_cache(input, &key, error);
    let mut fetches = 1;
    loop {
        let blob = cache.fetch_version(bucket, &key, version.clone()).await.map_err(failed)?;
        match cache.place(&blob, into, input, sharing).await {
            Ok(()) => {
                let (hits, misses) = if blob.hit { (1, 0) } else { (0, 1) };
                return Ok(Fetched { bytes: blob.size, hits, misses });
            }
            Err(CacheError::Gone { .. }) if fetches < FETCHES => fetches += 1,
            Err(error) => return Err(failed(error)),
        }
        version = bucket.head(&key).await.map_err(|error| failed(error.into()))?;
    }
}

/// Each input once. One can't be a directory on the way to another.
fn distinct(inputs: &[BucketKey]) -> Result<Vec<&BucketKey>, PrefetchError> {
    let mut names = HashSet::with_capacity(inputs.len());
    let distinct: Vec<_> = inputs.iter().filter(|input| names.insert(input.as_str())).collect();
    for input in &distinct {
        for (end, _) in input.as_str().match_indices('/') {
            let above = &input.as_str()[..end];
            if names.contains(above) {
                let problem = format!(
                    "can't be placed below /inputs/{above}, which is an input itself; \
                     a name can be a file or a directory, not both"
                );
                return Err(PrefetchError::Invalid { input: (*input).clone(), problem });
            }
        }
    }
    Ok(distinct)
}

impl Fetched {
    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
        }
    }
}

impl PrefetchError {
    fn from_cache(input: &BucketKey, key: &BucketKey, error: CacheError) -> Self {
        let input = input.clone();
        if let CacheError::Bucket(error) = &error {
            match &**error {
                BucketError::NotFound { bucket, .. } => {
                    return Self::NotFound { input, bucket: bucket.clone(), key: key.clone() };
                }
                BucketError::Invalid { .. } => {
                    return Self::Invalid { input, problem: error.to_string() };
                }
                BucketError::Unavailable { .. } => {}
            }
        }
        Self::Unavailable { input, source: error }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bucket::DirBucket;
    use crate::cache::CacheOptions;
    use crate::workspace::Workspaces;

    struct Fixture {
        _root: tempfile::TempDir,
        bucket: DirBucket,
        cache: Cache,
        workspace: Workspace,
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let bucket = DirBucket::create(&root.path().join("bucket")).unwrap();
        let dir = root.path().join("cache");
        let workspace = Workspaces::new(&dir.join("work")).unwrap().acquire().unwrap();
        let cache = Cache::open(CacheOptions { dir, max_bytes: 1 << 30 }).unwrap();
        for (key, content) in [("d/a", "A"), ("d/0_input/b", "B"), ("d/x/y/z", "same A")] {
            let path = bucket.path().join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Fixture { _root: root, bucket, cache, workspace }
    }

    async fn bring(f: &Fixture, names: &[&str]) -> Result<Fetched, PrefetchError> {
        let keys: Vec<_> = names.iter().map(|name| BucketKey::new(name).unwrap()).collect();
        let base = Prefix::new("d").unwrap();
        let ahead = Ahead::new(ByteSize::mib(1));
        let place = &f.workspace;
        let brought = inputs(&f.cache, &f.bucket, &base, &keys, place, Sharing::Link, &ahead).await;
        brought.map(|(fetched, _)| fetched)
    }

    #[tokio::test]
    async fn bytes_ahead_of_execution_are_bounded_and_nobody_starves() {
        let f = fixture();
        std::fs::write(f.bucket.path().join("d/large"), vec![0; 3 << 10]).unwrap();
        let ahead = Ahead::new(ByteSize::kib(2));
        let (base, keys) = (Prefix::new("d").unwrap(), [BucketKey::new("a").unwrap()]);
        // Larger than the bound: it gets all of it.
        let large = [BucketKey::new("large").unwrap()];
        let place = &f.workspace;
        let first = inputs(&f.cache, &f.bucket, &base, &large, place, Sharing::Copy, &ahead);
        let (_, permit) = first.await.unwrap();
        let mut second =
            std::pin::pin!(inputs(&f.cache, &f.bucket, &base, &keys, place, Sharing::Copy, &ahead));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(permit);
        second.await.unwrap();
    }

    #[tokio::test]
    async fn inputs_are_where_the_guest_expects_them() {
        let f = fixture();
        assert_eq!(bring(&f, &[]).await.unwrap(), Fetched::default());
        let fetched = bring(&f, &["a", "0_input/b", "x/y/z", "a"]).await.unwrap();
        assert_eq!(fetched, Fetched { bytes: 8, hits: 0, misses: 3 });
        assert_eq!(f.workspace.inputs.read_to_string("a").unwrap(), "A");
        assert_eq!(f.workspace.inputs.read_to_string("0_input/b").unwrap(), "B");
        assert_eq!(f.workspace.inputs.read_to_string("x/y/z").unwrap(), "same A");
    }

    #[tokio::test]
    async fn an_input_that_is_not_there_is_named() {
        let f = fixture();
        for names in [&["no/such"][..], &["a", "no/such"]] {
            let error = bring(&f, names).await.unwrap_err();
            assert!(matches!(error, PrefetchError::NotFound { .. }));
            let want = format!("input no/such: {} has no object `d/no/such`", f.bucket);
            assert_eq!(error.to_string(), want);
        }
    }

    #[tokio::test]
    async fn an_input_that_can_not_be_is_named() {
        let f = fixture();
        for (names, want) in [
            (&["x", "a"][..], "input x: "),
            (&["x/y", "x/y/z"], "input x/y/z: can't be placed below /inputs/x/y"),
            (&["x/y/z", "x"], "input x/y/z: can't be placed below /inputs/x,"),
        ] {
            let error = bring(&f, names).await.unwrap_err();
            assert!(matches!(error, PrefetchError::Invalid { .. }), "{error}");
            assert!(error.to_string().starts_with(want), "{error}");
        }
    }

    #[tokio::test]
    async fn many_inputs_all_arrive() {
        let f = fixture();
        let names: Vec<_> = (0..500).map(|i| format!("many/{i}")).collect();
        std::fs::create_dir(f.bucket.path().join("d/many")).unwrap();
        for name in &names {
            std::fs::write(f.bucket.path().join("d").join(name), name).unwrap();
        }
        let names: Vec<_> = names.iter().map(|name| BucketKey::new(name).unwrap()).collect();
        // On the runtime's own threads, as the host does it.
        let (cache, bucket, all) = (f.cache.clone(), f.bucket.clone(), names.clone());
        let workspace = f.workspace;
        let fetched = tokio::spawn(async move {
            let base = Prefix::new("d").unwrap();
            let fetched = {
                let ahead = Ahead::new(ByteSize::mib(1));
                let all = inputs(&cache, &bucket, &base, &all, &workspace, Sharing::Copy, &ahead);
                all.await.map(|(fetched, _)| fetched)
            };
            (workspace, fetched)
        });
        let (workspace, fetched) = fetched.await.unwrap();
        assert_eq!(fetched.unwrap().misses, 500);
        for name in names.iter().map(BucketKey::as_str) {
            assert_eq!(workspace.inputs.read_to_string(name).unwrap(), name);
        }
    }

    #[tokio::test]
    async fn a_blob_that_vanishes_before_it_is_placed_is_fetched_again() {
        // The other host that removes it is this test, as soon as it can see it.
        let f = fixture();
        let blobs = f.cache.dir().join("blobs");
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let remover = std::thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for shard in std::fs::read_dir(&blobs).into_iter().flatten().flatten() {
                        for blob in std::fs::read_dir(shard.path()).into_iter().flatten() {
                            let _ = std::fs::remove_file(blob.unwrap().path());
                        }
                    }
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            }
        });
        for i in 0..200 {
            std::fs::write(f.bucket.path().join("d/a"), format!("{i}")).unwrap();
            let _ = f.workspace.inputs.remove_file("a");
            bring(&f, &["a"]).await.unwrap();
            assert_eq!(f.workspace.inputs.read_to_string("a").unwrap(), format!("{i}"));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        remover.join().unwrap();
    }
}
