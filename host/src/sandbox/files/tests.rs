//! Tests of a guest's files, through the functions behind `wasi:filesystem`.

mod bytes;
mod entries;
mod paths;
mod programs;
mod quotas;
mod stat;

use std::fs;
use std::time::Duration;

use bytesize::ByteSize;

use super::file::OpenFile;
use super::types::{DescriptorFlags, OpenFlags};
use super::*;
use crate::spill::SpillDir;

const LIMITS: Limits = Limits {
    memory: ByteSize::mib(1),
    time: Duration::from_secs(1),
    output_bytes: ByteSize::mib(1),
    output_files: 100,
    output_memory: ByteSize::kib(64),
    output_file_memory: ByteSize::kib(16),
    open_files: 20,
    process_files: 20,
    cpu_time: None,
    log: ByteSize::kib(64),
    host_memory: ByteSize::mib(26),
    table: None,
};

/// A guest's files, and the host's records of them.
struct Guest {
    tree: Tree,
    quota: Arc<Quota>,
    log: Sink,
    spill: Arc<SpillDir>,
    _root: tempfile::TempDir,
}

fn guest_with(inputs: Vec<Input>, limits: &Limits) -> Guest {
    guest_in(inputs, limits, None)
}

fn guest_in(inputs: Vec<Input>, limits: &Limits, world: Option<&World>) -> Guest {
    let root = tempfile::tempdir().unwrap();
    let spill = Arc::new(SpillDir::new(root.path()).unwrap());
    let (quota, log) = (Quota::new(limits), Sink::new(64 << 10, None));
    let disk = Disk::start(spill.clone()).unwrap();
    let tree = Tree::new(inputs, limits, quota.clone(), disk, log.clone(), world);
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

/// The result of a call, in one word.
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
