//! A task's inputs, from the bucket through the cache into its inputs directory.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cap_std::fs::Dir;
use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::sync::SemaphorePermit;

use crate::ahead::Ahead;
use crate::bucket::{self, Bucket, BucketError, Version};
use crate::cache::{Blob, Cache, CacheError, Sharing};
use crate::key::{BucketKey, Prefix};
use crate::turns::Turns;
use crate::workspace::Workspace;

/// Inputs of one task that are fetched at once.
const AT_ONCE: usize = 8;
/// More inputs than this are sorted on a thread that may block.
const SORTED_INLINE: usize = 256;
/// How often an input is fetched again that another host removed before it was placed.
const FETCHES: usize = 5;

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

/// Where inputs come from, and how.
#[derive(Debug)]
pub struct Prefetch {
    /// The bucket.
    pub bucket: Arc<dyn Bucket>,
    /// What they go through.
    pub cache: Cache,
    /// For how long an object of a remote bucket is taken to be what it was when it was last
    /// looked at.
    pub freshness: Duration,
    /// How a task gets the bytes.
    pub sharing: Sharing,
    /// The bytes that may be there before their tasks run.
    pub ahead: Ahead,
}

impl Prefetch {
    /// Brings `inputs`, which are relative to `base`, into the empty inputs directory of a
    /// workspace. One that is named twice is brought once. The permit stands for their bytes:
    /// it is to be dropped when the task runs.
    ///
    /// # Errors
    /// For the first input that fails; the directory may hold some of the others then.
    pub async fn bring(
        &self,
        base: &Prefix,
        inputs: &[BucketKey],
        workspace: &Workspace,
    ) -> Result<(Fetched, Option<SemaphorePermit<'_>>), PrefetchError> {
        let into = &workspace.inputs;
        if let [input] = inputs {
            return self.bring_one(base, input, workspace).await;
        }
        let distinct = if inputs.len() <= SORTED_INLINE {
            Distinct::of(inputs)?
        } else {
            let inputs = inputs.to_vec();
            bucket::blocking(move || Distinct::of(&inputs)).await?
        };
        // All sizes are known before anything is fetched: two tasks that each held a part of
        // the bytes they need would wait for each other.
        let mut turns = Turns::begin();
        let finds: Vec<_> = distinct.inputs.iter().map(|input| self.find(base, input)).collect();
        let mut finds = stream::iter(finds).buffered(AT_ONCE);
        let mut found = Vec::with_capacity(distinct.inputs.len());
        while let Some(one) = finds.try_next().await? {
            found.push(one);
            turns.pass().await;
        }
        workspace.make_parents(&distinct.in_order()).await;
        let permit = self.ahead.take(found.iter().map(|found| found.version.size).sum()).await;
        let mut sum = Fetched::default();
        let mut under_way = FuturesUnordered::new();
        // Not a stream of mapped inputs: the future of that is not `Send` to the compiler.
        for found in found {
            turns.pass().await;
            if under_way.len() == AT_ONCE
                && let Some(one) = under_way.try_next().await?
            {
                sum = sum.plus(one);
            }
            under_way.push(self.bring_found(found, into));
        }
        while let Some(one) = under_way.try_next().await? {
            sum = sum.plus(one);
        }
        // What is stored compressed is larger now.
        let permit = self.ahead.grown(permit, sum.bytes).await;
        Ok((sum, Some(permit)))
    }

    /// The only input of a task needs no look before it is fetched.
    async fn bring_one(
        &self,
        base: &Prefix,
        input: &BucketKey,
        workspace: &Workspace,
    ) -> Result<(Fetched, Option<SemaphorePermit<'_>>), PrefetchError> {
        let key = base.join(input);
        let failed = |error| PrefetchError::from_cache(input, &key, error);
        let (cache, bucket) = (&self.cache, &*self.bucket);
        let first = cache.fetch_ahead(bucket, &key, self.freshness, &self.ahead).await;
        let (mut blob, permit) = first.map_err(failed)?;
        workspace.make_parents(&[input]).await;
        let mut fetches = 1;
        while !self.place(&blob, &workspace.inputs, input, fetches).await.map_err(failed)? {
            fetches += 1;
            blob = cache.fetch(bucket, &key, Duration::ZERO).await.map_err(failed)?;
        }
        Ok((Fetched::of(&blob), Some(permit)))
    }

