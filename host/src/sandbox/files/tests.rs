//! What a guest finds when it works with its files, by the calls that its libraries make.

mod programs;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytesize::ByteSize;
use wasmtime_wasi::p2::{InputStream, OutputStream, StreamError};

use super::file::OpenFile;
use super::types::{DescriptorFlags, DescriptorType, NewTimestamp, OpenFlags};
use super::*;
use crate::sandbox::limits::{Limit, MAX_DEPTH};
use crate::spill::SpillDir;

const LIMITS: Limits = Limits {
    memory: ByteSize::mib(1),
    time: Duration::from_secs(1),
    output_bytes: ByteSize::mib(1),
    output_files: 100,
    output_memory: ByteSize::kib(64),
    output_file_memory: ByteSize::kib(16),
    open_files: 20,
};

/// A guest's files, and what the host knows of them.
struct Guest {
    tree: Tree,
    quota: Arc<Quota>,
    log: Sink,
    spill: Arc<SpillDir>,
    _root: tempfile::TempDir,
}

fn guest_with(inputs: Vec<Input>, limits: &Limits) -> Guest {
    let root = tempfile::tempdir().unwrap();
    let spill = Arc::new(SpillDir::new(root.path()).unwrap());
    let (quota, log) = (Quota::new(limits), Sink::new(None));
    let disk = Disk::start(spill.clone()).unwrap();
    let tree = Tree::new(inputs, limits, quota.clone(), disk, log.clone());
    Guest { tree, quota, log, spill, _root: root }
}

fn guest() -> Guest {
    guest_with(vec![input("in/a", b"an input"), input("b", b"another")], &LIMITS)
}

fn input(path: &str, bytes: &'static [u8]) -> Input {
    let path = BucketKey::new(path).unwrap();
    Input { path, content: InputContent::Bytes(Bytes::from_static(bytes)) }
}

const READ: DescriptorFlags = DescriptorFlags::READ;
const WRITE: DescriptorFlags = DescriptorFlags::WRITE;

/// What a call ends with, in one word.
fn code<T>(done: Result<T>) -> String {
    match done {
        Ok(_) => "ok".to_owned(),
        Err(Error::Code(code)) => code.name().to_owned(),
        Err(Error::Trap(error)) => format!("trap: {error}"),
    }
}

impl Guest {
    fn outputs(&self) -> &Arc<Dir> {
        &self.tree.outputs
    }

    fn open(&self, path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<Arc<OpenFile>> {
        match self.outputs().open(path, open, flags)? {
            Opened::File(file) => Ok(file),
            Opened::Dir(_) => panic!("{path} is a directory"),
        }
    }

    fn create(&self, path: &str) -> Arc<OpenFile> {
        self.open(path, OpenFlags::CREATE, READ | WRITE).unwrap_or_else(|e| panic!("{path}: {e:?}"))
    }

    fn write(&self, path: &str, text: &str) {
        let file = self.open(path, OpenFlags::CREATE | OpenFlags::TRUNCATE, WRITE).unwrap();
        file.write(text.as_bytes(), Some(0)).unwrap();
    }

    fn text(&self, path: &str) -> String {
        let file = self.open(path, OpenFlags::empty(), READ).unwrap();
        String::from_utf8(file.read(1 << 20, 0).unwrap().to_vec()).unwrap()
    }

    fn names(&self, path: &str) -> Vec<String> {
        let tree::Node::Dir(dir) = self.outputs().look(path).unwrap() else { panic!("{path}") };
        let mut listing = Listing::open(&dir).unwrap();
        std::iter::from_fn(|| listing.next()).map(|entry| entry.name).collect()
    }

    fn spilled(&self) -> usize {
        fs::read_dir(self.spill.path()).unwrap().count() - 1
    }
}

#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never: {what}");
}

