//! Finds the component for a task's name and compiles it.
//!
//! A component is looked up by name, identified by its digest, and compiled once per digest.
//! Concurrent tasks wait for one compilation, and the cache directory keeps the compiled code for
//! later runs. A new upload has a new digest and is found at the next lookup. Running tasks keep
//! their component.
//!
//! A separate process compiles each component, under limits: `catalog/compiler.rs` starts it, and
//! `catalog/child.rs` runs in it. There, `catalog/adapter.rs` makes components from core modules,
//! which `catalog/preview1.rs` describes. `catalog/compiled.rs` stores compiled code.
//! `catalog/contents.rs` lists what a component contains. `catalog/quarantine.rs` records
//! components that can't be compiled, so that they are not compiled again.
//!
//! A failure of the host itself is [`CatalogError::Unavailable`], never
//! [`CatalogError::NotAGuest`].

mod adapter;
mod child;
mod compiled;
mod compiler;
mod contents;
#[doc(hidden)]
pub mod foreign;
mod preview1;
mod quarantine;
mod trust;

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use moka::future::Cache as Memory;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore};

use self::compiled::Compiled;
use self::compiler::{Failed, Uncompiled};
use self::quarantine::{CompileLock, MAX_DEATHS};
use self::trust::Trust;
use crate::bucket::{Bucket, BucketError};
use crate::cache::{Blob, Cache, CacheError};
use crate::digest::Digest;
use crate::key::{BucketKey, Prefix, TaskName};
use crate::sandbox::{Guest, NotAGuest, Sandbox};
use crate::shell;
use crate::words;

pub use self::adapter::component_of;
pub use self::child::compile_for_parent;
pub use self::compiled::{check_compiled, stored_code};
pub use self::compiler::{CompileLimits, Compiler, HostError};
pub use self::contents::Contents;
pub use self::quarantine::{Quarantined, forget_quarantined, quarantined};
pub use self::trust::{Keys, MAX_SIGNATURE, Policy, Unverified, look_at_signature};

/// How long the digest of a name is used after a lookup in a local bucket.
const FRESH: Duration = Duration::from_secs(1);
/// How long the digest of a name is used after a lookup in a bucket of a cloud.
const FRESH_REMOTE: Duration = Duration::from_secs(10);
/// The most names whose digests are kept.
const NAMES: u64 = 4096;
/// Bytes of compiled code that stay loaded, in addition to the code that tasks are using.
const READY: u64 = 1 << 30;
/// The most bytes that a loaded component uses in addition to its code, for linking and types.
const BESIDE_CODE: u64 = 4 << 20;
/// How many times a component is fetched if it is evicted before it can be read.
const FETCHES: usize = 5;
/// The limit for compiled code is the limit of the cache divided by this number.
const COMPILED_PART: u64 = 4;
/// The most components that are compiling, or waiting for it, at the same time.
const MAX_COMPILATIONS: usize = 8;
/// How long a task waits for a compilation before it lets other tasks run.
const PATIENCE: Duration = Duration::from_secs(1);
/// The error for a component that changes while it is verified.
const CHANGED: &str = "it changed while its signature was verified";
/// The most bytes of a compiler's message.
const MAX_WORDS: usize = 16 << 10;

/// A component that can be run.
#[derive(Clone)]
pub struct Ready {
    /// The SHA-256 of the component.
    pub digest: Digest,
    /// The compiled component.
    pub guest: Guest,
}

/// A loaded component and its size.
#[derive(Clone)]
struct Loaded {
    guest: Guest,
    kibibytes: u32,
}

