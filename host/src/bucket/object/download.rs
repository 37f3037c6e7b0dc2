//! Taking the bytes of an object of a store: in parts if it is large, resumed where they
//! broke off, decoded if they are stored compressed, and never a mix of two versions.

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

use super::super::encoding::{Coding, Fault, Gunzip};
use super::super::transport::{Facts, ForObject};
use super::super::{BucketError, Object, Opened, StoredEncoding, Version};
use super::ObjectBucket;
use super::version::{Tag, facts, is_ours, is_same, version};
use crate::blocking::{SMALL, blocking};
use crate::key::BucketKey;

/// Objects above this many bytes are fetched in parts.
const ONE_GET: u64 = 32 * 1024 * 1024;
/// The size of a part.
const PART: u64 = 8 * 1024 * 1024;
/// Parts of one object that are under way at once.
const PARTS_AT_ONCE: usize = 4;
/// How often a body that breaks off is resumed without a byte more having come.
const RESUMES: u32 = 4;
/// How often an object is begun again that changes while it is fetched.
const VERSIONS: usize = 5;
/// What is written at once.
const WRITE: usize = 1024 * 1024;
/// Compressed bytes that are decoded where the caller runs: they become at most 16 MiB.
const DECODED_HERE: usize = 16 * 1024;

type Body = BoxStream<'static, object_store::Result<Bytes>>;

/// An object whose headers have come.
pub(super) struct Coming {
    bucket: ObjectBucket,
    key: BucketKey,
    version: Version,
    facts: Facts,
    body: Body,
}

impl fmt::Debug for Coming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coming").field("key", &self.key).field("version", &self.version).finish()
    }
}

/// Why a part did not come.
enum Stop {
    /// The object was replaced, or it can't be known whether it was.
    Changed,
    /// The store can't give a part of it.
    NoRanges,
    Failed(BucketError),
}

impl From<BucketError> for Stop {
    fn from(error: BucketError) -> Self {
        Self::Failed(error)
    }
}

/// What every request for an object has.
pub(super) fn options() -> GetOptions {
    let mut options = GetOptions::default();
    options.extensions.insert(ForObject);
    options
}

/// Begins to fetch an object, unless it still is the version that is known.
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
    let got = match bucket.reads().get_opts(&bucket.path(key)?, options).await {
        Ok(got) => got,
        Err(object_store::Error::NotModified { .. }) if known.is_some() => {
            return Ok(Opened::Unchanged);
        }
        Err(error) => return Err(bucket.failed("reading", key, error)),
    };
    let coming = Coming::new(bucket.clone(), key.clone(), got);
    // Not every server knows conditions.
    if known == Some(&coming.version) {
        return Ok(Opened::Unchanged);
    }
    Ok(Opened::Object(Box::new(coming)))
}

impl Coming {
    fn new(bucket: ObjectBucket, key: BucketKey, got: GetResult) -> Self {
        let facts = facts(&got);
        let version = version(&got.meta, &facts, bucket.stored_encoding());
        Self { bucket, key, version, facts, body: got.into_stream() }
    }

    /// The bytes of this version, all of them, or why not.
    async fn take(self, into: &Arc<File>) -> Result<Version, Stop> {
        let Self { bucket, key, mut version, facts, body } = self;
        let target = match (&facts.coding, bucket.stored_encoding()) {
            (Coding::Plain, _) | (_, StoredEncoding::Keep) => Target::File(into.clone()),
            (Coding::Gzip, _) => {
                let gunzip = Gunzip::new(into.clone(), bucket.largest_decoded(), &facts.sums);
                Target::Gunzip(Arc::new(Mutex::new(gunzip)))
            }
            (Coding::Other(name), _) => {
                let problem = format!(
                    "`{key}` is stored with `Content-Encoding: {name}`, which can't be decoded \
                     here; with --stored-encoding keep, tasks get the bytes as they are stored"
                );
                return Err(BucketError::invalid(&bucket, problem).into());
            }
        };
        let parts = Parts { bucket: &bucket, key: &key, version: &version, target };
        let has_ranges = bucket.has_ranges() || facts.has_ranges;
        let mut size = version.size;
        if !facts.has_length {
            size = parts.take_to_the_end(body).await?;
        } else if version.size <= ONE_GET || !has_ranges || parts.is_decoded() {
            parts.take(0..version.size, Some(body)).await?;
        } else {
            parts.take_all(body).await?;
        }
        version.size = parts.check(facts, into, size).await?;
        Ok(version)
    }
}

#[async_trait]
impl Object for Coming {
    fn version(&self) -> &Version {
        &self.version
    }

    async fn write_to(self: Box<Self>, into: File) -> Result<Version, BucketError> {
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        let unavailable = |error| BucketError::unavailable(&bucket, "reading", &key, error);
        let into = Arc::new(into);
        let mut coming = *self;
        for _ in 0..VERSIONS {
            match coming.take(&into).await {
                Ok(version) => return Ok(version),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Changed | Stop::NoRanges) => {}
            }
            into.set_len(0).map_err(unavailable)?;
            let got = bucket.reads().get_opts(&bucket.path(&key)?, options()).await;
            let got = got.map_err(|error| bucket.failed("reading", &key, error))?;
            coming = Self::new(bucket.clone(), key.clone(), got);
        }
        let problem = "it changed or broke off each time it was read";
        Err(BucketError::unavailable(&bucket, "reading", &key, problem))
    }
}