#[test]
fn a_path_is_looked_up_name_by_name_and_never_leaves_its_directory() {
    let g = guest();
    g.outputs().make_dir("dir").unwrap();
    g.outputs().make_dir("dir/nested").unwrap();
    g.write("dir/nested/file", "x");
    let sub = match g.outputs().open("dir", OpenFlags::DIRECTORY, READ).unwrap() {
        Opened::Dir(open) => Opened::Dir(open).dir().unwrap().clone(),
        Opened::File(_) => panic!("a file"),
    };
    let long = "x".repeat(256);
    let deep = "./".repeat(2048);
    for (dir, path, want) in [
        (g.outputs(), "dir/nested/file", "ok"),
        (g.outputs(), "dir/.//nested/../../dir/nested/../nested///./file", "ok"),
        (g.outputs(), "dir/nested/", "ok"),
        (g.outputs(), "dir/nested///", "ok"),
        (g.outputs(), ".", "ok"),
        (g.outputs(), "./", "ok"),
        (g.outputs(), "dir/..", "ok"),
        (g.outputs(), "", "no-entry"),
        (g.outputs(), "/", "not-permitted"),
        (g.outputs(), "/outputs/dir", "not-permitted"),
        (g.outputs(), "/dir/nested/file", "not-permitted"),
        (g.outputs(), "..", "not-permitted"),
        (g.outputs(), "dir/../..", "not-permitted"),
        (g.outputs(), "dir/nested/../../../outputs/dir", "not-permitted"),
        (g.outputs(), "../inputs/b", "not-permitted"),
        (g.outputs(), "dir/nested/file\0", "invalid"),
        (g.outputs(), "dir/nested/file/", "not-directory"),
        (g.outputs(), "dir/nested/file/.", "not-directory"),
        (g.outputs(), "dir/nested/file/..", "not-directory"),
        (g.outputs(), "dir/nested/file/x", "not-directory"),
        (g.outputs(), "dir/none", "no-entry"),
        (g.outputs(), "none/file", "no-entry"),
        (g.outputs(), "none/..", "no-entry"),
        (g.outputs(), &long, "name-too-long"),
        (g.outputs(), &deep, "name-too-long"),
        (&sub, "nested/file", "ok"),
        (&sub, "../dir", "not-permitted"),
    ] {
        assert_eq!(code(dir.look(path)), want, "{path:?}");
    }
}

#[test]
fn files_and_directories_are_opened_as_posix_has_it() {
    let g = guest();
    g.outputs().make_dir("dir").unwrap();
    g.write("file", "text");
    let (none, create, dir) = (OpenFlags::empty(), OpenFlags::CREATE, OpenFlags::DIRECTORY);
    let (exclusive, truncate) = (OpenFlags::EXCLUSIVE, OpenFlags::TRUNCATE);
    for (path, open, flags, want) in [
        ("file", none, READ, "ok"),
        ("file", none, DescriptorFlags::empty(), "ok"),
        ("file", none, WRITE, "ok"),
        ("file", create, READ, "ok"),
        ("file", create | exclusive, READ, "exist"),
        ("file", exclusive, READ, "ok"),
        ("file", dir, READ, "not-directory"),
        ("file/", create, READ, "not-directory"),
        ("new/", create, READ, "is-directory"),
        ("dir", none, READ, "ok"),
        ("dir", dir, READ, "ok"),
        ("dir", none, WRITE, "is-directory"),
        ("dir", create, READ, "is-directory"),
        ("dir", truncate, READ, "is-directory"),
        ("dir", create | exclusive, READ, "exist"),
        ("dir", dir | create, READ, "invalid"),
        ("dir", dir | exclusive, READ, "invalid"),
        ("dir", dir | truncate, READ, "invalid"),
        (".", create, READ, "is-directory"),
        ("none", none, READ, "no-entry"),
        ("none", truncate, READ, "no-entry"),
        ("none/x", create, READ, "no-entry"),
        ("file/x", create, READ, "not-directory"),
        ("new", create | exclusive, READ, "ok"),
        // Whether and when bytes are on a disk is not the guest's business.
        ("file", none, READ | DescriptorFlags::FILE_INTEGRITY_SYNC, "ok"),
    ] {
        assert_eq!(code(g.outputs().open(path, open, flags)), want, "{path} {open:?} {flags:?}");
    }
    let is_open = |open, flags| {
        let file = g.open("file", open, flags).unwrap();
        (file.read, file.write)
    };
    assert_eq!(is_open(none, DescriptorFlags::empty()), (true, false));
    assert_eq!(is_open(none, WRITE), (false, true));
    assert_eq!(is_open(create, READ), (true, true));
    assert_eq!(g.text("file"), "text");
    g.open("file", truncate, READ).unwrap();
    assert_eq!(g.text("file"), "");
}

