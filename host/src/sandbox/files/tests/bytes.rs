//! The bytes of files: in memory, on the disk, and in streams.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use wasmtime_wasi::p2::{InputStream, OutputStream, StreamError};

use super::*;

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
    // The same for a file that a rename replaces.
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
    // The file is closed and opened again.
    drop((file, stream));
    let file = g.create("f");
    assert_eq!(&file.read(3, large as u64 - 1).unwrap()[..], [1, 2]);
    file.file.set_size(100 << 10).unwrap();
    file.write(&[3], None).unwrap();
    assert_eq!(&file.read(9, 102_399).unwrap()[..], [0, 3]);
    // An empty file is in memory again.
    file.file.set_size(0).unwrap();
    eventually("no file", || g.spilled() == 0);
    file.write(b"small", Some(0)).unwrap();
    assert_eq!((g.text("f").as_str(), g.quota.written()), ("small", 5));
    // A write far beyond the end of the file.
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
    let left = tree.into_outputs().unwrap();
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
    let left = g.tree.into_outputs().unwrap();
    let paths: Vec<_> = left.iter().map(|left| left.path.as_str()).collect();
    assert_eq!(paths, ["a", "b-", "b.d", "b/c/y", "b/x"]);
    for left in &left {
        let Content::Bytes(bytes) = &left.content else { panic!("on the disk") };
        assert_eq!(&bytes[..], left.path.as_str().as_bytes());
    }
}

/// An input that counts how many times its file is opened. Opening can be made to fail.
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
    // A failure to open the file is the host's fault.
    for (errno, want) in [(24, Errno::MFILE), (5, Errno::IO), (2, Errno::STALE)] {
        *source.1.lock().unwrap() = Some(errno);
        assert_eq!(code(open()), "io");
        assert_eq!(g.quota.shortage(), Some(want));
        *source.1.lock().unwrap() = None;
        drop(open().unwrap());
    }
    assert!(g.quota.open().is_ok(), "nothing is counted as open");
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
