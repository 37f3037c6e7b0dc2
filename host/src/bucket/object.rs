//! A bucket that is any store of the `object_store` crate.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cap_std::fs::Dir;
use futures_util::stream::{BoxStream, FuturesUnordered, StreamExt};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::io::AsyncWriteExt;

use super::dir::blocking;
use super::outgoing::{Outgoing, Refused};
use super::{Bucket, BucketError, Listed, SMALL, Version};
use crate::key::{BucketKey, Prefix};

/// Files above this many bytes are put in parts.
const ONE_PUT: u64 = 16 * 1024 * 1024;
/// The size of a part, unless the file has too many of them.
const PART: u64 = 8 * 1024 * 1024;
/// The most parts that S3 takes.
const MAX_PARTS: u64 = 10_000;
/// Parts of one file that are under way at once.
const PARTS_AT_ONCE: usize = 4;

/// A store as a bucket.
#[derive(Debug, Clone)]
pub struct ObjectBucket {
    store: Arc<dyn ObjectStore>,
    url: Arc<str>,
}

impl ObjectBucket {
    /// Makes a bucket of a store that is called `url`.
    pub fn new(store: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self { store, url: url.into() }
    }

    fn path(&self, key: &BucketKey) -> Result<Path, BucketError> {
        // `parse` takes the key as it is; `from` would percent-encode some characters, and
        // then other tools would see another key.
        Path::parse(key.as_str())
            .map_err(|error| BucketError::invalid(self, format!("key `{key}`: {error}")))
    }

    fn failed(
        &self,
        doing: &'static str,
        key: &(impl fmt::Display + ?Sized),
        error: object_store::Error,
    ) -> BucketError {
        use object_store::Error as E;
        match error {
            E::NotFound { .. } => {
                BucketError::NotFound { bucket: self.to_string(), key: key.to_string() }
            }
            E::InvalidPath { source } => {
                BucketError::invalid(self, format!("key `{key}`: {source}"))
            }
            error => BucketError::unavailable(self, doing, key, error),
        }
    }

    fn refused(&self, key: &BucketKey, file: &BucketKey, why: Refused) -> BucketError {
        match why {
            Refused::Not(what) => {
                BucketError::invalid(self, format!("can't put `{file}`: it is not {what}"))
            }
            Refused::Failed(error) => BucketError::unavailable(self, "writing", key, error),
        }
    }

    async fn put_parts(&self, key: &BucketKey, file: File, size: u64) -> Result<(), BucketError> {
        let path = self.path(key)?;
        let failed = |error| self.failed("writing", key, error);
        let unavailable = |error| BucketError::unavailable(self, "writing", key, error);
        let mut upload = Upload(Some(self.store.put_multipart(&path).await.map_err(failed)?));
        let part = PART.max(size.div_ceil(MAX_PARTS));
        let file = Arc::new(file);
        let mut under_way = FuturesUnordered::<object_store::UploadPart>::new();
        let mut start = 0;
        while start < size {
            if under_way.len() == PARTS_AT_ONCE
                && let Some(done) = under_way.next().await
            {
                done.map_err(failed)?;
            }
            let range = start..size.min(start + part);
            start = range.end;
            let bytes = read(file.clone(), range).await.map_err(unavailable)?;
            // Polled as soon as there is something to wait for; the order of the parts is
            // that of the calls.
            under_way.push(upload.get()?.put_part(bytes.into()));
        }
        while let Some(done) = under_way.next().await {
            done.map_err(failed)?;
        }
        drop(under_way);
        upload.get()?.complete().await.map_err(failed)?;
        upload.0 = None;
        Ok(())
    }
}

/// A multipart upload. Dropping it before it is complete aborts it: stores keep, and charge
/// for, the parts of one that is neither.
struct Upload(Option<Box<dyn MultipartUpload>>);

impl Upload {
    fn get(&mut self) -> Result<&mut Box<dyn MultipartUpload>, BucketError> {
        self.0.as_mut().ok_or_else(|| BucketError::invalid(&"upload", "is complete already"))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(mut upload), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move {
                if let Err(error) = upload.abort().await {
                    tracing::warn!(%error, "could not abort an upload; its parts stay");
                }
            });
        }
    }
}

async fn read(file: Arc<File>, range: Range<u64>) -> io::Result<Bytes> {
    let read = move || {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    };
    blocking(read).await.map(Bytes::from)
}

fn version(meta: &ObjectMeta) -> Version {
    // The entity tag says it best. A store without one, or a bucket with versions, has a
    // version; and all have a time.
    let tag = match (&meta.e_tag, &meta.version) {
        (Some(tag), _) => tag.clone(),
        (None, Some(version)) => version.clone(),
        (None, None) => meta.last_modified.to_rfc3339(),
    };
    Version { tag, size: meta.size }
}

impl fmt::Display for ObjectBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[async_trait]
impl Bucket for ObjectBucket {
    async fn head(&self, key: &BucketKey) -> Result<Version, BucketError> {
        let meta = self.store.head(&self.path(key)?).await;
        Ok(version(&meta.map_err(|error| self.failed("reading", key, error))?))
    }

    async fn get(&self, key: &BucketKey, into: File) -> Result<Version, BucketError> {
        let failed = |error| self.failed("reading", key, error);
        let unavailable = |error| BucketError::unavailable(self, "reading", key, error);
        let result = self.store.get(&self.path(key)?).await.map_err(failed)?;
        let version = version(&result.meta);
        if version.size <= SMALL {
            let bytes = result.bytes().await.map_err(failed)?;
            into.write_all_at(&bytes, 0).map_err(unavailable)?;
            return Ok(version);
        }
        let mut into = tokio::fs::File::from_std(into);
        let mut chunks = result.into_stream();
        while let Some(chunk) = chunks.next().await {
            into.write_all(&chunk.map_err(failed)?).await.map_err(unavailable)?;
        }
        into.flush().await.map_err(unavailable)?;
        Ok(version)
    }

