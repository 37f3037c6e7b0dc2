//! Paths: how they are looked up, and which paths outputs can have.

use super::*;
use crate::sandbox::limits::{Limit, MAX_DEPTH};

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
fn a_name_that_is_too_long_is_explained() {
    let g = guest();
    let dir = g.outputs();
    assert_eq!(code(dir.make_dir(&"x".repeat(256))), "name-too-long");
    let names = ["a", "b", "c", "d", "e"].map(|name| name.repeat(250));
    for depth in 1..=names.len() {
        let made = dir.make_dir(&names[..depth].join("/"));
        assert_eq!(made.is_ok(), depth < names.len());
    }
    assert_eq!(
        g.log.finish().text,
        "host: a name of 256 bytes is too long: the limit is 255, which is fixed\n\
         host: a path of 1254 bytes is too long: the limit is 1024, which is fixed\n"
    );
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
    // One level less is not too deep. The depth of the moved directories is updated.
    dir.rename("e", dir, &format!("{}/e", path(39))).unwrap();
    let deepest = format!("{}/{}", path(39), path(25).replace('d', "e"));
    assert_eq!(code(dir.make_dir(&format!("{deepest}/f"))), "quota");
    g.write(&format!("{deepest}/f"), "");
}
