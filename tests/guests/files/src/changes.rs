//! Checks of outputs: files and directories are written, moved and removed.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::reading::large;
use crate::{Check, Checks, number};

const EILSEQ: i32 = 25;
const ENOTEMPTY: i32 = 55;

pub(crate) const ALL: &[(&str, Check)] = &[
    ("bytes", bytes),
    ("large files", large_files),
    ("entries", entries),
    ("renames", renames),
    ("open files", open_files),
    ("listings", listings),
    ("times", times),
];

fn at(name: &str) -> String {
    format!("/outputs/{name}")
}

fn text(name: &str) -> String {
    fs::read_to_string(at(name)).unwrap_or_else(|error| error.to_string())
}

fn bytes(check: &mut Checks) -> io::Result<()> {
    fs::write(at("a"), "one two three")?;
    let mut file = OpenOptions::new().read(true).write(true).open(at("a"))?;
    file.seek(SeekFrom::Start(4))?;
    file.write_all(b"TWO")?;
    check.is("overwritten", text("a"), "one TWO three".to_owned());
    let mut rest = String::new();
    file.read_to_string(&mut rest)?;
    check.is("read on", rest, " three".to_owned());
    file.set_len(3)?;
    check.is("shorter", (text("a"), file.metadata()?.len()), ("one".to_owned(), 3));
    file.set_len(5)?;
    check.is("longer", text("a"), "one\0\0".to_owned());
    file.seek(SeekFrom::Start(7))?;
    check.is("seeking changes nothing", file.metadata()?.len(), 5);
    file.write_all(b"!")?;
    check.is("a hole is zeros", text("a"), "one\0\0\0\0!".to_owned());
    file.sync_all()?;
    file.sync_data()?;
    let mut append = OpenOptions::new().append(true).open(at("a"))?;
    append.write_all(b"+")?;
    file.seek(SeekFrom::End(0))?;
    file.write_all(b"-")?;
    append.write_all(b"+")?;
    check.is("appended", text("a"), "one\0\0\0\0!+-+".to_owned());
    drop((file, append));
    File::create(at("a"))?;
    check.is("truncated", text("a"), String::new());
    check.fails("create_new", ErrorKind::AlreadyExists, File::create_new(at("a")));
    let bad = OpenOptions::new().write(true).open(at("none"));
    check.fails("open without create", ErrorKind::NotFound, bad);
    fs::remove_file(at("a"))
}

fn large_files(check: &mut Checks) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(7919, File::create_new(at("large"))?);
    for piece in large().chunks(997) {
        file.write_all(piece)?;
    }
    file.flush()?;
    check.that("in pieces", fs::read(at("large"))? == large());
    check.is("copy", fs::copy("/inputs/in/large.bin", at("copy"))?, 200_000);
    check.that("the copy", fs::read(at("copy"))? == large());
    fs::copy(at("copy"), at("large"))?;
    fs::remove_file(at("copy"))?;
    check.is("the size", fs::metadata(at("large"))?.len(), 200_000);
    Ok(())
}

fn entries(check: &mut Checks) -> io::Result<()> {
    fs::write(at("file"), "x")?;
    fs::create_dir_all(at("dir/sub/deep"))?;
    fs::create_dir_all(at("dir/sub"))?;
    for (name, want, call) in [
        ("dir", ErrorKind::AlreadyExists, fs::create_dir(at("dir"))),
        ("file", ErrorKind::AlreadyExists, fs::create_dir(at("file"))),
        ("none/dir", ErrorKind::NotFound, fs::create_dir(at("none/dir"))),
        ("file/dir", ErrorKind::NotADirectory, fs::create_dir(at("file/dir"))),
        ("all below a file", ErrorKind::NotADirectory, fs::create_dir_all(at("file/a/b"))),
    ] {
        check.fails(&format!("create {name}"), want, call);
    }
    for (name, want, call) in [
        ("a file as a directory", ErrorKind::NotADirectory, fs::remove_dir(at("file"))),
        ("no directory", ErrorKind::NotFound, fs::remove_dir(at("none"))),
        ("a directory as a file", ErrorKind::IsADirectory, fs::remove_file(at("dir"))),
        ("no file", ErrorKind::NotFound, fs::remove_file(at("none"))),
    ] {
        check.fails(&format!("remove {name}"), want, call);
    }
    check.is("remove a full directory", number(fs::remove_dir(at("dir"))), Some(ENOTEMPTY));
    check.fails("write a directory", ErrorKind::IsADirectory, fs::write(at("dir"), "x"));
    let long = "n".repeat(256);
    check.fails("a long name", ErrorKind::InvalidFilename, File::create(at(&long)));
    File::create(at(&long[1..]))?;
    fs::remove_file(at(&long[1..]))?;
    let link = fs::hard_link(at("file"), at("link"));
    check.fails("a hard link", ErrorKind::PermissionDenied, link);
    check.fails("read a link", ErrorKind::InvalidInput, fs::read_link(at("file")));
    let odd = number(File::create(at("line\nbreak")));
    check.is("a name that can't be a key", odd, Some(EILSEQ));
    // The standard library for WASI does not support these calls.
    let file = File::open(at("file"))?;
    check.fails("clone", ErrorKind::Unsupported, file.try_clone());
    let permissions = file.metadata()?.permissions();
    let set = fs::set_permissions(at("file"), permissions);
    check.fails("permissions", ErrorKind::Unsupported, set);
    check.fails("lock", ErrorKind::Unsupported, file.lock());
    fs::write(at("dir/sub/deep/file"), "x")?;
    fs::remove_dir_all(at("dir"))?;
    fs::remove_file(at("file"))?;
    check.that("all removed", !Path::new(&at("dir")).exists() && !fs::exists(at("file"))?);
    Ok(())
}