#[test]
fn nothing_of_the_inputs_can_be_changed() {
    let g = guest();
    g.write("mine", "");
    let (inputs, outputs) = (&g.tree.inputs, g.outputs());
    let now = || NewTimestamp::Now;
    for (what, got) in [
        ("write", code(inputs.open("b", OpenFlags::empty(), WRITE))),
        ("truncate", code(inputs.open("b", OpenFlags::TRUNCATE, READ))),
        ("create", code(inputs.open("b", OpenFlags::CREATE, READ))),
        ("create new", code(inputs.open("new", OpenFlags::CREATE, READ))),
        ("make a directory", code(inputs.make_dir("dir"))),
        ("remove a directory", code(inputs.remove_dir("in"))),
        ("remove", code(inputs.remove_file("b"))),
        ("rename", code(inputs.rename("b", inputs, "c"))),
        ("rename out", code(inputs.rename("b", outputs, "b"))),
        ("rename in", code(outputs.rename("mine", inputs, "b"))),
        ("times", code(tree::set_times(&inputs.look("b").unwrap(), now(), now()))),
        ("times of a directory", code(tree::set_times(&inputs.look("in").unwrap(), now(), now()))),
    ] {
        assert_eq!(got, "not-permitted", "{what}");
    }
    let file = match inputs.open("in/a", OpenFlags::empty(), READ).unwrap() {
        Opened::File(file) => file,
        Opened::Dir(_) => panic!("a directory"),
    };
    assert_eq!(code(file.check_writable()), "not-permitted");
    assert_eq!(&file.read(100, 3).unwrap()[..], b"input");
    assert!(file.read(100, 8).unwrap().is_empty() && file.read(100, u64::MAX).is_err());
}

#[test]
fn directories_are_made_and_removed_as_posix_has_it() {
    let g = guest();
    let dir = g.outputs();
    g.write("file", "");
    for (path, want) in [
        ("a", "ok"),
        ("a", "exist"),
        ("a/", "exist"),
        (".", "exist"),
        ("a/..", "exist"),
        ("file", "exist"),
        ("a/b/", "ok"),
        ("file/b", "not-directory"),
        ("none/b", "no-entry"),
        ("../b", "not-permitted"),
    ] {
        assert_eq!(code(dir.make_dir(path)), want, "make {path}");
    }
    for (path, want) in [
        ("a", "not-empty"),
        ("a/b/..", "not-empty"),
        (".", "invalid"),
        ("file", "not-directory"),
        ("file/", "not-directory"),
        ("none", "no-entry"),
        ("a/b/", "ok"),
        ("a", "ok"),
    ] {
        assert_eq!(code(dir.remove_dir(path)), want, "remove {path}");
    }
    dir.make_dir("d").unwrap();
    for (path, want) in [
        ("d", "is-directory"),
        ("d/", "is-directory"),
        (".", "is-directory"),
        ("file/", "not-directory"),
        ("none", "no-entry"),
        ("file", "ok"),
    ] {
        assert_eq!(code(dir.remove_file(path)), want, "unlink {path}");
    }
    assert_eq!(g.names("."), ["d"]);
}

#[test]
fn a_directory_that_was_removed_takes_nothing_in() {
    let g = guest();
    g.outputs().make_dir("d").unwrap();
    g.write("f", "");
    let tree::Node::Dir(gone) = g.outputs().look("d").unwrap() else { panic!("a file") };
    g.outputs().remove_dir("d").unwrap();
    assert_eq!(code(gone.open("x", OpenFlags::CREATE, READ)), "no-entry");
    assert_eq!(code(gone.make_dir("x")), "no-entry");
    assert_eq!(code(g.outputs().rename("f", &gone, "x")), "no-entry");
    assert_eq!(g.names("."), ["f"]);
}

