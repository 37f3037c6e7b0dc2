//! Whether a failed task shows that the host or a service does not work: then it is an outage,
//! and no attempt.
//!
//! A failure names one object or file. Where it can't be told from that alone whether only
//! that object is bad or everything is, something else is tried by the same operation: another
//! object that could be read before, or a write that leaves nothing.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use futures_util::FutureExt;
use rustix::io::Errno;

use super::Worker;
use crate::bucket::{Bucket, BucketError};
use crate::cache::CacheError;
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

impl Worker {
    /// Remembers an object that could be read.
    pub(crate) fn was_read(&self, key: BucketKey) {
        *self.good.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    /// The failure as it is, or the outage that it is part of. `io_failed`: a file call of the
    /// guest failed for an unknown reason.
    pub(crate) async fn diagnose(
        &self,
        failure: Failure,
        task: Option<&Task>,
        io_failed: bool,
    ) -> Failure {
        let is_outage = match &failure {
            Failure::Prefetch(PrefetchError::Unavailable { input, source }) => {
                let key = task.map(|task| task.base_directory.join(input));
                self.is_fetching_out(source, key, task).await
            }
            Failure::Catalog(CatalogError::Unavailable { .. }) => {
                self.is_component_out(&failure, task).await
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
                    Some(error) => self.is_writing_out(error).await,
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
        task: Option<&Task>,
    ) -> bool {
        if self.begin_of_process(error) {
            return true;
        }
        match (error, key) {
            (CacheError::Bucket(error), Some(key)) => {
                let bucket = self.inputs.bucket.clone();
                let mut others = Vec::new();
                others.extend(self.good.lock().unwrap_or_else(PoisonError::into_inner).clone());
                if let Some(task) = task
                    && self.catalog.is_in(&bucket)
                {
                    others.push(self.catalog.key(&task.name));
                }
                others.retain(|other| *other != key);
                self.is_reading_out(bucket, error, key, others).await
            }
            (CacheError::Bucket(_), None) => false,
            // Another host removed it: the next try fetches it again.
            (CacheError::Gone { .. }, _) => true,
            (error, _) => self.is_cache_out(error).await,
        }
    }

    async fn is_component_out(&self, failure: &Failure, task: Option<&Task>) -> bool {
        let (Failure::Catalog(error), Some(task)) = (failure, task) else { return false };
        if self.begin_of_process(error) {
            return true;
        }
        let CatalogError::Unavailable { source, .. } = error else { return false };
        match source {
            CacheError::Bucket(error) => {
                let good = self.good.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let others = good.filter(|_| self.catalog.is_in(&self.inputs.bucket));
                let key = self.catalog.key(&task.name);
                let others = others.into_iter().collect();
                self.is_reading_out(self.catalog.bucket().clone(), error, key, others).await
            }
            CacheError::Gone { .. } => true,
            error => self.is_cache_out(error).await,
        }
    }

    /// Whether nothing can be read from a bucket, and not only this object. `others` are
    /// objects that should be there.
    async fn is_reading_out(
        &self,
        bucket: Arc<dyn Bucket>,
        error: &BucketError,
        key: BucketKey,
        others: Vec<BucketKey>,
    ) -> bool {
        let name = format!("reading from {bucket}");
        if self.outages.is_out(&name) {
            return true;
        }
        let mut probed = key;
        let mut is_out = true;
        if bucket.check().await.is_ok() {
            for other in others {
                match bucket.try_get(&other).await {
                    Ok(()) => return false,
                    Err(BucketError::NotFound { .. } | BucketError::Invalid { .. }) => {}
                    Err(BucketError::Unavailable { .. }) => probed = other,
                }
            }
            // Without anything else that was ever read, the object itself decides.
            is_out = matches!(bucket.try_get(&probed).await, Err(BucketError::Unavailable { .. }));
        }
        if is_out {
            let probe: Probe = Arc::new(move || {
                let (bucket, key) = (bucket.clone(), probed.clone());
                async move {
                    bucket.check().await.map_err(|error| error.to_string())?;
                    match bucket.try_get(&key).await {
                        // It was removed meanwhile: the bucket answers.
                        Ok(())
                        | Err(BucketError::NotFound { .. } | BucketError::Invalid { .. }) => Ok(()),
                        Err(error) => Err(error.to_string()),
                    }
                }
                .boxed()
            });
            self.outages.begins_until(&name, error, probe);
        }
        is_out
    }

    /// Whether nothing can be written to the bucket, and not only this object.
    async fn is_writing_out(&self, error: &BucketError) -> bool {
        if self.begin_of_process(error) {
            return true;
        }
        let BucketError::Unavailable { key, .. } = error else { return false };
        // A file that is too large for this file system or for `ulimit -f`.
        if shortage::errno(error) == Some(Errno::FBIG) {
            return false;
        }
        let bucket = self.bucket.clone();
        let name = format!("writing to {bucket}");
        let Ok(key) = BucketKey::new(key) else { return false };
        if self.outages.is_out(&name) {
            return true;
        }
        let probe: Probe = Arc::new(move || {
            let (bucket, key) = (bucket.clone(), key.clone());
            async move {
                bucket.check().await.map_err(|error| error.to_string())?;
                bucket.try_put(&key).await.map_err(|error| error.to_string())
            }
            .boxed()
        });
        let is_out = probe().await.is_err();
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
        let name = format!("storing inputs in the cache {}", cache.dir().display());
        let probe: Probe = Arc::new(move || {
            let cache = cache.clone();
            async move { cache.try_store(needed).await.map_err(|error| error.to_string()) }.boxed()
        });
        self.outages.begins_until(&name, error, probe);
        true
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
        self.config.cache_dir.join("work")
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
