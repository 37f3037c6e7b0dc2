//! The behaviour that wasmtime's own file-system programs require (`crates/test-programs`, release
//! 48). Each test is named after its program. `docs/reference/files.md` lists all programs and the
//! intended differences.

use super::super::types::{
    DescriptorType, HostDescriptor, HostDirectoryEntryStream, NewTimestamp, PathFlags,
};
use super::*;
use wasmtime_wasi::p2::{StreamError, StreamResult};

/// A guest's descriptors.
struct Calls {
    table: ResourceTable,
    guest: Guest,
    inputs: u32,
    outputs: u32,
}

fn nothing() -> OpenFlags {
    OpenFlags::empty()
}

const CREATE: OpenFlags = OpenFlags::CREATE;
const DIRECTORY: OpenFlags = OpenFlags::DIRECTORY;

fn calls() -> Calls {
    let mut calls = Calls { table: ResourceTable::new(), guest: guest(), inputs: 0, outputs: 0 };
    let given = preopens::Host::get_directories(&mut calls.files()).unwrap();
    let names: Vec<&str> = given.iter().map(|(_, name)| &**name).collect();
    assert_eq!(names, ["/inputs", "/outputs"]);
    (calls.inputs, calls.outputs) = (given[0].0.rep(), given[1].0.rep());
    calls
}

fn fd(rep: u32) -> Fd {
    Resource::new_borrow(rep)
}

impl Calls {
    fn files(&mut self) -> Files<'_> {
        Files { table: &mut self.table, tree: &self.guest.tree }
    }

    fn open(&mut self, path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<u32> {
        self.open_at(self.outputs, path, open, flags)
    }

    fn open_at(
        &mut self,
        at: u32,
        path: &str,
        open: OpenFlags,
        flags: DescriptorFlags,
    ) -> Result<u32> {
        let follow = PathFlags::SYMLINK_FOLLOW;
        Ok(self.files().open_at(fd(at), follow, path.to_owned(), open, flags)?.rep())
    }

    fn close(&mut self, file: u32) {
        HostDescriptor::drop(&mut self.files(), Resource::new_own(file)).unwrap();
    }

    fn create(&mut self, path: &str) {
        let file = self.open(path, CREATE, READ | WRITE).unwrap();
        self.close(file);
    }

    fn make_dir(&mut self, path: &str) -> Result<()> {
        let at = fd(self.outputs);
        self.files().create_directory_at(at, path.to_owned())
    }

    fn remove_dir(&mut self, path: &str) -> Result<()> {
        let at = fd(self.outputs);
        self.files().remove_directory_at(at, path.to_owned())
    }

    fn unlink(&mut self, path: &str) -> Result<()> {
        let at = fd(self.outputs);
        self.files().unlink_file_at(at, path.to_owned())
    }

    fn rename(&mut self, old: &str, new: &str) -> Result<()> {
        let at = self.outputs;
        self.files().rename_at(fd(at), old.to_owned(), fd(at), new.to_owned())
    }

    fn stat(&mut self, path: &str) -> Result<types::DescriptorStat> {
        let at = fd(self.outputs);
        self.files().stat_at(at, PathFlags::empty(), path.to_owned())
    }

    fn list(&mut self, dir: u32) -> Vec<(String, DescriptorType)> {
        let stream = self.files().read_directory(fd(dir)).unwrap().rep();
        let mut all = Vec::new();
        let borrow = || Resource::new_borrow(stream);
        while let Some(entry) = self.files().read_directory_entry(borrow()).unwrap() {
            all.push((entry.name, entry.type_));
        }
        assert!(self.files().read_directory_entry(borrow()).unwrap().is_none(), "past the end");
        HostDirectoryEntryStream::drop(&mut self.files(), Resource::new_own(stream)).unwrap();
        all
    }

    fn read(&mut self, file: u32, len: u64, offset: u64) -> Result<(Vec<u8>, bool)> {
        self.files().read(fd(file), len, offset)
    }

    fn write(&mut self, file: u32, bytes: &[u8], offset: u64) -> Result<u64> {
        self.files().write(fd(file), bytes.to_vec(), offset)
    }

    fn reader(&mut self, file: u32, offset: u64) -> Result<DynInputStream> {
        let stream = self.files().read_via_stream(fd(file), offset)?;
        Ok(self.table.delete(stream).unwrap())
    }

    fn writer(&mut self, file: u32, offset: Option<u64>) -> Result<DynOutputStream> {
        let stream = match offset {
            Some(offset) => self.files().write_via_stream(fd(file), offset)?,
            None => self.files().append_via_stream(fd(file))?,
        };
        Ok(self.table.delete(stream).unwrap())
    }
}

