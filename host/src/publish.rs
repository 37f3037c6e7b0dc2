//! What a guest left in its outputs directory, into the bucket.
//!
//! Everything is looked at before anything is put: one output that can't be published means
//! that none is. No link is followed, and nothing is opened that is not a regular file.

mod walk;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::task::Poll;

use cap_std::fs::Dir;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use self::walk::{Output, Stopped, walk};
use crate::bucket::{self, Bucket, BucketError};
use crate::key::{BucketKey, MAX_KEY_BYTES, Prefix, lowercase};
use crate::plain;
use crate::turns::Turns;

/// Directories in each other that a task may leave.
pub const MAX_DEPTH: usize = 64;
/// More files and directories than this are looked at on a thread that may block.
const WALKED_INLINE: u64 = 128;
/// Outputs of one task that are put at once into a bucket that is not local.
const AT_ONCE: usize = 8;

/// What a task may publish.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All its outputs together, by the size they claim to have, holes included.
    pub max_bytes: u64,
    /// Files and directories.
    pub max_files: u64,
}

impl From<crate::sandbox::Limits> for Limits {
    /// What a guest may write is what it may publish.
    fn from(limits: crate::sandbox::Limits) -> Self {
        Self { max_bytes: limits.output_bytes.as_u64(), max_files: limits.output_files }
    }
}

/// What a task has published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// The keys, in alphabetical order.
    pub keys: Vec<BucketKey>,
    /// The bytes of all of them.
    pub bytes: u64,
}

