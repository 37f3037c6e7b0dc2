//! From a task name to a compiled component, ready to instantiate.
//!
//! A component is found by name, known by the digest of its bytes, and compiled once per
//! digest: concurrent tasks wait for one compilation, later runs of the host load the
//! compiled code from the cache directory. A new upload has a new digest and is picked up at
//! the next look; tasks under way keep the component they began with.
//!
//! A component is compiled by a process of its own, under limits: `catalog/compiler.rs` starts it,
//! and `catalog/child.rs` is what it does. Its code is kept on disk by `catalog/compiled.rs`. A
//! component that can't be compiled is remembered by `catalog/quarantine.rs`, and not compiled
//! again. What can't be read, kept or compiled for reasons that are the host's own is
//! [`CatalogError::Unavailable`], never [`CatalogError::NotAGuest`].

mod child;
mod compiled;
mod compiler;
mod quarantine;

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::future::Cache as Memory;
use tokio::sync::{Notify, Semaphore};

use self::compiled::Compiled;
use self::compiler::{Failed, Uncompiled};
use self::quarantine::{MOST_DEATHS, Turn};
use crate::bucket::{Bucket, BucketError};
use crate::cache::{Blob, Cache, CacheError};
use crate::digest::Digest;
use crate::key::{BucketKey, Prefix, TaskName};
use crate::sandbox::{Guest, NotAGuest, Sandbox};
use crate::words;

pub use self::child::compile_for_parent;
pub use self::compiled::check_compiled;
pub use self::compiler::{CompileLimits, Compiler, HostError};
pub use self::quarantine::{Quarantined, forget_quarantined, quarantined};

/// How long a name is taken to mean the digest it meant when it was last looked up.
const FRESH: Duration = Duration::from_secs(1);
/// The same where a look is a request to a cloud.
const FRESH_REMOTE: Duration = Duration::from_secs(10);
/// Names whose digests are remembered.
const NAMES: u64 = 4096;
/// Bytes of compiled code that are kept ready in memory, beside what tasks are using.
const READY: u64 = 1 << 30;
/// What a component takes beside its code, in bytes, at most: it is linked, and has types.
const BESIDE_CODE: u64 = 4 << 20;
/// How often a component is fetched again that was removed from the cache before it was read.
const FETCHES: usize = 5;
/// Compiled code may take this part of what the cache may take, and in addition to it.
const COMPILED_PART: u64 = 4;
/// Components that may wait to be compiled at the same time, or be compiled.
const SEATS: usize = 8;
/// How long tasks that wait for a compilation keep others out.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of what a compiler says that are kept.
const MOST_WORDS: usize = 16 << 10;

/// A component that can be run.
#[derive(Clone)]
pub struct Ready {
    /// Its bytes' SHA-256.
    pub digest: Digest,
    /// What the sandbox runs.
    pub guest: Guest,
}

/// One that is kept ready, and what it takes.
#[derive(Clone)]
struct Kept {
    guest: Guest,
    kibibytes: u32,
}

/// Why there is no component to run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// Nothing has that name.
    #[error(
        "there is no component for tasks named `{name}`: {place} does not exist; \
         `host component push FILE.wasm --name {name}` puts one there"
    )]
    NotFound {
        /// The task's name.
        name: TaskName,
        /// Where it was looked for.
        place: String,
    },
    /// What has that name can't be run.
    #[error("the component {place} can't be run: {problem}")]
    NotAGuest {
        /// Where it is.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It is not ready yet, through no fault of the task: it is being compiled for another task,
    /// or others are, or what compiled it was killed.
    #[error("the component {place} is not ready yet: {why}")]
    NotYet {
        /// Where it is.
        place: String,
        /// What it waits for.
        why: String,
        /// How long that has taken so far.
        since: Duration,
    },
    /// It could not be fetched or compiled, for a reason that is the bucket's or this host's.
    #[error("the component {place} could not be made ready: {source}")]
    Unavailable {
        /// Where it is.
        place: String,
        /// What failed: a [`CacheError`], or a [`HostError`].
        #[source]
        source: Arc<dyn StdError + Send + Sync>,
    },
}

