//! Downloads from a store: in parts if the object is large, resumed where a connection broke,
//! decoded if the object is stored compressed, and never a mix of two versions.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, FuturesUnordered, StreamExt};
use object_store::{GetOptions, GetRange, GetResult, ObjectStore};
use parking_lot::Mutex;

use super::super::encoding::{ContentEncoding, DecodeError, Gunzip};
use super::super::transport::{ForObject, ResponseFacts};
use super::super::{BucketError, Object, Opened, StoredEncoding, Version};
use super::ObjectBucket;
use super::version::{Tag, facts, is_ours, is_same, version};
use crate::blocking::{SMALL, blocking};
use crate::fault::{self, Step};
use crate::key::BucketKey;

/// The largest object in bytes that is fetched in one request.
const ONE_GET: u64 = 32 * 1024 * 1024;
/// The size of a part.
const PART: u64 = 8 * 1024 * 1024;
/// How many parts of one object are fetched at once.
const PARTS_AT_ONCE: usize = 4;
/// How often a body is resumed without progress. Including the waits, this bridges a network
/// failure of 6 s.
const RESUMES: u32 = 6;
/// How often a download restarts because the object changed, or because the server does not support
/// range requests.
const RESTARTS: u32 = 6;
/// The number of bytes that are written at once.
const WRITE: usize = 1024 * 1024;
/// The largest number of compressed bytes to decode on the caller's thread. They decode to at most
/// 16 MiB.
const DECODED_HERE: usize = 16 * 1024;

type Body = BoxStream<'static, object_store::Result<Bytes>>;

/// An object whose headers have arrived.
pub(super) struct RemoteObject {
    bucket: ObjectBucket,
    key: BucketKey,
    version: Version,
    facts: ResponseFacts,
    body: Body,
}

impl fmt::Debug for RemoteObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteObject")
            .field("key", &self.key)
            .field("version", &self.version)
            .finish()
    }
}

/// Why a part was not fetched.
enum Stopped {
    /// The object was replaced, or may have been.
    Changed,
    /// The server does not support range requests for the object.
    NoRanges,
    Failed(BucketError),
}

impl From<BucketError> for Stopped {
    fn from(error: BucketError) -> Self {
        Self::Failed(error)
    }
}

/// The options of every request for an object.
pub(super) fn options() -> GetOptions {
    let mut options = GetOptions::default();
    options.extensions.insert(ForObject);
    options
}

/// Starts to fetch an object unless it still has the known version.
pub(super) async fn open(
    bucket: &ObjectBucket,
    key: &BucketKey,
    known: Option<&Version>,
) -> Result<Opened, BucketError> {
    let mut options = options();
    match known.filter(|known| is_ours(known, bucket.stored_encoding())).map(Tag::of) {
        Some(Tag::Entity(tag)) => options.if_none_match = Some(tag.to_owned()),
        Some(Tag::Time(time)) => options.if_modified_since = time.parse().ok(),
        Some(Tag::None) | None => {}
    }
    fault::shortage(Step::GetObject)
        .map_err(|lost| BucketError::unavailable(bucket, "reading", key, lost))?;
    let got = match bucket.reads().get_opts(&bucket.path(key)?, options).await {
        Ok(got) => got,
        Err(object_store::Error::NotModified { .. }) if known.is_some() => {
            return Ok(Opened::Unchanged);
        }
        Err(error) => return Err(bucket.failed("reading", key, error)),
    };
    let object = RemoteObject::new(bucket.clone(), key.clone(), got);
    // Not every server supports conditional requests.
    if known == Some(&object.version) {
        return Ok(Opened::Unchanged);
    }
    Ok(Opened::Object(Box::new(object)))
}

impl RemoteObject {
    fn new(bucket: ObjectBucket, key: BucketKey, got: GetResult) -> Self {
        let facts = facts(&got);
        let version = version(&got.meta, &facts, bucket.stored_encoding());
        Self { bucket, key, version, facts, body: got.into_stream() }
    }

    /// Writes all bytes of this version to `into`.
    async fn take(self, into: &Arc<File>) -> Result<Version, Stopped> {
        let Self { bucket, key, mut version, facts, body } = self;
        let target = match (&facts.encoding, bucket.stored_encoding()) {
            (ContentEncoding::Plain, _) | (_, StoredEncoding::Keep) => Target::File(into.clone()),
            (ContentEncoding::Gzip, _) => {
                let gunzip = Gunzip::new(into.clone(), bucket.largest_decoded(), &facts.checksums);
                Target::Gunzip(Arc::new(Mutex::new(gunzip)))
            }
            (ContentEncoding::Other(name), _) => {
                let problem = format!(
                    "`{key}` has `Content-Encoding: {name}`, which is not supported; with \
                     --stored-encoding keep, tasks get the stored bytes"
                );
                return Err(BucketError::invalid(&bucket, problem).into());
            }
        };
        let transfer = Transfer { bucket: &bucket, key: &key, version: &version, target };
        let has_ranges = bucket.has_ranges() || facts.has_ranges;
        let mut size = version.size;
        if !facts.has_length {
            size = transfer.take_to_the_end(body).await?;
        } else if version.size <= ONE_GET || !has_ranges || transfer.is_decoded() {
            transfer.take(0..version.size, Some(body)).await?;
        } else {
            transfer.take_all(body).await?;
        }
        version.size = transfer.check(facts, into, size).await?;
        Ok(version)
    }
}