/// What it means for the task that its outputs can't be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The task left what can't be published, however often it is tried.
    #[error("{output}: {problem}")]
    Invalid {
        /// `output /outputs/…`, or `outputs`.
        output: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The bucket or the local disk failed. Not the task's fault; trying again may help.
    /// Some of the outputs may be published already, each of them whole.
    #[error("{output}: {source}")]
    Unavailable {
        /// `output /outputs/…`.
        output: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The lease ended before everything was put: the task may be somebody else's by now, and
    /// so are its outputs.
    #[error("{output}: the lease ended before it was published")]
    LeaseOver {
        /// `output /outputs/…`.
        output: String,
    },
}

/// What a task left, found and checked, and how much of it is published.
#[derive(Debug)]
pub struct Outputs {
    found: Vec<Output>,
    keys: Vec<BucketKey>,
    /// Those of `found` that are in the bucket.
    put: Vec<bool>,
}

impl Outputs {
    /// Finds every file below `outputs`, to be put into `bucket` under `base`. An output that
    /// would land in `protected` is refused. Directories without files are ignored.
    ///
    /// # Errors
    /// With [`PublishError::Invalid`] for what the guest made.
    pub async fn find(
        outputs: &Dir,
        base: &Prefix,
        protected: Option<&Prefix>,
        bucket: &dyn Bucket,
        limits: Limits,
    ) -> Result<Self, PublishError> {
        let look = Look { base: base.clone(), protected: protected.cloned(), limits };
        let (found, keys) = match look.at(outputs, WALKED_INLINE, &CancellationToken::new()) {
            Err(Stopped::OverBudget) => look.at_all(outputs).await?,
            looked => looked.map_err(Stopped::into_error)?,
        };
        let mut turns = Turns::begin();
        // A single output needs no look before it is put. The keys can't be in each other's
        // way: they come from files of one directory.
        if keys.len() > 1 {
            for (output, key) in found.iter().zip(&keys) {
                turns.pass().await;
                bucket.accepts(key).await.map_err(|error| refused(output, error))?;
            }
        }
        let put = vec![false; found.len()];
        Ok(Self { found, keys, put })
    }

    /// Puts those that are not in `bucket` yet; the files may be gone from `outputs`
    /// afterwards. Asks `may_put` before each step that makes something visible.
    ///
    /// # Errors
    /// For the first that fails. The others may be called for again.
    pub async fn put(
        &mut self,
        outputs: &Dir,
        bucket: &dyn Bucket,
        may_put: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), PublishError> {
        let at_once = if bucket.is_local() { 1 } else { AT_ONCE };
        let mut under_way = FuturesUnordered::new();
        let mut first_failure = None;
        let mut rest = (0..self.found.len()).filter(|n| !self.put[*n]).collect::<VecDeque<_>>();
        let mut done = Vec::with_capacity(rest.len());
        let mut turns = Turns::begin();
        loop {
            turns.pass().await;
            // After a failure those under way are seen to their end, and no other begins.
            while first_failure.is_none() && under_way.len() < at_once {
                let Some(n) = rest.pop_front() else { break };
                // Not a stream of mapped outputs: the future of that is not `Send` to the
                // compiler.
                under_way.push(put(outputs, &self.found[n], n, &self.keys[n], bucket, may_put));
            }
            match under_way.next().await {
                Some(Ok(n)) => done.push(n),
                Some(Err(error)) => drop(first_failure.get_or_insert(error)),
                None => break,
            }
        }
        drop(under_way);
        for n in done {
            self.put[n] = true;
        }
        first_failure.map_or(Ok(()), Err)
    }

    /// What is published now.
    pub fn published(self) -> Published {
        Published { bytes: self.found.iter().map(|output| output.size).sum(), keys: self.keys }
    }
}

/// Finds all outputs and puts them. The files may be gone from `outputs` afterwards.
///
/// # Errors
/// With [`PublishError::Invalid`] for what the guest made, nothing is published.
pub async fn outputs(
    outputs: &Dir,
    base: &Prefix,
    protected: Option<&Prefix>,
    bucket: &dyn Bucket,
    limits: Limits,
    may_put: &(dyn Fn() -> bool + Sync),
) -> Result<Published, PublishError> {
    let mut all = Outputs::find(outputs, base, protected, bucket, limits).await?;
    all.put(outputs, bucket, may_put).await?;
    Ok(all.published())
}

async fn put(
    outputs: &Dir,
    output: &Output,
    number: usize,
    key: &BucketKey,
    bucket: &dyn Bucket,
    may_put: &(dyn Fn() -> bool + Sync),
) -> Result<usize, PublishError> {
    let mut putting = bucket.put(key, outputs, &output.file);
    std::future::poll_fn(|context| {
        if !may_put() {
            return Poll::Ready(Err(PublishError::LeaseOver { output: shown(&output.file) }));
        }
        putting.as_mut().poll(context).map_err(|error| refused(output, error))
    })
    .await
    .map(|()| number)
}

fn refused(output: &Output, error: BucketError) -> PublishError {
    match error {
        BucketError::Invalid { .. } => invalid(&output.file, error.to_string()),
        error => unavailable(&output.file, error),
    }
}

/// What is looked for in a task's outputs directory, to be published.
struct Look {
    base: Prefix,
    protected: Option<Prefix>,
    limits: Limits,
}

impl Look {
    /// The outputs and their keys, in alphabetical order.
    fn at(
        &self,
        outputs: &Dir,
        budget: u64,
        cancelled: &CancellationToken,
    ) -> Result<(Vec<Output>, Vec<BucketKey>), Stopped> {
        let mut found = walk(outputs, self.limits, budget, cancelled)?;
        found.sort_by(|a, b| a.file.cmp(&b.file));
        check_case(&found)?;
        let keys = keys(&found, &self.base, self.protected.as_ref())?;
        Ok((found, keys))
    }

    /// The same on a thread that may block, whatever there is.
    async fn at_all(self, outputs: &Dir) -> Result<(Vec<Output>, Vec<BucketKey>), PublishError> {
        let outputs = outputs.try_clone().map_err(|error| unavailable("", error))?;
        let cancelled = CancellationToken::new();
        // A task that does not wait for the answer any more needs none.
        let _ending = cancelled.clone().drop_guard();
        bucket::blocking(move || self.at(&outputs, u64::MAX, &cancelled))
            .await
            .map_err(Stopped::into_error)
    }
}

impl Stopped {
    fn into_error(self) -> PublishError {
        match self {
            Self::Because(error) => error,
            Self::Failed(error) => unavailable("", error),
            Self::OverBudget | Self::Cancelled => unavailable("", Errno::CANCELED),
        }
    }
}

/// Waits until everything that was published is on the disk, where the bucket is a directory.
///
/// # Errors
/// [`PublishError::Unavailable`]; what was published may be lost then.
pub async fn sync(bucket: &dyn Bucket) -> Result<(), PublishError> {
    bucket.sync().await.map_err(|error| PublishError::Unavailable {
        output: "outputs".into(),
        source: error.into(),
    })
}

/// Refuses outputs that a file system which ignores case would take for one, or for a file and
/// a directory of one name: of those, a bucket or a download there would keep only one.
fn check_case(found: &[Output]) -> Result<(), PublishError> {
    if found.len() < 2 || found.iter().all(|output| is_lowercase(output.file.as_str())) {
        return Ok(());
    }
    let mut by_name = HashMap::with_capacity(found.len());
    let clash = |file: &BucketKey, other: &BucketKey| {
        let problem = format!(
            "differs only in case from the output /outputs/{other}; a file system that ignores \
             case keeps only one of them"
        );
        Err(invalid(file, problem))
    };
    for Output { file, .. } in found {
        if let Some(other) = by_name.insert(lowercase(file.as_str()), file) {
            return clash(file, other);
        }
    }
    for Output { file, .. } in found {
        let name = lowercase(file.as_str());
        let above = name.match_indices('/').find_map(|(end, _)| by_name.get(&name[..end]));
        if let Some(other) = above {
            return clash(file, other);
        }
    }
    Ok(())
}

fn is_lowercase(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c.to_lowercase().eq([c]))
}

