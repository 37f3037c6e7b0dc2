//! What a guest has open: files and directories of the process, which all guests share.

use std::collections::VecDeque;
use std::fs::File;
use std::mem::MaybeUninit;
use std::sync::{Arc, Weak};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, openat, statat};
use rustix::io::Errno;
use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};
use wasmtime_wasi::p2::{FsError, FsResult};

/// How many bytes of a directory are read at a time.
const PIECE: usize = 8 << 10;

/// The files and directories that one instance has open, up to a limit. Each is open until the
/// last of its handles is gone, which may be that of a stream.
pub(super) struct OpenFiles {
    limit: usize,
    open: Vec<Weak<File>>,
    refused: bool,
}

impl OpenFiles {
    pub(super) fn new(limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { limit, open: Vec::new(), refused: false }
    }

    /// Makes sure that one more may be open.
    pub(super) fn ask(&mut self) -> FsResult<()> {
        if self.open.len() >= self.limit {
            self.open.retain(|file| file.strong_count() > 0);
        }
        self.refused = self.open.len() >= self.limit;
        if self.refused { Err(ErrorCode::Quota.into()) } else { Ok(()) }
    }

    /// Counts one that was opened.
    pub(super) fn count(&mut self, file: &Arc<File>) {
        self.open.push(Arc::downgrade(file));
    }

    /// True when the guest was refused one, and has not opened another since.
    pub(super) fn was_refused(&self) -> bool {
        self.refused
    }
}

/// The entries of a directory, read a piece at a time: a guest may keep many of these.
pub(super) struct Listing {
    dir: Arc<File>,
    entries: VecDeque<Result<DirectoryEntry, ErrorCode>>,
}

impl Listing {
    /// # Errors
    /// Those of opening the directory again: each listing has a position of its own.
    pub(super) fn open(dir: &File) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = File::from(openat(dir, c".", flags, Mode::empty())?);
        Ok(Self { dir: Arc::new(dir), entries: VecDeque::new() })
    }

    /// What it keeps open.
    pub(super) fn dir(&self) -> &Arc<File> {
        &self.dir
    }

    /// The next entry, without those for the directory itself and its parent.
    ///
    /// # Errors
    /// Those of reading; and for one whose name is not UTF-8, after which others may follow.
    pub(super) fn next(&mut self) -> FsResult<Option<DirectoryEntry>> {
        if self.entries.is_empty() {
            self.read()?;
        }
        Ok(self.entries.pop_front().transpose()?)
    }

    fn read(&mut self) -> FsResult<()> {
        let failed = |errno: Errno| FsError::from(std::io::Error::from(errno));
        let mut piece = [MaybeUninit::uninit(); PIECE];
        let mut dir = RawDir::new(&*self.dir, &mut piece);
        while let Some(entry) = dir.next() {
            let entry = match entry {
                // It was removed meanwhile.
                Err(Errno::NOENT) => return Ok(()),
                entry => entry.map_err(failed)?,
            };
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                let kind = match entry.file_type() {
                    FileType::Unknown => {
                        match statat(&*self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                            Err(_) => FileType::Unknown,
                        }
                    }
                    kind => kind,
                };
                let entry = match name.to_str() {
                    Ok(name) => Ok(DirectoryEntry { type_: kind_of(kind), name: name.to_owned() }),
                    Err(_) => Err(ErrorCode::IllegalByteSequence),
                };
                self.entries.push_back(entry);
            }
            if dir.is_buffer_empty() && !self.entries.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

fn kind_of(kind: FileType) -> DescriptorType {
    match kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::Fifo => DescriptorType::Fifo,
        FileType::Socket => DescriptorType::Socket,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Unknown => DescriptorType::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_until_its_last_handle_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let file = || Arc::new(File::open(dir.path()).unwrap());
        let mut open = OpenFiles::new(2);
        let (first, second) = (file(), file());
        for file in [&first, &second] {
            open.ask().unwrap();
            open.count(file);
        }
        let stream = second.clone();
        drop(second);
        assert!(open.ask().is_err() && open.was_refused());
        drop(stream);
        open.ask().unwrap();
        assert!(!open.was_refused());
        drop(first);
    }

    #[test]
    fn a_listing_has_every_entry_once_however_many_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let mut names: Vec<String> = (0..1000).map(|n| format!("{n:0>200}")).collect();
        for name in &names {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("z")).unwrap();
        names.push("z".to_owned());
        let mut listing = Listing::open(&File::open(dir.path()).unwrap()).unwrap();
        let mut found = Vec::new();
        while let Some(entry) = listing.next().unwrap() {
            assert!(listing.entries.len() <= PIECE / 24);
            let is_dir = matches!(entry.type_, DescriptorType::Directory);
            assert_eq!(is_dir, entry.name == "z");
            found.push(entry.name);
        }
        found.sort();
        assert_eq!(found, names);
    }
}