/// One version of an object on its way into a file.
struct Parts<'a> {
    bucket: &'a ObjectBucket,
    key: &'a BucketKey,
    version: &'a Version,
    target: Target,
}

/// Where its bytes go.
enum Target {
    /// To their place in a file, in any order.
    File(Arc<File>),
    /// Through a decoder, in order.
    Gunzip(Arc<Mutex<Gunzip>>),
}

impl Parts<'_> {
    fn is_decoded(&self) -> bool {
        matches!(self.target, Target::Gunzip(_))
    }

    /// Takes a body whose length nobody knows. One that breaks off can't be resumed: without
    /// its length, nobody knows what the rest is.
    async fn take_to_the_end(&self, body: Body) -> Result<u64, Stop> {
        let mut size = 0;
        match self.pump(body, &mut size, None).await? {
            Ok(()) => Ok(size),
            Err(error) => {
                tracing::debug!("{error}; beginning again");
                Err(Stop::Changed)
            }
        }
    }

    /// Looks whether the bytes are what the store has, and says how many there are in the file.
    /// As many as `size` came.
    async fn check(&self, facts: Facts, file: &Arc<File>, size: u64) -> Result<u64, BucketError> {
        match &self.target {
            Target::File(_) if facts.sums.is_empty() => Ok(size),
            Target::File(_) => {
                let file = file.clone();
                let check = move || facts.sums.check(&file);
                let checked = if size <= SMALL { check() } else { blocking(check).await };
                checked.map(|()| size).map_err(|error| self.unavailable(error))
            }
            Target::Gunzip(gunzip) => {
                let done = gunzip.lock().finish().map_err(|fault| self.fault(fault))?;
                done.map_err(|problem| {
                    let key = self.key;
                    let problem = format!(
                        "`{key}` is stored with `Content-Encoding: gzip` and is not gzip: \
                         {problem}; with --stored-encoding keep, tasks get the bytes as they are \
                         stored"
                    );
                    BucketError::invalid(self.bucket, problem)
                })
            }
        }
    }

    fn fault(&self, fault: Fault) -> BucketError {
        match fault {
            Fault::Disk(error) => self.unavailable(error),
            Fault::TooLarge => {
                let most = bytesize::ByteSize(self.bucket.largest_decoded());
                let problem = format!(
                    "`{}` is stored with `Content-Encoding: gzip` and has more than {most} when \
                     it is decoded; give the cache more room with --cache-size, or use \
                     --stored-encoding keep",
                    self.key
                );
                BucketError::invalid(self.bucket, problem)
            }
        }
    }

    async fn take_all(&self, body: Body) -> Result<(), Stop> {
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
            // The answer that is there already begins with the first part.
            under_way.push(self.take(range, body.take()));
        }
        while let Some(done) = under_way.next().await {
            done?;
        }
        Ok(())
    }

    /// Writes a range to its place, from the body if there is one that begins there.
    async fn take(&self, range: Range<u64>, mut body: Option<Body>) -> Result<(), Stop> {
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
            }
        }
        Ok(())
    }

    /// Asks for the rest of a range. The store has tried again by itself what may help.
    async fn range(&self, range: Range<u64>) -> Result<Body, Stop> {
        let mut options = GetOptions {
            range: (range.start > 0 || range.end < self.version.size)
                .then(|| GetRange::Bounded(range.clone())),
            ..options()
        };
        match Tag::of(self.version) {
            // A weak one never matches.
            Tag::Entity(tag) if !tag.starts_with("W/") => options.if_match = Some(tag.to_owned()),
            Tag::Time(time) => options.if_unmodified_since = time.parse().ok(),
            Tag::Entity(_) | Tag::None => {}
        }
        let path = self.bucket.path(self.key)?;
        match self.bucket.reads().get_opts(&path, options).await {
            Ok(got) if !is_same(&self.version_of(&got), self.version) => Err(Stop::Changed),
            Ok(got) => Ok(got.into_stream()),
            Err(object_store::Error::Precondition { .. }) => Err(Stop::Changed),
            Err(object_store::Error::NotSupported { .. }) => Err(Stop::NoRanges),
            Err(error) => Err(self.bucket.failed("reading", self.key, error).into()),
        }
    }

    fn version_of(&self, got: &GetResult) -> Version {
        version(&got.meta, &facts(got), self.bucket.stored_encoding())
    }

    /// Writes a body from `at` to `end`, and moves `at` on; to its own end where there is none.
    /// The inner error is that the body broke off.
    async fn pump(
        &self,
        mut body: Body,
        at: &mut u64,
        end: Option<u64>,
    ) -> Result<Result<(), BucketError>, Stop> {
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
                Ok(None) => Some(self.unavailable("the connection ended before the object did")),
                Ok(Some(Err(error))) => Some(self.bucket.failed("reading", self.key, error)),
                Err(_) => {
                    let problem = format!("no byte came for {} s", idle.as_secs_f64());
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