fn keys(
    found: &[Output],
    base: &Prefix,
    protected: Option<&Prefix>,
) -> Result<Vec<BucketKey>, PublishError> {
    let key = |output: &Output| {
        let key = base.join(&output.file);
        if key.as_str().len() > MAX_KEY_BYTES {
            let len = key.as_str().len();
            let problem = format!("its key has {len} bytes, the limit is {MAX_KEY_BYTES}");
            return Err(invalid(&output.file, problem));
        }
        match protected {
            Some(protected) if key.starts_with(protected) => {
                let problem = format!(
                    "its key `{key}` is below `{protected}`, where the components are; \
                     a task can't replace them"
                );
                Err(invalid(&output.file, problem))
            }
            _ => Ok(key),
        }
    };
    found.iter().map(key).collect()
}

/// The name as the guest would write it; what could mislead a reader is escaped.
fn shown(file: &(impl fmt::Display + ?Sized)) -> String {
    format!("output /outputs/{}", plain::escape(&file.to_string()))
}

fn invalid(file: &(impl fmt::Display + ?Sized), problem: impl Into<String>) -> PublishError {
    PublishError::Invalid { output: shown(file), problem: problem.into() }
}

fn too_much(problem: String) -> PublishError {
    PublishError::Invalid { output: "outputs".into(), problem }
}

fn unavailable(
    file: &(impl fmt::Display + ?Sized),
    source: impl Into<Unavailable>,
) -> PublishError {
    PublishError::Unavailable { output: shown(file), source: source.into().0 }
}

/// The kinds of failure, so that one function takes them all.
struct Unavailable(Box<dyn std::error::Error + Send + Sync>);

impl From<Errno> for Unavailable {
    fn from(error: Errno) -> Self {
        Self(io::Error::from(error).into())
    }
}

impl From<io::Error> for Unavailable {
    fn from(error: io::Error) -> Self {
        Self(error.into())
    }
}

impl From<BucketError> for Unavailable {
    fn from(error: BucketError) -> Self {
        Self(error.into())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use rustix::fs::{CWD, Mode, OFlags};

    use super::*;
    use crate::bucket::DirBucket;
    use crate::bucket::tests::conformance::in_memory;
    use crate::scratch::{OPENED, open_dir};

    const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_files: 100 };

