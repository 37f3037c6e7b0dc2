//! A bucket in any store of the `object_store` crate.

mod download;
mod upload;
mod version;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use globset::GlobMatcher;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, UpdateVersion,
};
use tokio_util::task::TaskTracker;

use self::upload::{no_entity_tag, no_generation};
pub(super) use self::version::stored_tag;
use self::version::{facts, version};
use super::address::{Service, ServiceAddress};
use super::encoding;
use super::service_error::{self, FailureKind};
use super::store_clock::StoreClock;
use super::transport::{HeadRefused, Patience};
use super::{
    Access, Bucket, BucketError, Content, Listed, Opened, PutTag, Revision, StoredEncoding, Version,
};
use crate::blocking::blocking;
use crate::fault::{self, Step};
use crate::key::{BucketKey, MAX_KEY_BYTES, Prefix};

/// The largest object in bytes that is put in one request.
const ONE_PUT: u64 = 16 * 1024 * 1024;
/// How many bytes of an object a trial fetch reads.
const TRIED: usize = 1024 * 1024;

/// A bucket of a service. Clones share the bucket.
#[derive(Debug, Clone)]
pub struct ObjectBucket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: ServiceAddress,
    url: String,
    stores: Stores,
    patience: Patience,
    clock: StoreClock,
    stored_encoding: StoredEncoding,
    largest_decoded: u64,
    gzip_outputs: Option<GlobMatcher>,
    /// The server rejects HEAD requests.
    refuses_head: AtomicBool,
    /// A warning about missing permissions was logged.
    warned: AtomicBool,
    /// Uploads that are starting or being aborted.
    aborts: TaskTracker,
}

/// The clients of one bucket.
#[derive(Clone)]
pub(super) struct Stores {
    /// Fetches and lists.
    pub(super) reads: Arc<dyn ObjectStore>,
    /// Puts. `None` for a web server.
    pub(super) writes: Option<Arc<dyn ObjectStore>>,
    /// As `reads`, with few retries, for checks.
    pub(super) quick_reads: Arc<dyn ObjectStore>,
    pub(super) quick_writes: Option<Arc<dyn ObjectStore>>,
    /// Lists, for the check that the bucket exists. `None` for a web server.
    pub(super) quick_list: Option<Arc<dyn PaginatedListStore>>,
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stores").field("reads", &self.reads).finish_non_exhaustive()
    }
}

impl ObjectBucket {
    pub(super) fn new(
        address: ServiceAddress,
        stores: Stores,
        patience: Patience,
        clock: StoreClock,
        access: &Access,
    ) -> Self {
        Self(Arc::new(Inner {
            url: address.url(),
            address,
            stores,
            patience,
            clock,
            stored_encoding: access.stored_encoding,
            largest_decoded: access.largest_decoded,
            gzip_outputs: access.gzip_outputs.clone(),
            refuses_head: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            aborts: TaskTracker::new(),
        }))
    }

    fn reads(&self) -> &Arc<dyn ObjectStore> {
        &self.0.stores.reads
    }

    fn writes(&self) -> Result<&Arc<dyn ObjectStore>, BucketError> {
        self.0.stores.writes.as_ref().ok_or_else(|| self.read_only())
    }

    fn quick_writes(&self) -> Result<&Arc<dyn ObjectStore>, BucketError> {
        self.0.stores.quick_writes.as_ref().ok_or_else(|| self.read_only())
    }

    fn read_only(&self) -> BucketError {
        BucketError::invalid(self, "is read-only; put outputs into another bucket")
    }

    /// How to read objects that are stored compressed.
    fn stored_encoding(&self) -> StoredEncoding {
        self.0.stored_encoding
    }

    /// The largest size that one object may decode to, in bytes.
    fn largest_decoded(&self) -> u64 {
        self.0.largest_decoded
    }

    /// The timeout for the next bytes of a body.
    fn idle(&self) -> Duration {
        self.0.patience.idle
    }

    /// Waits before the retry after this number of failures.
    async fn pause(&self, failures: u32) {
        tokio::time::sleep(self.0.patience.wait(failures)).await;
    }