#[test]
fn things_are_renamed_as_posix_has_it() {
    let g = guest();
    let dir = g.outputs();
    for path in ["empty", "full", "full/sub", "source", "source/in"] {
        dir.make_dir(path).unwrap();
    }
    g.write("file", "file");
    g.write("other", "other");
    for (old, new, want) in [
        ("none", "x", "no-entry"),
        ("file", "none/x", "no-entry"),
        ("file", "empty", "is-directory"),
        ("file", "x/", "not-directory"),
        ("file/", "x", "not-directory"),
        ("file", "other/x", "not-directory"),
        ("source", "file", "not-directory"),
        ("source", "full", "not-empty"),
        ("source/in", "source", "not-empty"),
        ("source", "source/in/x", "invalid"),
        ("source", "source/x", "invalid"),
        (".", "x", "busy"),
        ("file", ".", "busy"),
        ("source/..", "x", "busy"),
        ("file", "../x", "not-permitted"),
        // Nothing is done, and nothing is lost.
        ("file", "file", "ok"),
        ("source", "source", "ok"),
        ("file", "other", "ok"),
        ("source/", "empty", "ok"),
        ("empty", "full/sub/", "ok"),
        ("full", "whole", "ok"),
    ] {
        assert_eq!(code(dir.rename(old, dir, new)), want, "{old} to {new}");
    }
    assert_eq!(g.text("other"), "file");
    assert_eq!(g.names("."), ["other", "whole"]);
    assert_eq!(g.names("whole"), ["sub"]);
    assert_eq!(g.names("whole/sub"), ["in"]);
    // From one directory to another that is open.
    let tree::Node::Dir(sub) = dir.look("whole/sub").unwrap() else { panic!("a file") };
    dir.rename("other", &sub, "moved").unwrap();
    assert_eq!(code(dir.rename("whole", &sub, "x")), "invalid");
    assert_eq!(g.text("whole/sub/moved"), "file");
}

#[test]
fn a_file_is_there_until_the_last_who_has_it_open_is_gone() {
    let g = guest();
    let file = g.create("f");
    file.write(b"still", Some(0)).unwrap();
    let mut stream = Reader::new(&file, 0);
    g.outputs().remove_file("f").unwrap();
    g.write("f", "new");
    file.write(b" here", None).unwrap();
    assert_eq!(&file.read(100, 0).unwrap()[..], b"still here");
    assert_eq!(g.quota.written(), 13);
    drop(file);
    assert_eq!(&stream.read(100).unwrap()[..], b"still here");
    drop(stream);
    assert_eq!(g.quota.written(), 3, "what is gone may be written again");
    // The same for one that another takes the place of.
    let old = g.create("old");
    old.write(b"old", Some(0)).unwrap();
    g.outputs().rename("f", g.outputs(), "old").unwrap();
    assert_eq!((g.text("old").as_str(), &old.read(9, 0).unwrap()[..]), ("new", &b"old"[..]));
}

#[test]
fn bytes_are_where_they_were_written() {
    let g = guest();
    let file = g.create("f");
    file.write(b"world", Some(6)).unwrap();
    assert_eq!(&file.read(100, 0).unwrap()[..], b"\0\0\0\0\0\0world");
    file.write(b"hello ", Some(0)).unwrap();
    file.write(b"!", None).unwrap();
    file.write(b"", Some(1000)).unwrap();
    assert_eq!(&file.read(100, 0).unwrap()[..], b"hello world!");
    file.file.set_size(5).unwrap();
    file.file.set_size(7).unwrap();
    assert_eq!(&file.read(100, 0).unwrap()[..], b"hello\0\0");
    assert_eq!(file.file.stat().size, 7);

    let mut at = Writer::at(&file, 1);
    at.write(Bytes::from_static(b"A")).unwrap();
    at.write(Bytes::from_static(b"B")).unwrap();
    let mut end = Writer::at_end(&file);
    end.write(Bytes::from_static(b"C")).unwrap();
    file.write(b"D", None).unwrap();
    end.write(Bytes::from_static(b"E")).unwrap();
    let mut stream = Reader::new(&file, 1);
    assert_eq!(&stream.read(0).unwrap()[..], b"");
    assert_eq!(&stream.read(3).unwrap()[..], b"ABl");
    assert_eq!(&stream.read(100).unwrap()[..], b"o\0\0CDE");
    assert!(matches!(stream.read(1), Err(StreamError::Closed)));
    file.write(b"F", None).unwrap();
    assert_eq!(&stream.read(1).unwrap()[..], b"F", "more has come");
}