    struct Fixture {
        _root: tempfile::TempDir,
        bucket: DirBucket,
        path: PathBuf,
        outputs: Dir,
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let bucket = DirBucket::create(&root.path().join("bucket")).unwrap();
        let path = root.path().join("outputs");
        std::fs::create_dir(&path).unwrap();
        let outputs = Dir::from_std_file(File::open(&path).unwrap());
        Fixture { _root: root, bucket, path, outputs }
    }

    async fn publish(f: &Fixture, base: &str) -> Result<Published, PublishError> {
        let components = Prefix::new("components").unwrap();
        let base = Prefix::new(base).unwrap();
        outputs(&f.outputs, &base, Some(&components), &f.bucket, LIMITS, &|| true).await
    }

    fn keys_of(published: &Published) -> Vec<&str> {
        published.keys.iter().map(BucketKey::as_str).collect()
    }

    #[tokio::test]
    async fn every_file_is_published_and_empty_directories_are_not() {
        let f = fixture();
        assert_eq!(publish(&f, "d").await.unwrap(), Published::default());
        f.outputs.create_dir_all("0_output/deep/er").unwrap();
        f.outputs.create_dir_all("empty/too").unwrap();
        for (file, content) in [("0_output/4.dat", "four"), ("0_output/deep/er/x", ""), ("y", "y")]
        {
            f.outputs.write(file, content).unwrap();
        }
        let published = publish(&f, "d").await.unwrap();
        assert_eq!(keys_of(&published), ["d/0_output/4.dat", "d/0_output/deep/er/x", "d/y"]);
        assert_eq!(published.bytes, 5);
        assert_eq!(std::fs::read(f.bucket.path().join("d/0_output/4.dat")).unwrap(), b"four");
        assert!(!f.bucket.path().join("d/empty").exists());
        assert!(!f.outputs.exists("0_output/4.dat"), "moved, not copied");
    }

    #[tokio::test]
    async fn one_bad_output_means_that_none_is_published() {
        type Make = fn(&Path);
        let make: [(&str, Make); 9] = [
            ("/outputs/z/link: is a symbolic link", |at| {
                symlink("../../../etc/passwd", at.join("link")).unwrap();
            }),
            ("/outputs/z/dir: is a symbolic link", |at| symlink("/etc", at.join("dir")).unwrap()),
            ("second name (a hard link)", |at| {
                std::fs::hard_link(at.join("../good"), at.join("hard")).unwrap();
            }),
            ("/outputs/z/fifo: is a FIFO", |at| {
                rustix::fs::mkfifoat(CWD, at.join("fifo"), Mode::RWXU).unwrap();
            }),
            ("/outputs/z/socket: is a socket", |at| {
                std::os::unix::net::UnixListener::bind(at.join("socket")).unwrap();
            }),
            ("its name is not UTF-8", |at| {
                std::fs::write(at.join(OsStr::from_bytes(b"\xff")), "").unwrap();
            }),
            (
                r"/outputs/z/new\nline: its name can't be a key: it has the control character",
                |at| {
                    std::fs::write(at.join("new\nline"), "").unwrap();
                },
            ),
            (r"/outputs/z/back\slash: its name can't be a key: it has a backslash", |at| {
                std::fs::write(at.join("back\\slash"), "").unwrap();
            }),
            ("larger than 1.0 MiB together", |at| {
                File::create(at.join("sparse")).unwrap().set_len(1 << 40).unwrap();
            }),
        ];
        for (want, make) in make {
            let f = fixture();
            f.outputs.write("good", "good").unwrap();
            f.outputs.create_dir("z").unwrap();
            make(&f.path.join("z"));
            let error = publish(&f, "d").await.unwrap_err();
            assert!(matches!(error, PublishError::Invalid { .. }), "{error}");
            assert!(error.to_string().contains(want), "{want}: {error}");
            assert_eq!(std::fs::read_dir(f.bucket.path()).unwrap().count(), 0, "{want}");
        }
    }

    #[tokio::test]
    async fn names_that_are_odd_but_harmless_are_published() {
        let f = fixture();
        for name in ["-rf", "a b", "é", "..."] {
            f.outputs.write(name, "x").unwrap();
        }
        let published = publish(&f, "d").await.unwrap();
        assert_eq!(keys_of(&published), ["d/-rf", "d/...", "d/a b", "d/é"]);
    }

