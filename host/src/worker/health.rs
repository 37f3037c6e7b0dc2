//! Whether a failed task shows that the host or a service does not work: then it is an outage,
//! and no attempt.
//!
//! A failure names one object or file. Where it can't be told from that alone whether only
//! that object is bad or everything is, something else is tried by the same operation: another
//! object that worked before, or a write that leaves nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use rustix::io::Errno;
use tokio::time::Instant;

use super::{Worker, services};
use crate::bucket::{Bucket, BucketError};
use crate::cache::{Cache, CacheError};
use crate::catalog::CatalogError;
use crate::key::BucketKey;
use crate::message::Task;
use crate::outage::Probe;
use crate::prefetch::PrefetchError;
use crate::publish::PublishError;
use crate::queue::QueueError;
use crate::sandbox::RunError;
use crate::shortage;
use crate::task::Failure;
use crate::workspace::Workspaces;

/// What is written to see whether there is room on a disk, in bytes.
const SOME_BYTES: u64 = 1 << 20;

/// How often one object may fail, while no other was tried, until it is taken to be bad itself.
const UNDECIDED: u32 = 3;

/// Which objects of one kind worked and which failed lately.
#[derive(Debug, Default)]
struct Objects {
    /// One that worked.
    good: Option<BucketKey>,
    /// Those that have failed since. Two are enough to know.
    failed: Vec<BucketKey>,
    failures: u32,
}

impl Objects {
    fn worked(&mut self, key: BucketKey) {
        *self = Self { good: Some(key), ..Self::default() };
    }

    /// Another object than `key` that worked.
    fn other_than(&self, key: &BucketKey) -> Option<BucketKey> {
        self.good.clone().filter(|good| good != key)
    }

    /// Notes a failure. True while it may be one of all objects: several have failed, or only
    /// this one, and not often.
    fn may_all_fail(&mut self, key: &BucketKey) -> bool {
        self.failures += 1;
        if self.failed.len() < 2 && !self.failed.contains(key) {
            self.failed.push(key.clone());
        }
        self.failed.len() > 1 || self.failures <= UNDECIDED
    }
}

/// What is known of the objects that tasks have used.
#[derive(Debug, Default)]
pub(super) struct Known {
    inputs: Mutex<Objects>,
    components: Mutex<Objects>,
    outputs: Mutex<Objects>,
}

fn lock(objects: &Mutex<Objects>) -> MutexGuard<'_, Objects> {
    objects.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reading(bucket: &dyn Bucket) -> String {
    format!("reading from {bucket}")
}

impl Worker {
    /// Remembers an input that could be read.
    pub(crate) fn was_read(&self, key: BucketKey) {
        lock(&self.known.inputs).worked(key);
        if self.outages.any() {
            self.outages.ends_unless_probed(&reading(&*self.inputs.bucket));
        }
    }

    /// Remembers a component that could be read.
    pub(crate) fn was_resolved(&self, key: BucketKey) {
        lock(&self.known.components).worked(key);
        // That a component can be read does not mean that inputs can.
        let is_inputs = self.catalog.is_in(&self.inputs.bucket);
        if self.outages.any() && !(is_inputs && lock(&self.known.inputs).failures > 0) {
            self.outages.ends_unless_probed(&reading(&**self.catalog.bucket()));
        }
    }

    /// Remembers an output that could be put.
    pub(crate) fn was_put(&self, key: BucketKey) {
        lock(&self.known.outputs).worked(key);
    }