fn written(stream: &mut DynOutputStream, bytes: &'static [u8]) -> StreamResult<()> {
    assert!(stream.check_write()? >= bytes.len());
    stream.write(Bytes::from_static(bytes))?;
    stream.flush()
}

#[test]
fn p1_interesting_paths() {
    let mut c = calls();
    c.make_dir("dir").unwrap();
    c.make_dir("dir/nested").unwrap();
    c.create("dir/nested/file");
    for (path, want) in [
        ("/dir/nested/file", "not-permitted"),
        ("dir/.//nested/../../dir/nested/../nested///./file", "ok"),
        ("dir/nested/file\0", "invalid"),
        ("dir/nested/file/", "not-directory"),
        ("dir/nested/file///", "not-directory"),
        ("dir/nested/", "ok"),
        ("dir/nested///", "ok"),
        ("dir/nested/../../../outputs/dir/nested/file", "not-permitted"),
    ] {
        assert_eq!(code(c.open(path, nothing(), READ)), want, "{path}");
    }
    c.unlink("dir/nested/file").unwrap();
    c.remove_dir("dir/nested").unwrap();
    c.remove_dir("dir").unwrap();
}

#[test]
fn p1_path_open_create_existing_and_missing_and_dirfd_not_dir_and_preopen() {
    let mut c = calls();
    c.create("file");
    assert_eq!(code(c.open("file", CREATE | OpenFlags::EXCLUSIVE, READ)), "exist");
    assert_eq!(code(c.open("none", nothing(), READ)), "no-entry");
    let file = c.open("file", nothing(), READ).unwrap();
    assert_eq!(code(c.open_at(file, "foo", CREATE, READ)), "not-directory");
    for (open, flags, want) in [
        (nothing(), READ, "ok"),
        (nothing(), DescriptorFlags::empty(), "ok"),
        (DIRECTORY, DescriptorFlags::empty(), "ok"),
        (DIRECTORY, READ, "ok"),
        (DIRECTORY, READ | WRITE, "is-directory"),
    ] {
        assert_eq!(code(c.open(".", open, flags)), want, "{open:?} {flags:?}");
    }
}

#[test]
fn p1_path_open_read_write_and_lots() {
    let mut c = calls();
    c.create("file");
    let file = c.open("file", nothing(), READ).unwrap();
    assert_eq!(c.files().get_flags(fd(file)).unwrap(), READ);
    assert_eq!(c.read(file, 100, 0).unwrap(), (vec![], true));
    assert_eq!(code(c.write(file, &[1; 50], 0)), "bad-descriptor");
    assert_eq!(code(c.writer(file, Some(0))), "bad-descriptor");
    let file = c.open("file", nothing(), WRITE).unwrap();
    assert_eq!(c.files().get_flags(fd(file)).unwrap(), WRITE);
    assert_eq!(code(c.read(file, 100, 0)), "bad-descriptor");
    assert_eq!(code(c.reader(file, 0)), "bad-descriptor");
    assert_eq!(c.write(file, &[1; 50], 0).unwrap(), 50);
    let file = c.open("file", nothing(), READ | WRITE).unwrap();
    assert_eq!(c.files().get_flags(fd(file)).unwrap(), READ | WRITE);
    assert_eq!(c.read(file, 100, 0).unwrap().0.len(), 50);
    assert_eq!(c.write(file, &[2; 25], 50).unwrap(), 25);
    assert_eq!(c.files().stat(fd(file)).unwrap().size, 75);
    c.unlink("file").unwrap();
    for _ in 0..2000 {
        let file = c.open("file", CREATE, READ | WRITE).unwrap();
        c.write(file, &[0; 100], 0).unwrap();
        c.close(file);
    }
}