#[test]
fn a_large_output_goes_to_the_disk_and_reads_as_before() {
    let g = guest();
    let file = g.create("f");
    let large = LIMITS.output_file_memory.as_u64() as usize;
    file.write(&vec![1; large], Some(0)).unwrap();
    assert_eq!(g.spilled(), 0);
    let mut stream = Reader::new(&file, large as u64 - 1);
    file.write(&[2], None).unwrap();
    assert_eq!(g.spilled(), 1);
    assert_eq!(&stream.read(10).unwrap()[..], [1, 2]);
    // Closed and opened again.
    drop((file, stream));
    let file = g.create("f");
    assert_eq!(&file.read(3, large as u64 - 1).unwrap()[..], [1, 2]);
    file.file.set_size(100 << 10).unwrap();
    file.write(&[3], None).unwrap();
    assert_eq!(&file.read(9, 102_399).unwrap()[..], [0, 3]);
    // Emptied, it is in memory again.
    file.file.set_size(0).unwrap();
    eventually("no file", || g.spilled() == 0);
    file.write(b"small", Some(0)).unwrap();
    assert_eq!((g.text("f").as_str(), g.quota.written()), ("small", 5));
    // One that is far beyond its end.
    file.write(b"x", Some(500_000)).unwrap();
    assert_eq!((&file.read(9, 4).unwrap()[..2], g.quota.written()), (&b"l\0"[..], 500_001));
    drop(file);
    g.outputs().remove_file("f").unwrap();
    eventually("no file", || g.spilled() == 0);
    assert_eq!(g.quota.written(), 0);
}

#[test]
fn small_outputs_share_the_memory_there_is() {
    let g = guest();
    let each = 10_000;
    for n in 0..10 {
        g.create(&n.to_string()).write(&vec![n; each], Some(0)).unwrap();
    }
    let memory = LIMITS.output_memory.as_u64() as usize;
    assert_eq!(g.spilled(), 10 - memory / each);
    g.outputs().remove_file("0").unwrap();
    g.create("again").write(&vec![9; each], Some(0)).unwrap();
    assert_eq!(g.spilled(), 10 - memory / each, "there was room again");
    let tree = g.tree.clone();
    let left = tree.into_outputs();
    let in_memory = left.iter().filter(|left| matches!(left.content, Content::Bytes(_))).count();
    assert_eq!((left.len(), in_memory), (10, memory / each));
}

#[test]
fn what_is_left_is_handed_over_in_order_and_without_directories() {
    let g = guest();
    for dir in ["b", "b/c", "empty"] {
        g.outputs().make_dir(dir).unwrap();
    }
    for path in ["b/x", "b/c/y", "b-", "a", "b.d"] {
        g.write(path, path);
    }
    let left = g.tree.into_outputs();
    let paths: Vec<_> = left.iter().map(|left| left.path.as_str()).collect();
    assert_eq!(paths, ["a", "b-", "b.d", "b/c/y", "b/x"]);
    for left in &left {
        let Content::Bytes(bytes) = &left.content else { panic!("on the disk") };
        assert_eq!(&bytes[..], left.path.as_str().as_bytes());
    }
}

#[test]
fn bytes_are_refused_before_they_are_written_and_the_limit_is_known() {
    let most = LIMITS.output_bytes.as_u64();
    type Grow = fn(&OpenFile, u64) -> Result<()>;
    let ways: [Grow; 4] = [
        |file, size| file.write(&vec![0; size as usize], Some(0)),
        |file, size| file.write(b"x", Some(size - 1)),
        |file, size| file.file.set_size(size),
        |file, size| (0..size / 1024).try_for_each(|_| file.write(&[0; 1024], None)),
    ];
    for grow in ways {
        let g = guest();
        let file = g.create("f");
        grow(&file, most).unwrap();
        assert_eq!((g.quota.written(), g.quota.exceeded()), (most, None));
        assert_eq!(code(file.write(b"x", None)), "quota");
        assert_eq!(code(file.file.set_size(u64::MAX)), "quota");
        assert_eq!(code(file.write(b"x", Some(u64::MAX))), "quota");
        assert_eq!(file.file.stat().size, most);
        assert_eq!(g.quota.exceeded(), Some(Limit::OutputBytes(LIMITS.output_bytes)));
        let ended = (0..1000).map(|_| code(file.write(b"x", None))).find(|code| code != "quota");
        assert_eq!(ended.as_deref(), Some("trap: the quota is used up"));
    }
}