    #[tokio::test]
    async fn an_output_never_replaces_a_component() {
        for (base, file) in [("components", "NO_OP.wasm"), ("components/x", "y")] {
            let f = fixture();
            f.outputs.write(file, "evil").unwrap();
            let error = publish(&f, base).await.unwrap_err();
            let want = format!("output /outputs/{file}: its key `{base}/{file}` is below");
            assert!(error.to_string().starts_with(&want), "{error}");
            assert_eq!(std::fs::read_dir(f.bucket.path()).unwrap().count(), 0);
        }
        let f = fixture();
        f.outputs.write("x", "fine").unwrap();
        assert_eq!(keys_of(&publish(&f, "components-of-mine").await.unwrap()).len(), 1);
    }

    #[tokio::test]
    async fn too_many_and_too_large_outputs_are_refused() {
        let f = fixture();
        for i in 0..=LIMITS.max_files {
            f.outputs.write(i.to_string(), "").unwrap();
        }
        let error = publish(&f, "d").await.unwrap_err();
        let want = "outputs: there are more than 100 files and directories";
        assert_eq!(error.to_string(), want);

        let f = fixture();
        for i in 0..3 {
            f.outputs.create(i.to_string()).unwrap().set_len(1 << 19).unwrap();
        }
        let error = publish(&f, "d").await.unwrap_err();
        assert_eq!(error.to_string(), "outputs: they are larger than 1.0 MiB together");
    }

    #[tokio::test]
    async fn an_output_that_has_no_place_in_the_bucket_means_that_none_is_published() {
        type Make = fn(&Path, &Dir);
        let make: [(&str, Make); 3] = [
            ("has a segment `.task-host-tmp`", |_, outputs| {
                outputs.create_dir_all("z/.task-host-tmp").unwrap();
                outputs.write("z/.task-host-tmp/x", "x").unwrap();
            }),
            ("key `d/z` is a directory", |bucket, outputs| {
                std::fs::create_dir(bucket.join("d/z")).unwrap();
                outputs.write("z", "x").unwrap();
            }),
            ("key `d/z/x` can't be written: a part of its path is an object", |bucket, outputs| {
                std::fs::write(bucket.join("d/z"), "old").unwrap();
                outputs.create_dir("z").unwrap();
                outputs.write("z/x", "x").unwrap();
            }),
        ];
        for (want, make) in make {
            let f = fixture();
            std::fs::create_dir(f.bucket.path().join("d")).unwrap();
            std::fs::write(f.bucket.path().join("d/good"), "old").unwrap();
            f.outputs.write("good", "new").unwrap();
            make(f.bucket.path(), &f.outputs);
            let error = publish(&f, "d").await.unwrap_err();
            assert!(matches!(error, PublishError::Invalid { .. }), "{error}");
            assert!(error.to_string().contains(want), "{want}: {error}");
            assert_eq!(std::fs::read(f.bucket.path().join("d/good")).unwrap(), b"old", "{want}");
        }
    }

    #[tokio::test]
    async fn nothing_is_put_after_the_lease_has_ended() {
        let f = fixture();
        for i in 0..10 {
            f.outputs.write(i.to_string(), "x").unwrap();
        }
        let asked = std::sync::atomic::AtomicU32::new(0);
        let may_put = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 4;
        let base = Prefix::new("d").unwrap();
        let error = outputs(&f.outputs, &base, None, &f.bucket, LIMITS, &may_put).await;
        assert!(matches!(error, Err(PublishError::LeaseOver { .. })), "{error:?}");
        let put = std::fs::read_dir(f.bucket.path().join("d")).unwrap().count();
        assert_eq!(put, 4, "each was allowed by itself");
    }

