//! What a guest left in its outputs directory, into the bucket.
//!
//! Everything is looked at before anything is put: one output that can't be published means
//! that none is. No link is followed, and nothing is opened that is not a regular file.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;

use bytesize::ByteSize;
use cap_std::fs::Dir;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;

use crate::bucket::{Bucket, BucketError};
use crate::key::{BucketKey, MAX_KEY_BYTES, Prefix};
use crate::scratch::{for_each, open_dir};

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
        let mut found = find(outputs, limits)?;
        found.sort_by(|a, b| a.file.cmp(&b.file));
        let keys = keys(&found, base, protected)?;
        // A single output needs no look before it is put. The keys can't be in each other's
        // way: they come from files of one directory.
        if keys.len() > 1 {
            for (output, key) in found.iter().zip(&keys) {
                tokio::task::consume_budget().await;
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
        loop {
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
    // A task with many small outputs takes turns with others.
    tokio::task::consume_budget().await;
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

/// A regular file below `/outputs`.
#[derive(Debug)]
struct Output {
    file: BucketKey,
    size: u64,
}

/// Walks the directory, level by level: it holds one open directory, however deep they are.
fn find(outputs: &Dir, limits: Limits) -> Result<Vec<Output>, PublishError> {
    let mut found = Found { limits, outputs: Vec::new(), entries: 0, bytes: 0 };
    let mut ahead = VecDeque::from([String::new()]);
    while let Some(path) = ahead.pop_front() {
        let dir = open_below(outputs, &path).map_err(|error| unavailable(&path, error))?;
        for_each(dir.as_fd(), |name, _| {
            let text = name.to_str().map_err(|_| {
                let shown = format!("{path}{}", String::from_utf8_lossy(name.to_bytes()));
                invalid(&shown, "its name is not UTF-8, and so can't be a key")
            })?;
            let file = BucketKey::new(&format!("{path}{text}")).map_err(|error| {
                let problem = format!("its name can't be a key: it {error}");
                invalid(&format!("{path}{text}"), problem)
            })?;
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| unavailable(&file, error))?;
            if found.look(file, &stat)? {
                ahead.push_back(format!("{path}{text}/"));
            }
            Ok::<(), Stop>(())
        })
        .map_err(|stop| match stop {
            Stop::Because(error) => error,
            Stop::Failed(error) => unavailable(&path, error),
        })?;
    }
    Ok(found.outputs)
}

/// Opens a directory a segment at a time, so that no link is followed.
fn open_below(top: &Dir, path: &str) -> Result<OwnedFd, Errno> {
    let mut dir = open_dir(top, ".")?;
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        dir = open_dir(&dir, segment)?;
    }
    Ok(dir)
}

struct Found {
    limits: Limits,
    outputs: Vec<Output>,
    entries: u64,
    bytes: u64,
}

impl Found {
    /// Takes an entry, or refuses it. True for a directory.
    fn look(&mut self, file: BucketKey, stat: &Stat) -> Result<bool, PublishError> {
        let Limits { max_bytes, max_files } = self.limits;
        self.entries += 1;
        if self.entries > max_files {
            let problem = format!("there are more than {max_files} files and directories");
            return Err(too_much(problem));
        }
        let what = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(true),
            FileType::RegularFile if stat.st_nlink == 1 => {
                let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
                self.bytes = self.bytes.saturating_add(size);
                if self.bytes > max_bytes {
                    let max = ByteSize(max_bytes);
                    return Err(too_much(format!("they are larger than {max} together")));
                }
                self.outputs.push(Output { file, size });
                return Ok(false);
            }
            FileType::RegularFile => "a file with a second name (a hard link)",
            FileType::Symlink => "a symbolic link",
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "a device",
            FileType::Unknown => "of an unknown type",
        };
        Err(invalid(&file, format!("is {what}; only regular files can be published")))
    }
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

/// Why a walk ended early.
enum Stop {
    Because(PublishError),
    Failed(Errno),
}

impl From<PublishError> for Stop {
    fn from(error: PublishError) -> Self {
        Self::Because(error)
    }
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Failed(error)
    }
}

/// The name as the guest would write it; what could mislead a reader is escaped.
fn shown(file: &(impl fmt::Display + ?Sized)) -> String {
    let text = file.to_string();
    let escaped = text.escape_debug().to_string();
    format!("output /outputs/{escaped}")
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

/// The two kinds of failure, so that one function takes both.
struct Unavailable(Box<dyn std::error::Error + Send + Sync>);

impl From<Errno> for Unavailable {
    fn from(error: Errno) -> Self {
        Self(io::Error::from(error).into())
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
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use rustix::fs::{CWD, Mode};

    use super::*;
    use crate::bucket::DirBucket;
    use crate::bucket::conformance::in_memory;

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
            (r"/outputs/z/back\\slash: its name can't be a key: it has a backslash", |at| {
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

    #[tokio::test]
    async fn a_tree_of_any_depth_is_walked_or_named() {
        let f = fixture();
        let mut dir = open_dir(&f.outputs, ".").unwrap();
        for _ in 0..600 {
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
            dir = open_dir(&dir, "d").unwrap();
        }
        let base = Prefix::new("b").unwrap();
        let limits = Limits { max_files: 10_000, ..LIMITS };
        let error = outputs(&f.outputs, &base, None, &f.bucket, limits, &|| true).await;
        let error = error.unwrap_err();
        assert!(error.to_string().contains("is too long"), "{error}");
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