#[test]
fn p1_path_rename_and_trailing_slashes() {
    let mut c = calls();
    c.make_dir("source").unwrap();
    c.rename("source", "target").unwrap();
    assert_eq!(code(c.open("source", DIRECTORY, READ)), "no-entry");
    assert_eq!(code(c.open("target", DIRECTORY, READ)), "ok");
    c.make_dir("source").unwrap();
    c.rename("source", "target").unwrap();
    assert_eq!(code(c.open("source", DIRECTORY, READ)), "no-entry");
    c.make_dir("source").unwrap();
    c.create("target/file");
    assert_eq!(code(c.rename("source", "target")), "not-empty");
    assert_eq!(code(c.rename("source", "target/file")), "not-directory");
    c.unlink("target/file").unwrap();
    c.remove_dir("source").unwrap();
    c.remove_dir("target").unwrap();

    c.create("source");
    c.rename("source", "target").unwrap();
    assert_eq!(code(c.open("source", nothing(), READ)), "no-entry");
    c.create("source");
    c.rename("source", "target").unwrap();
    assert_eq!(code(c.open("target", nothing(), READ)), "ok");
    c.unlink("target").unwrap();
    c.create("source");
    c.make_dir("target").unwrap();
    assert_eq!(code(c.rename("source", "target")), "is-directory");
    c.unlink("source").unwrap();
    c.remove_dir("target").unwrap();

    c.make_dir("source").unwrap();
    for (old, new) in
        [("source/", "target"), ("target", "source/"), ("source/", "target/"), ("target", "source")]
    {
        c.rename(old, new).unwrap();
    }
    c.remove_dir("source").unwrap();
}

#[test]
fn p1_remove_directory_and_nonempty_and_unlink_trailing_slashes() {
    let mut c = calls();
    c.make_dir("dir").unwrap();
    c.make_dir("dir/nested").unwrap();
    assert_eq!(code(c.remove_dir("dir")), "not-empty");
    c.remove_dir("dir/nested").unwrap();
    assert_eq!(code(c.unlink("dir")), "is-directory");
    assert_eq!(code(c.unlink("dir/")), "is-directory");
    c.remove_dir("dir").unwrap();
    c.create("file");
    assert_eq!(code(c.remove_dir("file")), "not-directory");
    assert_eq!(code(c.remove_dir("file/")), "not-directory");
    assert_eq!(code(c.unlink("file/")), "not-directory");
    c.unlink("file").unwrap();
}

#[test]
fn p1_path_exists_and_fd_readdir_and_p2_cli_directory_list() {
    let mut c = calls();
    let outputs = c.outputs;
    assert_eq!(c.list(outputs), []);
    c.create("file");
    c.make_dir("nested").unwrap();
    let (file, dir) = (DescriptorType::RegularFile, DescriptorType::Directory);
    assert_eq!(c.stat("file").unwrap().type_, file);
    assert_eq!(c.stat("nested").unwrap().type_, dir);
    assert_eq!(c.list(outputs), [("file".to_owned(), file), ("nested".to_owned(), dir)]);
    let nested = c.open("nested", nothing(), READ).unwrap();
    assert_eq!(c.list(nested), []);
    // Programs that list a directory look up the inode numbers by name.
    let none = PathFlags::empty();
    let by_name = c.files().metadata_hash_at(fd(outputs), none, "nested".to_owned()).unwrap();
    let by_fd = c.files().metadata_hash(fd(nested)).unwrap();
    assert_eq!((by_name.lower, by_name.upper), (by_fd.lower, by_fd.upper));
    c.unlink("file").unwrap();
    c.create("Действие");
    assert_eq!(c.list(outputs).len(), 2);
    for n in 0..90 {
        c.create(&format!("file.{n}"));
    }
    assert_eq!(c.list(outputs).len(), 92);
}

#[test]
fn p1_dir_fd_op_failures_and_directory_seek_and_fd_advise() {
    let mut c = calls();
    let (dir, advice) = (c.outputs, types::Advice::DontNeed);
    assert_eq!(c.files().get_type(fd(dir)).unwrap(), DescriptorType::Directory);
    assert_eq!(code(c.read(dir, 128, 0)), "is-directory");
    assert_eq!(code(c.reader(dir, 0)), "is-directory");
    assert_eq!(code(c.write(dir, &[0; 128], 0)), "bad-descriptor");
    assert_eq!(code(c.writer(dir, Some(0))), "bad-descriptor");
    assert_eq!(code(c.writer(dir, None)), "bad-descriptor");
    assert_eq!(code(c.files().set_size(fd(dir), 0)), "bad-descriptor");
    assert_eq!(code(c.files().advise(fd(dir), 0, 0, advice)), "bad-descriptor");
    assert_eq!(code(c.files().sync(fd(dir))), "ok");
    let file = c.open("file", CREATE, READ | WRITE).unwrap();
    assert_eq!(code(c.files().advise(fd(file), 10, 20, advice)), "ok");
    assert_eq!(code(c.files().sync_data(fd(file))), "ok");
    assert_eq!(code(c.files().read_directory(fd(file))), "not-directory");
}

