//! Finds, adds and lists the receipts in a bucket.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};

use super::{LARGEST, Receipt, Unusable, WITHDRAWN, content_of, key};
use crate::bucket::{Bucket, BucketError, Revision};
use crate::digest::Digest;
use crate::key::{BucketKey, Prefix, RECEIPTS};

/// The text of the object that explains the receipts to people. Adding it at the start also shows
/// whether the bucket refuses to replace an object.
const README: &str = "\
Each object below this prefix is the receipt of a finished task: what it was, what it read and what
it left. `host receipts show KEY` shows the receipt of an output, `host receipts verify` checks all.
See https://github.com/task-host/task-host/blob/main/docs/reference/receipts.md
";

/// How many receipts are read from a service at once.
const READ_AT_ONCE: usize = 64;

/// The receipts of a bucket. Clones share the bucket.
#[derive(Debug, Clone)]
pub struct Receipts {
    bucket: Arc<dyn Bucket>,
}

/// The result of looking for a task's receipt.
#[derive(Debug)]
pub enum Found {
    /// There is no object.
    Nothing,
    /// A receipt.
    Receipt {
        /// The receipt.
        receipt: Receipt,
        /// Its bytes.
        bytes: Bytes,
        /// The revision of its object.
        revision: Revision,
    },
    /// An object that can't be used as the receipt.
    Unusable {
        /// Why.
        why: Unusable,
        /// The revision of the object.
        revision: Revision,
    },
}

impl Receipts {
    /// The receipts in `bucket`.
    pub fn new(bucket: Arc<dyn Bucket>) -> Self {
        Self { bucket }
    }

    /// The bucket of the receipts.
    pub fn bucket(&self) -> &Arc<dyn Bucket> {
        &self.bucket
    }

    /// Checks that receipts can be added, and that the bucket refuses to replace one.
    ///
    /// # Errors
    /// [`BucketError::Invalid`] if the bucket replaces an object although the put should only add
    /// one. Other errors of writing.
    pub async fn check(&self) -> Result<(), BucketError> {
        let readme = BucketKey::internal(&format!("{RECEIPTS}/README.txt"));
        let text = Bytes::from_static(README.as_bytes());
        if self.bucket.put_if(&readme, text.clone(), None).await?
            && self.bucket.put_if(&readme, text, None).await?
        {
            let problem = "replaces an object that is put with `If-None-Match: *`, so two attempts \
                           of a task could both leave a receipt; use a store that supports \
                           conditional puts, or run without --receipts";
            return Err(BucketError::invalid(&self.bucket, problem));
        }
        Ok(())
    }