    /// A host that is stopped while a large output is copied must not make it visible later.
    #[tokio::test]
    async fn an_output_whose_lease_ends_while_it_is_copied_does_not_become_visible() {
        let f = fixture();
        let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
        std::fs::write(elsewhere.path().join("large"), vec![7; 1 << 20]).unwrap();
        let dir = Dir::from_std_file(File::open(elsewhere.path()).unwrap());
        let asked = std::sync::atomic::AtomicU32::new(0);
        // Allowed to begin.
        let may_put = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        let base = Prefix::new("d").unwrap();
        let error = outputs(&dir, &base, None, &f.bucket, LIMITS, &may_put).await.unwrap_err();
        let want = "output /outputs/large: the lease ended before it was published";
        assert_eq!(error.to_string(), want);
        assert!(!f.bucket.path().join("d/large").exists());
    }

    #[tokio::test]
    async fn a_key_that_is_a_directory_already_is_named() {
        let f = fixture();
        std::fs::create_dir_all(f.bucket.path().join("d/x")).unwrap();
        f.outputs.write("x", "x").unwrap();
        let error = publish(&f, "d").await.unwrap_err();
        assert!(matches!(error, PublishError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains("key `d/x` is a directory"), "{error}");
    }

    fn make_dirs(outputs: &Dir, depth: usize) -> OwnedFd {
        let mut dir = open_dir(outputs, ".").unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
            dir = open_dir(&dir, "d").unwrap();
        }
        dir
    }

    #[tokio::test]
    async fn a_tree_that_is_too_deep_is_refused() {
        for (depth, is_taken) in [(MAX_DEPTH, true), (MAX_DEPTH + 1, false), (1200, false)] {
            let f = fixture();
            let deepest = make_dirs(&f.outputs, depth);
            let flags = OFlags::WRONLY | OFlags::CREATE;
            rustix::fs::openat(&deepest, "x", flags, Mode::RUSR).unwrap();
            let published = publish(&f, "b").await;
            if is_taken {
                let key = format!("b/{}x", "d/".repeat(depth));
                assert_eq!(keys_of(&published.unwrap()), [key]);
            } else {
                let error = published.unwrap_err();
                assert!(matches!(error, PublishError::Invalid { .. }), "{error}");
                let want = "d: is a directory 65 levels deep; outputs may be up to 64 directories";
                assert!(error.to_string().contains(want), "{error}");
                assert!(!f.bucket.path().join("b").exists());
            }
        }
    }

    #[test]
    fn a_walk_opens_each_directory_as_often_however_deep_it_is() {
        let f = fixture();
        for branch in 0..10 {
            let mut path = format!("{branch}");
            for level in 0..50 {
                path += "/d";
                f.outputs.create_dir_all(&path).unwrap();
                f.outputs.write(format!("{path}/{level}"), "").unwrap();
                f.outputs.create_dir(format!("{path}/beside")).unwrap();
            }
        }
        let dirs = 10 + 10 * 50 * 2;
        let before = OPENED.get();
        let limits = Limits { max_files: 10_000, ..LIMITS };
        let found = walk(&f.outputs, limits, u64::MAX, &CancellationToken::new());
        assert_eq!(found.ok().unwrap().len(), 500);
        // Once on the way down, and at most once on the way back.
        let opened = OPENED.get() - before;
        assert!((1 + dirs..=1 + 2 * dirs).contains(&opened), "{opened} for {dirs}");
    }

    #[test]
    fn a_walk_that_nobody_waits_for_ends() {
        let f = fixture();
        make_dirs(&f.outputs, 10);
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let before = OPENED.get();
        let found = walk(&f.outputs, LIMITS, u64::MAX, &cancelled);
        assert!(matches!(found, Err(Stopped::Cancelled)));
        assert_eq!(OPENED.get() - before, 1);
    }

