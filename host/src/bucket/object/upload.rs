//! Uploads in parts, which are aborted when abandoned, and trial puts.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use object_store::path::Path;
use object_store::{Attributes, MultipartUpload, ObjectStore, PutMode, PutOptions, UpdateVersion};
use tokio_util::task::TaskTracker;

use super::super::content;
use super::super::encoding::Gzip;
use super::super::service_error::{self, FailureKind};
use super::{BucketError, ObjectBucket, PutTag};
use crate::blocking::blocking;
use crate::key::BucketKey;

/// The smallest size of a part in bytes. Parts are larger in a file that would have too many.
pub(super) const PART: u64 = 8 * 1024 * 1024;
/// The maximum number of parts in an S3 upload.
const MAX_PARTS: u64 = 10_000;
/// How many parts of one file are uploaded at once.
const PARTS_AT_ONCE: usize = 4;

impl ObjectBucket {
    /// Starts an upload. If the caller is dropped, the request still completes, so that the upload
    /// can be aborted in the store.
    async fn begin(
        &self,
        store: &Arc<dyn ObjectStore>,
        path: Path,
        attributes: Attributes,
    ) -> Result<object_store::Result<Upload>, BucketError> {
        let (store, aborts) = (store.clone(), self.0.aborts.clone());
        let (begun, upload) = tokio::sync::oneshot::channel();
        self.0.aborts.spawn(async move {
            let started = store.put_multipart_opts(&path, attributes.into()).await;
            let upload = started.map(|started| Upload { started: Some(started), aborts });
            // If the caller was dropped, dropping the upload aborts it.
            let _ = begun.send(upload);
        });
        upload.await.map_err(|error| BucketError::unavailable(self, "writing", "", error))
    }

    pub(super) async fn put_parts(
        &self,
        key: &BucketKey,
        content: content::Opened,
        size: u64,
        attributes: Attributes,
    ) -> Result<PutTag, BucketError> {
        let path = self.path(key)?;
        let failed = |error| self.failed("writing", key, error);
        let unavailable = |error| BucketError::unavailable(self, "writing", key, error);
        // Leaves room for more parts, because gzip makes incompressible bytes slightly larger.
        let part = PART.max(size.div_ceil(MAX_PARTS - 100));
        let gzip = (!attributes.is_empty()).then(|| Gzip::new(part as usize));
        let mut upload = self.begin(self.writes()?, path, attributes).await?.map_err(failed)?;
        let mut source = Source { content, at: 0, size, part, gzip };
        let mut under_way = FuturesUnordered::<object_store::UploadPart>::new();
        while let Some(ready) = source.next().await.map_err(unavailable)? {
            for bytes in ready {
                if under_way.len() == PARTS_AT_ONCE
                    && let Some(done) = under_way.next().await
                {
                    done.map_err(failed)?;
                }
                // The order of the calls is the order of the parts.
                under_way.push(upload.get()?.put_part(bytes.into()));
            }
        }
        while let Some(done) = under_way.next().await {
            done.map_err(failed)?;
        }
        drop(under_way);
        let put = upload.get()?.complete().await.map_err(failed)?;
        upload.started = None;
        Ok(put.e_tag.unwrap_or_default())
    }

    /// Uploads one part and aborts the upload.
    pub(super) async fn try_upload(&self, key: &BucketKey) -> Result<(), BucketError> {
        let failed = |error| self.failed("writing", key, error);
        let begun = self.begin(self.quick_writes()?, self.path(key)?, Attributes::new()).await?;
        let mut upload = begun.map_err(failed)?;
        let put = upload.get()?.put_part(Bytes::from_static(TRIED).into()).await;
        match upload.abort().await {
            // Permission to put objects does not always include permission to abort uploads.
            Err(error) if put.is_ok() && FailureKind::of(&error) == FailureKind::Denied => {
                if !self.0.warned.swap(true, Ordering::Relaxed) {
                    let text = service_error::describe(
                        &self.0.address,
                        "writing",
                        FailureKind::Denied,
                        &error,
                    );
                    tracing::warn!("{self}: could not abort an upload: {text}");
                }
                Ok(())
            }
            aborted => put.and(aborted).map_err(failed),
        }
    }