    /// True when the service supports range requests for all objects.
    fn has_ranges(&self) -> bool {
        self.0.address.service != Service::Http
    }

    /// The path of an object in the store.
    fn path(&self, key: &BucketKey) -> Result<Path, BucketError> {
        let whole = self.0.address.prefix.join(key);
        let len = whole.as_str().len();
        if len > MAX_KEY_BYTES && self.0.address.service != Service::Http {
            let problem = format!(
                "key `{key}` is too long: with the bucket's prefix it has {len} bytes, and the \
                 limit is {MAX_KEY_BYTES}"
            );
            return Err(BucketError::invalid(self, problem));
        }
        // `parse` keeps the key; `from` would percent-encode some characters, and other tools would
        // see another key.
        Path::parse(whole.as_str())
            .map_err(|error| BucketError::invalid(self, format!("key `{key}`: {error}")))
    }

    fn failed(
        &self,
        doing: &'static str,
        key: &(impl fmt::Display + ?Sized),
        error: object_store::Error,
    ) -> BucketError {
        service_error::bucket_error(&self.0.address, self, doing, key, error)
    }
}

/// Azure lists folders of some accounts as empty objects, each just before the folder's content.
fn is_folder(meta: &ObjectMeta, next: &object_store::Result<ObjectMeta>) -> bool {
    let Ok(next) = next else { return false };
    let rest = next.location.as_ref().strip_prefix(meta.location.as_ref());
    meta.size == 0 && rest.is_some_and(|rest| rest.starts_with('/'))
}

impl fmt::Display for ObjectBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.url)
    }
}

#[async_trait]
impl Bucket for ObjectBucket {
    async fn head(&self, key: &BucketKey) -> Result<Version, BucketError> {
        let is_http = self.0.address.service == Service::Http;
        let mut is_refused = self.0.refuses_head.load(Ordering::Relaxed);
        if !is_refused {
            let options = GetOptions { head: true, ..download::options() };
            match self.reads().get_opts(&self.path(key)?, options).await {
                Ok(got) => {
                    let facts = facts(&got);
                    // Some servers send the length only with the bytes.
                    if facts.has_length || !is_http {
                        return Ok(version(&got.meta, &facts, self.0.stored_encoding));
                    }
                }
                Err(error) if service_error::find::<HeadRefused>(&error).is_some() => {
                    is_refused = true
                }
                Err(error) => return Err(self.failed("reading", key, error)),
            }
        }
        // Without HEAD, the version comes from opening the object. None of its bytes are read.
        match self.open(key, None).await? {
            Opened::Object(object) => {
                self.0.refuses_head.store(is_refused, Ordering::Relaxed);
                Ok(object.version().clone())
            }
            Opened::Unchanged => {
                let problem = "the store answered 304 Not Modified to an unconditional request";
                Err(BucketError::unavailable(self, "reading", key, problem))
            }
        }
    }

    async fn open(&self, key: &BucketKey, known: Option<&Version>) -> Result<Opened, BucketError> {
        download::open(self, key, known).await
    }

    async fn try_get(&self, key: &BucketKey) -> Result<(), BucketError> {
        fault::shortage(Step::GetObject)
            .map_err(|lost| BucketError::unavailable(self, "reading", key, lost))?;
        let failed = |error| self.failed("reading", key, error);
        let options = download::options();
        let got = self.0.stores.quick_reads.get_opts(&self.path(key)?, options).await;
        let mut body = got.map_err(failed)?.into_stream();
        // Reads some bytes too, because a faulty network may pass only the start of a response.
        let mut read = 0;
        while read < TRIED {
            match tokio::time::timeout(self.idle(), body.next()).await {
                Ok(Some(bytes)) => read += bytes.map_err(failed)?.len(),
                Ok(None) => break,
                Err(late) => return Err(BucketError::unavailable(self, "reading", key, late)),
            }
        }
        Ok(())
    }