impl CatalogError {
    /// True when the cause is this machine: its disk, its directories, its limits.
    pub fn is_of_this_host(&self) -> bool {
        let Self::Unavailable { source, .. } = self else { return false };
        match source.downcast_ref::<CacheError>() {
            Some(error) => error.is_of_this_host(),
            None => source.is::<HostError>(),
        }
    }
}

/// Why a component is not ready.
enum NotReady {
    /// Its blob was removed, or found to be damaged, since it was looked up.
    Gone(CacheError),
    /// Another try does not help at once.
    Failed(CatalogError),
}

/// Where components come from, and those that are ready.
pub struct Catalog {
    bucket: Arc<dyn Bucket>,
    prefix: Prefix,
    cache: Cache,
    sandbox: Arc<Sandbox>,
    compiler: Arc<Compiler>,
    compiled: Arc<Compiled>,
    names: Memory<TaskName, Blob>,
    ready: Memory<Digest, Kept>,
    /// One permit for each component that waits to be compiled, or is.
    seats: Semaphore,
    under_way: UnderWay,
}

/// Since when components are being compiled.
#[derive(Debug, Default)]
struct UnderWay(Mutex<HashMap<Digest, Instant>>);

impl UnderWay {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, digest: Digest) -> Entered<'_> {
        self.all().insert(digest, Instant::now());
        Entered { under_way: self, digest }
    }

    fn since(&self, digest: Digest) -> Option<Duration> {
        self.all().get(&digest).map(Instant::elapsed)
    }

    /// Waits until a component has been compiled for longer than others should wait. Returns how
    /// long it has been.
    async fn takes_long(&self, digest: Digest) -> Duration {
        loop {
            match self.since(digest) {
                Some(since) if since >= PATIENCE => return since,
                Some(since) => tokio::time::sleep(PATIENCE - since).await,
                None => tokio::time::sleep(PATIENCE / 10).await,
            }
        }
    }
}

/// A component that is being compiled, until this is dropped.
struct Entered<'a> {
    under_way: &'a UnderWay,
    digest: Digest,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.under_way.all().remove(&self.digest);
    }
}

/// One caller who needs a component.
struct Caller<'a> {
    /// True once the component is compiled by this caller's own future.
    compiles: AtomicBool,
    /// Notified when that takes long.
    takes_long: &'a Notify,
}