    /// Puts an object under a condition that can't be met.
    pub(super) async fn try_put_unmet(
        &self,
        key: &BucketKey,
        unmet: UpdateVersion,
    ) -> Result<(), BucketError> {
        let options = PutOptions { mode: PutMode::Update(unmet), ..PutOptions::default() };
        let bytes = Bytes::from_static(TRIED);
        let put = self.quick_writes()?.put_opts(&self.path(key)?, bytes.into(), options).await;
        match put {
            // Azure's emulator says that there is no such object.
            Err(object_store::Error::Precondition { .. }) => Ok(()),
            Err(error) if FailureKind::of(&error) == FailureKind::NoObject => Ok(()),
            Err(error) => Err(self.failed("writing", key, error)),
            Ok(_) => Err(BucketError::unavailable(
                self,
                "writing",
                key,
                "the store ignored the condition of a trial and put an object of one byte",
            )),
        }
    }
}

/// The content of a trial object.
const TRIED: &[u8] = b"-";

/// An entity tag that no object of Azure has.
pub(super) fn no_entity_tag() -> UpdateVersion {
    UpdateVersion { e_tag: Some("\"0x0\"".to_owned()), version: None }
}

/// A generation that no object of Google has, because generations are times in microseconds.
pub(super) fn no_generation() -> UpdateVersion {
    UpdateVersion { e_tag: None, version: Some("1".to_owned()) }
}

/// Splits content into the parts of an upload.
struct Source {
    content: content::Opened,
    at: u64,
    size: u64,
    part: u64,
    /// Compresses the parts, if set.
    gzip: Option<Gzip>,
}

impl Source {
    /// The next parts, possibly none yet; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Vec<Bytes>>> {
        let range = self.at..self.size.min(self.at + self.part);
        self.at = range.end;
        if range.is_empty() {
            let Some(gzip) = self.gzip.take() else { return Ok(None) };
            let left = blocking(|| gzip.finish()).await?;
            return Ok(Some(left.into_iter().map(Bytes::from).collect()));
        }
        let bytes = self.content.read(range.start, range.end - range.start).await?;
        let Some(mut gzip) = self.gzip.take() else { return Ok(Some(vec![bytes])) };
        let (gzip, parts) = blocking(move || {
            let parts = gzip.feed(&bytes);
            (gzip, parts)
        })
        .await;
        self.gzip = Some(gzip);
        Ok(Some(parts?.into_iter().map(Bytes::from).collect()))
    }
}

/// A multipart upload. Dropping an incomplete upload aborts it, because stores otherwise keep its
/// parts and charge for them.
struct Upload {
    started: Option<Box<dyn MultipartUpload>>,
    aborts: TaskTracker,
}

impl Upload {
    fn get(&mut self) -> Result<&mut Box<dyn MultipartUpload>, BucketError> {
        self.started.as_mut().ok_or_else(|| BucketError::invalid(&"upload", "is complete already"))
    }

    /// Aborts the upload and waits for the result. The abort continues if the caller is dropped.
    async fn abort(mut self) -> object_store::Result<()> {
        let Some(started) = self.started.take() else { return Ok(()) };
        match self.aborts.spawn(abort(started)).await {
            Ok(aborted) => aborted,
            Err(error) => {
                Err(object_store::Error::Generic { store: "upload", source: Box::new(error) })
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(started), Ok(runtime)) =
            (self.started.take(), tokio::runtime::Handle::try_current())
        {
            let abort = async move {
                if let Err(error) = abort(started).await {
                    tracing::warn!(%error, "could not abort an upload; its parts remain in the store");
                }
            };
            self.aborts.spawn_on(abort, &runtime);
        }
    }
}

async fn abort(mut started: Box<dyn MultipartUpload>) -> object_store::Result<()> {
    match started.abort().await {
        // The upload was already complete, but the response was lost.
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        aborted => aborted,
    }
}
