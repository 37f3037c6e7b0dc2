//! Decides whether a failure is caused by the task itself, or by an outage of the host or of a
//! service.
//!
//! An outage does not count as an attempt of the task. A failure names one object or file, which
//! may be the only bad one. To find out, the host tries the same operation on another object that
//! worked before, or writes an object and removes it at once. If the object itself works when the
//! host tries it again, the outage has just ended.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::FutureExt;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::time::Instant;

use super::{Services, waits};
use crate::blocking::blocking;
use crate::bucket::{Bucket, BucketError};
use crate::cache::{Cache, CacheError};
use crate::catalog::CatalogError;
use crate::failure::Failure;
use crate::key::BucketKey;
use crate::message::Task;
use crate::outage::Probe;
use crate::prefetch::{PrefetchError, ReadObject};
use crate::publish::PublishError;
use crate::queue::QueueError;
use crate::sandbox::RunError;
use crate::shortage;

/// The size in bytes of a trial write, which shows whether a disk has room.
const SOME_BYTES: u64 = 1 << 20;

/// The number of failures after which an object counts as bad, if no other object was tried or if
/// the object works in each trial.
const UNDECIDED: u32 = 3;

/// The maximum number of objects whose failures are counted. When it is reached, all counts are
/// reset.
const MAX_PASSED: usize = 10_000;

/// The objects of one kind that worked or failed recently.
#[derive(Debug, Default)]
struct Objects {
    /// The object that worked last.
    good: Option<BucketKey>,
    /// Objects that have failed since. Two are enough to decide.
    failed: Vec<BucketKey>,
    failures: u32,
}

impl Objects {
    fn worked(&mut self, key: BucketKey) {
        *self = Self { good: Some(key), ..Self::default() };
    }

    /// An object that worked, other than `key`.
    fn other_than(&self, key: &BucketKey) -> Option<BucketKey> {
        self.good.clone().filter(|good| good != key)
    }

    /// Counts a failure. True while all objects may be failing: several objects have failed, or
    /// only this one, a few times.
    fn may_all_fail(&mut self, key: &BucketKey) -> bool {
        self.failures += 1;
        if self.failed.len() < 2 && !self.failed.contains(key) {
            self.failed.push(key.clone());
        }
        self.failed.len() > 1 || self.failures <= UNDECIDED
    }
}

/// Counts failures after which the same object worked in a trial, by object. A count is reset when
/// a task uses the object successfully.
#[derive(Debug, Default)]
struct Passed(HashMap<BucketKey, u32>);

impl Passed {
    /// Resets the counts of objects that a task has used. A trial by the host does not reset a
    /// count, because an object may fail for every task and still work in each trial.
    fn worked(&mut self, keys: impl Iterator<Item = BucketKey>) {
        // Usually nothing has failed, and then the keys are not computed.
        if !self.0.is_empty() {
            keys.for_each(|key| {
                self.0.remove(&key);
            });
        }
    }

    /// Counts a failure. False if the object has had many: it fails in a way that the trial does
    /// not detect.
    fn may_pass(&mut self, key: &BucketKey) -> bool {
        if self.0.len() >= MAX_PASSED {
            self.0.clear();
        }
        let failures = self.0.entry(key.clone()).or_default();
        *failures += 1;
        *failures <= UNDECIDED
    }
}

/// The objects that tasks used recently.
#[derive(Debug, Default)]
pub(super) struct RecentObjects {
    inputs: Mutex<Objects>,
    components: Mutex<Objects>,
    outputs: Mutex<Objects>,
    passed: Mutex<Passed>,
}

/// The name of an outage of reading from a bucket.
fn reading(bucket: &dyn Bucket) -> String {
    format!("reading from {bucket}")
}

impl Services {
    /// Records that all inputs of a task were read.
    pub(crate) fn were_read(&self, objects: &[ReadObject]) {
        let mut keys = objects.iter().map(|object| object.key.clone());
        let Some(last) = keys.next_back() else { return };
        self.objects.passed.lock().worked(keys.chain([last.clone()]));
        self.objects.inputs.lock().worked(last);
        if self.outages.any() {
            self.outages.ends_unless_probed(&reading(&*self.inputs.bucket));
        }
    }