    /// The failure as it is, or the outage that it is part of. `since`: when began what has
    /// failed. `io_failed`: a file call of the guest failed for an unknown reason.
    pub(crate) async fn diagnose(
        &self,
        failure: Failure,
        task: Option<&Task>,
        since: Instant,
        io_failed: bool,
    ) -> Failure {
        let is_outage = match &failure {
            Failure::Prefetch(PrefetchError::Unavailable { input, source }) => {
                let key = task.map(|task| task.base_directory.join(input));
                self.is_fetching_out(source, key, since).await
            }
            Failure::Catalog(CatalogError::Unavailable { .. }) => {
                self.is_component_out(&failure, task, since).await
            }
            Failure::Workspace(error) => {
                if !self.begin_of_process(error) {
                    self.is_work_out().await;
                }
                // Whatever it was: no task has done anything yet.
                true
            }
            Failure::Publish(PublishError::Unavailable { source, .. }) => {
                match source.downcast_ref::<BucketError>() {
                    Some(error) => self.is_writing_out(error, since).await,
                    // Reading what the guest left.
                    None => self.begin_of_process(&**source) || self.is_work_out().await,
                }
            }
            // A host that was stopped may have one message's file locked.
            Failure::Start(error) if shortage::is_locked(error) => false,
            Failure::Start(error @ QueueError::Unavailable { .. }) => {
                self.outages.begins(&self.settling(), error);
                true
            }
            // A limit of this process or of its file system: other tasks can do without.
            Failure::Run(RunError::Shortage { errno: Errno::FBIG, .. }) => false,
            Failure::Run(RunError::Shortage { errno, written }) => {
                self.begin_of_process(errno) || self.is_short_of_disk(*written).await
            }
            Failure::Run(RunError::Host(_)) => true,
            Failure::Run(
                RunError::Retry { .. }
                | RunError::Reject { .. }
                | RunError::Trap { .. }
                | RunError::Unsuccessful,
            ) => (io_failed || !self.has_work()) && self.is_work_out().await,
            _ => false,
        };
        if is_outage { Failure::Outage(failure.to_string()) } else { failure }
    }