    async fn put(
        &self,
        key: &BucketKey,
        content: &Content,
        path: &BucketKey,
    ) -> Result<PutTag, BucketError> {
        let store = self.writes()?;
        let gzips = self.0.gzip_outputs.as_ref().is_some_and(|glob| glob.is_match(path.as_path()));
        let attributes = match gzips {
            true => Attributes::from_iter([(Attribute::ContentEncoding, "gzip")]),
            false => Attributes::new(),
        };
        let unavailable = |error| BucketError::unavailable(self, "writing", key, error);
        fault::shortage(Step::PutObject).map_err(|lost| unavailable(lost.into()))?;
        let (source, size) = (content.open().map_err(unavailable)?, content.size());
        if size > ONE_PUT {
            return self.put_parts(key, source, size, attributes).await;
        }
        let mut bytes = source.read(0, size).await.map_err(unavailable)?;
        if gzips {
            let gzip = blocking(move || encoding::gzip(&bytes)).await;
            bytes = gzip.map_err(unavailable)?.into();
        }
        let put = store.put_opts(&self.path(key)?, bytes.into(), attributes.into()).await;
        let put = put.map_err(|error| self.failed("writing", key, error))?;
        Ok(put.e_tag.unwrap_or_default())
    }

    async fn read(&self, key: &BucketKey, most: u64) -> Result<(Bytes, Revision), BucketError> {
        let failed = |error| self.failed("reading", key, error);
        let got = self.reads().get_opts(&self.path(key)?, download::options()).await;
        let got = got.map_err(failed)?;
        if got.meta.size > most {
            let problem = format!("`{key}` has {} bytes; the most is {most}", got.meta.size);
            return Err(BucketError::invalid(self, problem));
        }
        let revision =
            Revision { tag: got.meta.e_tag.clone(), generation: got.meta.version.clone() };
        match tokio::time::timeout(self.idle(), got.bytes()).await {
            Ok(bytes) => Ok((bytes.map_err(failed)?, revision)),
            Err(late) => Err(BucketError::unavailable(self, "reading", key, late)),
        }
    }

