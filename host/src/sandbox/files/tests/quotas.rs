//! Limits: bytes, files, and open files.

use super::*;
use crate::sandbox::limits::Limit;

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
        assert!(g.quota.refused_open() == Some(Limit::OpenFiles(20)));
    }
    assert_eq!(code(g.outputs().look("new")), "no-entry", "nothing is left of it");
    // A stream keeps its file open.
    let stream = Reader::new(&open[0], 0);
    open.remove(0);
    assert_eq!(code(g.open("f", OpenFlags::empty(), READ)), "quota");
    drop(stream);
    g.create("f");
    assert!(g.quota.refused_open().is_none() && g.quota.exceeded().is_none());
}