    /// Looks for the receipt of the task with this content, in one request.
    ///
    /// # Errors
    /// Errors of the bucket.
    pub async fn find(&self, content: &Digest) -> Result<Found, BucketError> {
        match self.bucket.read(&key(content), LARGEST).await {
            Ok((bytes, revision)) => Ok(match Receipt::parse(&bytes, content) {
                Ok(receipt) => Found::Receipt { receipt, bytes, revision },
                Err(why) => Found::Unusable { why, revision },
            }),
            Err(BucketError::NotFound { .. }) => Ok(Found::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Adds a receipt or, with `replaced`, replaces the object that has this revision, in one
    /// request. False if the key has another object.
    ///
    /// # Errors
    /// Errors of the bucket.
    pub async fn add(
        &self,
        content: &Digest,
        receipt: Bytes,
        replaced: Option<&Revision>,
    ) -> Result<bool, BucketError> {
        self.bucket.put_if(&key(content), receipt, replaced).await
    }

    /// Withdraws a receipt, so that its task runs again. False if the receipt was replaced
    /// meanwhile.
    ///
    /// # Errors
    /// Errors of the bucket.
    pub async fn withdraw(
        &self,
        content: &Digest,
        receipt: &Revision,
    ) -> Result<bool, BucketError> {
        self.add(content, Bytes::from_static(WITHDRAWN.as_bytes()), Some(receipt)).await
    }

    /// The receipts of tasks that left an output under `key`, with their bytes. Reads all receipts,
    /// because receipts are not indexed by outputs: an index would cost a request for each output.
    /// Calls `read` with the number of receipts read so far.
    ///
    /// # Errors
    /// Errors of the bucket.
    pub async fn of_output(
        &self,
        key: &BucketKey,
        mut read: impl FnMut(u64),
    ) -> Result<Vec<(Receipt, Bytes)>, BucketError> {
        let at_once = if self.bucket.is_local() { 1 } else { READ_AT_ONCE };
        let finds = self.list().map(|content| async { self.find(&content?).await });
        let mut finds = std::pin::pin!(finds.buffer_unordered(at_once));
        let (mut found, mut count) = (Vec::new(), 0);
        while let Some(one) = finds.next().await {
            count += 1;
            read(count);
            if let Found::Receipt { receipt, bytes, .. } = one?
                && receipt.outputs.iter().any(|output| output.key == *key)
            {
                found.push((receipt, bytes));
            }
        }
        Ok(found)
    }

    /// The contents of all tasks that have a receipt, in no particular order.
    pub fn list(&self) -> BoxStream<'_, Result<Digest, BucketError>> {
        let prefix = Prefix::internal(RECEIPTS);
        let listed = self.bucket.list(&prefix);
        let contents = listed.filter_map(async |listed| match listed {
            Ok(object) => content_of(&object.key).map(Ok),
            Err(error) => Some(Err(error)),
        });
        contents.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
        PutMultipartOptions, PutOptions, PutPayload, PutResult,
    };

    use super::*;
    use crate::bucket::DirBucket;
    use crate::bucket::tests::conformance::in_memory;

    fn buckets() -> (tempfile::TempDir, [Arc<dyn Bucket>; 2]) {
        let root = tempfile::tempdir().unwrap();
        let dir = DirBucket::create(root.path()).unwrap();
        (root, [Arc::new(dir), Arc::new(in_memory(Arc::new(InMemory::new())))])
    }

    #[tokio::test]
    async fn the_first_receipt_stays_and_only_what_was_seen_is_replaced() {
        for bucket in buckets().1 {
            let receipts = Receipts::new(bucket);
            receipts.check().await.unwrap();
            receipts.check().await.unwrap();
            let content = Digest::of(b"task");
            assert!(matches!(receipts.find(&content).await.unwrap(), Found::Nothing));
            assert!(receipts.add(&content, Bytes::from_static(b"1"), None).await.unwrap());
            assert!(!receipts.add(&content, Bytes::from_static(b"2"), None).await.unwrap());
            let Found::Unusable { why, revision } = receipts.find(&content).await.unwrap() else {
                panic!("a receipt")
            };
            assert!(matches!(why, Unusable::Damaged(_)), "{why}");
            let add = |text: &'static [u8]| {
                receipts.add(&content, Bytes::from_static(text), Some(&revision))
            };
            assert!(add(b"three").await.unwrap());
            assert!(!add(b"4").await.unwrap());
            let (bytes, _) = receipts.bucket.read(&key(&content), 10).await.unwrap();
            assert_eq!(bytes, "three");
            let listed: Vec<_> = receipts.list().map(Result::unwrap).collect().await;
            assert_eq!(listed, [content]);
        }
    }

    /// A store that ignores conditions, as some S3-compatible stores do.
    #[derive(Debug)]
    struct Unconditional(InMemory);

    impl std::fmt::Display for Unconditional {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("unconditional")
        }
    }

    #[async_trait::async_trait]
    impl ObjectStore for Unconditional {
        async fn put_opts(
            &self,
            location: &Path,
            payload: PutPayload,
            _: PutOptions,
        ) -> object_store::Result<PutResult> {
            self.0.put_opts(location, payload, PutOptions::default()).await
        }
        async fn put_multipart_opts(
            &self,
            location: &Path,
            options: PutMultipartOptions,
        ) -> object_store::Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(location, options).await
        }
        async fn get_opts(
            &self,
            location: &Path,
            options: GetOptions,
        ) -> object_store::Result<GetResult> {
            self.0.get_opts(location, options).await
        }
        fn delete_stream(
            &self,
            locations: BoxStream<'static, object_store::Result<Path>>,
        ) -> BoxStream<'static, object_store::Result<Path>> {
            self.0.delete_stream(locations)
        }
        fn list(
            &self,
            prefix: Option<&Path>,
        ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
            self.0.list(prefix)
        }
        async fn list_with_delimiter(
            &self,
            prefix: Option<&Path>,
        ) -> object_store::Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }
        async fn copy_opts(
            &self,
            from: &Path,
            to: &Path,
            options: CopyOptions,
        ) -> object_store::Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    #[tokio::test]
    async fn a_store_that_ignores_conditions_is_found_at_the_start() {
        let bucket = in_memory(Arc::new(Unconditional(InMemory::new())));
        let error = Receipts::new(Arc::new(bucket)).check().await.unwrap_err();
        assert!(error.to_string().contains("If-None-Match"), "{error}");
    }

    #[tokio::test]
    async fn a_directory_where_receipts_can_not_be_written_is_found_at_the_start() {
        let (root, [bucket, _]) = buckets();
        let dir = root.path().join(RECEIPTS);
        std::fs::write(&dir, "in the way").unwrap();
        let error = Receipts::new(bucket.clone()).check().await.unwrap_err();
        assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
        std::fs::remove_file(&dir).unwrap();
        if rustix::process::geteuid().is_root() {
            return;
        }
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o555)).unwrap();
        let error = Receipts::new(bucket).check().await.unwrap_err();
        assert!(error.to_string().contains("Permission denied"), "{error}");
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
}
