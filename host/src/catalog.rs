//! From a task name to a compiled component, ready to instantiate.
//!
//! A component is found by name, known by the digest of its bytes, and compiled once per
//! digest: concurrent tasks wait for one compilation, later runs of the host load the
//! compiled code from the cache directory. A new upload has a new digest and is picked up at
//! the next look; tasks under way keep the component they began with.
//!
//! What is kept on disk is `catalog/compiled.rs`. A component that can't be read, kept or
//! compiled for reasons that are the host's own is [`CatalogError::Unavailable`], never
//! [`CatalogError::NotAGuest`].

mod compiled;

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache as Memory;
use wasmtime::component::Component;

use self::compiled::Compiled;
use crate::bucket::{Bucket, BucketError};
use crate::cache::{Blob, Cache, CacheError};
use crate::digest::Digest;
use crate::key::{BucketKey, Prefix, TaskName};
use crate::sandbox::{Guest, NotAGuest, Sandbox};

pub use self::compiled::check_compiled;

/// How long a name is taken to mean the digest it meant when it was last looked up.
const FRESH: Duration = Duration::from_secs(1);
/// The same where a look is a request to a cloud.
const FRESH_REMOTE: Duration = Duration::from_secs(10);
/// Components kept ready in memory.
const READY: u64 = 256;
/// How often a component is fetched again that was removed from the cache before it was read.
const FETCHES: usize = 5;
/// Compiled code may take this part of what the cache may take, and in addition to it.
const COMPILED_PART: u64 = 4;

/// A component that can be run.
#[derive(Clone)]
pub struct Ready {
    /// Its bytes' SHA-256.
    pub digest: Digest,
    /// What the sandbox runs.
    pub guest: Guest,
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

/// What this host could not do for a component.
#[derive(Debug, thiserror::Error)]
#[error("{doing} failed: {source}")]
pub struct HostError {
    doing: &'static str,
    source: Box<dyn StdError + Send + Sync>,
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
    compiled: Arc<Compiled>,
    names: Memory<TaskName, Blob>,
    ready: Memory<Digest, Guest>,
}

impl Catalog {
    /// Components `PREFIX/NAME.wasm` of `bucket`, compiled code in `compiled`.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        prefix: Prefix,
        cache: Cache,
        sandbox: Arc<Sandbox>,
        compiled: &Path,
    ) -> Self {
        let max_bytes = cache.max_bytes() / COMPILED_PART;
        let compiled = Arc::new(Compiled::open(compiled, sandbox.engine(), max_bytes));
        let fresh = if bucket.is_local() { FRESH } else { FRESH_REMOTE };
        Self {
            bucket,
            prefix,
            cache,
            sandbox,
            compiled,
            names: Memory::builder().max_capacity(READY * 16).time_to_live(fresh).build(),
            ready: Memory::new(READY),
        }
    }