    async fn put_if(
        &self,
        key: &BucketKey,
        bytes: Bytes,
        replaced: Option<&Revision>,
    ) -> Result<bool, BucketError> {
        let mode = match replaced.cloned() {
            None => PutMode::Create,
            Some(Revision { tag, generation }) => {
                PutMode::Update(UpdateVersion { e_tag: tag, version: generation })
            }
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.writes()?.put_opts(&self.path(key)?, bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(false),
            // The object to be replaced is gone.
            Err(error)
                if replaced.is_some() && FailureKind::of(&error) == FailureKind::NoObject =>
            {
                Ok(false)
            }
            Err(error) => Err(self.failed("writing", key, error)),
        }
    }

    async fn put_own(&self, key: &BucketKey, bytes: Bytes) -> Result<(), BucketError> {
        let (store, path) = (self.quick_writes()?, self.path(key)?);
        let put = store.put_opts(&path, bytes.into(), PutOptions::default()).await;
        put.map(drop).map_err(|error| self.failed("writing", key, error))
    }

    async fn remove_own(&self, key: &BucketKey) -> Result<(), BucketError> {
        match self.quick_writes()?.delete(&self.path(key)?).await {
            Ok(()) => Ok(()),
            Err(error) if FailureKind::of(&error) == FailureKind::NoObject => Ok(()),
            Err(error) => Err(self.failed("removing", key, error)),
        }
    }

    fn now(&self) -> SystemTime {
        self.0.clock.now()
    }

    fn list<'a>(&'a self, prefix: &Prefix) -> BoxStream<'a, Result<Listed, BucketError>> {
        let address = &self.0.address;
        let failed = |error| stream::iter([Err(error)]).boxed();
        if address.service == Service::Http {
            return failed(BucketError::invalid(self, "is a web server, which can't be listed"));
        }
        let shown = prefix.to_string();
        let path = match address.prefix.below(prefix) {
            whole if whole.is_root() => None,
            below => match Path::parse(below.as_str()) {
                Ok(path) => Some(path),
                Err(error) => return failed(self.failed("listing", prefix, error.into())),
            },
        };
        let found = self.reads().list(path.as_ref()).peekable();
        stream::unfold(Box::pin(found), move |mut found| {
            let shown = shown.clone();
            async move {
                loop {
                    let listed = match found.next().await? {
                        Err(error) => Some(Err(self.failed("listing", &shown, error))),
                        Ok(meta) => {
                            let next = found.as_mut().peek().await;
                            let is_folder = address.service == Service::Azure
                                && next.is_some_and(|next| is_folder(&meta, next));
                            if is_folder { None } else { self.listed(&meta).map(Ok) }
                        }
                    };
                    if let Some(listed) = listed {
                        return Some((listed, found));
                    }
                }
            }
        })
        .boxed()
    }

    async fn try_put(&self, key: &BucketKey) -> Result<(), BucketError> {
        fault::shortage(Step::PutObject)
            .map_err(|lost| BucketError::unavailable(self, "writing", key, lost))?;
        match self.0.address.service {
            // Azure can't abort an upload in parts.
            Service::Azure => self.try_put_unmet(key, no_entity_tag()).await,
            Service::Google => match self.try_upload(key).await {
                // Uploads in parts need additional permissions.
                Err(BucketError::Unavailable { source, .. })
                    if service_error::is_denied(&*source) =>
                {
                    self.try_put_unmet(key, no_generation()).await
                }
                tried => tried,
            },
            Service::S3 | Service::Http => self.try_upload(key).await,
        }
    }

    async fn accepts(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.writes()?;
        self.path(key).map(drop)
    }

    async fn check(&self) -> Result<(), BucketError> {
        let address = &self.0.address;
        let error = match &self.0.stores.quick_list {
            Some(store) => {
                let below = (!address.prefix.is_root()).then(|| format!("{}/", address.prefix));
                let first = PaginatedListOptions { max_keys: Some(1), ..Default::default() };
                match store.list_paginated(below.as_deref(), first).await {
                    Ok(_) => return Ok(()),
                    Err(error) => error,
                }
            }
            None => {
                let root = GetOptions { head: true, ..download::options() };
                match self.0.stores.quick_reads.get_opts(&Path::default(), root).await {
                    Ok(_) => return Ok(()),
                    Err(error) => error,
                }
            }
        };
        let kind = FailureKind::of(&error);
        let text = service_error::describe(address, "listing", kind, &error);
        match kind {
            // Any response of a web server is enough, because its root may not exist.
            FailureKind::NoServer | FailureKind::NoConnection | FailureKind::NoAnswer => {
                Err(BucketError::invalid(self, text))
            }
            _ if address.service == Service::Http => Ok(()),
            FailureKind::Denied => {
                if !self.0.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!("{self}: {text}; tasks still work if objects can be read");
                }
                Ok(())
            }
            FailureKind::Throttled => Err(BucketError::unavailable(self, "opening", "", text)),
            // Listing a bucket that exists never gives this error.
            FailureKind::NoObject => {
                let text =
                    service_error::describe(address, "listing", FailureKind::NoBucket, &error);
                Err(BucketError::invalid(self, text))
            }
            _ => Err(BucketError::invalid(self, text)),
        }
    }

    async fn close(&self) {
        self.0.aborts.close();
        self.0.aborts.wait().await;
    }
}