#[test]
fn files_and_directories_count_for_as_long_as_they_exist() {
    let limits = Limits { output_files: 3, ..LIMITS };
    let g = guest_with(vec![], &limits);
    let dir = g.outputs();
    dir.make_dir("d").unwrap();
    for _ in 0..10 {
        assert_eq!(code(dir.make_dir("d")), "exist");
        g.write("d/f", "");
        g.write("d/g", "");
        dir.rename("d/g", dir, "d/f").unwrap();
    }
    assert_eq!(g.quota.exceeded(), None, "what exists costs nothing");
    let file = g.create("d/h");
    dir.remove_file("d/h").unwrap();
    assert_eq!(code(dir.make_dir("e")), "quota", "it is still open");
    drop(file);
    dir.make_dir("e").unwrap();
    assert_eq!(code(g.open("x", OpenFlags::CREATE, WRITE)), "quota");
    assert_eq!(g.quota.exceeded(), Some(Limit::OutputFiles(3)));
}

#[test]
fn what_is_open_has_a_limit_that_closing_makes_room_in() {
    let g = guest();
    g.write("f", "");
    let mut open: Vec<_> = (0..LIMITS.open_files).map(|_| g.create("f")).collect();
    for (what, got) in [
        ("a file", code(g.open("f", OpenFlags::empty(), READ))),
        ("a new file", code(g.open("new", OpenFlags::CREATE, READ))),
        ("a directory", code(g.outputs().open(".", OpenFlags::DIRECTORY, READ))),
        ("a listing", code(Listing::open(g.outputs()))),
    ] {
        assert_eq!(got, "quota", "{what}");
        assert!(g.quota.was_refused_open());
    }
    assert_eq!(code(g.outputs().look("new")), "no-entry", "nothing is left of it");
    // A stream keeps its file open.
    let stream = Reader::new(&open[0], 0);
    open.remove(0);
    assert_eq!(code(g.open("f", OpenFlags::empty(), READ)), "quota");
    drop(stream);
    g.create("f");
    assert!(!g.quota.was_refused_open() && g.quota.exceeded().is_none());
}

#[test]
fn directories_are_as_deep_as_can_be_published_however_they_get_there() {
    let limits = Limits { output_files: 1000, ..LIMITS };
    let g = guest_with(vec![], &limits);
    let dir = g.outputs();
    let path = |depth| vec!["d"; depth].join("/");
    for depth in 1..=MAX_DEPTH {
        dir.make_dir(&path(depth)).unwrap();
    }
    g.write(&format!("{}/x", path(MAX_DEPTH)), "");
    assert_eq!(g.quota.exceeded(), None);
    assert_eq!(code(dir.make_dir(&path(MAX_DEPTH + 1))), "quota");
    assert_eq!(g.quota.exceeded(), Some(Limit::Depth(MAX_DEPTH)));

    let g = guest_with(vec![], &limits);
    let dir = g.outputs();
    for depth in 1..=40 {
        dir.make_dir(&path(depth)).unwrap();
    }
    for depth in 1..=25 {
        dir.make_dir(&path(depth).replace('d', "e")).unwrap();
    }
    assert_eq!(code(dir.rename("e", dir, &format!("{}/e", path(40)))), "quota");
    // One less is not too deep, and what is below it counts from its new place.
    dir.rename("e", dir, &format!("{}/e", path(39))).unwrap();
    let deepest = format!("{}/{}", path(39), path(25).replace('d', "e"));
    assert_eq!(code(dir.make_dir(&format!("{deepest}/f"))), "quota");
    g.write(&format!("{deepest}/f"), "");
}

#[test]
fn paths_are_as_long_as_a_key_can_be_however_they_get_there() {
    let g = guest();
    let dir = g.outputs();
    let name = "n".repeat(255);
    let mut path = name.clone();
    for _ in 0..3 {
        dir.make_dir(&path).unwrap();
        path = format!("{path}/{name}");
    }
    // 3 names and 3 slashes: 768 bytes.
    g.write(&path, "");
    dir.remove_file(&path).unwrap();
    dir.make_dir(&path).unwrap();
    assert_eq!(code(dir.make_dir(&format!("{path}/x"))), "name-too-long");
    assert_eq!(code(g.open(&format!("{path}/x"), OpenFlags::CREATE, WRITE)), "name-too-long");
    dir.make_dir("short").unwrap();
    dir.make_dir("short/er").unwrap();
    g.write("short/er/x", "");
    assert_eq!(code(dir.rename("short", dir, &format!("{path}/x"))), "name-too-long");
    assert_eq!(code(dir.make_dir(&"x".repeat(256))), "name-too-long");
    assert!(g.quota.exceeded().is_none());
}