/// Why a task has no component to run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// No component has that name.
    #[error(
        "no component for tasks named `{name}`: {place} does not exist; upload one with \
         `host component push FILE.wasm --name {}`",
        shell::word(name)
    )]
    NotFound {
        /// The task's name.
        name: TaskName,
        /// Where the host looked.
        place: String,
    },
    /// The object of that name is not a component that can run.
    #[error("the component {place} can't be run: {problem}")]
    NotAGuest {
        /// Where the component is.
        place: String,
        /// Why it can't run.
        problem: String,
    },
    /// The host does not run tasks of that name.
    #[error(
        "tasks named `{name}` are not run by this host: --listed-tasks-only is set, and host.toml \
         has no table [tasks.{name}]"
    )]
    NotListed {
        /// The task's name.
        name: TaskName,
    },
    /// The component of that name may not run. The task is not the cause.
    #[error("the component {place} may not run: {problem}")]
    NotTrusted {
        /// Where the component is.
        place: String,
        /// What is wrong with the component, and what to do.
        problem: String,
        /// How long the component has been in this state.
        since: Duration,
    },
    /// The component is not ready yet: it or others are compiling, or its compiler was killed. The
    /// task is not the cause.
    #[error("the component {place} is not ready yet: {why}")]
    NotYet {
        /// Where the component is.
        place: String,
        /// The reason.
        why: String,
        /// How long the compilation has taken so far.
        since: Duration,
    },
    /// The component could not be fetched or compiled because of the bucket or this host.
    #[error("the component {place} could not be made ready: {source}")]
    Unavailable {
        /// Where the component is.
        place: String,
        /// The cause: a [`CacheError`] or a [`HostError`].
        #[source]
        source: Arc<dyn StdError + Send + Sync>,
    },
}

impl CatalogError {
    /// Whether the cause is this machine: its disk, directories or limits.
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
    /// The blob was evicted or found damaged after the lookup.
    Gone(CacheError),
    /// An immediate retry does not help.
    Failed(CatalogError),
}

/// The components of a bucket, some of which are loaded.
pub struct Catalog {
    bucket: Arc<dyn Bucket>,
    prefix: Prefix,
    cache: Cache,
    sandbox: Arc<Sandbox>,
    compiler: Arc<Compiler>,
    compiled: Arc<Compiled>,
    trust: Trust,
    names: Memory<TaskName, Blob>,
    ready: Memory<Digest, Loaded>,
    /// One permit for each component that is compiling or waiting for it.
    compilations: Semaphore,
    under_way: UnderWay,
}

/// The compilations under way, with their start times.
#[derive(Debug, Default)]
struct UnderWay(Mutex<HashMap<Digest, Instant>>);

impl UnderWay {
    fn all(&self) -> MutexGuard<'_, HashMap<Digest, Instant>> {
        self.0.lock()
    }

    fn enter(&self, digest: Digest) -> Entered<'_> {
        self.all().insert(digest, Instant::now());
        Entered { under_way: self, digest }
    }

    fn since(&self, digest: Digest) -> Option<Duration> {
        self.all().get(&digest).map(Instant::elapsed)
    }

    /// Waits until a component has been compiling for longer than tasks should wait. Returns how
    /// long it has been compiling.
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

/// A compilation under way, until this is dropped.
struct Entered<'a> {
    under_way: &'a UnderWay,
    digest: Digest,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.under_way.all().remove(&self.digest);
    }
}

/// One call that needs a component.
struct Caller<'a> {
    /// True when this call's own future compiles the component.
    compiles: AtomicBool,
    /// Notified when the compilation takes long.
    takes_long: &'a Notify,
}