impl Catalog {
    /// Components `PREFIX/NAME.wasm` of `bucket`, compiled by `compiler`; compiled code in
    /// `compiled`.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        prefix: Prefix,
        cache: Cache,
        sandbox: Arc<Sandbox>,
        compiler: Compiler,
        compiled: &Path,
    ) -> Self {
        let max_bytes = cache.max_bytes() / COMPILED_PART;
        let compiled = Arc::new(Compiled::open(compiled, sandbox.engine(), max_bytes));
        let fresh = if bucket.is_local() { FRESH } else { FRESH_REMOTE };
        let ready = READY.max(2 * compiler.limits().code().as_u64());
        Self {
            bucket,
            prefix,
            cache,
            sandbox,
            compiler: Arc::new(compiler),
            compiled,
            names: Memory::builder().max_capacity(NAMES).time_to_live(fresh).build(),
            ready: Memory::builder()
                .max_capacity(ready >> 10)
                .weigher(|_, kept: &Kept| kept.kibibytes)
                .build(),
            seats: Semaphore::new(SEATS),
            under_way: UnderWay::default(),
        }
    }

    /// The component of that name, now. `takes_long` is notified when this call has been compiling
    /// the component for a while, which may go on for minutes: what others need is better not held
    /// meanwhile. Dropping the future ends the compilation, unless another call waits for it too.
    ///
    /// # Errors
    /// When there is none, or none that can be run, both of which may be put right by a push; or
    /// when another call has been compiling it for a while.
    pub async fn resolve(
        &self,
        name: &TaskName,
        takes_long: &Notify,
    ) -> Result<Ready, CatalogError> {
        let caller = Caller { compiles: AtomicBool::new(false), takes_long };
        let mut fetches = 1;
        loop {
            let blob = self
                .names
                .try_get_with_by_ref(name, self.look_up(name))
                .await
                .map_err(|e: Arc<CatalogError>| (*e).clone())?;
            match self.get(name, &blob, &caller).await {
                Ok(guest) => return Ok(Ready { digest: blob.digest, guest }),
                Err(error) => match &*error {
                    NotReady::Gone(_) if fetches < FETCHES => fetches += 1,
                    NotReady::Gone(error) => {
                        return Err(self.unavailable(&self.key(name), error.clone()));
                    }
                    NotReady::Failed(error) => return Err(error.clone()),
                },
            }
            self.names.invalidate(name).await;
        }
    }

    /// What keeps tasks of that name from their component at the moment, if it has been compiling
    /// for a while. Asks nobody.
    pub async fn is_slow(&self, name: &TaskName) -> Option<CatalogError> {
        if self.under_way.all().is_empty() {
            return None;
        }
        let digest = self.names.get(name).await?.digest;
        let since = self.under_way.since(digest).filter(|since| *since >= PATIENCE)?;
        Some(self.takes_long(name, since))
    }

    /// What compiles.
    pub(crate) fn compiler(&self) -> &Arc<Compiler> {
        &self.compiler
    }

    /// Where components are.
    pub fn bucket(&self) -> &Arc<dyn Bucket> {
        &self.bucket
    }

    /// True when components are in that bucket.
    pub fn is_in(&self, bucket: &Arc<dyn Bucket>) -> bool {
        Arc::ptr_eq(&self.bucket, bucket)
    }

    /// The key of the component of that name.
    pub fn key(&self, name: &TaskName) -> BucketKey {
        self.prefix.join(&name.file())
    }

    async fn look_up(&self, name: &TaskName) -> Result<Blob, CatalogError> {
        let key = self.key(name);
        match self.cache.fetch(&*self.bucket, &key, Duration::ZERO).await {
            Ok(blob) => Ok(blob),
            Err(CacheError::Bucket(error)) if matches!(*error, BucketError::NotFound { .. }) => {
                Err(CatalogError::NotFound { name: name.clone(), place: self.place(&key) })
            }
            Err(error) => Err(self.unavailable(&key, error)),
        }
    }

    /// The component of a blob: one that is ready, or made ready by the first who asks.
    async fn get(
        &self,
        name: &TaskName,
        blob: &Blob,
        caller: &Caller<'_>,
    ) -> Result<Guest, Arc<NotReady>> {
        if let Some(kept) = self.ready.get(&blob.digest).await {
            return Ok(kept.guest);
        }
        let make = self.make_ready(name, blob, caller);
        let mut made = std::pin::pin!(self.ready.try_get_with(blob.digest, make));
        let since = tokio::select! {
            biased;
            made = &mut made => return made.map(|kept| kept.guest),
            since = self.under_way.takes_long(blob.digest) => since,
        };
        if caller.compiles.load(Relaxed) {
            tracing::info!("component {name} is being compiled; others run meanwhile");
            caller.takes_long.notify_one();
            return made.await.map(|kept| kept.guest);
        }
        Err(Arc::new(NotReady::Failed(self.takes_long(name, since))))
    }

    fn takes_long(&self, name: &TaskName, since: Duration) -> CatalogError {
        let why = format!(
            "it has been compiling for {}; this task comes back later",
            humantime::format_duration(Duration::from_secs(since.as_secs()))
        );
        self.not_yet(name, why, since)
    }

    async fn make_ready(
        &self,
        name: &TaskName,
        blob: &Blob,
        caller: &Caller<'_>,
    ) -> Result<Kept, NotReady> {
        match self.prepare(name, blob, caller).await {
            Ok(kept) => Ok(kept),
            Err(Unprepared::Gone(error)) => Err(NotReady::Gone(error)),
            Err(unprepared) => {
                let key = self.key(name);
                Err(NotReady::Failed(match unprepared {
                    Unprepared::NotYet(why) => self.not_yet(name, why, Duration::ZERO),
                    Unprepared::NotAGuest(NotAGuest(problem)) => CatalogError::NotAGuest {
                        place: self.place(&key),
                        problem: bounded(&problem),
                    },
                    Unprepared::Host(error) => self.unavailable(&key, error),
                    Unprepared::Gone(error) | Unprepared::Cache(error) => {
                        self.unavailable(&key, error)
                    }
                }))
            }
        }
    }

    /// Loads or compiles a component.
    async fn prepare(
        &self,
        name: &TaskName,
        blob: &Blob,
        caller: &Caller<'_>,
    ) -> Result<Kept, Unprepared> {
        if let Some(kept) = self.load(blob.digest).await? {
            return Ok(kept);
        }
        let Ok(_seat) = self.seats.try_acquire() else {
            return Err(Unprepared::NotYet(format!(
                "{SEATS} other components are being compiled; this task comes back later"
            )));
        };
        let _entered = self.under_way.enter(blob.digest);
        caller.compiles.store(true, Relaxed);
        // Another host may be compiling it for the same cache: wait, and take what it kept.
        let mut turn = self.compiled.turn(blob.digest).await;
        if let Some(kept) = self.load(blob.digest).await? {
            if let Some(turn) = &mut turn {
                turn.forget_deaths();
            }
            return Ok(kept);
        }
        let _permit = self.compiler.turn().await;
        let result = self.compile(name, blob, &mut turn).await;
        match &result {
            Err(Unprepared::NotAGuest(NotAGuest(problem))) => {
                tracing::warn!("component {name} ({}) can't be run: {problem}", blob.digest);
            }
            Err(Unprepared::NotYet(why)) => {
                tracing::warn!("component {name} ({}) was not compiled: {why}", blob.digest);
            }
            _ => {}
        }
        result
    }

    /// Compiles a component, in its turn among hosts, and keeps what comes of it.
    async fn compile(
        &self,
        name: &TaskName,
        blob: &Blob,
        turn: &mut Option<Turn>,
    ) -> Result<Kept, Unprepared> {
        let start = Instant::now();
        let deaths = turn.as_ref().map_or(0, Turn::deaths);
        if deaths >= MOST_DEATHS {
            return Err(self.give_up(blob.digest, turn, deaths));
        }
        if let Some(turn) = turn
            && let Err(error) = turn.begin()
        {
            tracing::debug!("that {name} is being compiled could not be noted: {error}");
        }
        let file = self.cache.read(blob).map_err(|error| match error {
            CacheError::Gone { .. } => Unprepared::Gone(error),
            error => Unprepared::Cache(error),
        })?;
        let file = tokio::fs::File::from_std(file);
        let code = match self.compiler.compile(blob.digest, blob.size, file).await {
            Ok(code) => code,
            Err(Uncompiled::Failed(failed)) => {
                return Err(self.remember(blob.digest, turn, failed));
            }
            Err(Uncompiled::Died(how)) => {
                let deaths = self.compiled.died(blob.digest, turn);
                if deaths >= MOST_DEATHS {
                    return Err(self.give_up(blob.digest, turn, deaths));
                }
                return Err(Unprepared::NotYet(format!("{how}; it is tried once more")));
            }
            Err(Uncompiled::Stopped(how)) => return Err(Unprepared::NotYet(how)),
            Err(Uncompiled::Damaged) => return Err(self.distrust(blob, None).await),
            Err(Uncompiled::Unread(error)) => return Err(self.distrust(blob, Some(error)).await),
            Err(Uncompiled::Host(error)) => return Err(Unprepared::Host(error)),
        };
        let seconds = start.elapsed().as_secs_f64();
        tracing::info!("component {name} compiled in {seconds:.1} s");
        if let Some(turn) = turn {
            turn.forget_deaths();
        }
        let (sandbox, compiled, digest) =
            (self.sandbox.clone(), self.compiled.clone(), blob.digest);
        in_background(move || {
            compiled.keep(digest, &code);
            make_guest(&sandbox, &code)
        })
        .await
    }

    /// Loads a component that was compiled before, or knows why it can't be.
    async fn load(&self, digest: Digest) -> Result<Option<Kept>, Unprepared> {
        let (sandbox, compiled) = (self.sandbox.clone(), self.compiled.clone());
        let limits = self.compiler.limits();
        in_background(move || {
            if let Some(code) = compiled.load(digest) {
                return make_guest(&sandbox, &code).map(Some);
            }
            match compiled.failed(digest, limits) {
                None => Ok(None),
                Some(failed) => Err(Unprepared::NotAGuest(NotAGuest(format!(
                    "{} (so an earlier try on this machine ended; `host cache quarantine --clear` \
                     allows another)",
                    failed.reason
                )))),
            }
        })
        .await
    }

    /// What is left to do about a component whose compilation was cut short by death so often.
    fn give_up(&self, digest: Digest, turn: &mut Option<Turn>, deaths: u32) -> Unprepared {
        self.remember(digest, turn, Failed::by_deaths(deaths, self.compiler.limits()))
    }

    fn remember(&self, digest: Digest, turn: &mut Option<Turn>, failed: Failed) -> Unprepared {
        self.compiled.remember(digest, &failed);
        if let Some(turn) = turn {
            turn.forget_deaths();
        }
        Unprepared::NotAGuest(NotAGuest(failed.reason))
    }

    /// Looks at a blob whose bytes could not be read, or are not what they were.
    async fn distrust(&self, blob: &Blob, error: Option<io::Error>) -> Unprepared {
        let (cache, blob) = (self.cache.clone(), blob.clone());
        match in_background(move || Ok(cache.distrust(&blob, error))).await {
            Ok(error @ CacheError::Gone { .. }) => Unprepared::Gone(error),
            Ok(error) => Unprepared::Cache(error),
            Err(unprepared) => unprepared,
        }
    }

    fn place(&self, key: &BucketKey) -> String {
        format!("{}/{key}", self.bucket)
    }

    fn not_yet(&self, name: &TaskName, why: String, since: Duration) -> CatalogError {
        CatalogError::NotYet { place: self.place(&self.key(name)), why, since }
    }

    fn unavailable(
        &self,
        key: &BucketKey,
        error: impl StdError + Send + Sync + 'static,
    ) -> CatalogError {
        CatalogError::Unavailable { place: self.place(key), source: Arc::new(error) }
    }
}

