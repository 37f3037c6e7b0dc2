"""What a Python program expects of its files: `open`, `os`, `pathlib`, `shutil`, `tempfile` and
modules above them. Leaves `report.txt`: the number of expectations, and the name of each that
failed."""

import csv
import encodings.cp437  # `zipfile` imports it only when it reads an archive.
import errno
import glob
import gzip
import json
import os
import pickle
import shutil
import sqlite3
import stat
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

from wit_world.imports.types import Outcome

INPUTS = Path("/inputs/in")
LARGE = bytes(n % 251 for n in range(200_000))

checked = 0
failed = []


def expect(name, holds):
    global checked
    checked += 1
    if not holds:
        failed.append(name)


def fails(name, code, call, *args, **kwargs):
    """The call fails with an `OSError` of this number."""
    global checked
    checked += 1
    try:
        got = call(*args, **kwargs)
    except OSError as error:
        if error.errno != code:
            got = errno.errorcode.get(error.errno, error.errno)
            failed.append(f"{name}: {got}, not {errno.errorcode[code]}")
    else:
        failed.append(f"{name}: worked, and should fail with {errno.errorcode[code]}")
        if hasattr(got, "close"):
            got.close()


def inputs_are_read():
    hello, large = INPUTS / "hello.txt", INPUTS / "large.bin"
    expect("read text", hello.read_text() == "hello, world\n")
    expect("read bytes", large.read_bytes() == LARGE)
    expect("read an empty file", (INPUTS / "empty.dat").read_bytes() == b"")
    with open(hello) as file:
        expect("lines", list(file) == ["hello, world\n"])
        expect("seek and read", file.seek(7) == 7 and file.read(5) == "world")
    with open(large, "rb") as file:
        expect("seek from the end", file.seek(-5, os.SEEK_END) == 199_995)
        expect("read the end", file.read() == LARGE[-5:] and file.read() == b"")
        expect("seek from here", file.seek(-10, os.SEEK_CUR) == 199_990 and file.tell() == 199_990)
        expect("chunks", sum(map(len, iter(lambda: file.read(997), b""))) == 10)
        into = bytearray(1000)
        file.seek(1000)
        expect("read into", file.readinto(into) == 1000 and into == LARGE[1000:2000])
        expect("pread", os.pread(file.fileno(), 4, 100_000) == LARGE[100_000:100_004])
        expect("fstat", os.fstat(file.fileno()).st_size == len(LARGE))
        expect("seekable", file.seekable() and file.readable() and not file.writable())
    with open(large, "rb", buffering=0) as file:
        raw = file.read(10)
        expect("unbuffered", raw == LARGE[:10] and len(file.readall()) == len(LARGE) - 10)

    expect("listdir", sorted(os.listdir(INPUTS)) == ["empty.dat", "hello.txt", "large.bin"])
    with os.scandir("/inputs") as entries:
        kinds = [(entry.name, entry.is_dir(), entry.is_file()) for entry in entries]
    expect("scandir", kinds == [("in", True, False)])
    expect("walk", [names for _, _, names in os.walk("/inputs")][0] == [])
    expect("glob", sorted(glob.glob("/inputs/**/*.txt", recursive=True)) == [str(hello)])
    expect("rglob", [path.name for path in Path("/inputs").rglob("*.bin")] == ["large.bin"])
    info = hello.stat()
    expect("size", info.st_size == 13 and os.path.getsize(large) == 200_000)
    expect("type", stat.S_ISREG(info.st_mode) and INPUTS.is_dir() and hello.is_file())
    expect("links", info.st_nlink == 1 and not hello.is_symlink())
    expect("same file", os.path.samefile(hello, "/inputs/./in/../in/hello.txt"))
    expect("not the same file", not hello.samefile(large))
    expect("no file", not os.path.exists("/inputs/none") and not Path("/outputs/none").exists())
    fails("open what is not there", errno.ENOENT, open, "/inputs/none")
    fails("open a directory", errno.EISDIR, open, INPUTS)
    fails("list a file", errno.ENOTDIR, os.listdir, hello)
    fails("open below a file", errno.ENOTDIR, open, hello / "x")
    fails("open outside", errno.ENOENT, open, "/etc/passwd")
    fails("open above", errno.EPERM, open, "/inputs/../etc/passwd")


