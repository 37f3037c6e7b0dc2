//! Tests of components that can't be compiled, of compilers that die, and of calls that wait.

use futures_util::FutureExt;
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// A component with one function, which has that code and returns a number.
fn of_code(code: &str) -> Vec<u8> {
    let text = format!("(component (core module (func (result i32) {code})))");
    wat::parse_str(text).unwrap()
}

/// A component that needs about 70 MiB of memory to compile.
fn large() -> Vec<u8> {
    let (ifs, ends) =
        ("if (result i32) i32.const 1 ".repeat(10_000), "else i32.const 0 end ".repeat(10_000));
    of_code(&format!("i32.const 1 {ifs} {ends}"))
}

/// A component that takes minutes to compile.
fn slow() -> Vec<u8> {
    let (loops, ends) = ("loop ".repeat(50_000), "i32.const 0 br_if 0 end ".repeat(50_000));
    of_code(&format!("{loops} {ends} i32.const 0"))
}

impl Fixture {
    fn with_limits(memory: ByteSize, seconds: u64) -> Self {
        let limits = CompileLimits { memory, time: Duration::from_secs(seconds) };
        Self { limits, ..Self::new() }
    }

    /// A catalog whose compiler can't be started.
    fn catalog_without_compiler(&self) -> Catalog {
        let bucket = DirBucket::create(&self.root.path().join("bucket")).unwrap();
        let compiler = Compiler::new("/no/such/program".into(), Vec::new(), self.limits);
        self.catalog_by(Arc::new(bucket), compiler)
    }