/// Why a component could not be loaded or compiled.
enum Unprepared {
    /// The blob has to be fetched again.
    Gone(CacheError),
    /// The blob could not be read.
    Cache(CacheError),
    /// This host could not compile or load it.
    Host(HostError),
    /// It can't be compiled, or what was compiled can't be run.
    NotAGuest(NotAGuest),
    /// It may be, at another time.
    NotYet(String),
}

/// Makes a guest of compiled code.
fn make_guest(sandbox: &Sandbox, code: &[u8]) -> Result<Kept, Unprepared> {
    // SAFETY: these are the bytes that a process of ours has compiled, or that were kept of such
    // bytes: their checksum was right, and their file was in a directory that nobody else can
    // write to. The engine checks that its version and settings are the same.
    let component = unsafe { sandbox.load(code) }.map_err(|error| match host_cause(&error) {
        Some(source) => Unprepared::Host(HostError { doing: "loading its compiled code", source }),
        None => Unprepared::NotAGuest(NotAGuest::new(&error)),
    })?;
    let guest = sandbox.link(&component).map_err(Unprepared::NotAGuest)?;
    let kibibytes = (code.len() as u64 + BESIDE_CODE) >> 10;
    Ok(Kept { guest, kibibytes: u32::try_from(kibibytes).unwrap_or(u32::MAX) })
}

