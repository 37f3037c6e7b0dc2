//! From a task name to a compiled component, ready to instantiate.
//!
//! A component is found by name, known by the digest of its bytes, and compiled once per
//! digest: concurrent tasks wait for one compilation, later runs of the host load the
//! compiled code from the cache directory. A new upload has a new digest and is picked up at
//! the next look; tasks under way keep the component they began with.
//!
//! Compiled code is native code. It is loaded only from a directory that nobody else can
//! write to, and never from a bucket.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache as Memory;
use wasmtime::component::Component;

use crate::bucket::{Bucket, BucketError};
use crate::cache::{Blob, Cache, CacheError};
use crate::digest::Digest;
use crate::key::{BucketKey, Prefix, TaskName};
use crate::sandbox::{Guest, Sandbox};

/// How long a name is taken to mean the digest it meant when it was last looked up.
const FRESH: Duration = Duration::from_secs(1);
/// The same where a look is a request to a cloud.
const FRESH_REMOTE: Duration = Duration::from_secs(10);
/// Components kept ready in memory.
const READY: u64 = 256;

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
    /// It could not be fetched or kept.
    #[error("the component {place} could not be read: {source}")]
    Unavailable {
        /// Where it is.
        place: String,
        /// What failed.
        #[source]
        source: CacheError,
    },
}

/// Where components come from, and those that are ready.
pub struct Catalog {
    bucket: Arc<dyn Bucket>,
    prefix: Prefix,
    cache: Cache,
    sandbox: Arc<Sandbox>,
    compiled: Option<PathBuf>,
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
        let compiled = match private_dir(compiled) {
            Ok(()) => Some(compiled.to_owned()),
            Err(error) => {
                tracing::warn!(
                    "compiled components are not kept, each start compiles them again: {error}"
                );
                None
            }
        };
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
        let blob = self
            .names
            .try_get_with_by_ref(name, self.look_up(name))
            .await
            .map_err(|e: Arc<CatalogError>| (*e).clone())?;
        let guest = self
            .ready
            .try_get_with(blob.digest, self.make_ready(name, &blob))
            .await
            .map_err(|e: Arc<CatalogError>| (*e).clone())?;
        Ok(Ready { digest: blob.digest, guest })
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
        let key = self.prefix.join(&name.file());
        match self.cache.fetch(&*self.bucket, &key, Duration::ZERO).await {
            Ok(blob) => Ok(blob),
            Err(CacheError::Bucket(error)) if matches!(*error, BucketError::NotFound { .. }) => {
                Err(CatalogError::NotFound { name: name.clone(), place: self.place(&key) })
            }
            Err(error) => Err(self.unavailable(&key, &error)),
        }
    }

    async fn make_ready(&self, name: &TaskName, blob: &Blob) -> Result<Guest, CatalogError> {
        let digest = blob.digest;
        let key = self.prefix.join(&name.file());
        let sandbox = self.sandbox.clone();
        let not_a_guest =
            |problem: String| CatalogError::NotAGuest { place: self.place(&key), problem };
        let mut file = self.cache.read(blob).map_err(|e| self.unavailable(&key, &e))?;
        let kept = self.kept_as(digest);
        let preparing = sandbox.clone();
        let task_name = name.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            if let Some(component) = kept.as_deref().and_then(|path| load(&preparing, path)) {
                return Ok(component);
            }
            // Another host may be compiling it for the same cache: wait, and take what it kept.
            let _turn = kept.as_deref().and_then(Turn::take);
            if let Some(component) = kept.as_deref().and_then(|path| load(&preparing, path)) {
                return Ok(component);
            }
            let start = std::time::Instant::now();
            let mut wasm = Vec::new();
            file.read_to_end(&mut wasm).map_err(|e| e.to_string())?;
            let component = preparing.compile(&wasm).map_err(|e| e.0)?;
            let seconds = start.elapsed().as_secs_f64();
            tracing::info!("component {task_name} compiled in {seconds:.1} s");
            if let Some(path) = kept
                && let Err(error) = keep(&component, &path)
            {
                tracing::warn!("{}: compiled code not kept: {error}", path.display());
            }
            Ok(component)
        })
        .await;
        let component = match prepared {
            Ok(prepared) => prepared.map_err(not_a_guest)?,
            Err(error) => return Err(not_a_guest(format!("compiling it failed: {error}"))),
        };
        sandbox.link(&component).map_err(|e| not_a_guest(e.0))
    }

    /// The file for the compiled code of a component: its name tells the digest, and the
    /// folder what engine and settings it was compiled for.
    fn kept_as(&self, digest: Digest) -> Option<PathBuf> {
        use std::hash::{Hash, Hasher};
        let mut hasher = std::hash::DefaultHasher::new();
        self.sandbox.engine().precompile_compatibility_hash().hash(&mut hasher);
        let folder = format!("{:016x}", hasher.finish());
        Some(self.compiled.as_ref()?.join(folder).join(format!("{digest}.cwasm")))
    }

    fn place(&self, key: &BucketKey) -> String {
        format!("{}/{key}", self.bucket)
    }

    fn unavailable(&self, key: &BucketKey, error: &CacheError) -> CatalogError {
        CatalogError::Unavailable { place: self.place(key), source: error.clone() }
    }
}

