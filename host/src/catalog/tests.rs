//! Tests of catalogs, some of which share a cache. The test program itself is the compiling
//! process.

mod hostile;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bytesize::ByteSize;
use futures_util::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::guest::{End, component};
use super::quarantine::DEATH_EXPIRES;
use super::*;
use crate::bucket::DirBucket;
use crate::bucket::tests::conformance::in_memory;
use crate::cache::CacheOptions;
use crate::sandbox::Mode;
use crate::spill::SpillDir;

/// The variable that makes the test program a compiling process.
pub(super) const COMPILES: &str = "TASK_HOST_TEST_COMPILES";
/// The arguments that make the test program compile.
const COMPILE: [&str; 3] = [
    "--exact",
    "catalog::child::tests::this_program_compiles_where_that_is_asked_for",
    "--nocapture",
];
const LIMITS: CompileLimits =
    CompileLimits { memory: ByteSize::gib(2), time: Duration::from_secs(300) };

/// A catalog with one component of this name, which is compiled. Files are below `root`.
pub(crate) async fn with_component(
    name: &str,
    root: &Path,
    cache: Cache,
    spill: Arc<SpillDir>,
) -> Catalog {
    let name = TaskName::new(name).unwrap();
    let bucket = in_memory(Arc::new(InMemory::new()));
    let target = BucketKey::new(&format!("components/{}", name.file())).unwrap();
    bucket.put(&target, &component(End::Done).into(), &target).await.unwrap();
    let sandbox = Arc::new(Sandbox::new(1, spill, Mode::Ordinary).unwrap());
    let prefix = Prefix::new("components").unwrap();
    let compiler =
        Compiler::new(std::env::current_exe().unwrap(), COMPILE.map(Into::into).into(), LIMITS);
    let compiler = compiler.with_variable(COMPILES, "1");
    let compiled = root.join("compiled");
    let catalog = Catalog::new(Arc::new(bucket), prefix, cache, sandbox, compiler, &compiled);
    catalog.resolve(&name, &Notify::new()).await.unwrap();
    catalog
}

struct Fixture {
    root: tempfile::TempDir,
    name: TaskName,
    cache_size: u64,
    limits: CompileLimits,
}