/// Does what takes the disk or a processor a while.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unprepared> + Send + 'static,
) -> Result<T, Unprepared> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // The runtime is going down.
        Err(error) if error.is_cancelled() => {
            let source = io::Error::other(error);
            Err(Unprepared::Host(HostError { doing: "making it ready", source }))
        }
        Err(error) => {
            Err(Unprepared::NotAGuest(NotAGuest(format!("making it ready failed: {error}"))))
        }
    }
}

/// The machine's part in a failure to load: no memory, most likely.
fn host_cause(error: &wasmtime::Error) -> Option<io::Error> {
    for cause in error.chain() {
        if let Some(errno) = cause.downcast_ref::<rustix::io::Errno>() {
            return Some(io::Error::from(*errno));
        }
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            return Some(match cause.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(cause.kind(), cause.to_string()),
            });
        }
        if cause.downcast_ref::<wasmtime::OutOfMemory>().is_some() {
            return Some(io::Error::from(io::ErrorKind::OutOfMemory));
        }
    }
    None
}

/// What a compiler or a component has to say, cut to [`MOST_WORDS`] and in one line.
fn bounded(said: &str) -> String {
    words::bounded_line(&said, MOST_WORDS)
}

#[cfg(test)]
#[expect(dead_code, reason = "the tests of the command line use all of it")]
#[path = "../tests/cli/guest.rs"]
mod guest;

#[cfg(test)]
mod tests;