#[async_trait]
impl Object for RemoteObject {
    fn version(&self) -> &Version {
        &self.version
    }

    async fn write_to(self: Box<Self>, into: File) -> Result<Version, BucketError> {
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        let unavailable = |error| BucketError::unavailable(&bucket, "reading", &key, error);
        let into = Arc::new(into);
        let mut object = *self;
        for restart in 1.. {
            match object.take(&into).await {
                Ok(version) => return Ok(version),
                Err(Stopped::Failed(error)) => return Err(error),
                Err(Stopped::Changed | Stopped::NoRanges) if restart > RESTARTS => break,
                Err(Stopped::Changed | Stopped::NoRanges) => bucket.pause(restart).await,
            }
            into.set_len(0).map_err(unavailable)?;
            let got = bucket.reads().get_opts(&bucket.path(&key)?, options()).await;
            let got = got.map_err(|error| bucket.failed("reading", &key, error))?;
            object = Self::new(bucket.clone(), key.clone(), got);
        }
        let problem = "it changed, or its connection broke, each time it was read";
        Err(BucketError::unavailable(&bucket, "reading", &key, problem))
    }
}

/// The download of one version into a file.
struct Transfer<'a> {
    bucket: &'a ObjectBucket,
    key: &'a BucketKey,
    version: &'a Version,
    target: Target,
}

/// Where the bytes go.
enum Target {
    /// To their place in a file, in any order.
    File(Arc<File>),
    /// Through a decoder, in order.
    Gunzip(Arc<Mutex<Gunzip>>),
}