    /// Records that a component was read.
    pub(crate) fn was_resolved(&self, key: BucketKey) {
        self.objects.passed.lock().worked([key.clone()].into_iter());
        self.objects.components.lock().worked(key);
        // Inputs in the same bucket may still be unreadable.
        let is_inputs = self.catalog.is_in(&self.inputs.bucket);
        if self.outages.any() && !(is_inputs && self.objects.inputs.lock().failures > 0) {
            self.outages.ends_unless_probed(&reading(&**self.catalog.bucket()));
        }
    }

    /// Records that all outputs of a task were written.
    pub(crate) fn were_put(&self, keys: &[BucketKey]) {
        let Some(last) = keys.last() else { return };
        self.objects.passed.lock().worked(keys.iter().cloned());
        self.objects.outputs.lock().worked(last.clone());
    }

    /// Returns the failure unchanged, or as [`Failure::Outage`] if an outage caused it. `since`:
    /// when the failed operation began.
    pub(crate) async fn diagnose(
        &self,
        failure: Failure,
        task: Option<&Task>,
        since: Instant,
    ) -> Failure {
        let is_outage = match &failure {
            Failure::Prefetch(PrefetchError::Unavailable { key, source, .. }) => {
                self.is_fetching_out(source, key, since).await
            }
            Failure::Catalog(CatalogError::Unavailable { .. }) => {
                self.is_component_out(&failure, task, since).await
            }
            Failure::Publish(PublishError::Unavailable { source, .. }) => {
                match source.downcast_ref::<BucketError>() {
                    Some(error) => self.is_writing_out(error, since).await,
                    None => false,
                }
            }
            // Only this message may be locked, by a host that is suspended.
            Failure::Start(error) if shortage::is_locked(error) => false,
            Failure::Start(error @ QueueError::Unavailable { .. }) => {
                self.outages.begins(&self.settling(), error);
                true
            }
            // This process or file system limits the size of a single file. Other tasks can still
            // run.
            Failure::Run(RunError::Shortage { errno: Errno::FBIG, .. }) => false,
            Failure::Run(RunError::Shortage { errno, written }) => {
                self.begin_of_process(errno) || self.is_short_of_disk(*written).await
            }
            Failure::Run(RunError::Host(_)) => true,
            _ => false,
        };
        if is_outage { Failure::Outage(failure.to_string()) } else { failure }
    }

    async fn is_fetching_out(&self, error: &CacheError, key: &BucketKey, since: Instant) -> bool {
        if self.begin_of_process(error) {
            return true;
        }
        match error {
            CacheError::Bucket(error) => {
                let (bucket, inputs) = (&self.inputs.bucket, &self.objects.inputs);
                let other = inputs.lock().other_than(key);
                self.is_reading_out(bucket, error, key.clone(), other, inputs, since).await
            }
            // Another host evicted the blob. The next attempt fetches it again.
            CacheError::Gone { .. } => true,
            error => self.is_cache_out(error).await,
        }
    }

    async fn is_component_out(
        &self,
        failure: &Failure,
        task: Option<&Task>,
        since: Instant,
    ) -> bool {
        let (Failure::Catalog(error), Some(task)) = (failure, task) else { return false };
        if self.begin_of_process(error) {
            return true;
        }
        let CatalogError::Unavailable { source, .. } = error else { return false };
        let Some(cause) = source.downcast_ref::<CacheError>() else {
            // The host could not compile or load the component.
            let compiler = self.catalog.compiler().clone();
            let probe: Probe = Arc::new(move || {
                let compiler = compiler.clone();
                async move { compiler.try_out().await.map_err(|error| error.to_string()) }.boxed()
            });
            self.outages.begins_until(&"compiling components", error, probe);
            return true;
        };
        match cause {
            CacheError::Bucket(error) => {
                let (bucket, components) = (self.catalog.bucket(), &self.objects.components);
                let key = self.catalog.key(&task.name);
                let beside = if self.catalog.is_in(&self.inputs.bucket) {
                    &self.objects.inputs
                } else {
                    components
                };
                let other = beside.lock().other_than(&key);
                self.is_reading_out(bucket, error, key, other, components, since).await
            }
            CacheError::Gone { .. } => true,
            error => self.is_cache_out(error).await,
        }
    }