def inputs_can_not_be_changed():
    hello = INPUTS / "hello.txt"
    for mode in ["w", "a", "r+", "w+"]:
        fails(f"open with {mode}", errno.EPERM, open, hello, mode)
    # Exclusive creation of an existing file.
    fails("open with x", errno.EPERM, open, hello, "x")
    fails("create", errno.EPERM, open, "/inputs/new", "w")
    fails("remove", errno.EPERM, os.remove, hello)
    fails("rename", errno.EPERM, os.rename, hello, INPUTS / "other")
    fails("replace", errno.EPERM, os.replace, hello, "/outputs/hello.txt")
    fails("mkdir", errno.EPERM, os.mkdir, "/inputs/dir")
    fails("rmdir", errno.EPERM, os.rmdir, INPUTS)
    fails("utime", errno.EPERM, os.utime, hello, (1, 2))
    fails("truncate", errno.EPERM, os.truncate, hello, 1)
    expect("unchanged", hello.read_text() == "hello, world\n")


def bytes_are_written():
    path = Path("a.txt")
    expect("write text", path.write_text("one\ntwo\n") == 8)
    expect("read it back", path.read_text() == "one\ntwo\n")
    with open(path, "a") as file:
        expect("tell in append mode", file.tell() == 8)
        file.write("three\n")
    with open(path, "a") as file:
        file.seek(0)
        file.write("four\n")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    expect("read in append mode", os.lseek(fd, 0, os.SEEK_SET) == 0 and os.read(fd, 4) == b"one\n")
    os.close(fd)
    expect("appended", path.read_text() == "one\ntwo\nthree\nfour\n")
    with open(path, "r+") as file:
        file.write("ONE")
        file.seek(4)
        expect("read and write", file.read(3) == "two")
        expect("truncate in r+", file.truncate(8) == 8)
    expect("truncated", path.read_text() == "ONE\ntwo\n")
    with open(path, "w+") as file:
        expect("w+ empties", os.path.getsize(path) == 0)
        file.write("new")
        file.seek(0)
        expect("w+ reads", file.read() == "new")
    fails("x on what is there", errno.EEXIST, open, path, "x")
    fails("r+ on what is not there", errno.ENOENT, open, "none", "r+")
    with open("b.bin", "xb") as file:
        file.seek(10)
        file.write(b"end")
    expect("a hole is zeros", Path("b.bin").read_bytes() == b"\0" * 10 + b"end")
    os.truncate("b.bin", 11)
    expect("os.truncate", Path("b.bin").read_bytes() == b"\0" * 10 + b"e")
    fd = os.open("c.bin", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    expect("os.write", os.write(fd, b"0123456789") == 10)
    expect("pwrite", os.pwrite(fd, b"xy", 3) == 2 and os.pread(fd, 10, 0) == b"012xy56789")
    expect("lseek", os.lseek(fd, 0, os.SEEK_CUR) == 10 and os.lseek(fd, 2, os.SEEK_SET) == 2)
    os.ftruncate(fd, 4)
    os.fsync(fd)
    expect("ftruncate", os.fstat(fd).st_size == 4 and os.read(fd, 100) == b"2x")
    fails("O_EXCL", errno.EEXIST, os.open, "c.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    fails("seek before the start", errno.EINVAL, os.lseek, fd, -1, os.SEEK_SET)
    os.close(fd)
    fails("read what is closed", errno.EBADF, os.read, fd, 1)
    with open("c.bin", "rb") as file:
        fails("write to what is read", errno.EBADF, os.write, file.fileno(), b"x")
    with open("c.bin", "wb") as file:
        fails("read what is written", errno.EBADF, os.read, file.fileno(), 1)
        with open("c.bin", "ab") as other:
            file.write(b"one")
            file.flush()
            other.write(b"two")
            other.flush()
            expect("append sees what others wrote", Path("c.bin").read_bytes() == b"onetwo")
    with open("large.bin", "wb+") as file:
        piece = 1
        at = 0
        while at < len(LARGE):
            at += file.write(LARGE[at : at + piece])
            piece = piece * 3 % 7919
        file.seek(0)
        expect("large", file.read() == LARGE)
        file.seek(100_001)
        file.write(b"\xff" * 10)
        file.seek(100_000)
        want = LARGE[100_000:100_001] + b"\xff" * 10 + LARGE[100_011:100_012]
        expect("in the middle", file.read(12) == want)


def entries_are_made_and_removed():
    Path("file").write_text("x")
    os.makedirs("dir/sub/deep")
    os.makedirs("dir/sub/deep", exist_ok=True)
    Path("dir/sub").mkdir(exist_ok=True, parents=True)
    fails("mkdir on a directory", errno.EEXIST, os.mkdir, "dir")
    fails("mkdir on a file", errno.EEXIST, os.mkdir, "file")
    fails("mkdir below nothing", errno.ENOENT, os.mkdir, "none/dir")
    fails("mkdir below a file", errno.ENOTDIR, os.mkdir, "file/dir")
    fails("rmdir what is not empty", errno.ENOTEMPTY, os.rmdir, "dir")
    fails("rmdir a file", errno.ENOTDIR, os.rmdir, "file")
    fails("rmdir nothing", errno.ENOENT, os.rmdir, "none")
    fails("remove a directory", errno.EISDIR, os.remove, "dir")
    fails("remove nothing", errno.ENOENT, os.remove, "none")
    fails("write a directory", errno.EISDIR, open, "dir", "w")
    fails("a long name", errno.ENAMETOOLONG, open, "n" * 256, "w")
    fails("a long path", errno.ENAMETOOLONG, os.mkdir, "/".join(["n" * 200] * 30))
    fails("a name that can't be a key", errno.EILSEQ, open, "line\nbreak", "w")
    fails("symlink", errno.EPERM, os.symlink, "file", "link")
    fails("link", errno.EPERM, os.link, "file", "link")
    fails("readlink", errno.EINVAL, os.readlink, "file")
    Path("none").unlink(missing_ok=True)
    os.removedirs("dir/sub/deep")
    expect("removedirs", not os.path.exists("dir"))
    os.remove("file")
    expect("names", [Path(name).write_text("") or Path(name).unlink() for name in
                     ["-rf", "a b", "é", "\U0001f600", "...", "n" * 255]] == [None] * 6)


def entries_are_renamed():
    Path("old").write_text("old")
    Path("new").write_text("new")
    os.makedirs("full/sub")
    os.mkdir("empty")
    before = os.stat("old")
    fails("rename nothing", errno.ENOENT, os.rename, "none", "x")
    fails("rename over a directory", errno.EISDIR, os.rename, "old", "empty")
    fails("rename a directory over a file", errno.ENOTDIR, os.rename, "empty", "old")
    fails("rename over a full directory", errno.ENOTEMPTY, os.rename, "empty", "full")
    fails("rename into itself", errno.EINVAL, os.rename, "full", "full/sub/x")
    os.rename("old", "old")
    os.replace("old", "new")
    after = os.stat("new")
    expect("replace", Path("new").read_text() == "old" and not os.path.exists("old"))
    expect("the same file", os.path.samestat(before, after))
    os.rename("full", "empty")
    expect("over an empty directory", os.path.isdir("empty/sub") and not os.path.exists("full"))
    expect("pathlib", Path("new").rename("empty/sub/new").read_text() == "old")
    expect("shutil.move", shutil.move("empty/sub", "moved") == "moved")
    expect("shutil.move into a directory", shutil.move("moved/new", "empty") == "empty/new")
    shutil.copy2("empty/new", "copy")
    expect("copy2", os.stat("copy").st_mtime_ns == os.stat("empty/new").st_mtime_ns)
    shutil.copyfile("/inputs/in/large.bin", "copy")
    expect("copyfile", Path("copy").read_bytes() == LARGE)
    shutil.copytree("/inputs", "tree")
    expect("copytree", sorted(os.listdir("tree/in")) == ["empty.dat", "hello.txt", "large.bin"])
    for path in ["empty", "moved", "tree"]:
        shutil.rmtree(path)
    expect("rmtree", not any(map(os.path.exists, ["empty", "moved", "tree"])))
    os.remove("copy")

    with open("gone", "w+") as file:
        file.write("still")
        file.flush()
        os.remove("gone")
        expect("removed", not os.path.exists("gone"))
        Path("gone").write_text("another")
        file.write(" here")
        file.seek(0)
        expect("open after it was removed", file.read() == "still here")
    with open("gone") as file:
        # The usual way to replace a file atomically.
        with tempfile.NamedTemporaryFile("w", dir=".", delete=False) as new:
            new.write("replaced")
        os.replace(new.name, "gone")
        expect("replaced", Path("gone").read_text() == "replaced")
        expect("open after it was replaced", file.read() == "another")
    os.remove("gone")


def directories_are_listed():
    os.makedirs("many/dir")
    names = {str(n) for n in range(300)}
    for name in names:
        Path("many", name).touch()
    expect("all of them", set(os.listdir("many")) == names | {"dir"})
    with os.scandir("many") as entries:
        seen = []
        for entry in entries:
            seen.append(entry.name)
            if entry.is_file(follow_symlinks=False):
                expect("size in scandir", entry.stat().st_size == 0)
                os.remove(entry)
    expect("removed while listed", sorted(seen) == sorted(names | {"dir"}))
    expect("what is left", os.listdir("many") == ["dir"])
    with os.scandir("many") as entries:
        Path("many/later").touch()
        later = [entry.name for entry in entries]
    expect("added while listed", "dir" in later and len(set(later)) == len(later))
    shutil.rmtree("many")


def times_go_on():
    path = Path("timed")
    path.touch()
    expect("now", abs(time.time() - path.stat().st_mtime) < 60)
    last = path.stat()
    wrong = 0
    with open(path, "ab", buffering=0) as file:
        for n in range(100):
            file.write(b"x")
            now = path.stat()
            wrong += now.st_mtime_ns < last.st_mtime_ns or now.st_size != n + 1
            last = now
    expect("times never go back", wrong == 0)
    times = (1_000_000_000_000_000_005, 1_100_000_000_000_000_006)
    os.utime(path, ns=times)
    now = path.stat()
    expect("utime", (now.st_atime_ns, now.st_mtime_ns) == times)
    path.read_bytes()
    expect("reading changes no time", path.stat() == now)
    os.utime(path)
    expect("utime of now", path.stat().st_mtime_ns >= last.st_mtime_ns)
    path.unlink()


def temporary_files():
    tempfile.tempdir = "/outputs"
    with tempfile.TemporaryFile() as file:
        file.write(b"temporary")
        file.seek(0)
        expect("TemporaryFile", file.read() == b"temporary")
    with tempfile.NamedTemporaryFile("w+") as file:
        expect("NamedTemporaryFile", os.path.dirname(file.name) == "/outputs")
    expect("it is gone", not os.path.exists(file.name))
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "a").write_text("a")
        os.mkdir(os.path.join(directory, "b"))
    expect("TemporaryDirectory", not os.path.exists(directory))
    with tempfile.SpooledTemporaryFile(max_size=10) as file:
        file.write(b"more than ten bytes")
        file.seek(5)
        expect("SpooledTemporaryFile", file.read() == b"than ten bytes")
    handle, path = tempfile.mkstemp(suffix=".tmp")
    os.close(handle)
    os.remove(path)


def modules_above():
    with open("table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", 1], ["b", "x\ny"]])
    with open("table.csv", newline="") as file:
        expect("csv", list(csv.reader(file)) == [["a", "1"], ["b", "x\ny"]])
    with open("data.json", "w") as file:
        json.dump({"é": [1, 2]}, file)
    with open("data.json") as file:
        expect("json", json.load(file) == {"é": [1, 2]})
    with open("data.pickle", "wb") as file:
        pickle.dump(LARGE, file)
    with open("data.pickle", "rb") as file:
        expect("pickle", pickle.load(file) == LARGE)
    with gzip.open("data.gz", "wt") as file:
        file.write("text" * 1000)
    with gzip.open("data.gz", "rt") as file:
        expect("gzip", file.read() == "text" * 1000)
    with zipfile.ZipFile("data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write("/inputs/in/large.bin", "large.bin")
        archive.writestr("b.txt", "b")
    with zipfile.ZipFile("data.zip", "a") as archive:
        archive.writestr("c.txt", "c")
    with zipfile.ZipFile("data.zip") as archive:
        expect("zip", archive.namelist() == ["large.bin", "b.txt", "c.txt"])
        expect("testzip", archive.testzip() is None)
        archive.extract("large.bin", "extracted")
    expect("extracted", Path("extracted/large.bin").read_bytes() == LARGE)
    shutil.rmtree("extracted")
    database = sqlite3.connect("data.sqlite")
    database.execute("create table rows (n)")
    database.executemany("insert into rows values (?)", [(n,) for n in range(1000)])
    database.commit()
    database.execute("delete from rows where n > 500")
    database.rollback()
    expect("sqlite3", database.execute("select count(*) from rows").fetchone() == (1000,))
    database.close()
    expect("names", sorted(glob.glob("data.*")) ==
           ["data.gz", "data.json", "data.pickle", "data.sqlite", "data.zip"])
    for path in glob.glob("data.*") + ["table.csv"]:
        os.remove(path)
    try:
        import colorsys  # A module of the standard library that nothing above imports.

        expect("no module is loaded late", not colorsys)
    except ModuleNotFoundError:
        pass


GROUPS = [
    inputs_are_read,
    inputs_can_not_be_changed,
    bytes_are_written,
    entries_are_made_and_removed,
    entries_are_renamed,
    directories_are_listed,
    times_go_on,
    temporary_files,
    modules_above,
]


class WitWorld:
    def prepare(self, task):
        pass

    def execute(self, task):
        os.chdir("/outputs")
        for group in GROUPS:
            try:
                group()
            except Exception:
                failed.append(f"{group.__name__}: {traceback.format_exc()}")
        Path("report.txt").write_text("\n".join([str(checked), *failed, ""]))
        return Outcome(True, [])

    def finalize(self, task, outcome):
        pass
