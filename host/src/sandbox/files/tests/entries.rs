//! Opening, making, removing, renaming and listing files and directories.

use std::collections::BTreeSet;

use super::super::types::{DescriptorType, NewTimestamp};
use super::*;

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
        // This flag does nothing. Outputs become durable when they are published.
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
        // A rename to the same name changes nothing.
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
    // A rename into an open directory.
    let tree::Node::Dir(sub) = dir.look("whole/sub").unwrap() else { panic!("a file") };
    dir.rename("other", &sub, "moved").unwrap();
    assert_eq!(code(dir.rename("whole", &sub, "x")), "invalid");
    assert_eq!(g.text("whole/sub/moved"), "file");
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
        // The entry that was just listed is removed. Others are created and removed.
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