/// Makes a directory that only we can write to, or checks that it is one.
fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = fs::metadata(dir)?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if ours && meta.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "{} belongs to somebody else or is writable by others; \
             native code is loaded only from a directory of our own (`chmod 700` it)",
            dir.display()
        )))
    }
}

/// Loads compiled code that an earlier run kept. None means that it has to be compiled.
fn load(sandbox: &Sandbox, path: &Path) -> Option<Component> {
    if !path.exists() {
        return None;
    }
    // SAFETY: the file is in a directory that `private_dir` found to be ours alone, and `keep`
    // is the only one to write there, whole files only. The engine checks that its version
    // and settings are the same.
    match unsafe { Component::deserialize_file(sandbox.engine(), path) } {
        Ok(component) => Some(component),
        Err(error) => {
            tracing::warn!("{}: not usable, compiling again: {error:#}", path.display());
            None
        }
    }
}

/// The right to compile one component, among the hosts that share a cache. Given back when it
/// is dropped, and by the kernel when its holder dies.
struct Turn {
    lock: PathBuf,
    _file: fs::File,
}

impl Turn {
    /// Waits for it. None where files can't be locked: then both compile, which does no harm.
    fn take(kept: &Path) -> Option<Self> {
        let lock = kept.with_extension("lock");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(lock.parent()?).ok()?;
        let options = fs::OpenOptions::new().write(true).create(true).mode(0o600).clone();
        let file = options.open(&lock).ok()?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).ok()?;
        Some(Self { lock, _file: file })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Whoever waits has it open, and finds the compiled code when it gets the lock.
        let _ = fs::remove_file(&self.lock);
    }
}

fn keep(component: &Component, path: &Path) -> io::Result<()> {
    let bytes = component.serialize().map_err(|e| io::Error::other(format!("{e:#}")))?;
    let folder = path.parent().unwrap_or(path);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let temporary = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // It may never have been made.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
#[expect(dead_code, reason = "the tests of the command line use all of it")]
#[path = "../tests/cli/guest.rs"]
mod guest;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
    }

    impl Fixture {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("bucket/components")).unwrap();
            Self { root, name: TaskName::new("A").unwrap() }
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
            };
            let (inputs, outputs) = (workspaces.inputs_root(), workspaces.outputs_root());
            let sandbox = Arc::new(Sandbox::new(1, limits, inputs, outputs).unwrap());
            let options = CacheOptions { dir: cache.clone(), max_bytes: 1 << 30 };
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
        let bucket = in_memory(store.clone());
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), component(End::Done)).unwrap();
        let dir = cap_std::fs::Dir::from_std_file(fs::File::open(dir.path()).unwrap());
        let (target, file) = ("components/A.wasm", BucketKey::new("file").unwrap());
        bucket.put(&BucketKey::new(target).unwrap(), &dir, &file).await.unwrap();
        let catalog = fixture.catalog_of(Arc::new(bucket));
        catalog.resolve(&fixture.name).await.unwrap();
        // Whoever asks now hears that there is none.
        let all = store.list(None).map_ok(|found| found.location).boxed();
        let removed: Vec<_> = store.delete_stream(all).try_collect().await.unwrap();
        assert_eq!(removed.len(), 1);
        catalog.resolve(&fixture.name).await.unwrap();
    }

    #[tokio::test]
    async fn damaged_or_foreign_code_is_not_loaded() {
        let fixture = Fixture::new();
        fixture.push(component(End::Done));
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        let file = fixture.compiled().remove(0);
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        assert_eq!(fs::read(&file).unwrap().len(), whole.len(), "it was compiled again");

        // In a directory that others can write to, nothing is loaded or kept.
        let dir = fixture.root.path().join("cache/compiled");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(&file, "foreign").unwrap();
        fixture.catalog().resolve(&fixture.name).await.unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"foreign");
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