    async fn is_fetching_out(
        &self,
        error: &CacheError,
        key: Option<BucketKey>,
        since: Instant,
    ) -> bool {
        if self.begin_of_process(error) {
            return true;
        }
        match (error, key) {
            (CacheError::Bucket(error), Some(key)) => {
                let (bucket, inputs) = (&self.inputs.bucket, &self.known.inputs);
                let other = lock(inputs).other_than(&key);
                self.is_reading_out(bucket, error, key, other, inputs, since).await
            }
            (CacheError::Bucket(_), None) => false,
            // Another host removed it: the next try fetches it again.
            (CacheError::Gone { .. }, _) => true,
            (CacheError::Placing { .. }, _) => {
                self.is_work_out().await;
                true
            }
            (error, _) => self.is_cache_out(error).await,
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
            // The host could not compile it, or not load it.
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
                let (bucket, components) = (self.catalog.bucket(), &self.known.components);
                let key = self.catalog.key(&task.name);
                let beside = if self.catalog.is_in(&self.inputs.bucket) {
                    &self.known.inputs
                } else {
                    components
                };
                let other = lock(beside).other_than(&key);
                self.is_reading_out(bucket, error, key, other, components, since).await
            }
            CacheError::Gone { .. } => true,
            error => self.is_cache_out(error).await,
        }
    }

    /// Whether nothing can be read from a bucket, and not only this object. `other` is one that
    /// could be read before.
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
                    return false;
                }
                Err(BucketError::NotFound { .. } | BucketError::Invalid { .. }) => {}
                Err(BucketError::Unavailable { .. }) => probed = Some(other),
            }
        }
        if probed.is_none() && bucket.check().await.is_err() {
            probed = Some(key.clone());
        }
        let Some(probed) = probed else {
            // Nothing else is known that could be tried: the inputs of the next tasks show
            // whether others can be read.
            let is_out = lock(objects).may_all_fail(&key);
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
                    // It was removed meanwhile: the bucket answers.
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

    /// Whether nothing can be written to the bucket, and not only this object.
    async fn is_writing_out(&self, error: &BucketError, since: Instant) -> bool {
        if self.begin_of_process(error) {
            return true;
        }
        let BucketError::Unavailable { key, .. } = error else { return false };
        // A file that is too large for this file system or for `ulimit -f`.
        if shortage::errno(error) == Some(Errno::FBIG) {
            return false;
        }
        let bucket = self.bucket.clone();
        let name = services::writing(&*self.bucket);
        let Ok(key) = BucketKey::new(key) else { return false };
        if self.outages.covers(&name, since) {
            return true;
        }
        let other = lock(&self.known.outputs).other_than(&key);
        let probe: Probe = Arc::new(move || {
            let (bucket, key) = (bucket.clone(), key.clone());
            async move {
                bucket.check().await.map_err(|error| error.to_string())?;
                bucket.try_put(&key).await.map_err(|error| error.to_string())
            }
            .boxed()
        });
        let mut is_out = probe().await.is_err();
        if is_out && let Some(other) = other {
            // Perhaps only this object, or all in its directory.
            is_out = self.bucket.try_put(&other).await.is_err();
        }
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

    /// Whether the process is short of something that all of its calls need.
    fn begin_of_process(&self, error: &(dyn std::error::Error + 'static)) -> bool {
        let Some(errno) = shortage::errno(error).filter(|e| shortage::is_of_the_process(*e)) else {
            return false;
        };
        let workspaces = self.workspaces.read().unwrap_or_else(PoisonError::into_inner).clone();
        let probe: Probe = Arc::new(move || {
            let tried = shortage::try_descriptors(workspaces.home_dir());
            async move { tried }.boxed()
        });
        let problem = format!("{error} ({})", shortage::cure(errno));
        self.outages.begins_until(&"opening files", &problem, probe);
        true
    }

    /// A disk that is full because of the task alone would be so on any machine like this.
    async fn is_short_of_disk(&self, written: u64) -> bool {
        let root = self.work_root();
        let whole = rustix::fs::statvfs(&root)
            .map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
        if written > whole / 2 && whole > 0 {
            return false;
        }
        self.is_work_out().await;
        // The probe may find room again, since what the task wrote is gone by now.
        true
    }

    /// The end of a task whose directories were removed while it used them. Sees to it that
    /// the next has some.
    pub(crate) fn find_home(&self, failure: Failure) -> Failure {
        if !self.has_work()
            && let Err(problem) = self.make_work_again()
        {
            self.begin_work_outage(&problem);
        }
        match failure {
            // Those are the ends of no execution.
            Failure::LeaseLost | Failure::Draining | Failure::Run(RunError::Cancelled) => failure,
            _ => Failure::Homeless,
        }
    }

    /// Whether the work directory, which all tasks use, does not work. One that was removed is
    /// made again.
    async fn is_work_out(&self) -> bool {
        if !self.has_work() {
            return match self.make_work_again() {
                Ok(()) => true,
                Err(problem) => {
                    self.begin_work_outage(&problem);
                    true
                }
            };
        }
        if let Err(error) = write_some(self.work_root()).await {
            let path = self.work_root();
            let errno = shortage::errno(&error);
            let cure = errno.map_or("the host needs to write there", shortage::cure);
            let problem =
                format!("work directory {}: writing failed: {error} ({cure})", path.display());
            self.begin_work_outage(&problem);
            return true;
        }
        false
    }

    fn begin_work_outage(&self, problem: &str) {
        let root = self.work_root();
        let name = format!("using the work directory {}", self.work_dir().display());
        let probe: Probe = Arc::new(move || {
            let root = root.clone();
            async move {
                match write_some(root).await {
                    // One that is gone is made again by the next task that needs it.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                    other => other.map_err(|error| error.to_string()),
                }
            }
            .boxed()
        });
        self.outages.begins_until(&name, &problem, probe);
    }

    fn work_dir(&self) -> PathBuf {
        self.config.cache.dir.join("work")
    }

    fn work_root(&self) -> PathBuf {
        let workspaces = self.workspaces.read().unwrap_or_else(PoisonError::into_inner);
        workspaces.outputs_root().to_owned()
    }

    /// False when the work directory was removed, or something else is in its place.
    fn has_work(&self) -> bool {
        self.workspaces.read().unwrap_or_else(PoisonError::into_inner).is_there()
    }

    fn make_work_again(&self) -> Result<(), String> {
        let mut workspaces = self.workspaces.write().unwrap_or_else(PoisonError::into_inner);
        if workspaces.is_there() {
            return Ok(());
        }
        let new = Workspaces::new(&self.work_dir()).map_err(|error| error.to_string())?;
        let threads = self.sandbox.confine_to(new.inputs_root(), new.outputs_root());
        threads.map_err(|error| format!("{error:#}"))?;
        tracing::warn!(
            "the work directory {} was gone; it was made again",
            self.work_dir().display()
        );
        *workspaces = new;
        Ok(())
    }
}

/// Tries whether there is room on the disk of a directory.
async fn write_some(root: PathBuf) -> std::io::Result<()> {
    let write = move || {
        let name = format!(".probe-{}", uuid::Uuid::new_v4());
        let path = root.join(name);
        let written = std::fs::write(&path, vec![0; SOME_BYTES as usize]);
        // It may never have been made.
        let _ = std::fs::remove_file(&path);
        written
    };
    tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
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
}