#[test]
fn p1_fd_filestat_set_and_path_filestat() {
    let mut c = calls();
    let file = c.open("file", CREATE, READ | WRITE).unwrap();
    assert_eq!(c.stat("file").unwrap().size, 0);
    c.files().set_size(fd(file), 100).unwrap();
    assert_eq!(c.stat("file").unwrap().size, 100);
    c.close(file);
    let file = c.open("file", nothing(), READ).unwrap();
    assert_eq!(code(c.files().set_size(fd(file), 10)), "invalid");
    assert_eq!(c.stat("file").unwrap().size, 100);

    let time = |at: Option<types::Datetime>| at.map(|at| (at.seconds, at.nanoseconds));
    let before = c.stat("file").unwrap();
    let then = types::Datetime { seconds: 1000, nanoseconds: 7 };
    let (same, set) = (NewTimestamp::NoChange, NewTimestamp::Timestamp(then));
    // A descriptor that is open only for reading can set times too.
    c.files().set_times(fd(file), same, set).unwrap();
    let after = c.stat("file").unwrap();
    assert_eq!(time(after.data_modification_timestamp), Some((1000, 7)));
    assert_eq!(time(after.data_access_timestamp), time(before.data_access_timestamp));
    let at = fd(c.outputs);
    let now = || NewTimestamp::Now;
    c.files().set_times_at(at, PathFlags::empty(), "file".to_owned(), now(), now()).unwrap();
    let last = c.stat("file").unwrap();
    assert!(time(last.data_modification_timestamp) >= time(before.data_modification_timestamp));
    let at = fd(c.outputs);
    let gone = c.files().set_times_at(at, PathFlags::empty(), "none".to_owned(), now(), now());
    assert_eq!(code(gone), "no-entry");
}

#[test]
fn p1_file_truncation_and_file_write_and_fd_flags_set() {
    let mut c = calls();
    let file = c.open("file", CREATE, READ | WRITE).unwrap();
    c.write(file, &[1; 100], 0).unwrap();
    c.close(file);
    let file = c.open("file", OpenFlags::TRUNCATE, READ | WRITE).unwrap();
    assert_eq!(c.read(file, 100, 0).unwrap(), (vec![], true));
    // A stream that appends writes to the current end of the file.
    let mut end = c.writer(file, None).unwrap();
    written(&mut end, b"one").unwrap();
    written(&mut end, b"two").unwrap();
    assert_eq!(c.read(file, 100, 0).unwrap().0, b"onetwo");
    assert_eq!(c.write(file, b"X", 0).unwrap(), 1);
    assert_eq!(c.read(file, 100, 0).unwrap().0, b"Xnetwo");
}

#[test]
fn p1_file_pread_pwrite_and_seek_tell_and_read_write_and_unbuffered_write() {
    let mut c = calls();
    let (file, other) = {
        let file = c.open("file", CREATE, READ | WRITE).unwrap();
        (file, c.open("file", nothing(), READ).unwrap())
    };
    assert_eq!(c.write(file, &[0, 1, 2, 3], 0).unwrap(), 4);
    assert_eq!(c.read(other, 4, 0).unwrap(), (vec![0, 1, 2, 3], false));
    assert_eq!(c.read(file, 4, 2).unwrap(), (vec![2, 3], false));
    assert_eq!(c.write(file, &[1, 0], 2).unwrap(), 2);
    assert_eq!(c.read(other, 4, 0).unwrap().0, [0, 1, 1, 0]);
    assert_eq!(c.read(file, 4, 4).unwrap(), (vec![], true));
    assert_eq!(c.read(file, 4, 1000).unwrap(), (vec![], true));
    assert_eq!(c.write(file, &[], 50).unwrap(), 0);
    assert_eq!(c.stat("file").unwrap().size, 4, "nothing was written");
    assert_eq!(c.write(file, &[7], 50).unwrap(), 1);
    assert_eq!(c.stat("file").unwrap().size, 51);
}

#[test]
fn p1_dangling_fd() {
    let mut c = calls();
    c.create("file");
    let file = c.open("file", nothing(), READ).unwrap();
    c.unlink("file").unwrap();
    c.create("file");
    assert_eq!(code(c.files().stat(fd(file))), "ok");
    c.make_dir("subdir").unwrap();
    let dir = c.open("subdir", DIRECTORY, READ).unwrap();
    c.remove_dir("subdir").unwrap();
    c.make_dir("subdir").unwrap();
    assert_eq!(c.list(dir), []);
    let again = c.open("subdir", DIRECTORY, READ).unwrap();
    let is_same = c.files().is_same_object(fd(dir), fd(again)).unwrap();
    assert!(!is_same);
}

