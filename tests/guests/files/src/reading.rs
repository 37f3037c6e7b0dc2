//! Checks of inputs: they can be read in every way, and cannot be changed.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};

use crate::{Check, Checks};

pub(crate) const ALL: &[(&str, Check)] =
    &[("inputs are read", are_read), ("inputs can't be changed", can_not_be_changed)];

const HELLO: &str = "/inputs/in/hello.txt";
const LARGE: &str = "/inputs/in/large.bin";

/// The content of the large input.
pub(crate) fn large() -> Vec<u8> {
    (0..200_000_u32).map(|n| (n % 251) as u8).collect()
}

fn are_read(check: &mut Checks) -> io::Result<()> {
    check.is("text", fs::read_to_string(HELLO)?, "hello, world\n".to_owned());
    check.that("bytes", fs::read(LARGE)? == large());
    check.is("an empty file", fs::read("/inputs/in/empty.dat")?, vec![]);
    let lines: io::Result<Vec<_>> = BufReader::new(File::open(HELLO)?).lines().collect();
    check.is("lines", lines?, vec!["hello, world".to_owned()]);

    let mut file = File::open(LARGE)?;
    let mut bytes = [0; 100];
    check.is("seek from the end", file.seek(SeekFrom::End(-50))?, 199_950);
    check.is("a short read", file.read(&mut bytes)?, 50);
    check.is("the end", file.read(&mut bytes)?, 0);
    check.is("seek from here", file.seek(SeekFrom::Current(-100_000))?, 100_000);
    file.read_exact(&mut bytes)?;
    check.that("in the middle", bytes[..] == large()[100_000..100_100]);
    check.is("position", file.stream_position()?, 100_100);
    check.fails(
        "seek before the start",
        ErrorKind::InvalidInput,
        file.seek(SeekFrom::End(-200_001)),
    );
    file.rewind()?;
    let mut all = Vec::new();
    (&file).take(150_001).read_to_end(&mut all)?;
    check.that("a part", all[..] == large()[..150_001]);
    let mut other = File::open(LARGE)?;
    check.is("copy", io::copy(&mut other, &mut io::sink())?, 200_000);
    check.fails(
        "read_exact beyond the end",
        ErrorKind::UnexpectedEof,
        other.read_exact(&mut bytes),
    );

    let hello = fs::metadata(HELLO)?;
    check.is("size", (hello.len(), fs::metadata(LARGE)?.len()), (13, 200_000));
    check.that("type", hello.is_file() && fs::symlink_metadata("/inputs/in")?.is_dir());
    check.that("no time of the host", hello.modified()? == fs::metadata(LARGE)?.modified()?);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir("/inputs/in")? {
        let entry = entry?;
        check.that(
            "an entry is a file",
            entry.file_type()?.is_file() && entry.metadata()?.is_file(),
        );
        names.insert(entry.file_name().into_string().unwrap_or_default());
    }
    let want = ["empty.dat", "hello.txt", "large.bin"].map(str::to_owned);
    check.is("list", names, want.into());
    check.that("exists", fs::exists(HELLO)? && !fs::exists("/inputs/none")?);
    check.fails("nothing", ErrorKind::NotFound, File::open("/inputs/none"));
    check.fails("below a file", ErrorKind::NotADirectory, File::open("/inputs/in/hello.txt/x"));
    check.fails("list a file", ErrorKind::NotADirectory, fs::read_dir(HELLO));
    check.fails("read a directory", ErrorKind::IsADirectory, fs::read("/inputs/in"));
    check.fails("above", ErrorKind::PermissionDenied, File::open("/inputs/../outputs/x"));
    Ok(())
}

fn can_not_be_changed(check: &mut Checks) -> io::Result<()> {
    const DENIED: ErrorKind = ErrorKind::PermissionDenied;
    check.fails("write", DENIED, OpenOptions::new().write(true).open(HELLO));
    check.fails("append", DENIED, OpenOptions::new().append(true).open(HELLO));
    check.fails("truncate", DENIED, File::create(HELLO));
    check.fails("create", DENIED, File::create("/inputs/new"));
    check.fails("write by a reader", DENIED, File::open(HELLO)?.write_all(b"x"));
    check.fails("set the length", DENIED, File::open(HELLO)?.set_len(1));
    check.fails("remove", DENIED, fs::remove_file(HELLO));
    check.fails("remove all", DENIED, fs::remove_dir_all("/inputs/in"));
    check.fails("rename", DENIED, fs::rename(HELLO, "/inputs/other"));
    check.fails("rename out", DENIED, fs::rename(HELLO, "/outputs/other"));
    check.fails("copy over", DENIED, fs::copy(LARGE, HELLO));
    check.fails("create a directory", DENIED, fs::create_dir("/inputs/dir"));
    check.is("unchanged", fs::read_to_string(HELLO)?, "hello, world\n".to_owned());
    Ok(())
}