    /// Whether all reads from a bucket fail, not only those of the object `key`. `other` is an
    /// object that was read before.
    async fn is_reading_out(
        &self,
        bucket: &Arc<dyn Bucket>,
        error: &BucketError,
        key: BucketKey,
        other: Option<BucketKey>,
        objects: &Mutex<Objects>,
        since: Instant,
    ) -> bool {
        let name = reading(&**bucket);
        if self.outages.covers(&name, since) {
            return true;
        }
        let mut probed = None;
        if let Some(other) = other {
            match bucket.try_get(&other).await {
                Ok(()) => {
                    self.outages.ends_unless_probed(&name);
                    // If the outage has just ended, this trial succeeds.
                    let has_passed = bucket.try_get(&key).await.is_ok();
                    return has_passed && self.objects.passed.lock().may_pass(&key);
                }
                Err(BucketError::NotFound { .. } | BucketError::Invalid { .. }) => {}
                Err(BucketError::Unavailable { .. }) => probed = Some(other),
            }
        }
        if probed.is_none() && bucket.check().await.is_err() {
            probed = Some(key.clone());
        }
        let Some(probed) = probed else {
            // No other object is known. The inputs of the next tasks will show whether other
            // objects can be read.
            let is_out = objects.lock().may_all_fail(&key);
            if is_out {
                self.outages.begins(&name, error);
            } else {
                self.outages.ends_unless_probed(&name);
            }
            return is_out;
        };
        let bucket = bucket.clone();
        let probe: Probe = Arc::new(move || {
            let (bucket, key) = (bucket.clone(), probed.clone());
            async move {
                bucket.check().await.map_err(|error| error.to_string())?;
                match bucket.try_get(&key).await {
                    // The object may have been removed meanwhile, but the bucket answers.
                    Ok(()) | Err(BucketError::NotFound { .. } | BucketError::Invalid { .. }) => {
                        Ok(())
                    }
                    Err(error) => Err(error.to_string()),
                }
            }
            .boxed()
        });
        self.outages.begins_until(&name, error, probe);
        true
    }

    /// Whether all writes to the bucket fail, not only those of this object.
    async fn is_writing_out(&self, error: &BucketError, since: Instant) -> bool {
        if self.begin_of_process(error) {
            return true;
        }
        let BucketError::Unavailable { key, .. } = error else { return false };
        // This file is too large for the file system or for `ulimit -f`.
        if shortage::errno(error) == Some(Errno::FBIG) {
            return false;
        }
        let bucket = self.bucket.clone();
        let name = waits::writing(&*self.bucket);
        let Ok(key) = BucketKey::new(key) else { return false };
        if self.outages.covers(&name, since) {
            return true;
        }
        let other = self.objects.outputs.lock().other_than(&key);
        let tried = key.clone();
        let probe: Probe = Arc::new(move || {
            let (bucket, key) = (bucket.clone(), tried.clone());
            async move {
                bucket.check().await.map_err(|error| error.to_string())?;
                bucket.try_put(&key).await.map_err(|error| error.to_string())
            }
            .boxed()
        });
        if probe().await.is_ok() {
            return self.objects.passed.lock().may_pass(&key);
        }
        // Possibly only this object or its directory fails.
        let is_out = match other {
            Some(other) => self.bucket.try_put(&other).await.is_err(),
            None => true,
        };
        if is_out {
            self.outages.begins_until(&name, error, probe);
        }
        is_out
    }

    async fn is_cache_out(&self, error: &CacheError) -> bool {
        if shortage::errno(error) == Some(Errno::FBIG) {
            return false;
        }
        let cache = self.inputs.cache.clone();
        let needed = match error {
            CacheError::Full { needed, .. } => needed.as_u64(),
            _ => SOME_BYTES,
        };
        self.begin_cache_outage(&cache, needed, error);
        true
    }

