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
        assert_eq!(g.quota.refused_open(), Some(Limit::OpenFiles(20)));
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

#[test]
fn a_limit_of_the_process_is_told_from_one_of_the_task() {
    let limits = Limits { process_files: 3, ..LIMITS };
    let g = guest_with(vec![], &limits);
    let open: Vec<_> = (0..3).map(|_| g.create("f")).collect();
    assert_eq!(code(g.open("f", OpenFlags::empty(), READ)), "quota");
    assert_eq!(g.quota.refused_open(), Some(Limit::ProcessFiles(open.len() as u64)));
}

/// Limits with `bytes` of the host's memory in addition to the reserved part.
fn with_host_memory(bytes: u64) -> Limits {
    Limits { output_files: 1000, host_memory: ByteSize(LIMITS.set_aside() + bytes), ..LIMITS }
}

#[test]
fn what_the_host_holds_for_a_guest_has_a_limit() {
    let limits = with_host_memory(10 << 10);
    let exceeded = Some(Limit::HostMemory(limits.host_memory));
    let g = guest_with(vec![], &limits);
    let dir = g.outputs();
    let made = (0..1000).take_while(|n| dir.make_dir(&n.to_string()).is_ok()).count();
    assert!((10..20).contains(&made), "{made} directories");
    assert_eq!(g.quota.exceeded(), exceeded);
    dir.remove_dir("0").unwrap();
    dir.make_dir("again").unwrap();

    // Open files count too. The limit that is exceeded is not the one of open files.
    let g = guest_with(vec![], &limits);
    g.write("f", "");
    let open: Vec<_> = (0..20).map_while(|_| g.open("f", OpenFlags::empty(), READ).ok()).collect();
    assert!((10..20).contains(&open.len()), "{} open files", open.len());
    assert_eq!((g.quota.refused_open(), g.quota.exceeded()), (None, exceeded));
}

#[test]
fn the_paths_of_outputs_count_when_they_are_taken() {
    let limits = with_host_memory(5900);
    let g = guest_with(vec![], &limits);
    let parts = ["a", "b", "c"].map(|name| name.repeat(250));
    for depth in 1..=parts.len() {
        g.outputs().make_dir(&parts[..depth].join("/")).unwrap();
    }
    for n in 0..4 {
        g.write(&format!("{}/{n}", parts.join("/")), "");
    }
    assert_eq!(g.quota.exceeded(), None);
    let taken = g.tree.into_outputs().map(|outputs| outputs.len());
    assert_eq!(taken, Err(Limit::HostMemory(limits.host_memory)));
}

#[test]
fn room_for_bytes_to_come_counts_as_memory() {
    let in_memory = |tree: Tree| {
        let outputs = tree.into_outputs().unwrap();
        outputs.iter().filter(|left| matches!(left.content, Content::Bytes(_))).count()
    };
    let append = |g: &Guest, name: &str| {
        let file = g.create(name);
        (0..9).for_each(|_| file.write(&[7; 1 << 10], None).unwrap());
    };
    // A file that grew to 9 KiB has a capacity of 16 KiB, and 64 KiB may be kept in memory.
    let g = guest();
    for name in ["a", "b", "c", "d", "e"] {
        append(&g, name);
    }
    assert_eq!(in_memory(g.tree), 4);

    let g = guest();
    for name in ["a", "b", "c", "d"] {
        append(&g, name);
    }
    g.outputs().remove_file("a").unwrap();
    append(&g, "e");
    assert_eq!(in_memory(g.tree), 4, "a removed file makes room");
}