impl ObjectBucket {
    /// A listed object, with its key below the bucket's prefix. `None` if the key is not valid.
    fn listed(&self, meta: &ObjectMeta) -> Option<Listed> {
        let name = meta.location.as_ref();
        let prefix = &self.0.address.prefix;
        let below = if prefix.is_root() {
            Some(name)
        } else {
            name.strip_prefix(prefix.as_str()).and_then(|rest| rest.strip_prefix('/'))
        };
        match BucketKey::new(below?) {
            Ok(key) => Some(Listed { key, size: meta.size, modified: meta.last_modified.into() }),
            Err(error) => {
                tracing::warn!(bucket = %self, "skipped key {name:?}: it {error}");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use object_store::MultipartUpload;
    use object_store::memory::InMemory;

    use super::super::tests::conformance::in_memory;
    use super::upload::PART;
    use super::*;

    fn key(text: &str) -> BucketKey {
        BucketKey::new(text).unwrap()
    }

    #[derive(Debug)]
    struct Failing {
        inner: InMemory,
        aborted: Arc<AtomicUsize>,
    }

    #[derive(Debug)]
    struct FailingUpload {
        parts: usize,
        aborted: Arc<AtomicUsize>,
    }

    #[async_trait]
    impl MultipartUpload for FailingUpload {
        fn put_part(&mut self, _: object_store::PutPayload) -> object_store::UploadPart {
            self.parts += 1;
            let fails = self.parts == 3;
            Box::pin(async move {
                if fails {
                    Err(object_store::Error::NotImplemented {
                        operation: "part".into(),
                        implementer: "test".into(),
                    })
                } else {
                    Ok(())
                }
            })
        }
        async fn complete(&mut self) -> object_store::Result<object_store::PutResult> {
            panic!("a failed upload must not be completed")
        }
        async fn abort(&mut self) -> object_store::Result<()> {
            self.aborted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    impl fmt::Display for Failing {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("failing")
        }
    }

    #[async_trait]
    impl ObjectStore for Failing {
        async fn put_opts(
            &self,
            location: &Path,
            payload: object_store::PutPayload,
            opts: object_store::PutOptions,
        ) -> object_store::Result<object_store::PutResult> {
            self.inner.put_opts(location, payload, opts).await
        }
        async fn put_multipart_opts(
            &self,
            _: &Path,
            _: object_store::PutMultipartOptions,
        ) -> object_store::Result<Box<dyn MultipartUpload>> {
            Ok(Box::new(FailingUpload { parts: 0, aborted: self.aborted.clone() }))
        }
        async fn get_opts(
            &self,
            location: &Path,
            options: object_store::GetOptions,
        ) -> object_store::Result<object_store::GetResult> {
            self.inner.get_opts(location, options).await
        }
        fn delete_stream(
            &self,
            locations: BoxStream<'static, object_store::Result<Path>>,
        ) -> BoxStream<'static, object_store::Result<Path>> {
            self.inner.delete_stream(locations)
        }
        fn list(
            &self,
            prefix: Option<&Path>,
        ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
            self.inner.list(prefix)
        }
        async fn list_with_delimiter(
            &self,
            prefix: Option<&Path>,
        ) -> object_store::Result<object_store::ListResult> {
            self.inner.list_with_delimiter(prefix).await
        }
        async fn copy_opts(
            &self,
            from: &Path,
            to: &Path,
            options: object_store::CopyOptions,
        ) -> object_store::Result<()> {
            self.inner.copy_opts(from, to, options).await
        }
    }

    #[tokio::test]
    async fn a_key_that_is_too_long_with_the_prefix_is_known_before_anything_is_put() {
        let bucket = in_memory(Arc::new(InMemory::new()));
        let fits = format!("{}/{}", "a/".repeat(400), "b".repeat(180));
        let fits = key(&fits.replace("//", "/"));
        bucket.accepts(&fits).await.unwrap();
        let long = key(&format!("{fits}{}", "c".repeat(40)));
        let error = bucket.accepts(&long).await.unwrap_err();
        assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains("with the bucket's prefix it has"), "{error}");
    }

    #[tokio::test]
    async fn an_upload_that_fails_is_aborted_and_nothing_is_visible() {
        let aborted = Arc::new(AtomicUsize::new(0));
        let store = Failing { inner: InMemory::new(), aborted: aborted.clone() };
        let bucket = in_memory(Arc::new(store));
        let content = Content::from(vec![0; 5 * PART as usize]);
        let error = bucket.put(&key("out"), &content, &key("file")).await.unwrap_err();
        assert!(matches!(error, BucketError::Unavailable { .. }), "{error}");
        while aborted.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(bucket.head(&key("out")).await.is_err());
    }
}