    fn begin_cache_outage(&self, cache: &Cache, needed: u64, error: &dyn std::fmt::Display) {
        let name = format!("storing inputs in the cache {}", cache.dir().display());
        let cache = cache.clone();
        let probe: Probe = Arc::new(move || {
            let cache = cache.clone();
            async move { cache.try_store(needed).await.map_err(|error| error.to_string()) }.boxed()
        });
        self.outages.begins_until(&name, error, probe);
    }

    /// Whether the process has run out of a resource that all tasks need, such as file descriptors.
    fn begin_of_process(&self, error: &(dyn std::error::Error + 'static)) -> bool {
        let Some(errno) = shortage::errno(error).filter(|e| shortage::is_of_the_process(*e)) else {
            return false;
        };
        let spill = self.spill.clone();
        let probe: Probe = Arc::new(move || {
            let tried = spill.try_descriptors();
            async move { tried }.boxed()
        });
        let problem = format!("{error} ({})", shortage::cure(errno));
        self.outages.begins_until(&"opening files", &problem, probe);
        true
    }

    /// Whether the disk is full for a reason other than this task. A task that wrote more than half
    /// of the disk would fill the disk of any similar machine.
    async fn is_short_of_disk(&self, written: u64) -> bool {
        let root = self.spill.path();
        let whole = rustix::fs::statvfs(&root)
            .map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
        if written > whole / 2 && whole > 0 {
            return false;
        }
        self.is_work_out().await;
        // The probe may find room again, because the task's files are already removed.
        true
    }

    /// Whether no file can be written to the work directory, which is needed for large outputs.
    async fn is_work_out(&self) -> bool {
        let spill = self.spill.clone();
        let probe: Probe = Arc::new(move || {
            let spill = spill.clone();
            async move {
                let tried = blocking(move || spill.try_out(SOME_BYTES as usize)).await;
                tried.map_err(|error| {
                    let cure = shortage::errno(&error).map_or("the host needs it", shortage::cure);
                    format!("writing failed: {error} ({cure})")
                })
            }
            .boxed()
        });
        let Err(problem) = probe().await else { return false };
        let dir = self.config.cache.dir.join("work");
        let name = format!("using the work directory {}", dir.display());
        self.outages.begins_until(&name, &problem, probe);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_that_keeps_failing_is_bad_and_several_are_all() {
        let key = |name| BucketKey::new(name).unwrap();
        let (a, b) = (key("a"), key("b"));
        let mut objects = Objects::default();
        for n in 1..=5 {
            assert_eq!(objects.may_all_fail(&a), n <= UNDECIDED, "{n}");
        }
        assert!(objects.may_all_fail(&b) && objects.may_all_fail(&a));
        assert_eq!(objects.other_than(&a), None);

        objects.worked(b.clone());
        assert_eq!((objects.other_than(&a), objects.other_than(&b)), (Some(b.clone()), None));
        assert!(objects.may_all_fail(&a), "it began anew");
    }

    #[test]
    fn failures_of_an_object_pass_a_few_times() {
        let mut passed = Passed::default();
        for name in ["a", "b"] {
            let key = BucketKey::new(name).unwrap();
            for n in 1..=5 {
                assert_eq!(passed.may_pass(&key), n <= UNDECIDED, "{name} {n}");
            }
        }
    }

    #[test]
    fn failures_are_forgotten_when_a_task_has_used_the_object() {
        let (a, b) = (BucketKey::new("a").unwrap(), BucketKey::new("b").unwrap());
        let mut passed = Passed::default();
        for _ in 0..10 {
            assert!((0..UNDECIDED).all(|_| passed.may_pass(&a)), "failures long ago");
            passed.worked([a.clone()].into_iter());
        }
        // A success of another object does not reset the count of this one.
        for n in 1..=5 {
            passed.worked([b.clone()].into_iter());
            assert_eq!(passed.may_pass(&a), n <= UNDECIDED, "{n}");
        }
    }
}