    #[test]
    fn many_entries_are_looked_at_on_a_thread_that_may_block() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let f = fixture();
            let base = Prefix::new("d").unwrap();
            let limits = Limits { max_files: 1000, ..LIMITS };
            // No walk can end on the one such thread there is.
            let (free, is_free) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || is_free.recv());
            for n in 0..WALKED_INLINE {
                f.outputs.write(n.to_string(), "").unwrap();
            }
            // It passes its turn at times, and waits for no other thread.
            let ends = async |find: &mut (dyn Future<Output = _> + Unpin)| {
                for _ in 0..10 * WALKED_INLINE {
                    if futures_util::poll!(&mut *find).is_ready() {
                        return true;
                    }
                    tokio::task::yield_now().await;
                }
                false
            };
            let find = || Box::pin(Outputs::find(&f.outputs, &base, None, &f.bucket, limits));
            assert!(ends(&mut find()).await);
            f.outputs.write("one more", "").unwrap();
            let mut find = find();
            assert!(!ends(&mut find).await);
            free.send(()).unwrap();
            assert_eq!(find.await.unwrap().keys.len() as u64, WALKED_INLINE + 1);
            busy.await.unwrap().unwrap();
        });
    }

    #[tokio::test]
    async fn names_that_a_reader_can_not_tell_apart_are_refused() {
        for (name, code_point) in [
            ("a\u{202e}gpj.exe", "U+202E"),
            ("a\u{200b}", "U+200B"),
            ("a\u{fe0f}", "U+FE0F"),
            ("a\u{2028}b", "U+2028"),
        ] {
            let f = fixture();
            f.outputs.write("good", "x").unwrap();
            f.outputs.write(name, "x").unwrap();
            let error = publish(&f, "d").await.unwrap_err();
            assert!(matches!(error, PublishError::Invalid { .. }), "{error}");
            let want = format!("its name can't be a key: it has the character {code_point}");
            assert!(error.to_string().contains(&want), "{error}");
            assert_eq!(plain::first_odd(&error.to_string()), None, "{error}");
            assert!(!f.bucket.path().join("d").exists());
        }
    }

    #[tokio::test]
    async fn a_base_directory_of_any_name_takes_outputs() {
        let f = fixture();
        f.outputs.write("x", "x").unwrap();
        let published = publish(&f, "old\u{202e}name").await.unwrap();
        assert_eq!(keys_of(&published), ["old\u{202e}name/x"]);
    }

    #[tokio::test]
    async fn outputs_that_differ_only_in_case_are_refused() {
        for (names, want) in [
            (&["Result.txt", "result.txt"][..], Some(("result.txt", "Result.txt"))),
            (&["x", "0_output/É", "0_output/é"], Some(("0_output/é", "0_output/É"))),
            (&["D/x", "d/X", "y"], Some(("d/X", "D/x"))),
            (&["A", "a/b/c"], Some(("a/b/c", "A"))),
            (&["A/x", "a/y", "B", "c", "ΔF", "日本"], None),
        ] {
            let f = fixture();
            for name in names {
                f.outputs.create_dir_all(Path::new(name).parent().unwrap()).unwrap();
                f.outputs.write(name, "x").unwrap();
            }
            match (publish(&f, "b").await, want) {
                (Ok(published), None) => assert_eq!(published.keys.len(), names.len()),
                (Err(error), Some((second, first))) => {
                    assert!(matches!(error, PublishError::Invalid { .. }), "{error}");
                    let want = format!(
                        "output /outputs/{second}: differs only in case from the output \
                         /outputs/{first}; "
                    );
                    assert!(error.to_string().starts_with(&want), "{error}");
                    assert!(!f.bucket.path().join("b").exists());
                }
                (got, want) => panic!("{names:?}: {got:?}, {want:?}"),
            }
        }
    }

    #[tokio::test]
    async fn many_outputs_reach_a_bucket_that_is_not_local() {
        let f = fixture();
        for i in 0..50 {
            f.outputs.write(format!("{i:02}"), vec![7; 100]).unwrap();
        }
        let bucket = in_memory(Arc::new(InMemory::new()));
        // On the runtime's own threads, as the host does it.
        let (dir, store) = (f.outputs.try_clone().unwrap(), bucket.clone());
        let published = tokio::spawn(async move {
            outputs(&dir, &Prefix::new("d").unwrap(), None, &store, LIMITS, &|| true).await
        });
        let published = published.await.unwrap().unwrap();
        assert_eq!((published.keys.len(), published.bytes), (50, 5000));
        for key in &published.keys {
            assert_eq!(bucket.head(key).await.unwrap().size, 100);
        }
    }
}