    /// The component of that name, now.
    ///
    /// # Errors
    /// When there is none, or none that can be run; both may be put right by a push.
    pub async fn resolve(&self, name: &TaskName) -> Result<Ready, CatalogError> {
        let mut fetches = 1;
        loop {
            let blob = self
                .names
                .try_get_with_by_ref(name, self.look_up(name))
                .await
                .map_err(|e: Arc<CatalogError>| (*e).clone())?;
            match self.ready.try_get_with(blob.digest, self.make_ready(name, &blob)).await {
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

    async fn make_ready(&self, name: &TaskName, blob: &Blob) -> Result<Guest, NotReady> {
        let key = self.key(name);
        let not_a_guest = |NotAGuest(problem)| {
            NotReady::Failed(CatalogError::NotAGuest { place: self.place(&key), problem })
        };
        let (sandbox, compiled) = (self.sandbox.clone(), self.compiled.clone());
        let (cache, blob, task_name) = (self.cache.clone(), blob.clone(), name.clone());
        let prepare = move || prepare(&sandbox, &compiled, &cache, &blob, &task_name);
        let component = match tokio::task::spawn_blocking(prepare).await {
            Ok(Ok(component)) => component,
            Ok(Err(Unprepared::Gone(error))) => return Err(NotReady::Gone(error)),
            Ok(Err(Unprepared::NotAGuest(problem))) => return Err(not_a_guest(problem)),
            Ok(Err(Unprepared::Host(error))) => {
                return Err(NotReady::Failed(self.unavailable(&key, error)));
            }
            Ok(Err(Unprepared::Cache(error))) => {
                return Err(NotReady::Failed(self.unavailable(&key, error)));
            }
            Err(error) if is_of_this_host(&error) => {
                let error = HostError { doing: "compiling it", source: error.into() };
                return Err(NotReady::Failed(self.unavailable(&key, error)));
            }
            Err(error) => {
                let problem = format!("compiling it failed: {error}");
                // The compiler's threads are this host's.
                if problem.contains("hread pool") {
                    let error =
                        HostError { doing: "starting threads to compile it", source: error.into() };
                    return Err(NotReady::Failed(self.unavailable(&key, error)));
                }
                return Err(not_a_guest(NotAGuest(problem)));
            }
        };
        self.sandbox.link(&component).map_err(not_a_guest)
    }

    fn place(&self, key: &BucketKey) -> String {
        format!("{}/{key}", self.bucket)
    }

    fn unavailable(
        &self,
        key: &BucketKey,
        error: impl StdError + Send + Sync + 'static,
    ) -> CatalogError {
        CatalogError::Unavailable { place: self.place(key), source: Arc::new(error) }
    }
}

/// Why there is no compiled code.
enum Unprepared {
    /// The blob has to be fetched again.
    Gone(CacheError),
    /// The blob could not be read.
    Cache(CacheError),
    /// This host could not compile it.
    Host(HostError),
    /// It can't be compiled.
    NotAGuest(NotAGuest),
}

/// Loads or compiles a component. Takes up to a minute of one core or more.
fn prepare(
    sandbox: &Sandbox,
    compiled: &Compiled,
    cache: &Cache,
    blob: &Blob,
    name: &TaskName,
) -> Result<Component, Unprepared> {
    let engine = sandbox.engine();
    if let Some(component) = compiled.load(blob.digest, engine) {
        return Ok(component);
    }
    // Another host may be compiling it for the same cache: wait, and take what it kept.
    let _turn = compiled.turn(blob.digest);
    if let Some(component) = compiled.load(blob.digest, engine) {
        return Ok(component);
    }
    let start = std::time::Instant::now();
    let wasm = cache.bytes(blob).map_err(|error| match error {
        CacheError::Gone { .. } => Unprepared::Gone(error),
        error => Unprepared::Cache(error),
    })?;
    let component = sandbox.compile(&wasm).map_err(|error| match host_cause(&error) {
        Some(source) => Unprepared::Host(HostError { doing: "compiling it", source }),
        None => Unprepared::NotAGuest(NotAGuest::new(&error)),
    })?;
    drop(wasm);
    let seconds = start.elapsed().as_secs_f64();
    tracing::info!("component {name} compiled in {seconds:.1} s");
    compiled.keep(blob.digest, &component);
    Ok(component)
}

/// The machine's part in a failure to compile: no memory, no thread.
fn host_cause(error: &wasmtime::Error) -> Option<Box<dyn StdError + Send + Sync>> {
    for cause in error.chain() {
        if let Some(errno) = cause.downcast_ref::<rustix::io::Errno>() {
            return Some(io::Error::from(*errno).into());
        }
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            let copy = match cause.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(cause.kind(), cause.to_string()),
            };
            return Some(copy.into());
        }
        if cause.downcast_ref::<wasmtime::OutOfMemory>().is_some() {
            return Some(io::Error::from(io::ErrorKind::OutOfMemory).into());
        }
    }
    None
}

/// Whether the thread that compiles broke off for want of something that is the machine's.
fn is_of_this_host(error: &tokio::task::JoinError) -> bool {
    // The runtime is going down; or no threads could be had, which is a panic in the compiler.
    error.is_cancelled() || error.to_string().contains("ThreadPoolBuildError")
}

#[cfg(test)]
#[expect(dead_code, reason = "the tests of the command line use all of it")]
#[path = "../tests/cli/guest.rs"]
mod guest;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use bytesize::ByteSize;
    use futures_util::{StreamExt, TryStreamExt};
    use object_store::ObjectStore;
    use object_store::memory::InMemory;