    /// Waits until `count` processes were started to compile and the last one has set its limits.
    /// Returns the last one.
    async fn begun(&self, count: usize) -> Pid {
        loop {
            let starts = self.starts();
            assert!(starts.len() <= count, "{starts:?}");
            if starts.len() == count {
                let pid = Pid::from_raw(starts[count - 1]).unwrap();
                let limits = fs::read_to_string(format!("/proc/{}/limits", starts[count - 1]));
                let limits = limits.unwrap_or_default();
                let data = limits.lines().find(|line| line.starts_with("Max data size"));
                if data.is_some_and(|data| !data.contains("unlimited")) {
                    return pid;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends a signal to the compiling process when it has begun. Returns the catalog's error.
    async fn interrupted(&self, catalog: &Catalog, signal: Signal) -> CatalogError {
        let count = self.starts().len() + 1;
        let kill = async { kill_process(self.begun(count).await, signal).unwrap() };
        let (found, ()) = tokio::join!(find(catalog, self), kill);
        found.err().unwrap()
    }

    fn trying(&self) -> PathBuf {
        let folder = fs::read_dir(self.root.path().join("cache/compiled")).unwrap().next();
        let digest = Digest::of(&fs::read(self.component()).unwrap());
        folder.unwrap().unwrap().path().join(format!("{digest}.trying"))
    }

    fn component(&self) -> PathBuf {
        self.root.path().join("bucket/components/A.wasm")
    }
}

async fn is_under_way(catalog: &Catalog) {
    while catalog.under_way.all().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn is_gone(pid: Pid) {
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    loop {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[track_caller]
fn is_no_guest(error: &CatalogError, words: &str) {
    assert!(matches!(error, CatalogError::NotAGuest { .. }), "{error}");
    assert!(error.to_string().contains(words), "{words:?} is not in {error}");
}

#[track_caller]
fn is_not_yet(error: &CatalogError, words: &str) {
    assert!(matches!(error, CatalogError::NotYet { .. }), "{error}");
    assert!(error.to_string().contains(words), "{words:?} is not in {error}");
}

#[test]
fn what_the_compiler_makes_is_what_a_sandbox_runs() {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let hash = |engine: &wasmtime::Engine| {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.finish()
    };
    let dir = tempfile::tempdir().unwrap();
    let spill = Arc::new(SpillDir::new(dir.path()).unwrap());
    let sandbox = Sandbox::new(3, spill, Mode::Ordinary).unwrap();
    let engine = crate::sandbox::compiling_engine(Mode::Ordinary).unwrap();
    assert_eq!(hash(&engine), hash(sandbox.engine()));
}

#[tokio::test]
async fn a_component_that_is_too_large_is_not_compiled_again_with_the_same_limits() {
    let fixture = Fixture::with_limits(ByteSize::mib(64), 300);
    fixture.push(large());
    let catalog = fixture.catalog();
    let error = find(&catalog, &fixture).await.err().unwrap();
    is_no_guest(&error, "more than 64.0 MiB of memory; raise the limit with `--compile-memory`");
    for catalog in [catalog, fixture.catalog_without_compiler()] {
        let error = find(&catalog, &fixture).await.err().unwrap();
        is_no_guest(&error, "this machine tried before");
    }
    assert_eq!(fixture.starts().len(), 1);
    // A higher limit of time changes nothing, a higher limit of memory does.
    let (dir, limits) = (fixture.root.path().join("cache/compiled"), fixture.limits);
    let slower = CompileLimits { time: limits.time * 2, ..limits };
    let fixture = Fixture { limits: slower, ..fixture };
    is_no_guest(&find(&fixture.catalog(), &fixture).await.err().unwrap(), "64.0 MiB");
    let fixture = Fixture { limits, ..fixture };
    assert_eq!(quarantined(&dir).len(), 1);
    forget_quarantined(&dir).unwrap();
    is_no_guest(&find(&fixture.catalog(), &fixture).await.err().unwrap(), "64.0 MiB");
    assert_eq!(fixture.starts().len(), 2, "after it was forgotten");
    let larger = CompileLimits { memory: ByteSize::gib(1), ..limits };
    let fixture = Fixture { limits: larger, ..fixture };
    is_no_guest(&find(&fixture.catalog(), &fixture).await.err().unwrap(), "no export");
    assert_eq!(fixture.starts().len(), 3);
    assert_eq!(quarantined(&dir), []);
    assert_eq!(fixture.compiled().len(), 1, "nothing but the code is left");
}

#[tokio::test]
async fn a_component_that_takes_too_long_is_given_up() {
    let fixture = Fixture::with_limits(ByteSize::gib(1), 1);
    fixture.push(slow());
    let error = find(&fixture.catalog(), &fixture).await.err().unwrap();
    is_no_guest(&error, "more than 1s of processor time, or four times that in");
    is_no_guest(&error, "raise the limit with `--compile-timeout`");
    is_gone(Pid::from_raw(fixture.starts()[0]).unwrap()).await;
}

#[tokio::test]
async fn code_that_is_too_large_is_not_taken() {
    // A sixteenth of 64 MiB is 4 MiB.
    let fixture = Fixture::with_limits(ByteSize::mib(64), 300);
    let data = "x".repeat(5 << 20);
    let text = format!("(component (core module (memory 100) (data (i32.const 0) \"{data}\")))");
    fixture.push(wat::parse_str(text).unwrap());
    let error = find(&fixture.catalog(), &fixture).await.err().unwrap();
    is_no_guest(&error, "its compiled code is larger than 4.0 MiB, a sixteenth of the");
}

#[tokio::test]
async fn what_is_no_component_is_not_compiled_again() {
    let fixture = Fixture::new();
    fixture.push(b"\0asm\x0d\0\x01\0\x01\x05wrong".to_vec());
    let first = find(&fixture.catalog(), &fixture).await.err().unwrap();
    let again = find(&fixture.catalog_without_compiler(), &fixture).await.err().unwrap();
    is_no_guest(&first, "components/A.wasm can't be run");
    is_no_guest(&again, "this machine tried before");
    fixture.push(component(End::Done));
    find(&fixture.catalog(), &fixture).await.unwrap();
}

#[tokio::test]
async fn where_nothing_can_be_kept_a_failure_is_remembered_by_the_host() {
    let fixture = Fixture::with_limits(ByteSize::mib(64), 300);
    fixture.push(large());
    let dir = fixture.root.path().join("cache/compiled");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    let catalog = fixture.catalog();
    for _ in 0..3 {
        is_no_guest(&find(&catalog, &fixture).await.err().unwrap(), "64.0 MiB");
    }
    assert_eq!(fixture.starts().len(), 1);
    // The host also counts the deaths of compilers in memory.
    fixture.push(slow());
    let catalog = fixture.catalog();
    is_not_yet(&fixture.interrupted(&catalog, Signal::KILL).await, "it is compiled once more");
    is_no_guest(&fixture.interrupted(&catalog, Signal::KILL).await, "started 2 times");
    is_no_guest(&find(&catalog, &fixture).await.err().unwrap(), "started 2 times");
    assert_eq!(fixture.starts().len(), 3);
}

#[tokio::test]
async fn a_compiler_that_is_killed_is_told_from_one_that_was_stopped_and_one_that_broke() {
    let fixture = Fixture::new();
    fixture.push(slow());
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        let error = fixture.interrupted(&fixture.catalog(), signal).await;
        is_not_yet(&error, "its compiler ended: signal");
    }
    assert!(!fixture.trying().exists(), "that is nobody's death");
    let error = fixture.interrupted(&fixture.catalog(), Signal::KILL).await;
    is_not_yet(&error, "perhaps by the kernel for lack of memory; it is compiled once more");
    let error = fixture.interrupted(&fixture.catalog(), Signal::KILL).await;
    is_no_guest(&error, "compiling it was started 2 times and did not finish");
    let again = find(&fixture.catalog_without_compiler(), &fixture).await.err().unwrap();
    is_no_guest(&again, "started 2 times");

    forget_quarantined(&fixture.root.path().join("cache/compiled")).unwrap();
    let error = fixture.interrupted(&fixture.catalog(), Signal::ABORT).await;
    is_no_guest(&error, "the compiler crashed: signal: 6 (SIGABRT)");
    let again = find(&fixture.catalog_without_compiler(), &fixture).await.err().unwrap();
    is_no_guest(&again, "the compiler crashed");
}

#[tokio::test]
async fn a_host_that_died_while_it_compiled_is_counted_for_a_day() {
    let fixture = Fixture::new();
    fixture.push(component(End::Done));
    let path = {
        // Compiles once to create the folder.
        let dir = fixture.root.path().join("cache/compiled");
        find(&fixture.catalog(), &fixture).await.unwrap();
        fs::remove_file(fixture.compiled().remove(0)).unwrap();
        assert!(dir.exists());
        fixture.trying()
    };
    let died = |deaths: u32| {
        fs::write(&path, format!("{{\"deaths\":{deaths},\"is_under_way\":true}}")).unwrap();
    };
    died(1);
    let error = find(&fixture.catalog_without_compiler(), &fixture).await.err().unwrap();
    is_no_guest(&error, "compiling it was started 2 times and did not finish");
    assert!(!path.exists() && path.with_extension("failed").exists());

    // Both records expire after a day.
    let old = || std::time::SystemTime::now() - DEATH_EXPIRES - Duration::from_secs(60);
    let age = |path: &Path| {
        fs::File::options().write(true).open(path).unwrap().set_modified(old()).unwrap();
    };
    age(&path.with_extension("failed"));
    died(1);
    age(&path);
    find(&fixture.catalog(), &fixture).await.unwrap();
    fs::remove_file(fixture.compiled().remove(0)).unwrap();
    // One death may have had another cause.
    died(0);
    find(&fixture.catalog(), &fixture).await.unwrap();
    assert_eq!(fixture.compiled().len(), 1, "nothing but the code is left");
}

#[tokio::test]
async fn nobody_compiles_for_somebody_who_has_gone() {
    let fixture = Fixture::new();
    fixture.push(slow());
    let catalog = fixture.catalog();
    let mut first = Box::pin(find(&catalog, &fixture));
    let pid = tokio::select! {
        _ = &mut first => panic!("it takes minutes"),
        pid = fixture.begun(1) => pid,
    };
    drop(first);
    is_gone(pid).await;
    assert!(!fixture.trying().exists());

    // If the call that compiles is dropped, a call that waits takes over. A call that comes later
    // does not wait for long.
    let mut second = loop {
        let mut first = Box::pin(find(&catalog, &fixture));
        tokio::select! {
            _ = &mut first => panic!("it takes minutes"),
            () = is_under_way(&catalog) => {}
        }
        let mut second = Box::pin(find(&catalog, &fixture));
        if (&mut second).now_or_never().is_none() {
            break second;
        }
    };
    tokio::select! {
        _ = &mut second => panic!("it is the one that compiles"),
        () = is_under_way(&catalog) => {}
    }
    let third = find(&catalog, &fixture);
    let third = tokio::select! {
        _ = &mut second => panic!("it is the one that compiles"),
        third = third => third.err().unwrap(),
    };
    is_not_yet(&third, "it has been compiling for");
    // `is_slow` returns the same error.
    let blob = catalog.look_up(&fixture.name).await.unwrap();
    catalog.names.insert(fixture.name.clone(), blob).await;
    is_not_yet(&catalog.is_slow(&fixture.name).await.unwrap(), "it has been compiling for");
    let last = *fixture.starts().last().unwrap();
    assert_ne!(last, pid.as_raw_nonzero().get());
    drop(second);
    is_gone(Pid::from_raw(last).unwrap()).await;
}

#[tokio::test]
async fn few_components_are_compiled_or_wait_for_that_at_a_time() {
    let fixture = Fixture::new();
    fixture.push(component(End::Done));
    let catalog = fixture.catalog();
    let seats = catalog.compilations.try_acquire_many(MAX_COMPILATIONS as u32).unwrap();
    let error = find(&catalog, &fixture).await.err().unwrap();
    is_not_yet(&error, "8 other components are compiling");
    drop(seats);
    let turns = (catalog.compiler.permit().await, catalog.compiler.permit().await);
    let mut waiting = Box::pin(find(&catalog, &fixture));
    tokio::select! {
        _ = &mut waiting => panic!("two are compiled at the moment"),
        () = is_under_way(&catalog) => {}
    }
    assert_eq!(fixture.starts().len(), 0);
    drop(turns);
    waiting.await.unwrap();
    assert!(catalog.is_slow(&fixture.name).await.is_none());
    // A component that is ready needs no permit.
    let _seats = catalog.compilations.try_acquire_many(MAX_COMPILATIONS as u32).unwrap();
    find(&catalog, &fixture).await.unwrap();
    find(&fixture.catalog_without_compiler(), &fixture).await.unwrap();
    assert_eq!(fixture.starts().len(), 1);
}

#[tokio::test]
async fn who_waits_for_another_host_waits_for_nothing_else() {
    let fixture = Fixture::new();
    fixture.push(component(End::Done));
    find(&fixture.catalog(), &fixture).await.unwrap();
    fs::remove_file(fixture.compiled().remove(0)).unwrap();
    // Another host is suspended while it compiles.
    let other = CompileLock::try_take(&fixture.trying()).unwrap().unwrap();
    let (catalog, takes_long) = (fixture.catalog(), Notify::new());
    let mut waiting = Box::pin(catalog.resolve(&fixture.name, &takes_long));
    tokio::select! {
        _ = &mut waiting => panic!("another host compiles it"),
        () = takes_long.notified() => {}
    }
    // A host that is told to stop does not wait.
    drop(waiting);
    assert!(catalog.under_way.all().is_empty());
    let mut waiting = Box::pin(find(&catalog, &fixture));
    assert!((&mut waiting).now_or_never().is_none());
    drop(other);
    waiting.await.unwrap();
    assert_eq!(fixture.starts().len(), 2);
}

#[tokio::test]
async fn a_host_that_can_not_start_a_compiler_blames_nobody_else() {
    let fixture = Fixture::new();
    fixture.push(component(End::Done));
    let error = find(&fixture.catalog_without_compiler(), &fixture).await.err().unwrap();
    assert!(error.is_of_this_host(), "{error}");
    assert!(error.to_string().contains("starting the compiler failed: No such file"), "{error}");
    // A compiler that ends before it receives the component.
    let bucket = Arc::new(DirBucket::create(&fixture.root.path().join("bucket")).unwrap());
    let arguments = ["-c", "echo no threads >&2; exit 3"].map(std::ffi::OsString::from);
    let compiler = Compiler::new("/bin/sh".into(), arguments.to_vec(), fixture.limits);
    let error = compiler.try_out().await.unwrap_err().to_string();
    assert!(error.contains("exit status: 3: no threads"), "{error}");
    let error = find(&fixture.catalog_by(bucket, compiler), &fixture).await.err().unwrap();
    assert!(error.is_of_this_host(), "{error}");
    fixture.compiler().try_out().await.unwrap();
    find(&fixture.catalog(), &fixture).await.unwrap();
}

#[tokio::test]
async fn a_component_that_is_damaged_after_it_was_looked_up_is_not_compiled() {
    let fixture = Fixture::new();
    fixture.push(component(End::Done));
    let catalog = fixture.catalog();
    let mut blob = catalog.look_up(&fixture.name).await.unwrap();
    // The blob in the cache has the bytes of another component.
    blob.digest = {
        fixture.push(component(End::Reject));
        let other = fixture.catalog().look_up(&fixture.name).await.unwrap();
        let cache = fixture.root.path().join("cache/blobs");
        let path = |digest: Digest| {
            let hex = digest.to_string();
            cache.join(&hex[..2]).join(hex)
        };
        let bytes = fs::read(path(blob.digest)).unwrap();
        fs::remove_file(path(other.digest)).unwrap();
        fs::write(path(other.digest), bytes).unwrap();
        blob.size = fs::metadata(path(other.digest)).unwrap().len();
        other.digest
    };
    let takes_long = Notify::new();
    let caller = Caller { compiles: AtomicBool::new(false), takes_long: &takes_long };
    assert!(matches!(
        catalog.make_ready(&fixture.name, &blob, &caller).await,
        Err(NotReady::Gone(CacheError::Gone { .. }))
    ));
    assert_eq!(fixture.starts().len(), 1);
    assert_eq!(fixture.compiled(), [] as [PathBuf; 0]);
}

#[test]
fn words_are_cut_and_control_characters_shown() {
    assert_eq!(bounded("a\u{1b}[31m\nb\u{7f}é"), "a\\u{1b}[31m\\nb\\u{7f}é");
    let cut = bounded(&"é".repeat(100_000));
    assert!(cut.len() < MAX_WORDS + 32 && cut.ends_with(" … (cut)"), "{}", cut.len());
}