#[test]
fn names_that_can_not_be_keys_can_not_be_made_and_the_log_says_why() {
    let g = guest();
    g.write("good", "");
    for name in ["new\nline", "back\\slash", "\u{202e}gpj", "zero\u{200b}", " ", "file:"] {
        let create = g.open(name, OpenFlags::CREATE, WRITE);
        assert_eq!(code(create), "illegal-byte-sequence", "{name:?}");
        assert_eq!(code(g.outputs().make_dir(name)), "illegal-byte-sequence");
        let renamed = g.outputs().rename("good", g.outputs(), name);
        assert_eq!(code(renamed), "illegal-byte-sequence");
        assert_eq!(code(g.outputs().look(name)), "no-entry");
    }
    for name in ["-rf", "a b", "é", "...", "e\u{301}", "a:b"] {
        g.write(name, "");
    }
    let log = g.log.finish();
    let want = "host: an output can't have the name \"new\\nline\": it has the control character";
    assert!(log.text.starts_with(want), "{}", log.text);
    assert_eq!(log.text.lines().count(), usize::from(MAX_SAID), "{}", log.text);
}

#[test]
fn a_listing_has_what_is_there_all_the_while_once() {
    let limits = Limits { output_files: 10_000, ..LIMITS };
    let g = guest_with(vec![], &limits);
    let all: BTreeSet<String> = (0..1000).map(|n| format!("{n:03}")).collect();
    for name in &all {
        g.write(name, "");
    }
    g.outputs().make_dir("dir").unwrap();
    let mut listing = Listing::open(g.outputs()).unwrap();
    let mut found = Vec::new();
    let mut n = 0;
    while let Some(entry) = listing.next() {
        let is_dir = entry.type_ == DescriptorType::Directory;
        assert_eq!(is_dir, entry.name == "dir");
        // One that was just told is removed, and others come and go.
        if n % 3 == 0 && !is_dir {
            g.outputs().remove_file(&entry.name).unwrap();
        }
        g.write(&format!("+{n}"), "");
        g.write(&format!("000{n}"), "");
        g.outputs().remove_file(&format!("000{n}")).unwrap();
        found.push(entry.name);
        n += 1;
    }
    let told: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(told.len(), found.len(), "once");
    assert!(all.is_subset(&told) && told.contains("dir"));
}

#[test]
fn states_tell_of_the_task_and_of_nothing_else() {
    let g = guest();
    let started = g.tree.shared.clock.started();
    let told = |at: &tree::Node| {
        let stat = at.stat();
        assert_eq!(stat.link_count, 1);
        let times = [
            stat.data_access_timestamp,
            stat.data_modification_timestamp,
            stat.status_change_timestamp,
        ];
        (stat.size, times.map(|at| at.map(|at| (at.seconds, at.nanoseconds)).unwrap()))
    };
    let start = (started.seconds, started.nanoseconds);
    assert_eq!(told(&g.tree.inputs.look("in/a").unwrap()), (8, [start; 3]));
    assert_eq!(told(&g.tree.inputs.look("in").unwrap()), (0, [start; 3]));

    let file = g.create("f");
    let node = g.outputs().look("f").unwrap();
    let made = told(&node).1;
    let mut last = made[0];
    for n in 0..100 {
        file.write(b"x", None).unwrap();
        let (size, [accessed, modified, changed]) = told(&node);
        assert_eq!((size, accessed, changed), (n + 1, made[0], modified));
        assert!(modified >= last, "time goes on");
        last = modified;
    }
    let old = types::Datetime { seconds: 1_000_000_000, nanoseconds: 5 };
    let set = |accessed, modified| code(tree::set_times(&node, accessed, modified));
    assert_eq!(set(NewTimestamp::NoChange, NewTimestamp::Timestamp(old)), "ok");
    let (_, [accessed, modified, changed]) = told(&node);
    assert_eq!((accessed, modified), (made[0], (1_000_000_000, 5)));
    assert!(changed >= last);
    assert_eq!(set(NewTimestamp::Timestamp(old), NewTimestamp::Now), "ok");
    assert!(told(&node).1[1] >= last && told(&node).1[0] == (1_000_000_000, 5));
    let bad = types::Datetime { seconds: 0, nanoseconds: 1_000_000_000 };
    assert_eq!(set(NewTimestamp::Timestamp(bad), NewTimestamp::NoChange), "invalid");
    // A directory changes with what is in it.
    let top = told(&g.outputs().look(".").unwrap()).1[1];
    g.outputs().make_dir("dir").unwrap();
    assert!(told(&g.outputs().look(".").unwrap()).1[1] >= top);
}