    use super::guest::{End, component};
    use super::*;
    use crate::bucket::DirBucket;
    use crate::bucket::conformance::in_memory;
    use crate::cache::CacheOptions;
    use crate::sandbox::Limits;
    use crate::workspace::Workspaces;

    struct Fixture {
        root: tempfile::TempDir,
        name: TaskName,
        cache_size: u64,
    }

    impl Fixture {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("bucket/components")).unwrap();
            Self { root, name: TaskName::new("A").unwrap(), cache_size: 1 << 30 }
        }

        /// A host of its own, on the same bucket and cache directory.
        fn catalog(&self) -> Catalog {
            let bucket = DirBucket::create(&self.root.path().join("bucket")).unwrap();
            self.catalog_of(Arc::new(bucket))
        }

        fn catalog_of(&self, bucket: Arc<dyn Bucket>) -> Catalog {
            let cache = self.root.path().join("cache");
            let workspaces = Workspaces::new(&cache.join("work")).unwrap();
            let limits = Limits {
                memory: ByteSize::mib(1),
                time: Duration::from_secs(1),
                output_bytes: ByteSize::mib(1),
                output_files: 1,
                open_files: 10,
            };
            let (inputs, outputs) = (workspaces.inputs_root(), workspaces.outputs_root());
            let sandbox = Arc::new(Sandbox::new(1, limits, inputs, outputs).unwrap());
            let options = CacheOptions { dir: cache.clone(), max_bytes: self.cache_size };
            Catalog::new(
                bucket,
                Prefix::new("components").unwrap(),
                Cache::open(options).unwrap(),
                sandbox,
                &cache.join("compiled"),
            )
        }

        fn push(&self, wasm: Vec<u8>) {
            let (new, file) = ("bucket/components/A.new", "bucket/components/A.wasm");
            fs::write(self.root.path().join(new), wasm).unwrap();
            fs::rename(self.root.path().join(new), self.root.path().join(file)).unwrap();
        }

        /// A bucket of a cloud with the component.
        async fn remote(&self, wasm: Vec<u8>) -> Arc<dyn Bucket> {
            self.put_into(Arc::new(InMemory::new()), wasm).await
        }

        async fn put_into(&self, store: Arc<InMemory>, wasm: Vec<u8>) -> Arc<dyn Bucket> {
            let bucket = in_memory(store);
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("file"), wasm).unwrap();
            let dir = cap_std::fs::Dir::from_std_file(fs::File::open(dir.path()).unwrap());
            let (target, file) = ("components/A.wasm", BucketKey::new("file").unwrap());
            bucket.put(&BucketKey::new(target).unwrap(), &dir, &file).await.unwrap();
            Arc::new(bucket)
        }

        fn compiled(&self) -> Vec<PathBuf> {
            let mut files = Vec::new();
            for folder in fs::read_dir(self.root.path().join("cache/compiled")).unwrap() {
                for file in fs::read_dir(folder.unwrap().path()).unwrap() {
                    files.push(file.unwrap().path());
                }
            }
            files
        }
    }

    #[tokio::test]
    async fn a_component_is_compiled_once_however_many_ask() {
        let fixture = Fixture::new();
        fixture.push(component(End::Done));
        let catalogs = [fixture.catalog(), fixture.catalog()];
        let asks = (0..20).map(|i| catalogs[i % 2].resolve(&fixture.name));
        let found = futures_util::future::join_all(asks).await;
        let digests: Vec<_> = found.into_iter().map(|ready| ready.unwrap().digest).collect();
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
        let files = fixture.compiled();
        assert_eq!(
            files.len(),
            1,
            "one file of compiled code, no lock, nothing temporary: {files:?}"
        );
        let written = fs::metadata(&files[0]).unwrap().modified().unwrap();
        // A host that starts later loads what is there.
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        assert_eq!(fs::metadata(&files[0]).unwrap().modified().unwrap(), written);
    }

    #[tokio::test]
    async fn a_new_upload_is_picked_up_without_a_restart() {
        let fixture = Fixture::new();
        let catalog = fixture.catalog();
        let none = catalog.resolve(&fixture.name).await.err().unwrap();
        assert!(matches!(none, CatalogError::NotFound { .. }), "{none}");
        assert!(none.to_string().contains("host component push FILE.wasm --name A"), "{none}");

        fixture.push(component(End::Done));
        let first = catalog.resolve(&fixture.name).await.unwrap().digest;
        fixture.push(component(End::Reject));
        let start = std::time::Instant::now();
        while catalog.resolve(&fixture.name).await.unwrap().digest == first {
            assert!(start.elapsed() < FRESH * 30, "the new component is not seen");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_component_of_a_cloud_does_not_cost_a_request_for_each_task() {
        let fixture = Fixture::new();
        let store = Arc::new(InMemory::new());
        let bucket = fixture.put_into(store.clone(), component(End::Done)).await;
        let catalog = fixture.catalog_of(bucket);
        catalog.resolve(&fixture.name).await.unwrap();
        // Whoever asks now hears that there is none.
        let all = store.list(None).map_ok(|found| found.location).boxed();
        let removed: Vec<_> = store.delete_stream(all).try_collect().await.unwrap();
        assert_eq!(removed.len(), 1);
        catalog.resolve(&fixture.name).await.unwrap();
    }

    #[tokio::test]
    async fn damaged_code_is_compiled_again_and_never_run() {
        let fixture = Fixture::new();
        fixture.push(component(End::Done));
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        let file = fixture.compiled().remove(0);
        let whole = fs::read(&file).unwrap();
        let half = whole.len() / 2;
        let mut flipped = whole.clone();
        flipped[half] ^= 1;
        // What a power cut leaves: the length is right, and blocks are missing.
        let mut zeros = whole.clone();
        zeros[4096..half].fill(0);
        let mut garbage = whole.clone();
        garbage.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
        let longer = [&whole[..], b"more"].concat();
        let damaged: [&[u8]; 7] =
            [&flipped, &zeros, &garbage, &longer, &whole[..half], &whole[..10], b""];
        for damaged in damaged {
            fs::write(&file, damaged).unwrap();
            fixture.catalog().resolve(&fixture.name).await.unwrap();
            assert_eq!(fs::read(&file).unwrap(), whole, "it was compiled again");
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir_all(file.join("a directory")).unwrap();
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        assert_eq!(fs::read(&file).unwrap(), whole);
    }

    #[tokio::test]
    async fn code_of_another_component_or_from_an_open_directory_is_not_loaded() {
        let fixture = Fixture::new();
        fixture.push(component(End::Reject));
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        let other = fs::read(&fixture.compiled()[0]).unwrap();
        fixture.push(component(End::Done));
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        for file in fixture.compiled() {
            fs::write(file, &other).unwrap();
        }
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        let is_other = |file: &&PathBuf| fs::read(file).unwrap() == other;
        assert_eq!(fixture.compiled().iter().filter(is_other).count(), 1);

        // In a directory that others can write to, nothing is loaded or kept.
        let dir = fixture.root.path().join("cache/compiled");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        for file in fixture.compiled() {
            fs::write(file, "foreign").unwrap();
        }
        let catalog = fixture.catalog();
        catalog.resolve(&fixture.name).await.unwrap();
        for file in fixture.compiled() {
            assert_eq!(fs::read(file).unwrap(), b"foreign");
        }
    }

    #[tokio::test]
    async fn a_damaged_component_in_the_cache_is_fetched_again() {
        let fixture = Fixture::new();
        let bucket = fixture.remote(component(End::Done)).await;
        let digest =
            fixture.catalog_of(bucket.clone()).resolve(&fixture.name).await.unwrap().digest;
        fs::remove_file(fixture.compiled().remove(0)).unwrap();
        let hex = digest.to_string();
        let blob = fixture.root.path().join("cache/blobs").join(&hex[..2]).join(&hex);
        let mut bytes = fs::read(&blob).unwrap();
        let half = bytes.len() / 2;
        bytes[half] ^= 1;
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&blob, bytes).unwrap();
        fixture.catalog_of(bucket).resolve(&fixture.name).await.unwrap();
        assert_eq!(Digest::of(&fs::read(&blob).unwrap()), digest);
    }

    #[tokio::test]
    async fn a_component_that_is_removed_between_its_look_up_and_its_use_is_fetched_again() {
        let fixture = Fixture::new();
        fixture.push(component(End::Done));
        let catalog = fixture.catalog();
        let blob = catalog.look_up(&fixture.name).await.unwrap();
        catalog.names.insert(fixture.name.clone(), blob.clone()).await;
        let dir = fixture.root.path().join("cache");
        while dir.exists() {
            // A cache that was just opened may make a directory at this moment.
            let _ = fs::remove_dir_all(&dir);
        }
        assert!(matches!(
            catalog.make_ready(&fixture.name, &blob).await,
            Err(NotReady::Gone(CacheError::Gone { .. }))
        ));
        catalog.resolve(&fixture.name).await.unwrap();
        assert_eq!(fixture.compiled().len(), 1, "and its code is kept again");
    }

    #[tokio::test]
    async fn what_a_killed_host_left_in_compiled_is_removed_and_a_live_ones_files_stay() {
        let fixture = Fixture::new();
        fixture.push(component(End::Done));
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        let kept = fixture.compiled().remove(0);
        let left = [kept.with_extension("1.tmp"), kept.with_extension("lock")];
        for file in &left {
            fs::write(file, "half").unwrap();
        }
        let held = kept.with_extension("2.tmp");
        let lock = fs::File::create(&held).unwrap();
        lock.lock().unwrap();
        fixture.catalog();
        assert!(!left.iter().any(|file| file.exists()));
        assert!(held.exists() && kept.exists());
        drop(lock);
        fixture.catalog();
        assert_eq!(fixture.compiled(), [kept]);
    }

    #[tokio::test]
    async fn compiled_code_has_a_bound_and_what_was_used_last_stays() {
        let fixture = Fixture { cache_size: 0, ..Fixture::new() };
        fixture.push(component(End::Reject));
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        let first = fixture.compiled();
        fixture.push(component(End::Done));
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        assert_eq!(fixture.compiled().len(), 1, "the new one only");
        assert_ne!(fixture.compiled(), first);
        fixture.catalog();
        assert_eq!(fixture.compiled().len(), 1, "the next start finds it");

        // Of the code for another engine, what was used lately stays.
        let other = fixture.root.path().join("cache/compiled/0123456789abcdef");
        fs::create_dir(&other).unwrap();
        let days = |days: u64| {
            let time = std::time::SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
            fs::FileTimes::new().set_accessed(time).set_modified(time)
        };
        for (name, times) in [("old.cwasm", days(31)), ("new.cwasm", days(29))] {
            let file = fs::File::create(other.join(name)).unwrap();
            file.set_times(times).unwrap();
        }
        let fixture = Fixture { cache_size: 1 << 30, ..fixture };
        fixture.catalog();
        assert!(!other.join("old.cwasm").exists() && other.join("new.cwasm").exists());
    }

    #[tokio::test]
    async fn a_full_disk_under_the_compiled_code_costs_nothing_but_the_next_start() {
        let fixture = Fixture::new();
        fixture.push(component(End::Done));
        let dir = fixture.root.path().join("cache/compiled");
        fs::create_dir_all(&dir).unwrap();
        let _disk = crate::cache::Tmpfs::mount(&dir, "size=4k,mode=700");
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        assert_eq!(fixture.compiled(), [] as [PathBuf; 0]);
    }

    #[tokio::test]
    async fn a_cache_without_room_is_not_the_components_fault() {
        let fixture = Fixture::new();
        fixture.push(component(End::Done));
        let dir = fixture.root.path().join("cache");
        fs::create_dir_all(&dir).unwrap();
        let disk = crate::cache::Tmpfs::mount(&dir, "size=2m");
        let catalog = fixture.catalog();
        let ballast = disk.fill();
        let error = catalog.resolve(&fixture.name).await.err().unwrap();
        assert!(error.is_of_this_host(), "{error}");
        let CatalogError::Unavailable { source, .. } = &error else { panic!("{error}") };
        assert!(matches!(source.downcast_ref(), Some(CacheError::Full { .. })), "{error}");
        disk.remove(&ballast);
        catalog.resolve(&fixture.name).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_guest_is_said_with_its_place() {
        let fixture = Fixture::new();
        fixture.push(wat::parse_str("(module)").unwrap());
        let error = fixture.catalog().resolve(&fixture.name).await.err().unwrap();
        assert!(matches!(error, CatalogError::NotAGuest { .. }), "{error}");
        assert!(error.to_string().contains("components/A.wasm"), "{error}");
    }
}