    async fn find<'a>(
        &self,
        base: &Prefix,
        input: &'a BucketKey,
    ) -> Result<Found<'a>, PrefetchError> {
        let key = base.join(input);
        match self.cache.version(&*self.bucket, &key, self.freshness).await {
            Ok(version) => Ok(Found { input, key, version }),
            Err(error) => Err(PrefetchError::from_cache(input, &key, error)),
        }
    }

    async fn bring_found(&self, found: Found<'_>, into: &Dir) -> Result<Fetched, PrefetchError> {
        let Found { input, key, mut version } = found;
        let failed = |error| PrefetchError::from_cache(input, &key, error);
        let (cache, bucket) = (&self.cache, &*self.bucket);
        let mut fetches = 1;
        loop {
            let blob = cache.fetch_version(bucket, &key, version).await.map_err(failed)?;
            if self.place(&blob, into, input, fetches).await.map_err(failed)? {
                return Ok(Fetched::of(&blob));
            }
            fetches += 1;
            version = bucket.head(&key).await.map_err(|error| failed(error.into()))?;
        }
    }

    /// False when the blob has to be fetched again, and may be.
    async fn place(
        &self,
        blob: &Blob,
        into: &Dir,
        input: &BucketKey,
        fetches: usize,
    ) -> Result<bool, CacheError> {
        match self.cache.place(blob, into, input, self.sharing).await {
            Ok(()) => Ok(true),
            Err(CacheError::Gone { .. }) if fetches < FETCHES => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// An input that is in the bucket.
struct Found<'a> {
    input: &'a BucketKey,
    key: BucketKey,
    version: Version,
}

/// Each input once.
struct Distinct {
    /// In the order of the message.
    inputs: Vec<BucketKey>,
    /// Their numbers, such that what is in a directory follows it.
    order: Vec<usize>,
}

impl Distinct {
    /// # Errors
    /// When an input would have to be a directory on the way to another.
    fn of(all: &[BucketKey]) -> Result<Self, PrefetchError> {
        let mut names = HashSet::with_capacity(all.len());
        let inputs: Vec<BucketKey> =
            all.iter().filter(|input| names.insert(input.as_str())).cloned().collect();
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        let segments = |n: &usize| inputs[*n].as_str().split('/');
        order.sort_by(|a, b| segments(a).cmp(segments(b)));
        for pair in order.windows(2) {
            let (above, input) = (&inputs[pair[0]], &inputs[pair[1]]);
            let rest = input.as_str().strip_prefix(above.as_str());
            if rest.is_some_and(|rest| rest.starts_with('/')) {
                let problem = format!(
                    "can't be placed below /inputs/{above}, which is an input itself; \
                     a name can be a file or a directory, not both"
                );
                return Err(PrefetchError::Invalid { input: input.clone(), problem });
            }
        }
        Ok(Self { inputs, order })
    }

    fn in_order(&self) -> Vec<&BucketKey> {
        self.order.iter().map(|n| &self.inputs[*n]).collect()
    }
}

impl Fetched {
    fn of(blob: &Blob) -> Self {
        let (hits, misses) = if blob.hit { (1, 0) } else { (0, 1) };
        Self { bytes: blob.size, hits, misses }
    }

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
    use bytesize::ByteSize;

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
        let prefetch = f.prefetch(ByteSize::mib(1));
        prefetch.bring(&base, &keys, &f.workspace).await.map(|(fetched, _)| fetched)
    }

    impl Fixture {
        fn prefetch(&self, ahead: ByteSize) -> Prefetch {
            Prefetch {
                bucket: Arc::new(self.bucket.clone()),
                cache: self.cache.clone(),
                freshness: Duration::ZERO,
                sharing: Sharing::Link,
                ahead: Ahead::new(ahead),
            }
        }
    }

    #[tokio::test]
    async fn bytes_ahead_of_execution_are_bounded_and_nobody_starves() {
        let f = fixture();
        std::fs::write(f.bucket.path().join("d/large"), vec![0; 3 << 10]).unwrap();
        let prefetch = f.prefetch(ByteSize::kib(2));
        let (base, keys) = (Prefix::new("d").unwrap(), [BucketKey::new("a").unwrap()]);
        // Larger than the bound: it gets all of it.
        let large = [BucketKey::new("large").unwrap()];
        let place = &f.workspace;
        let (_, permit) = prefetch.bring(&base, &large, place).await.unwrap();
        let mut second = std::pin::pin!(prefetch.bring(&base, &keys, place));
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

    #[test]
    fn an_input_below_another_is_found_whatever_is_between_them() {
        let check = |names: &[&str], want: Option<&str>| {
            let keys: Vec<_> = names.iter().map(|name| BucketKey::new(name).unwrap()).collect();
            match (Distinct::of(&keys), want) {
                (Ok(distinct), None) => {
                    let got: Vec<_> = distinct.inputs.iter().map(BucketKey::as_str).collect();
                    assert_eq!(got, names, "in the order of the message");
                }
                (Err(error), Some(want)) => assert!(error.to_string().contains(want), "{error}"),
                (got, want) => panic!("{names:?}: {:?}, {want:?}", got.err()),
            }
        };
        check(&["z", "a/b", "a-b", "ab", "a.b/c"], None);
        check(&["a/b/c", "a-b", "a", "a/a"], Some("input a/a: can't be placed below /inputs/a"));
        check(
            &["a/b/x/y", "a/b-c", "a/b"],
            Some("input a/b/x/y: can't be placed below /inputs/a/b"),
        );
    }

    #[tokio::test]
    async fn many_inputs_in_many_directories_are_placed() {
        let f = fixture();
        let names: Vec<String> = (0..SORTED_INLINE + 10).map(|n| format!("{n}/x/{n}")).collect();
        for name in &names {
            let path = f.bucket.path().join("d").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let fetched = bring(&f, &names).await.unwrap();
        assert_eq!(fetched.misses as usize, names.len());
        for name in names {
            assert_eq!(f.workspace.inputs.read_to_string(name).unwrap(), name);
        }
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
        let (prefetch, all) = (f.prefetch(ByteSize::mib(1)), names.clone());
        let workspace = f.workspace;
        let fetched = tokio::spawn(async move {
            let base = Prefix::new("d").unwrap();
            let fetched = prefetch.bring(&base, &all, &workspace).await;
            let fetched = fetched.map(|(fetched, _)| fetched);
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