fn renames(check: &mut Checks) -> io::Result<()> {
    fs::write(at("old"), "old")?;
    fs::write(at("new"), "new")?;
    fs::create_dir(at("empty"))?;
    fs::create_dir_all(at("full/sub"))?;
    let mut rename = |name: &str, want, from: &str, to: &str| {
        check.fails(name, want, fs::rename(at(from), at(to)));
    };
    rename("nothing", ErrorKind::NotFound, "none", "x");
    rename("into nothing", ErrorKind::NotFound, "old", "none/x");
    rename("over a directory", ErrorKind::IsADirectory, "old", "empty");
    rename("over a file", ErrorKind::NotADirectory, "empty", "old");
    rename("into itself", ErrorKind::InvalidInput, "full", "full/sub/x");
    let over = fs::rename(at("empty"), at("full"));
    check.is("over a full directory", number(over), Some(ENOTEMPTY));
    fs::rename(at("old"), at("old"))?;
    fs::rename(at("old"), at("new"))?;
    check.is("replaced", text("new"), "old".to_owned());
    fs::rename(at("full"), at("empty"))?;
    check.that("over an empty directory", fs::exists(at("empty/sub"))? && !fs::exists(at("full"))?);
    fs::rename(at("new"), at("empty/sub/moved"))?;
    fs::rename(at("empty/sub"), at("moved"))?;
    check.is("moved", text("moved/moved"), "old".to_owned());
    fs::remove_dir_all(at("moved"))?;
    fs::remove_dir(at("empty"))
}

fn open_files(check: &mut Checks) -> io::Result<()> {
    let mut file = File::create_new(at("gone"))?;
    file.write_all(b"still")?;
    fs::remove_file(at("gone"))?;
    fs::write(at("gone"), "another")?;
    file.write_all(b" there")?;
    check.is("removed while open", file.metadata()?.len(), 11);
    let mut old = File::open(at("gone"))?;
    fs::write(at("next"), "replaced")?;
    fs::rename(at("next"), at("gone"))?;
    let mut still = String::new();
    old.read_to_string(&mut still)?;
    check.is("replaced while open", (still, text("gone")), ("another".into(), "replaced".into()));
    fs::remove_file(at("gone"))
}

fn listings(check: &mut Checks) -> io::Result<()> {
    fs::create_dir_all(at("many/dir"))?;
    let all: BTreeSet<String> = (0..300).map(|n| n.to_string()).collect();
    for name in &all {
        File::create(at(&format!("many/{name}")))?;
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(at("many"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
            found.push(entry.file_name().into_string().unwrap_or_default());
        }
    }
    check.is("each once", found.len(), 300);
    check.that("all", found.into_iter().collect::<BTreeSet<_>>() == all);
    check.is("what is left", fs::read_dir(at("many"))?.count(), 1);
    fs::remove_dir_all(at("many"))
}

fn times(check: &mut Checks) -> io::Result<()> {
    let mut file = File::create_new(at("timed"))?;
    let mut last = file.metadata()?.modified()?;
    let since = SystemTime::now().duration_since(last).unwrap_or_default();
    check.that("now", since < Duration::from_secs(60));
    let mut goes_back = false;
    for _ in 0..100 {
        file.write_all(b"x")?;
        let now = file.metadata()?.modified()?;
        goes_back |= now < last;
        last = now;
    }
    check.that("times never go back", !goes_back);
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5);
    file.set_times(FileTimes::new().set_modified(then))?;
    let now = file.metadata()?;
    check.that("set", now.modified()? == then && now.accessed()? != then);
    file.set_modified(SystemTime::now())?;
    check.that("set again", file.metadata()?.modified()? >= last);
    fs::remove_file(at("timed"))
}
