//! Decides whether a failure is the task's own or an outage of the host or of a service.
//!
//! An outage costs the task no attempt. A failure names one object or file, which may be the
//! only bad one. To find out, the same operation is tried on something else: on another object
//! that worked before, or by a write that is removed at once.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::time::Instant;

use super::{Services, waits};
use crate::bucket::{Bucket, BucketError};
use crate::cache::{Cache, CacheError};
use crate::catalog::CatalogError;
use crate::failure::Failure;
use crate::key::BucketKey;
use crate::message::Task;
use crate::outage::Probe;
use crate::prefetch::PrefetchError;
use crate::publish::PublishError;
use crate::queue::QueueError;
use crate::sandbox::RunError;
use crate::shortage;
use crate::workspace::Workspaces;

/// The size in bytes of a trial write, which shows whether a disk has room.
const SOME_BYTES: u64 = 1 << 20;

/// How often one object may fail, while no other was tried, until the object itself counts as bad.
const UNDECIDED: u32 = 3;

/// Which objects of one kind worked and which failed recently.
#[derive(Debug, Default)]
struct Objects {
    /// One that worked last.
    good: Option<BucketKey>,
    /// Those that have failed since. Two are enough to decide.
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

    /// Counts a failure. True while all objects may be failing: several have failed, or only this
    /// one and not often.
    fn may_all_fail(&mut self, key: &BucketKey) -> bool {
        self.failures += 1;
        if self.failed.len() < 2 && !self.failed.contains(key) {
            self.failed.push(key.clone());
        }
        self.failed.len() > 1 || self.failures <= UNDECIDED
    }
}

/// The objects that tasks used recently.
#[derive(Debug, Default)]
pub(super) struct RecentObjects {
    inputs: Mutex<Objects>,
    components: Mutex<Objects>,
    outputs: Mutex<Objects>,
}

/// The name of an outage of reading from a bucket.
fn reading(bucket: &dyn Bucket) -> String {
    format!("reading from {bucket}")
}

impl Services {
    /// Remembers an input that was read.
    pub(crate) fn was_read(&self, key: BucketKey) {
        self.objects.inputs.lock().worked(key);
        if self.outages.any() {
            self.outages.ends_unless_probed(&reading(&*self.inputs.bucket));
        }
    }

    /// Remembers a component that was read.
    pub(crate) fn was_resolved(&self, key: BucketKey) {
        self.objects.components.lock().worked(key);
        // Inputs in the same bucket may still be unreadable.
        let is_inputs = self.catalog.is_in(&self.inputs.bucket);
        if self.outages.any() && !(is_inputs && self.objects.inputs.lock().failures > 0) {
            self.outages.ends_unless_probed(&reading(&**self.catalog.bucket()));
        }
    }

    /// Remembers an output that was written.
    pub(crate) fn was_put(&self, key: BucketKey) {
        self.objects.outputs.lock().worked(key);
    }

    /// Returns the failure unchanged, or as [`Failure::Outage`] if an outage caused it. `since`:
    /// when the failed operation began. `io_failed`: one of the guest's file calls failed for a
    /// reason that is not known.
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
                // The task has not started.
                true
            }
            Failure::Publish(PublishError::Unavailable { source, .. }) => {
                match source.downcast_ref::<BucketError>() {
                    Some(error) => self.is_writing_out(error, since).await,
                    // Reading the outputs failed.
                    None => self.begin_of_process(&**source) || self.is_work_out().await,
                }
            }
            // A host that is suspended may hold the lock of this one message.
            Failure::Start(error) if shortage::is_locked(error) => false,
            Failure::Start(error @ QueueError::Unavailable { .. }) => {
                self.outages.begins(&self.settling(), error);
                true
            }
            // A limit of this process or file system on the size of one file: other tasks can work.
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
                let (bucket, inputs) = (&self.inputs.bucket, &self.objects.inputs);
                let other = inputs.lock().other_than(&key);
                self.is_reading_out(bucket, error, key, other, inputs, since).await
            }
            (CacheError::Bucket(_), None) => false,
            // Another host evicted it; the next attempt fetches it again.
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
            // The host could not compile or load it.
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

    /// Whether nothing can be read from a bucket, as opposed to only the object `key`. `other` was
    /// read before.
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
            // No other object is known. The next tasks' inputs will show whether others can be
            // read.
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
                    // The object may have been removed meanwhile. The bucket answers.
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

    /// Whether nothing can be written to the bucket, as opposed to only this object.
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
            // Perhaps only this object fails, or only its directory.
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

    /// Whether the process is short of something that all tasks need, such as descriptors.
    fn begin_of_process(&self, error: &(dyn std::error::Error + 'static)) -> bool {
        let Some(errno) = shortage::errno(error).filter(|e| shortage::is_of_the_process(*e)) else {
            return false;
        };
        let workspaces = self.workspaces.read().clone();
        let probe: Probe = Arc::new(move || {
            let tried = shortage::try_descriptors(workspaces.home_dir());
            async move { tried }.boxed()
        });
        let problem = format!("{error} ({})", shortage::cure(errno));
        self.outages.begins_until(&"opening files", &problem, probe);
        true
    }

    /// Whether the disk is full for other reasons than this task. A task that wrote more than half
    /// of the disk would fill it on any machine like this.
    async fn is_short_of_disk(&self, written: u64) -> bool {
        let root = self.work_root();
        let whole = rustix::fs::statvfs(&root)
            .map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
        if written > whole / 2 && whole > 0 {
            return false;
        }
        self.is_work_out().await;
        // The probe may find room again: the task's files are already removed.
        true
    }

    /// The failure of a task whose directories were removed while it used them. Makes the work
    /// directory again for the next task.
    pub(crate) fn find_home(&self, failure: Failure) -> Failure {
        if !self.has_work()
            && let Err(problem) = self.make_work_again()
        {
            self.begin_work_outage(&problem);
        }
        match failure {
            // These don't depend on the directories.
            Failure::LeaseLost | Failure::Draining | Failure::Run(RunError::Cancelled) => failure,
            _ => Failure::Homeless,
        }
    }

    /// Whether the work directory, which all tasks use, does not work. Makes it again if it was
    /// removed.
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
                    // The next task that needs the directory makes it again.
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
        let workspaces = self.workspaces.read();
        workspaces.outputs_root().to_owned()
    }

    /// False when the work directory was removed or replaced.
    fn has_work(&self) -> bool {
        self.workspaces.read().is_there()
    }

    fn make_work_again(&self) -> Result<(), String> {
        let mut workspaces = self.workspaces.write();
        if workspaces.is_there() {
            return Ok(());
        }
        let new = Workspaces::new(&self.work_dir()).map_err(|error| error.to_string())?;
        let threads = self.sandbox.confine_to(new.inputs_root(), new.outputs_root());
        threads.map_err(|error| format!("{error:#}"))?;
        tracing::warn!(
            "the work directory {} was removed; the host made it again",
            self.work_dir().display()
        );
        *workspaces = new;
        Ok(())
    }
}

/// Writes a file into a directory and removes it, to see whether the disk has room.
async fn write_some(root: PathBuf) -> std::io::Result<()> {
    let write = move || {
        let name = format!(".probe-{}", uuid::Uuid::new_v4());
        let path = root.join(name);
        let written = std::fs::write(&path, vec![0; SOME_BYTES as usize]);
        // The file may not exist.
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