async fn find(catalog: &Catalog, fixture: &Fixture) -> Result<Ready, CatalogError> {
    catalog.resolve(&fixture.name, &Notify::new()).await
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("bucket/components")).unwrap();
        Self { root, name: TaskName::new("A").unwrap(), cache_size: 1 << 30, limits: LIMITS }
    }

    /// A compiler that runs this program and records the ids of its processes.
    fn compiler(&self) -> Compiler {
        let script = format!("echo $$ >> {}; exec \"$0\" \"$@\"", self.starts_path().display());
        let program = std::env::current_exe().unwrap();
        let arguments = ["-c".into(), script.into(), program.into_os_string()]
            .into_iter()
            .chain(COMPILE.map(std::ffi::OsString::from));
        Compiler::new("/bin/sh".into(), arguments.collect(), self.limits)
            .with_variable(COMPILES, "1")
    }

    fn starts_path(&self) -> PathBuf {
        self.root.path().join("starts")
    }

    /// The ids of the processes that were started to compile.
    fn starts(&self) -> Vec<i32> {
        let starts = fs::read_to_string(self.starts_path()).unwrap_or_default();
        starts.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// The catalog of a new host with the same bucket and cache directory.
    fn catalog(&self) -> Catalog {
        let bucket = DirBucket::create(&self.root.path().join("bucket")).unwrap();
        self.catalog_of(Arc::new(bucket))
    }

    fn catalog_of(&self, bucket: Arc<dyn Bucket>) -> Catalog {
        self.catalog_by(bucket, self.compiler())
    }

    fn catalog_by(&self, bucket: Arc<dyn Bucket>, compiler: Compiler) -> Catalog {
        let cache = self.root.path().join("cache");
        let spill = Arc::new(SpillDir::new(&cache.join("work")).unwrap());
        let sandbox = Arc::new(Sandbox::new(1, spill, Mode::Ordinary).unwrap());
        let options = CacheOptions { dir: cache.clone(), max_bytes: self.cache_size };
        Catalog::new(
            bucket,
            Prefix::new("components").unwrap(),
            Cache::open(options).unwrap(),
            sandbox,
            compiler,
            &cache.join("compiled"),
        )
    }

    fn push(&self, wasm: Vec<u8>) {
        let (new, file) = ("bucket/components/A.new", "bucket/components/A.wasm");
        fs::write(self.root.path().join(new), wasm).unwrap();
        fs::rename(self.root.path().join(new), self.root.path().join(file)).unwrap();
    }

    /// A bucket that is not local, with the component.
    async fn remote(&self, wasm: Vec<u8>) -> Arc<dyn Bucket> {
        self.put_into(Arc::new(InMemory::new()), wasm).await
    }

    async fn put_into(&self, store: Arc<InMemory>, wasm: Vec<u8>) -> Arc<dyn Bucket> {
        let bucket = in_memory(store);
        let target = BucketKey::new("components/A.wasm").unwrap();
        bucket.put(&target, &wasm.into(), &target).await.unwrap();
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
    let asks = (0..20).map(|i| find(&catalogs[i % 2], &fixture));
    let found = futures_util::future::join_all(asks).await;
    assert_eq!(fixture.starts().len(), 1);
    let digests: Vec<_> = found.into_iter().map(|ready| ready.unwrap().digest).collect();
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
    let files = fixture.compiled();
    assert_eq!(files.len(), 1, "one file of compiled code, no lock, nothing temporary: {files:?}");
    let written = fs::metadata(&files[0]).unwrap().modified().unwrap();
    // A host that starts later loads the stored code.
    find(&fixture.catalog(), &fixture).await.unwrap();
    assert_eq!(fs::metadata(&files[0]).unwrap().modified().unwrap(), written);
}

#[tokio::test]
async fn a_new_upload_is_picked_up_without_a_restart() {
    let fixture = Fixture::new();
    let catalog = fixture.catalog();
    let none = find(&catalog, &fixture).await.err().unwrap();
    assert!(matches!(none, CatalogError::NotFound { .. }), "{none}");
    assert!(none.to_string().contains("host component push FILE.wasm --name A"), "{none}");

    fixture.push(component(End::Done));
    let first = find(&catalog, &fixture).await.unwrap().digest;
    fixture.push(component(End::Reject));
    let start = std::time::Instant::now();
    while find(&catalog, &fixture).await.unwrap().digest == first {
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
    find(&catalog, &fixture).await.unwrap();
    // From now on, a request to the bucket finds no component.
    let all = store.list(None).map_ok(|found| found.location).boxed();
    let removed: Vec<_> = store.delete_stream(all).try_collect().await.unwrap();
    assert_eq!(removed.len(), 1);
    find(&catalog, &fixture).await.unwrap();
}

#[tokio::test]
async fn damaged_code_is_compiled_again_and_never_run() {
    let fixture = Fixture::new();
    fixture.push(component(End::Done));
    find(&fixture.catalog(), &fixture).await.unwrap();
    let file = fixture.compiled().remove(0);
    let whole = fs::read(&file).unwrap();
    let half = whole.len() / 2;
    let mut flipped = whole.clone();
    flipped[half] ^= 1;
    // A file as a power cut leaves it: the length is right, and blocks are missing.
    let mut zeros = whole.clone();
    zeros[4096..half].fill(0);
    let mut garbage = whole.clone();
    garbage.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
    let longer = [&whole[..], b"more"].concat();
    let damaged: [&[u8]; 7] =
        [&flipped, &zeros, &garbage, &longer, &whole[..half], &whole[..10], b""];
    for damaged in damaged {
        fs::write(&file, damaged).unwrap();
        find(&fixture.catalog(), &fixture).await.unwrap();
        assert_eq!(fs::read(&file).unwrap(), whole, "it was compiled again");
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir_all(file.join("a directory")).unwrap();
    find(&fixture.catalog(), &fixture).await.unwrap();
    assert_eq!(fs::read(&file).unwrap(), whole);
}

#[tokio::test]
async fn code_of_another_component_or_from_an_open_directory_is_not_loaded() {
    let fixture = Fixture::new();
    fixture.push(component(End::Reject));
    find(&fixture.catalog(), &fixture).await.unwrap();
    let other = fs::read(&fixture.compiled()[0]).unwrap();
    fixture.push(component(End::Done));
    find(&fixture.catalog(), &fixture).await.unwrap();
    for file in fixture.compiled() {
        fs::write(file, &other).unwrap();
    }
    find(&fixture.catalog(), &fixture).await.unwrap();
    let is_other = |file: &&PathBuf| fs::read(file).unwrap() == other;
    assert_eq!(fixture.compiled().iter().filter(is_other).count(), 1);

    // In a directory that others can write to, nothing is loaded or kept.
    let dir = fixture.root.path().join("cache/compiled");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    for file in fixture.compiled() {
        fs::write(file, "foreign").unwrap();
    }
    let catalog = fixture.catalog();
    find(&catalog, &fixture).await.unwrap();
    for file in fixture.compiled() {
        assert_eq!(fs::read(file).unwrap(), b"foreign");
    }
}

#[tokio::test]
async fn a_damaged_component_in_the_cache_is_fetched_again() {
    let fixture = Fixture::new();
    let bucket = fixture.remote(component(End::Done)).await;
    let digest = find(&fixture.catalog_of(bucket.clone()), &fixture).await.unwrap().digest;
    fs::remove_file(fixture.compiled().remove(0)).unwrap();
    let hex = digest.to_string();
    let blob = fixture.root.path().join("cache/blobs").join(&hex[..2]).join(&hex);
    let mut bytes = fs::read(&blob).unwrap();
    let half = bytes.len() / 2;
    bytes[half] ^= 1;
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&blob, bytes).unwrap();
    find(&fixture.catalog_of(bucket), &fixture).await.unwrap();
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
    let takes_long = Notify::new();
    let caller = Caller { compiles: AtomicBool::new(false), takes_long: &takes_long };
    assert!(matches!(
        catalog.make_ready(&fixture.name, &blob, &caller).await,
        Err(NotReady::Gone(CacheError::Gone { .. }))
    ));
    find(&catalog, &fixture).await.unwrap();
    assert_eq!(fixture.compiled().len(), 1, "and its code is kept again");
}

#[tokio::test]
async fn what_a_killed_host_left_in_compiled_is_removed_and_a_live_ones_files_stay() {
    let fixture = Fixture::new();
    fixture.push(component(End::Done));
    find(&fixture.catalog(), &fixture).await.unwrap();
    let kept = fixture.compiled().remove(0);
    let left = [kept.with_extension("1.tmp"), kept.with_extension("trying")];
    for file in &left {
        fs::write(file, "half").unwrap();
    }
    // The record of a compilation counts for a day.
    let old = std::time::SystemTime::now() - 2 * DEATH_EXPIRES;
    fs::File::options().write(true).open(&left[1]).unwrap().set_modified(old).unwrap();
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
    find(&fixture.catalog(), &fixture).await.unwrap();
    let first = fixture.compiled();
    fixture.push(component(End::Done));
    find(&fixture.catalog(), &fixture).await.unwrap();
    assert_eq!(fixture.compiled().len(), 1, "the new one only");
    assert_ne!(fixture.compiled(), first);
    fixture.catalog();
    assert_eq!(fixture.compiled().len(), 1, "the next start finds it");

    // Recently used code for another engine stays.
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
    find(&fixture.catalog(), &fixture).await.unwrap();
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
    let error = find(&catalog, &fixture).await.err().unwrap();
    assert!(error.is_of_this_host(), "{error}");
    let CatalogError::Unavailable { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(source.downcast_ref(), Some(CacheError::Full { .. })), "{error}");
    disk.remove(&ballast);
    find(&catalog, &fixture).await.unwrap();
}

#[tokio::test]
async fn what_is_no_guest_is_said_with_its_place() {
    let fixture = Fixture::new();
    fixture.push(wat::parse_str("(module)").unwrap());
    let error = find(&fixture.catalog(), &fixture).await.err().unwrap();
    assert!(matches!(error, CatalogError::NotAGuest { .. }), "{error}");
    assert!(error.to_string().contains("components/A.wasm"), "{error}");
}