#[test]
fn p1_path_link_and_symlinks_and_readlink_are_refused() {
    let mut c = calls();
    c.create("file");
    let at = c.outputs;
    let link = |c: &mut Calls, flags, old: &str, new: &str| {
        code(c.files().link_at(fd(at), flags, old.to_owned(), fd(at), new.to_owned()))
    };
    assert_eq!(link(&mut c, PathFlags::empty(), "file", "link"), "not-permitted");
    assert_eq!(link(&mut c, PathFlags::SYMLINK_FOLLOW, "file", "link"), "invalid");
    let symlink = c.files().symlink_at(fd(at), "file".to_owned(), "symlink".to_owned());
    assert_eq!(code(symlink), "not-permitted");
    assert_eq!(c.list(at).len(), 1);
    assert_eq!(code(c.files().readlink_at(fd(at), "file".to_owned())), "invalid");
    assert_eq!(code(c.files().readlink_at(fd(at), "none".to_owned())), "no-entry");
}

#[test]
fn p1_and_p2_across_perms_and_read_only() {
    let mut c = calls();
    c.create("mine");
    let (inputs, outputs) = (c.inputs, c.outputs);
    let text = |text: &str| text.to_owned();
    let none = PathFlags::empty();
    for (what, got) in [
        ("rename out", code(c.files().rename_at(fd(inputs), text("b"), fd(outputs), text("b")))),
        ("rename in", code(c.files().rename_at(fd(outputs), text("mine"), fd(inputs), text("x")))),
        ("link", code(c.files().link_at(fd(inputs), none, text("b"), fd(outputs), text("b")))),
        ("truncate", code(c.open_at(inputs, "b", OpenFlags::TRUNCATE, READ))),
        ("write", code(c.open_at(inputs, "b", nothing(), READ | WRITE))),
        ("create", code(c.open_at(inputs, "new", CREATE, READ))),
        ("make", code(c.files().create_directory_at(fd(inputs), text("dir")))),
        ("unlink", code(c.files().unlink_file_at(fd(inputs), text("b")))),
        ("remove", code(c.files().remove_directory_at(fd(inputs), text("in")))),
    ] {
        assert_eq!(got, "not-permitted", "{what}");
    }
    let file = c.open_at(inputs, "in/a", nothing(), READ).unwrap();
    assert_eq!(code(c.writer(file, Some(0))), "not-permitted");
    assert_eq!(code(c.writer(file, None)), "not-permitted");
    assert_eq!(code(c.files().set_size(fd(file), 0)), "not-permitted");
    assert_eq!(&c.reader(file, 0).unwrap().read(100).unwrap()[..], b"an input");
}

#[test]
fn p2_file_read_write() {
    let mut c = calls();
    let file = c.open("test.txt", CREATE, READ | WRITE).unwrap();
    let mut stream = c.writer(file, Some(5)).unwrap();
    written(&mut stream, b"Hello, ").unwrap();
    written(&mut stream, b"World!").unwrap();
    drop(stream);
    let mut stream = c.reader(file, 0).unwrap();
    assert_eq!(&stream.read(100).unwrap()[..], b"\0\0\0\0\0Hello, World!");
    let mut stream = c.reader(file, 0).unwrap();
    let mut all = Vec::new();
    let end = loop {
        match stream.read(4) {
            Ok(piece) => all.extend(piece),
            Err(end) => break end,
        }
    };
    assert!(matches!(end, StreamError::Closed));
    assert_eq!(all, b"\0\0\0\0\0Hello, World!");
    c.close(file);
    c.unlink("test.txt").unwrap();
}

#[test]
fn p2_adapter_badfd() {
    let mut c = calls();
    let file = c.open("file", CREATE, READ | WRITE).unwrap();
    c.close(file);
    // An unknown descriptor traps. Libraries never use one.
    assert!(code(c.files().stat(fd(file))).starts_with("trap: "));
    // A stream's error has a code.
    let file = c.open("file", nothing(), READ | WRITE).unwrap();
    let mut stream = c.writer(file, Some(u64::MAX - 10)).unwrap();
    let Err(StreamError::LastOperationFailed(error)) = written(&mut stream, b"far too far") else {
        panic!("it was written");
    };
    let error = c.table.push(error).unwrap();
    let told = types::Host::filesystem_error_code(&mut c.files(), error).unwrap();
    assert_eq!(told, Some(ErrorCode::Quota));
}