#[test]
fn a_file_keeps_its_number_and_no_other_has_it() {
    let number = |g: &Guest, path: &str| {
        let number = tree::hash(&g.outputs().look(path).unwrap(), &g.tree.shared);
        (number.lower, number.upper)
    };
    let (g, other) = (guest(), guest());
    g.write("a", "");
    other.write("a", "");
    g.write("b", "");
    let (a, b) = (number(&g, "a"), number(&g, "b"));
    g.write("a", "more");
    g.outputs().rename("a", g.outputs(), "c").unwrap();
    assert_eq!(number(&g, "c"), a);
    g.write("a", "");
    let all = [a, b, number(&g, "a"), number(&g, "."), number(&other, "a")];
    assert_eq!(BTreeSet::from(all).len(), all.len());
    let open = |path| g.outputs().open(path, OpenFlags::empty(), READ).unwrap();
    assert!(open("b").is_same(&open("./b")) && !open("a").is_same(&open("b")));
}

/// An input whose file is opened when it is needed, or can't be.
struct Counted(AtomicUsize, Mutex<Option<i32>>, std::path::PathBuf);

impl Source for Counted {
    fn open(&self) -> io::Result<Arc<fs::File>> {
        self.0.fetch_add(1, Relaxed);
        match *self.1.lock().unwrap() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => fs::File::open(&self.2).map(Arc::new),
        }
    }
}

#[test]
fn a_large_input_is_open_while_the_guest_has_it_open() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "a large input").unwrap();
    let source = Arc::new(Counted(AtomicUsize::new(0), Mutex::default(), file.path().to_owned()));
    let path = BucketKey::new("large").unwrap();
    let content = InputContent::File { source: source.clone(), size: 13 };
    let g = guest_with(vec![Input { path, content }], &LIMITS);
    let opened = || source.0.load(Relaxed);
    let open = || match g.tree.inputs.open("large", OpenFlags::empty(), READ) {
        Ok(Opened::File(file)) => Ok(file),
        Ok(Opened::Dir(_)) => panic!("a directory"),
        Err(error) => Err(error),
    };
    assert_eq!(g.tree.inputs.look("large").unwrap().stat().size, 13);
    assert_eq!(opened(), 0);
    let (first, second) = (open().unwrap(), open().unwrap());
    assert_eq!((&first.read(100, 2).unwrap()[..], opened()), (&b"large input"[..], 1));
    drop(first);
    assert_eq!((&second.read(5, 2).unwrap()[..], opened()), (&b"large"[..], 1));
    drop(second);
    drop(open().unwrap());
    assert_eq!(opened(), 2);
    // What can't be opened is the host's fault.
    for (errno, want) in [(24, Errno::MFILE), (5, Errno::IO), (2, Errno::STALE)] {
        *source.1.lock().unwrap() = Some(errno);
        assert_eq!(code(open()), "io");
        assert_eq!(g.quota.shortage(), Some(want));
        *source.1.lock().unwrap() = None;
        drop(open().unwrap());
    }
    assert_eq!(g.quota.open().map(drop), Some(()), "nothing is counted as open");
}

#[test]
fn a_disk_that_fails_is_the_hosts_fault() {
    let g = guest();
    let file = g.create("f");
    file.write(b"kept", Some(0)).unwrap();
    let home = g.spill.path();
    fs::remove_dir_all(home.parent().unwrap()).unwrap();
    fs::write(home.parent().unwrap(), "in its place").unwrap();
    assert_ne!(code(file.write(&[0; 20_000], None)), "ok");
    assert_eq!((&file.read(10, 0).unwrap()[..], g.quota.written()), (&b"kept"[..], 4));
    fs::remove_file(home.parent().unwrap()).unwrap();
    file.write(&[0; 20_000], None).unwrap();
    assert_eq!(g.quota.written(), 20_004);
}
