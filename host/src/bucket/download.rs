//! Taking the bytes of an object of a store: in parts if it is large, resumed where they
//! broke off, and never a mix of two versions.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, FuturesUnordered, StreamExt};
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore};

use super::dir::blocking;
use super::object::ObjectBucket;
use super::transport::Facts;
use super::{BucketError, Object, Opened, SMALL, Version};
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
    /// The object is another now.
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

/// Begins to fetch an object, unless it still is the version that is known.
pub(super) async fn open(
    bucket: &ObjectBucket,
    key: &BucketKey,
    known: Option<&Version>,
) -> Result<Opened, BucketError> {
    let mut options = GetOptions::default();
    match known.map(Tag::of) {
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
    let version = version(&got.meta);
    // Not every server knows conditions.
    if known == Some(&version) {
        return Ok(Opened::Unchanged);
    }
    let (bucket, key) = (bucket.clone(), key.clone());
    Ok(Opened::Object(Box::new(Coming::new(bucket, key, version, got))))
}

impl Coming {
    fn new(bucket: ObjectBucket, key: BucketKey, version: Version, got: GetResult) -> Self {
        let facts = got.extensions.get::<Facts>().cloned().unwrap_or_default();
        Self { bucket, key, version, facts, body: got.into_stream() }
    }

    /// The bytes of this version, all of them, or why not.
    async fn take(self, into: &Arc<File>) -> Result<Version, Stop> {
        let Self { bucket, key, version, facts, body } = self;
        let parts = Parts { bucket: &bucket, key: &key, version: &version, into };
        let has_ranges = bucket.has_ranges() || facts.has_ranges;
        if version.size <= ONE_GET || !has_ranges {
            parts.take(0..version.size, Some(body)).await?;
        } else {
            parts.take_all(body).await?;
        }
        if !facts.sums.is_empty() {
            let file = into.clone();
            let check = move || facts.sums.check(&file);
            let checked = if version.size <= SMALL { check() } else { blocking(check).await };
            checked.map_err(|error| parts.unavailable(error))?;
        }
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
            let got = bucket.reads().get_opts(&bucket.path(&key)?, GetOptions::default()).await;
            let got = got.map_err(|error| bucket.failed("reading", &key, error))?;
            coming = Self::new(bucket.clone(), key.clone(), version(&got.meta), got);
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
    into: &'a Arc<File>,
}

impl Parts<'_> {
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
            if let Err(error) = self.pump(body, &mut at, range.end).await? {
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
            ..GetOptions::default()
        };
        match Tag::of(self.version) {
            // A weak one never matches.
            Tag::Entity(tag) if !tag.starts_with("W/") => options.if_match = Some(tag.to_owned()),
            Tag::Time(time) => options.if_unmodified_since = time.parse().ok(),
            Tag::Entity(_) | Tag::None => {}
        }
        let path = self.bucket.path(self.key)?;
        match self.bucket.reads().get_opts(&path, options).await {
            Ok(got) if !is_same(&version(&got.meta), self.version) => Err(Stop::Changed),
            Ok(got) => Ok(got.into_stream()),
            Err(object_store::Error::Precondition { .. }) => Err(Stop::Changed),
            Err(object_store::Error::NotSupported { .. }) => Err(Stop::NoRanges),
            Err(error) => Err(self.bucket.failed("reading", self.key, error).into()),
        }
    }

    /// Writes a body from `at` to `end`, and moves `at` on. The outer error is one of the
    /// local disk, the inner one that the body broke off.
    async fn pump(
        &self,
        mut body: Body,
        at: &mut u64,
        end: u64,
    ) -> Result<Result<(), BucketError>, Stop> {
        let idle = self.bucket.idle();
        let mut buffer = BytesMut::new();
        loop {
            let broke = match tokio::time::timeout(idle, body.next()).await {
                Ok(Some(Ok(chunk))) => {
                    let wanted = end - *at - buffer.len() as u64;
                    let chunk = chunk.slice(..chunk.len().min(wanted as usize));
                    buffer.extend_from_slice(&chunk);
                    None
                }
                Ok(None) => Some(self.unavailable("the connection ended before the object did")),
                Ok(Some(Err(error))) => Some(self.bucket.failed("reading", self.key, error)),
                Err(_) => {
                    let problem = format!("no byte came for {} s", idle.as_secs_f64());
                    Some(self.unavailable(problem))
                }
            };
            let is_all = *at + buffer.len() as u64 == end;
            if is_all || broke.is_some() || buffer.len() >= WRITE {
                let bytes = buffer.split().freeze();
                let written = bytes.len() as u64;
                self.write(bytes, *at).await.map_err(|error| self.unavailable(error))?;
                *at += written;
            }
            match broke {
                _ if is_all => return Ok(Ok(())),
                Some(error) => return Ok(Err(error)),
                None => {}
            }
        }
    }

    async fn write(&self, bytes: Bytes, at: u64) -> io::Result<()> {
        if bytes.len() as u64 <= SMALL {
            return self.into.write_all_at(&bytes, at);
        }
        let into = self.into.clone();
        blocking(move || into.write_all_at(&bytes, at)).await
    }

    fn unavailable(
        &self,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> BucketError {
        BucketError::unavailable(self.bucket, "reading", self.key, error)
    }
}

/// How a version was told.
enum Tag<'a> {
    Entity(&'a str),
    Time(&'a str),
    None,
}

/// What begins the tag of a version that only a time tells.
const TIME: &str = "time ";
/// What begins that of one that nothing tells: what follows is new each time.
const NOTHING: &str = "nothing ";

impl<'a> Tag<'a> {
    fn of(version: &'a Version) -> Self {
        match version.tag.strip_prefix(TIME) {
            Some(time) => Self::Time(time),
            None if version.tag.starts_with(NOTHING) => Self::None,
            None => Self::Entity(&version.tag),
        }
    }
}

/// Where nothing tells versions apart, only the size can be compared.
fn is_same(a: &Version, b: &Version) -> bool {
    a == b || (a.size == b.size && matches!((Tag::of(a), Tag::of(b)), (Tag::None, Tag::None)))
}

/// The entity tag says it best. A web server may only have a time, or not even that.
pub(super) fn version(meta: &ObjectMeta) -> Version {
    let tag = match &meta.e_tag {
        Some(tag) => tag.clone(),
        None if meta.last_modified.timestamp() > 0 => {
            format!("{TIME}{}", meta.last_modified.to_rfc3339())
        }
        None => format!("{NOTHING}{}", uuid::Uuid::new_v4()),
    };
    Version { tag, size: meta.size }
}