    async fn put(&self, key: &BucketKey, dir: &Dir, file: &BucketKey) -> Result<(), BucketError> {
        let open = || {
            let outgoing = Outgoing::find(dir, file)?;
            Ok((outgoing.open()?, outgoing.size))
        };
        let (source, size) = open().map_err(|why| self.refused(key, file, why))?;
        if size > ONE_PUT {
            return self.put_parts(key, source, size).await;
        }
        let bytes = read(Arc::new(source), 0..size)
            .await
            .map_err(|error| BucketError::unavailable(self, "writing", key, error))?;
        let put = self.store.put(&self.path(key)?, bytes.into()).await;
        put.map(drop).map_err(|error| self.failed("writing", key, error))
    }

    fn list<'a>(&'a self, prefix: &Prefix) -> BoxStream<'a, Result<Listed, BucketError>> {
        let shown = prefix.to_string();
        let path = match Path::parse(prefix.as_str()) {
            Ok(path) => path,
            Err(error) => {
                let error = self.failed("listing", prefix, error.into());
                return futures_util::stream::iter([Err(error)]).boxed();
            }
        };
        self.store
            .list(Some(&path))
            .filter_map(move |found| {
                let listed = match found {
                    Err(error) => Some(Err(self.failed("listing", &shown, error))),
                    Ok(meta) => match BucketKey::new(meta.location.as_ref()) {
                        Ok(key) => Some(Ok(Listed { key, size: meta.size })),
                        Err(error) => {
                            let name = meta.location.as_ref();
                            tracing::warn!(bucket = %self, "key {name:?} {error}: not listed");
                            None
                        }
                    },
                };
                async move { listed }
            })
            .boxed()
    }

    fn is_local(&self) -> bool {
        false
    }

    async fn check(&self) -> Result<(), BucketError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::TryStreamExt;
    use object_store::memory::InMemory;

    use super::*;

    fn key(text: &str) -> BucketKey {
        BucketKey::new(text).unwrap()
    }

    fn outputs() -> (tempfile::TempDir, Dir) {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::from_std_file(File::open(root.path()).unwrap());
        (root, dir)
    }

    #[tokio::test]
    async fn what_is_put_is_got_and_listed_at_any_size() {
        let (_root, dir) = outputs();
        let bucket = ObjectBucket::new(Arc::new(InMemory::new()), "memory://");
        let large = 2 * ONE_PUT + 12_345;
        for (name, size) in [("empty", 0), ("a b~#%.dat", 100), ("mid", SMALL * 2), ("l", large)] {
            let bytes: Vec<u8> = (0..size).map(|i| (i / 4096) as u8).collect();
            dir.write("file", &bytes).unwrap();
            let target = key(&format!("base/{name}"));
            bucket.put(&target, &dir, &key("file")).await.unwrap();
            let mut file = tempfile::tempfile().unwrap();
            let version = bucket.get(&target, file.try_clone().unwrap()).await.unwrap();
            assert_eq!(version, bucket.head(&target).await.unwrap());
            let mut got = Vec::new();
            io::Seek::rewind(&mut file).unwrap();
            io::Read::read_to_end(&mut file, &mut got).unwrap();
            assert!(got == bytes, "{name}");
        }
        let listed: Vec<_> =
            bucket.list(&Prefix::new("base").unwrap()).try_collect().await.unwrap();
        let mut names: Vec<_> = listed.iter().map(|l| (l.key.as_str(), l.size)).collect();
        names.sort();
        let want = [
            ("base/a b~#%.dat", 100),
            ("base/empty", 0),
            ("base/l", large),
            ("base/mid", SMALL * 2),
        ];
        assert_eq!(names, want);
        let none: Vec<_> = bucket.list(&Prefix::new("bas").unwrap()).try_collect().await.unwrap();
        assert!(none.is_empty());
    }

    #[tokio::test]
    async fn an_object_that_is_not_there_is_not_found() {
        let bucket = ObjectBucket::new(Arc::new(InMemory::new()), "memory://");
        let error = bucket.head(&key("a/b")).await.unwrap_err();
        assert_eq!(error.to_string(), "memory://: there is no object `a/b`");
        let file = tempfile::tempfile().unwrap();
        let error = bucket.get(&key("a/b"), file).await.unwrap_err();
        assert!(matches!(error, BucketError::NotFound { .. }));
    }

    #[tokio::test]
    async fn a_put_follows_no_link() {
        let (root, dir) = outputs();
        let bucket = ObjectBucket::new(Arc::new(InMemory::new()), "memory://");
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("link")).unwrap();
        let error = bucket.put(&key("out"), &dir, &key("link")).await.unwrap_err();
        assert_eq!(error.to_string(), "memory://: can't put `link`: it is not a file but a link");
    }

    /// Counts aborts, and fails the third part.
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
    async fn an_upload_that_fails_is_aborted_and_nothing_is_visible() {
        let (_root, dir) = outputs();
        let aborted = Arc::new(AtomicUsize::new(0));
        let store = Failing { inner: InMemory::new(), aborted: aborted.clone() };
        let bucket = ObjectBucket::new(Arc::new(store), "memory://");
        dir.create("file").unwrap().set_len(5 * PART).unwrap();
        let error = bucket.put(&key("out"), &dir, &key("file")).await.unwrap_err();
        assert!(matches!(error, BucketError::Unavailable { .. }), "{error}");
        while aborted.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(bucket.head(&key("out")).await.is_err());
    }
}