impl Transfer<'_> {
    fn is_decoded(&self) -> bool {
        matches!(self.target, Target::Gunzip(_))
    }

    /// Takes a body of unknown length. Such a body can't be resumed, because the rest is unknown.
    async fn take_to_the_end(&self, body: Body) -> Result<u64, Stopped> {
        let mut size = 0;
        match self.pump(body, &mut size, None).await? {
            Ok(()) => Ok(size),
            Err(error) => {
                tracing::debug!("{error}; starting again");
                Err(Stopped::Changed)
            }
        }
    }

    /// Checks the bytes against the store's checksums and returns the length of the file. `size` is
    /// the number of bytes that arrived.
    async fn check(
        &self,
        facts: ResponseFacts,
        file: &Arc<File>,
        size: u64,
    ) -> Result<u64, BucketError> {
        match &self.target {
            Target::File(_) if facts.checksums.is_empty() => Ok(size),
            Target::File(_) => {
                let file = file.clone();
                let check = move || facts.checksums.check(&file);
                let checked = if size <= SMALL { check() } else { blocking(check).await };
                checked.map(|()| size).map_err(|error| self.unavailable(error))
            }
            Target::Gunzip(gunzip) => {
                let done = gunzip.lock().finish().map_err(|fault| self.fault(fault))?;
                done.map_err(|problem| {
                    let key = self.key;
                    let problem = format!(
                        "`{key}` has `Content-Encoding: gzip` but is not gzip: {problem}; with \
                         --stored-encoding keep, tasks get the stored bytes"
                    );
                    BucketError::invalid(self.bucket, problem)
                })
            }
        }
    }

    fn fault(&self, fault: DecodeError) -> BucketError {
        match fault {
            DecodeError::Disk(error) => self.unavailable(error),
            DecodeError::TooLarge => {
                let most = bytesize::ByteSize(self.bucket.largest_decoded());
                let problem = format!(
                    "`{}` has `Content-Encoding: gzip` and decodes to more than {most}; raise \
                     --cache-size, or use --stored-encoding keep",
                    self.key
                );
                BucketError::invalid(self.bucket, problem)
            }
        }
    }

    async fn take_all(&self, body: Body) -> Result<(), Stopped> {
        let mut body = Some(body);
        let mut under_way = FuturesUnordered::new();
        let mut start = 0;
        while start < self.version.size {
            if under_way.len() == PARTS_AT_ONCE
                && let Some(done) = under_way.next().await
            {
                done?;
            }
            let range = start..self.version.size.min(start + PART);
            start = range.end;
            // The body of the open response starts with the first part.
            under_way.push(self.take(range, body.take()));
        }
        while let Some(done) = under_way.next().await {
            done?;
        }
        Ok(())
    }

    /// Fetches a range and writes it to its place in the file. `body`, if given, begins at the
    /// start of the range.
    async fn take(&self, range: Range<u64>, mut body: Option<Body>) -> Result<(), Stopped> {
        let mut at = range.start;
        let mut failures = 0;
        while at < range.end {
            let before = at;
            let body = match body.take() {
                Some(body) => body,
                None => self.range(at..range.end).await?,
            };
            if let Err(error) = self.pump(body, &mut at, Some(range.end)).await? {
                failures = if at > before { 1 } else { failures + 1 };
                if failures > RESUMES {
                    return Err(error.into());
                }
                tracing::debug!("{error}; resuming at byte {at}");
                self.bucket.pause(failures).await;
            }
        }
        Ok(())
    }

    /// Requests the rest of a range. The store's client retries the request itself.
    async fn range(&self, range: Range<u64>) -> Result<Body, Stopped> {
        let mut options = GetOptions {
            range: (range.start > 0 || range.end < self.version.size)
                .then(|| GetRange::Bounded(range.clone())),
            ..options()
        };
        match Tag::of(self.version) {
            // A weak entity tag never matches.
            Tag::Entity(tag) if !tag.starts_with("W/") => options.if_match = Some(tag.to_owned()),
            Tag::Time(time) => options.if_unmodified_since = time.parse().ok(),
            Tag::Entity(_) | Tag::None => {}
        }
        let path = self.bucket.path(self.key)?;
        match self.bucket.reads().get_opts(&path, options).await {
            Ok(got) if !is_same(&self.version_of(&got), self.version) => Err(Stopped::Changed),
            Ok(got) => Ok(got.into_stream()),
            Err(object_store::Error::Precondition { .. }) => Err(Stopped::Changed),
            Err(object_store::Error::NotSupported { .. }) => Err(Stopped::NoRanges),
            Err(error) => Err(self.bucket.failed("reading", self.key, error).into()),
        }
    }

    fn version_of(&self, got: &GetResult) -> Version {
        version(&got.meta, &facts(got), self.bucket.stored_encoding())
    }

    /// Writes a body to the file, from `at` to `end` or to the end of the body, and advances `at`.
    /// The inner error means that the body broke off.
    async fn pump(
        &self,
        mut body: Body,
        at: &mut u64,
        end: Option<u64>,
    ) -> Result<Result<(), BucketError>, Stopped> {
        let idle = self.bucket.idle();
        let mut buffer = BytesMut::new();
        loop {
            let broke = match tokio::time::timeout(idle, body.next()).await {
                Ok(Some(Ok(chunk))) => {
                    let wanted = end.map_or(u64::MAX, |end| end - *at - buffer.len() as u64);
                    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
                    buffer.extend_from_slice(&chunk[..chunk.len().min(wanted)]);
                    None
                }
                Ok(None) if end.is_none() => {
                    let bytes = buffer.split().freeze();
                    let written = bytes.len() as u64;
                    self.write(bytes, *at).await?;
                    *at += written;
                    return Ok(Ok(()));
                }
                Ok(None) => Some(self.unavailable("the connection ended before the object")),
                Ok(Some(Err(error))) => Some(self.bucket.failed("reading", self.key, error)),
                Err(_) => {
                    let problem = format!("no byte arrived for {} s", idle.as_secs_f64());
                    Some(self.unavailable(problem))
                }
            };
            let is_all = end == Some(*at + buffer.len() as u64);
            if is_all || broke.is_some() || buffer.len() >= WRITE {
                let bytes = buffer.split().freeze();
                let written = bytes.len() as u64;
                self.write(bytes, *at).await?;
                *at += written;
            }
            match broke {
                _ if is_all => return Ok(Ok(())),
                Some(error) => return Ok(Err(error)),
                None => {}
            }
        }
    }

    async fn write(&self, bytes: Bytes, at: u64) -> Result<(), BucketError> {
        match &self.target {
            Target::File(file) => {
                let file = file.clone();
                let is_small = bytes.len() as u64 <= SMALL;
                let write = move || -> io::Result<()> { file.write_all_at(&bytes, at) };
                let written = if is_small { write() } else { blocking(write).await };
                written.map_err(|error| self.unavailable(error))
            }
            Target::Gunzip(gunzip) => {
                let gunzip = gunzip.clone();
                let is_small = bytes.len() <= DECODED_HERE;
                let feed = move || gunzip.lock().feed(&bytes);
                let fed = if is_small { feed() } else { blocking(feed).await };
                fed.map_err(|fault| self.fault(fault))
            }
        }
    }

    fn unavailable(
        &self,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> BucketError {
        BucketError::unavailable(self.bucket, "reading", self.key, error)
    }
}