impl Catalog {
    /// The components `PREFIX/NAME.wasm` of `bucket`. `compiler` compiles them, and the directory
    /// `compiled` stores the code.
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
            trust: Trust::new(Policy::default()),
            names: Memory::builder().max_capacity(NAMES).time_to_live(fresh).build(),
            ready: Memory::builder()
                .max_capacity(ready >> 10)
                .weigher(|_, loaded: &Loaded| loaded.kibibytes)
                .build(),
            compilations: Semaphore::new(MAX_COMPILATIONS),
            under_way: UnderWay::default(),
        }
    }

    /// The same catalog, which runs only components that this policy allows.
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { trust: Trust::new(policy), ..self }
    }

    /// Checks that the host runs tasks of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotListed`].
    pub fn check_listed(&self, name: &TaskName) -> Result<(), CatalogError> {
        match &self.trust.policy.names {
            Some(names) if !names.contains(name) => {
                Err(CatalogError::NotListed { name: name.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The problems of components that tasks asked for and that may not run.
    pub fn problems(&self) -> Vec<String> {
        self.trust.problems()
    }

    /// The current component of that name.
    ///
    /// `takes_long` is notified when this call has been compiling for a while. A compilation can
    /// take minutes, so the caller should then release what others need. Dropping the future ends
    /// the compilation, unless another call waits for it.
    ///
    /// # Errors
    /// When no component has that name, when it can't run, or when another call has been compiling
    /// it for a while.
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
            let got = match self.check_trust(name, &blob).await {
                Ok(()) => self.get(name, &blob, &caller).await,
                Err(error) => Err(Arc::new(error)),
            };
            match got {
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

    /// The digest of the current component of that name.
    ///
    /// # Errors
    /// When no component has that name, or the bucket fails.
    pub async fn digest(&self, name: &TaskName) -> Result<Digest, CatalogError> {
        let found = self.names.try_get_with_by_ref(name, self.look_up(name)).await;
        found.map(|blob| blob.digest).map_err(|e: Arc<CatalogError>| (*e).clone())
    }

    /// The error for a task whose component has been compiling for a while. None if it has not, as
    /// far as is known without a request to the bucket.
    pub async fn is_slow(&self, name: &TaskName) -> Option<CatalogError> {
        if self.under_way.all().is_empty() {
            return None;
        }
        let digest = self.names.get(name).await?.digest;
        let since = self.under_way.since(digest).filter(|since| *since >= PATIENCE)?;
        Some(self.takes_long(name, since))
    }

    /// The compiler.
    pub(crate) fn compiler(&self) -> &Arc<Compiler> {
        &self.compiler
    }

    /// The bucket that components are in.
    pub fn bucket(&self) -> &Arc<dyn Bucket> {
        &self.bucket
    }

    /// Whether components are in that bucket.
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

    /// Checks that the policy allows the component to run.
    async fn check_trust(&self, name: &TaskName, blob: &Blob) -> Result<(), NotReady> {
        let Trust { policy, verifying, .. } = &self.trust;
        if let Some(problem) = policy.refuses(name, blob.digest) {
            return Err(self.not_trusted(name, blob, None, problem));
        }
        let Some(keys) = &policy.keys else {
            if policy.digests.contains_key(name) && !self.trust.is_trusted(name, blob.digest) {
                self.trust.trusts(name, blob.digest);
            }
            return Ok(());
        };
        if self.trust.is_trusted(name, blob.digest) {
            return Ok(());
        }
        let _verifying = verifying.lock().await;
        if self.trust.is_trusted(name, blob.digest) {
            return Ok(());
        }
        let signature = self.signature(name).await?;
        let of_signature = signature.as_ref().map(|blob| blob.digest);
        if let Some(problem) = self.trust.known_problem(name, blob.digest, of_signature) {
            return Err(self.not_trusted(name, blob, of_signature, problem));
        }
        let problem = match signature {
            None => format!(
                "it has no signature: {} does not exist; sign it, and push both with `host component \
                 push FILE --signature FILE.minisig`",
                self.place(&self.signature_key(name))
            ),
            Some(signature) if signature.size > MAX_SIGNATURE => {
                format!("its signature is larger than {MAX_SIGNATURE} bytes")
            }
            Some(signature) => match self.verify(name, blob, &signature, keys).await? {
                None => {
                    self.trust.trusts(name, blob.digest);
                    return Ok(());
                }
                Some(problem) => problem,
            },
        };
        Err(self.not_trusted(name, blob, of_signature, problem))
    }

    /// Verifies the signature of a component. Returns the problem with it, if there is one.
    async fn verify(
        &self,
        name: &TaskName,
        blob: &Blob,
        signature: &Blob,
        keys: &Keys,
    ) -> Result<Option<String>, NotReady> {
        let gone = |error| match error {
            CacheError::Gone { .. } => NotReady::Gone(error),
            error => NotReady::Failed(self.unavailable(&self.key(name), error)),
        };
        let wasm = self.cache.read(blob).map_err(gone)?;
        let mut signature = self.cache.read(signature).map_err(gone)?;
        let (keys, name_there, digest) = (keys.clone(), name.clone(), blob.digest);
        let verified = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            signature.read_to_end(&mut text).map_err(Unverified::Unread)?;
            keys.verify(&name_there, wasm, &text)
        });
        let error = match verified.await {
            Ok(Ok(verified)) if verified == digest => return Ok(None),
            Ok(Err(Unverified::Invalid(problem))) => return Ok(Some(problem)),
            // The bytes no longer match the digest.
            Ok(Ok(_)) => None,
            Ok(Err(Unverified::Unread(error))) => Some(error),
            Err(error) => Some(io::Error::other(error)),
        };
        match self.distrust(blob, error).await {
            NotLoaded::Gone(error) | NotLoaded::Cache(error) => Err(gone(error)),
            NotLoaded::Host(error) => {
                Err(NotReady::Failed(self.unavailable(&self.key(name), error)))
            }
            NotLoaded::NotAGuest(_) | NotLoaded::NotYet(_) => {
                Err(NotReady::Failed(self.not_yet(name, CHANGED.to_owned(), Duration::ZERO)))
            }
        }
    }

    /// The signature of a component, if there is one.
    async fn signature(&self, name: &TaskName) -> Result<Option<Blob>, NotReady> {
        let key = self.signature_key(name);
        match self.cache.fetch(&*self.bucket, &key, Duration::ZERO).await {
            Ok(blob) => Ok(Some(blob)),
            Err(CacheError::Bucket(error)) if matches!(*error, BucketError::NotFound { .. }) => {
                Ok(None)
            }
            Err(error) => Err(NotReady::Failed(self.unavailable(&key, error))),
        }
    }

    fn signature_key(&self, name: &TaskName) -> BucketKey {
        self.prefix.join(&name.signature_file())
    }

    fn not_trusted(
        &self,
        name: &TaskName,
        blob: &Blob,
        signature: Option<Digest>,
        problem: String,
    ) -> NotReady {
        let is_of_signature = self.trust.policy.refuses(name, blob.digest).is_none();
        let since = self.trust.distrusts(
            tokio::time::Instant::now(),
            name,
            blob.digest,
            signature,
            &problem,
            is_of_signature,
        );
        let place = self.place(&self.key(name));
        NotReady::Failed(CatalogError::NotTrusted { place, problem, since })
    }

    /// The component of a blob. The first call loads or compiles it.
    async fn get(
        &self,
        name: &TaskName,
        blob: &Blob,
        caller: &Caller<'_>,
    ) -> Result<Guest, Arc<NotReady>> {
        if let Some(loaded) = self.ready.get(&blob.digest).await {
            return Ok(loaded.guest);
        }
        let make = self.make_ready(name, blob, caller);
        let mut made = std::pin::pin!(self.ready.try_get_with(blob.digest, make));
        let since = tokio::select! {
            biased;
            made = &mut made => return made.map(|loaded| loaded.guest),
            since = self.under_way.takes_long(blob.digest) => since,
        };
        if caller.compiles.load(Relaxed) {
            tracing::info!("component {name} is compiling; other tasks run meanwhile");
            caller.takes_long.notify_one();
            return made.await.map(|loaded| loaded.guest);
        }
        Err(Arc::new(NotReady::Failed(self.takes_long(name, since))))
    }

    fn takes_long(&self, name: &TaskName, since: Duration) -> CatalogError {
        let why = format!(
            "it has been compiling for {}; the task is released and comes back later",
            humantime::format_duration(Duration::from_secs(since.as_secs()))
        );
        self.not_yet(name, why, since)
    }

    async fn make_ready(
        &self,
        name: &TaskName,
        blob: &Blob,
        caller: &Caller<'_>,
    ) -> Result<Loaded, NotReady> {
        match self.prepare(name, blob, caller).await {
            Ok(loaded) => Ok(loaded),
            Err(NotLoaded::Gone(error)) => Err(NotReady::Gone(error)),
            Err(unprepared) => {
                let key = self.key(name);
                Err(NotReady::Failed(match unprepared {
                    NotLoaded::NotYet(why) => self.not_yet(name, why, Duration::ZERO),
                    NotLoaded::NotAGuest(NotAGuest(problem)) => CatalogError::NotAGuest {
                        place: self.place(&key),
                        problem: bounded(&problem),
                    },
                    NotLoaded::Host(error) => self.unavailable(&key, error),
                    NotLoaded::Gone(error) | NotLoaded::Cache(error) => {
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
    ) -> Result<Loaded, NotLoaded> {
        if let Some(loaded) = self.load(blob.digest).await? {
            return Ok(loaded);
        }
        let Ok(_compilation) = self.compilations.try_acquire() else {
            return Err(NotLoaded::NotYet(format!(
                "{MAX_COMPILATIONS} other components are compiling; the task is released and comes back later"
            )));
        };
        let _entered = self.under_way.enter(blob.digest);
        caller.compiles.store(true, Relaxed);
        // Another host may be compiling the component for the same cache. Waits and uses its code.
        let mut lock = self.compiled.lock(blob.digest).await;
        if let Some(loaded) = self.load(blob.digest).await? {
            if let Some(lock) = &mut lock {
                lock.forget_deaths();
            }
            return Ok(loaded);
        }
        let _permit = self.compiler.permit().await;
        let result = self.compile(name, blob, &mut lock).await;
        match &result {
            Err(NotLoaded::NotAGuest(NotAGuest(problem))) => {
                tracing::warn!("component {name} ({}) can't be run: {problem}", blob.digest);
            }
            Err(NotLoaded::NotYet(why)) => {
                tracing::warn!("component {name} ({}) was not compiled: {why}", blob.digest);
            }
            _ => {}
        }
        result
    }

    /// Compiles a component under the lock that hosts share, and stores the code or the failure.
    async fn compile(
        &self,
        name: &TaskName,
        blob: &Blob,
        lock: &mut Option<CompileLock>,
    ) -> Result<Loaded, NotLoaded> {
        let start = Instant::now();
        let deaths = lock.as_ref().map_or(0, CompileLock::deaths);
        if deaths >= MAX_DEATHS {
            return Err(self.reject(blob.digest, lock, deaths));
        }
        if let Some(lock) = lock
            && let Err(error) = lock.begin()
        {
            tracing::debug!("the start of compiling {name} could not be recorded: {error}");
        }
        let file = self.cache.read(blob).map_err(|error| match error {
            CacheError::Gone { .. } => NotLoaded::Gone(error),
            error => NotLoaded::Cache(error),
        })?;
        let file = tokio::fs::File::from_std(file);
        let code =
            match self.compiler.compile(self.sandbox.mode(), blob.digest, blob.size, file).await {
                Ok(code) => code,
                Err(Uncompiled::Failed(failed)) => {
                    return Err(self.remember(blob.digest, lock, failed));
                }
                Err(Uncompiled::Died(how)) => {
                    let deaths = self.compiled.died(blob.digest, lock);
                    if deaths >= MAX_DEATHS {
                        return Err(self.reject(blob.digest, lock, deaths));
                    }
                    return Err(NotLoaded::NotYet(format!("{how}; it is compiled once more")));
                }
                Err(Uncompiled::Stopped(how)) => return Err(NotLoaded::NotYet(how)),
                Err(Uncompiled::Damaged) => return Err(self.distrust(blob, None).await),
                Err(Uncompiled::Unread(error)) => {
                    return Err(self.distrust(blob, Some(error)).await);
                }
                Err(Uncompiled::Host(error)) => return Err(NotLoaded::Host(error)),
            };
        let seconds = start.elapsed().as_secs_f64();
        tracing::info!("component {name} compiled in {seconds:.1} s");
        if let Some(lock) = lock {
            lock.forget_deaths();
        }
        let (sandbox, compiled, digest) =
            (self.sandbox.clone(), self.compiled.clone(), blob.digest);
        in_background(move || {
            compiled.keep(digest, &code);
            make_guest(&sandbox, &code)
        })
        .await
    }

    /// Loads stored code, or the stored reason why there is none.
    async fn load(&self, digest: Digest) -> Result<Option<Loaded>, NotLoaded> {
        let (sandbox, compiled) = (self.sandbox.clone(), self.compiled.clone());
        let limits = self.compiler.limits();
        in_background(move || {
            if let Some(code) = compiled.load(digest) {
                return make_guest(&sandbox, &code).map(Some);
            }
            match compiled.failed(digest, limits) {
                None => Ok(None),
                Some(failed) => Err(NotLoaded::NotAGuest(NotAGuest(format!(
                    "{} (this machine tried before and does not try again; `host cache quarantine \
                     --clear` allows another try)",
                    failed.reason
                )))),
            }
        })
        .await
    }

    /// Quarantines a component whose compiler or host was killed too many times.
    fn reject(&self, digest: Digest, lock: &mut Option<CompileLock>, deaths: u32) -> NotLoaded {
        self.remember(digest, lock, Failed::by_deaths(deaths, self.compiler.limits()))
    }

    fn remember(
        &self,
        digest: Digest,
        lock: &mut Option<CompileLock>,
        failed: Failed,
    ) -> NotLoaded {
        self.compiled.remember(digest, &failed);
        if let Some(lock) = lock {
            lock.forget_deaths();
        }
        NotLoaded::NotAGuest(NotAGuest(failed.reason))
    }

    /// Checks a blob that could not be read or whose bytes changed.
    async fn distrust(&self, blob: &Blob, error: Option<io::Error>) -> NotLoaded {
        let (cache, blob) = (self.cache.clone(), blob.clone());
        match in_background(move || Ok(cache.distrust(&blob, error))).await {
            Ok(error @ CacheError::Gone { .. }) => NotLoaded::Gone(error),
            Ok(error) => NotLoaded::Cache(error),
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
enum NotLoaded {
    /// The blob must be fetched again.
    Gone(CacheError),
    /// The blob could not be read.
    Cache(CacheError),
    /// This host could not compile or load it.
    Host(HostError),
    /// The component can't be compiled, or its code can't run.
    NotAGuest(NotAGuest),
    /// Try again later.
    NotYet(String),
}

/// Makes a guest from compiled code.
fn make_guest(sandbox: &Sandbox, code: &[u8]) -> Result<Loaded, NotLoaded> {
    // SAFETY: a compiling process of this program made these bytes. If they come from disk, their
    // checksum was right and only this user can write to their directory. The engine checks that
    // its version and settings are the same.
    let component = unsafe { sandbox.load(code) }.map_err(|error| match host_cause(&error) {
        Some(source) => NotLoaded::Host(HostError { doing: "loading its compiled code", source }),
        None => NotLoaded::NotAGuest(NotAGuest::new(&error)),
    })?;
    let guest = sandbox.link(&component).map_err(NotLoaded::NotAGuest)?;
    let kibibytes = (code.len() as u64 + BESIDE_CODE) >> 10;
    Ok(Loaded { guest, kibibytes: u32::try_from(kibibytes).unwrap_or(u32::MAX) })
}

/// Runs work that uses the disk or a processor for a while, on a thread for blocking work.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NotLoaded> + Send + 'static,
) -> Result<T, NotLoaded> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // The runtime is shutting down.
        Err(error) if error.is_cancelled() => {
            let source = io::Error::other(error);
            Err(NotLoaded::Host(HostError { doing: "making it ready", source }))
        }
        Err(error) => {
            Err(NotLoaded::NotAGuest(NotAGuest(format!("making it ready failed: {error}"))))
        }
    }
}

/// The system's error that caused a failure of the engine, usually a lack of memory.
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

/// A message of a compiler or a component, in one line and cut to [`MAX_WORDS`].
fn bounded(said: &str) -> String {
    words::bounded_line(&said, MAX_WORDS)
}

/// The paths in a directory, as far as it can be listed.
fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
#[expect(dead_code, reason = "the tests of the command line use all of it")]
#[path = "../tests/cli/guest.rs"]
mod guest;

#[cfg(test)]
pub(crate) mod tests;
