//! The directories of one task, in memory: looks up paths, and changes the entries of directories.
//!
//! Only this file looks up a guest's paths, name by name. No system call receives them. The tree
//! holds only files and directories. A guest can't create entries that can't be published: links,
//! names that can't be keys, directories that are too deep.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;

use super::clock::Times;
use super::file::{File, OpenFile};
use super::types::{
    DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, ErrorCode, MetadataHashValue,
    NewTimestamp, OpenFlags,
};
use super::{Error, Output, Result, Shared};
use crate::key::{BucketKey, KeyError, MAX_KEY_BYTES, MAX_SEGMENT_BYTES};
use crate::plain;
use crate::sandbox::limits::{Limit, MAX_DEPTH};
use crate::sandbox::quota::{Counted, Opening};

/// The longest path in a call, in bytes, as on Linux.
const MAX_PATH: usize = 4095;

/// A file or a directory.
#[derive(Clone)]
pub(super) enum Node {
    Dir(Arc<Dir>),
    File(Arc<File>),
}

pub(super) struct Dir {
    id: u64,
    shared: Arc<Shared>,
    /// True for `/outputs` and the directories below it.
    pub(super) is_writable: bool,
    state: Mutex<DirState>,
    _counted: Option<Counted>,
}

struct DirState {
    entries: BTreeMap<Box<str>, Node>,
    times: Times,
    /// The level of this directory. The top directory has level 0.
    depth: usize,
    /// The length in bytes of the path from the top to this directory, with a slash at the end.
    path_len: usize,
    is_removed: bool,
}

/// Where a path leads: a name in a directory, which may not exist, or the directory itself.
struct Place<'p> {
    dir: Arc<Dir>,
    /// None if the path ends with `.` or `..`.
    name: Option<&'p str>,
    /// True if the path ends with a slash and so can't lead to a file.
    must_be_dir: bool,
}

impl Place<'_> {
    fn node(&self) -> Result<Node> {
        let Some(name) = self.name else { return Ok(Node::Dir(self.dir.clone())) };
        match self.dir.get(name).ok_or(ErrorCode::NoEntry)? {
            Node::File(_) if self.must_be_dir => Err(ErrorCode::NotDirectory.into()),
            node => Ok(node),
        }
    }
}

/// Refuses a path that is too long for a call.
pub(super) fn check_length(path: &str) -> Result<()> {
    if path.len() > MAX_PATH { Err(ErrorCode::NameTooLong.into()) } else { Ok(()) }
}

impl Node {
    fn kind(&self) -> DescriptorType {
        match self {
            Self::Dir(_) => DescriptorType::Directory,
            Self::File(_) => DescriptorType::RegularFile,
        }
    }

    pub(super) fn stat(&self) -> DescriptorStat {
        match self {
            Self::Dir(dir) => dir.stat(),
            Self::File(file) => file.stat(),
        }
    }

    pub(super) fn id(&self) -> u64 {
        match self {
            Self::Dir(dir) => dir.id,
            Self::File(file) => file.id,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dir(one), Self::Dir(other)) => Arc::ptr_eq(one, other),
            (Self::File(one), Self::File(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Dir {
    /// `/inputs` or `/outputs`.
    pub(super) fn top(shared: &Arc<Shared>, is_writable: bool) -> Arc<Self> {
        Self::new(shared, is_writable, 0, 0, None)
    }

    fn new(
        shared: &Arc<Shared>,
        is_writable: bool,
        depth: usize,
        path_len: usize,
        counted: Option<Counted>,
    ) -> Arc<Self> {
        let now = if is_writable { shared.clock.now() } else { shared.clock.started() };
        let state = DirState {
            entries: BTreeMap::new(),
            times: Times::all(now),
            depth,
            path_len,
            is_removed: false,
        };
        Arc::new(Self {
            id: shared.next_id(),
            shared: shared.clone(),
            is_writable,
            state: Mutex::new(state),
            _counted: counted,
        })
    }

    fn get(&self, name: &str) -> Option<Node> {
        self.state.lock().entries.get(name).cloned()
    }

    /// Adds an input, and the directories above it. Skips an input whose path is also a directory,
    /// because messages with such inputs are rejected earlier.
    pub(super) fn add_input(self: &Arc<Self>, path: &BucketKey, file: Arc<File>) {
        let (parents, name) = path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()));
        let mut dir = self.clone();
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            let made = || Node::Dir(Self::new(&self.shared, false, 0, 0, None));
            let next = dir.state.lock().entries.entry(parent.into()).or_insert_with(made).clone();
            let Node::Dir(next) = next else { return };
            dir = next;
        }
        dir.state.lock().entries.entry(name.into()).or_insert(Node::File(file));
    }

    /// Looks up all names of a path except the last one.
    fn find<'p>(self: &Arc<Self>, path: &'p str) -> Result<Place<'p>> {
        check_length(path)?;
        if path.is_empty() {
            return Err(ErrorCode::NoEntry.into());
        }
        if path.starts_with('/') {
            return Err(ErrorCode::NotPermitted.into());
        }
        if path.contains('\0') {
            return Err(ErrorCode::Invalid.into());
        }
        let trimmed = path.trim_end_matches('/');
        let (parents, last) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
        let mut way = vec![self.clone()];
        for name in parents.split('/') {
            enter(&mut way, name)?;
        }
        let name = match last {
            "." | ".." => {
                enter(&mut way, last)?;
                None
            }
            name => Some(name),
        };
        if let Some(name) = name.filter(|name| name.len() > MAX_SEGMENT_BYTES) {
            return Err(self.too_long("a name", name.len(), MAX_SEGMENT_BYTES));
        }
        let dir = way.pop().ok_or(ErrorCode::NotPermitted)?;
        Ok(Place { dir, name, must_be_dir: trimmed.len() < path.len() })
    }

    /// Looks up a path: the file or directory that it leads to.
    pub(super) fn look(self: &Arc<Self>, path: &str) -> Result<Node> {
        self.find(path)?.node()
    }

    pub(super) fn open(
        self: &Arc<Self>,
        path: &str,
        open: OpenFlags,
        flags: DescriptorFlags,
    ) -> Result<Opened> {
        let makes = open.intersects(OpenFlags::CREATE | OpenFlags::TRUNCATE);
        let changes =
            open.intersects(OpenFlags::CREATE | OpenFlags::EXCLUSIVE | OpenFlags::TRUNCATE);
        if open.contains(OpenFlags::DIRECTORY) && changes {
            return Err(ErrorCode::Invalid.into());
        }
        let write = makes || flags.contains(DescriptorFlags::WRITE);
        // A file that is opened with neither flag can be read.
        let read = flags.contains(DescriptorFlags::READ) || !flags.contains(DescriptorFlags::WRITE);
        check_length(path)?;
        if write && !self.is_writable {
            return Err(ErrorCode::NotPermitted.into());
        }
        let place = self.find(path)?;
        match place.node() {
            Ok(_) if open.contains(OpenFlags::CREATE | OpenFlags::EXCLUSIVE) => {
                Err(ErrorCode::Exist.into())
            }
            Ok(Node::Dir(_)) if write => Err(ErrorCode::IsDirectory.into()),
            Ok(Node::Dir(dir)) => {
                let opening = self.shared.quota.open()?;
                Ok(Opened::Dir(OpenDir { dir, _opening: Some(opening) }))
            }
            Ok(Node::File(_)) if open.contains(OpenFlags::DIRECTORY) => {
                Err(ErrorCode::NotDirectory.into())
            }
            Ok(Node::File(file)) => {
                let opened = file.open(read, write)?;
                if open.contains(OpenFlags::TRUNCATE) {
                    file.set_size(0)?;
                }
                Ok(Opened::File(opened))
            }
            Err(Error::Code(ErrorCode::NoEntry)) if open.contains(OpenFlags::CREATE) => {
                place.make_file(read).map(Opened::File)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn make_dir(self: &Arc<Self>, path: &str) -> Result<()> {
        check_length(path)?;
        if !self.is_writable {
            return Err(ErrorCode::NotPermitted.into());
        }
        let place = self.find(path)?;
        let Some(name) = place.name.filter(|name| place.dir.get(name).is_none()) else {
            return Err(ErrorCode::Exist.into());
        };
        let dir = &place.dir;
        let (depth, path_len) = dir.admit(name)?;
        let (depth, path_len) = (depth + 1, path_len + name.len() + 1);
        dir.check_extent(depth, path_len - 1)?;
        let counted = self.shared.quota.count()?;
        let made = Self::new(&self.shared, true, depth, path_len, Some(counted));
        dir.insert(name, Node::Dir(made));
        Ok(())
    }

    pub(super) fn remove_dir(self: &Arc<Self>, path: &str) -> Result<()> {
        check_length(path)?;
        if !self.is_writable {
            return Err(ErrorCode::NotPermitted.into());
        }
        let place = self.find(path)?;
        let Some(name) = place.name else {
            let is_parent = path.trim_end_matches('/').ends_with("..");
            let code = if is_parent { ErrorCode::NotEmpty } else { ErrorCode::Invalid };
            return Err(code.into());
        };
        let Node::Dir(dir) = place.node()? else { return Err(ErrorCode::NotDirectory.into()) };
        let mut state = dir.state.lock();
        if !state.entries.is_empty() {
            return Err(ErrorCode::NotEmpty.into());
        }
        state.is_removed = true;
        drop(state);
        place.dir.remove(name);
        Ok(())
    }

    pub(super) fn remove_file(self: &Arc<Self>, path: &str) -> Result<()> {
        check_length(path)?;
        if !self.is_writable {
            return Err(ErrorCode::NotPermitted.into());
        }
        let place = self.find(path)?;
        match (place.node()?, place.name) {
            (Node::File(_), Some(name)) => place.dir.remove(name),
            _ => return Err(ErrorCode::IsDirectory.into()),
        }
        Ok(())
    }

    pub(super) fn rename(self: &Arc<Self>, old: &str, to: &Arc<Self>, new: &str) -> Result<()> {
        check_length(old)?;
        check_length(new)?;
        if !self.is_writable || !to.is_writable {
            return Err(ErrorCode::NotPermitted.into());
        }
        let (old, new) = (self.find(old)?, to.find(new)?);
        let (Some(old_name), Some(new_name)) = (old.name, new.name) else {
            return Err(ErrorCode::Busy.into());
        };
        let node = old.node()?;
        if let (Node::File(_), true) = (&node, new.must_be_dir) {
            return Err(ErrorCode::NotDirectory.into());
        }
        let extent = match &node {
            Node::Dir(dir) => dir.extent(&new.dir).ok_or(ErrorCode::Invalid)?,
            Node::File(_) => (0, 0),
        };
        let replaced = new.dir.get(new_name);
        match (&node, &replaced) {
            (node, Some(there)) if node.is(there) => return Ok(()),
            (Node::File(_), Some(Node::Dir(_))) => return Err(ErrorCode::IsDirectory.into()),
            (Node::Dir(_), Some(Node::File(_))) => return Err(ErrorCode::NotDirectory.into()),
            (_, Some(Node::Dir(dir))) if !dir.state.lock().entries.is_empty() => {
                return Err(ErrorCode::NotEmpty.into());
            }
            _ => {}
        }
        let (depth, path_len) = new.dir.admit(new_name)?;
        let path_len = path_len + new_name.len();
        if let Node::Dir(dir) = &node {
            new.dir.check_extent(depth + 1 + extent.0, path_len + extent.1)?;
            dir.settle(depth + 1, path_len + 1);
        }
        if let Some(Node::Dir(dir)) = replaced {
            dir.state.lock().is_removed = true;
        }
        old.dir.remove(old_name);
        new.dir.insert(new_name, node.clone());
        match node {
            Node::Dir(dir) => dir.state.lock().times.was_changed(self.shared.clock.now()),
            Node::File(file) => file.was_renamed(),
        }
        Ok(())
    }

    /// Checks that this directory still exists and can have an entry of this name. Returns the
    /// directory's depth and the length of its path.
    fn admit(&self, name: &str) -> Result<(usize, usize)> {
        let (depth, path_len, is_removed) = {
            let state = self.state.lock();
            (state.depth, state.path_len, state.is_removed)
        };
        if is_removed {
            return Err(ErrorCode::NoEntry.into());
        }
        // Only the first name of a key can look like a URL's scheme.
        let checked = match depth {
            0 => BucketKey::of_output(name),
            _ => BucketKey::of_output(&format!("_/{name}")),
        };
        let problem = match checked {
            Err(KeyError::TooLong { what, len, max }) => return Err(self.too_long(what, len, max)),
            Err(problem) => problem,
            Ok(_) if path_len + name.len() > MAX_KEY_BYTES => {
                return Err(self.too_long("a path", path_len + name.len(), MAX_KEY_BYTES));
            }
            Ok(_) => return Ok((depth, path_len)),
        };
        self.shared.say(&format_args!(
            "an output can't have the name \"{}\": it {problem}",
            plain::escape(name)
        ));
        Err(ErrorCode::IllegalByteSequence.into())
    }

    /// The error for a name or a path that is too long. The log explains it.
    fn too_long(&self, what: &str, len: usize, most: usize) -> Error {
        self.shared.say(&format_args!(
            "{what} of {len} bytes is too long: the limit is {most}, which is fixed"
        ));
        ErrorCode::NameTooLong.into()
    }

    /// Checks that a directory is not too deep to be published and that its path is not too long.
    fn check_extent(&self, depth: usize, path_len: usize) -> Result<()> {
        if path_len > MAX_KEY_BYTES {
            return Err(self.too_long("a path", path_len, MAX_KEY_BYTES));
        }
        if depth > MAX_DEPTH {
            self.shared.quota.refuse_depth();
            return Err(ErrorCode::Quota.into());
        }
        Ok(())
    }

    /// The depth of the deepest directory below this one, and the length of the longest path, both
    /// relative to this directory. None if `but` is this directory or below it.
    fn extent(self: &Arc<Self>, but: &Arc<Self>) -> Option<(usize, usize)> {
        if Arc::ptr_eq(self, but) {
            return None;
        }
        let (mut depth, mut path_len) = (0, 0);
        for (name, node) in &self.state.lock().entries {
            let below = match node {
                Node::File(_) => (0, 0),
                Node::Dir(dir) => {
                    let (depth, path_len) = dir.extent(but)?;
                    (depth + 1, path_len)
                }
            };
            depth = depth.max(below.0);
            path_len = path_len.max(1 + name.len() + below.1);
        }
        Some((depth, path_len))
    }

    /// Updates the depth and the path length of this directory and of all below it, after a rename.
    fn settle(&self, depth: usize, path_len: usize) {
        let mut state = self.state.lock();
        (state.depth, state.path_len) = (depth, path_len);
        for (name, node) in &state.entries {
            if let Node::Dir(dir) = node {
                dir.settle(depth + 1, path_len + name.len() + 1);
            }
        }
    }

    fn insert(&self, name: &str, node: Node) {
        let mut state = self.state.lock();
        state.times.was_modified(self.shared.clock.now());
        let replaced = state.entries.insert(name.into(), node);
        drop(state);
        drop(replaced);
    }

    fn remove(&self, name: &str) {
        let mut state = self.state.lock();
        state.times.was_modified(self.shared.clock.now());
        let removed = state.entries.remove(name);
        drop(state);
        drop(removed);
    }

    fn stat(&self) -> DescriptorStat {
        self.state.lock().times.stat(DescriptorType::Directory, 0)
    }

    /// The next entry after this name, or the first entry.
    fn after(&self, name: Option<&str>) -> Option<DirectoryEntry> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state.lock();
        let (name, node) = state.entries.range::<str, _>((start, Bound::Unbounded)).next()?;
        Some(DirectoryEntry { type_: node.kind(), name: name.to_string() })
    }

    /// Takes the files below this directory in the order of their paths. Call it when the guest has
    /// ended.
    ///
    /// # Errors
    /// The limit of the host's memory for the guest, if the paths of the files exceed it.
    pub(super) fn take_all(&self) -> std::result::Result<Vec<Output>, Limit> {
        let (mut all, mut path) = (Vec::new(), String::new());
        self.take_into(&mut all, &mut path)?;
        all.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(all)
    }

    fn take_into(
        &self,
        all: &mut Vec<Output>,
        path: &mut String,
    ) -> std::result::Result<(), Limit> {
        let entries = std::mem::take(&mut self.state.lock().entries);
        let above = path.len();
        for (name, node) in entries {
            path.push_str(&name);
            match node {
                Node::Dir(dir) => {
                    path.push('/');
                    dir.take_into(all, path)?;
                }
                Node::File(file) => match BucketKey::of_output(path) {
                    Ok(path) => {
                        self.shared.quota.hold(held_for(&path))?;
                        all.push(Output { path, content: file.take() });
                    }
                    Err(_) => unreachable!("names are checked when they are made"),
                },
            }
            path.truncate(above);
        }
        Ok(())
    }
}

/// Bytes that the host holds for an output that was taken, in addition to its content: its key, and
/// two entries of a list, because a list that grows may be half empty.
fn held_for(path: &BucketKey) -> u64 {
    (2 * size_of::<Output>() + 2 * size_of::<usize>() + path.as_str().len()) as u64
}

impl Place<'_> {
    fn make_file(&self, read: bool) -> Result<Arc<OpenFile>> {
        let name = self.name.filter(|_| !self.must_be_dir).ok_or(ErrorCode::IsDirectory)?;
        self.dir.admit(name)?;
        let shared = &self.dir.shared;
        let file = File::output(shared, shared.quota.count()?);
        let opened = file.open(read, true)?;
        self.dir.insert(name, Node::File(file));
        Ok(opened)
    }
}

/// Follows one more name of a path. `way` holds the directories so far. A path can't go above the
/// first one.
fn enter(way: &mut Vec<Arc<Dir>>, name: &str) -> Result<()> {
    let Some(dir) = way.last() else { return Err(ErrorCode::NotPermitted.into()) };
    match name {
        "" | "." => {}
        ".." if way.len() == 1 => return Err(ErrorCode::NotPermitted.into()),
        ".." => drop(way.pop()),
        name if name.len() > MAX_SEGMENT_BYTES => return Err(ErrorCode::NameTooLong.into()),
        name => match dir.get(name).ok_or(ErrorCode::NoEntry)? {
            Node::Dir(dir) => way.push(dir),
            Node::File(_) => return Err(ErrorCode::NotDirectory.into()),
        },
    }
    Ok(())
}

/// The file or directory behind a guest's descriptor.
#[expect(unreachable_pub, reason = "`bindgen!` exports it, inside this crate")]
pub enum Opened {
    Dir(OpenDir),
    File(Arc<OpenFile>),
}

impl Opened {
    pub(super) fn dir(&self) -> Result<&Arc<Dir>> {
        match self {
            Self::Dir(open) => Ok(&open.dir),
            Self::File(_) => Err(ErrorCode::NotDirectory.into()),
        }
    }

    /// The file. `otherwise` is the error for a directory, which depends on the call.
    pub(super) fn file(&self, otherwise: ErrorCode) -> Result<&Arc<OpenFile>> {
        match self {
            Self::Dir(_) => Err(otherwise.into()),
            Self::File(file) => Ok(file),
        }
    }

    pub(super) fn node(&self) -> Node {
        match self {
            Self::Dir(open) => Node::Dir(open.dir.clone()),
            Self::File(open) => Node::File(open.file.clone()),
        }
    }

    pub(super) fn flags(&self) -> DescriptorFlags {
        let (read, write, changes) = match self {
            Self::Dir(open) => (true, false, open.dir.is_writable),
            Self::File(open) => (open.read, open.write, false),
        };
        let mut flags = DescriptorFlags::empty();
        for (is_set, flag) in [
            (read, DescriptorFlags::READ),
            (write, DescriptorFlags::WRITE),
            (changes, DescriptorFlags::MUTATE_DIRECTORY),
        ] {
            if is_set {
                flags |= flag;
            }
        }
        flags
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.node().is(&other.node())
    }
}

/// An open directory.
pub(super) struct OpenDir {
    dir: Arc<Dir>,
    /// None for the two directories that every guest has.
    _opening: Option<Opening>,
}

impl OpenDir {
    pub(super) fn given(dir: &Arc<Dir>) -> Self {
        Self { dir: dir.clone(), _opening: None }
    }
}

/// An open listing of a directory's entries. An entry that exists during the whole listing is
/// returned exactly once, even if other entries are added or removed.
#[expect(unreachable_pub, reason = "`bindgen!` exports it, inside this crate")]
pub struct Listing {
    dir: Arc<Dir>,
    last: Option<String>,
    _opening: Opening,
}

impl Listing {
    pub(super) fn open(dir: &Arc<Dir>) -> Result<Self> {
        let opening = dir.shared.quota.open()?;
        Ok(Self { dir: dir.clone(), last: None, _opening: opening })
    }

    pub(super) fn next(&mut self) -> Option<DirectoryEntry> {
        let entry = self.dir.after(self.last.as_deref())?;
        self.last = Some(entry.name.clone());
        Some(entry)
    }
}

pub(super) fn hash(node: &Node, shared: &Shared) -> MetadataHashValue {
    shared.numbers.of(node.id())
}

pub(super) fn set_times(node: &Node, accessed: NewTimestamp, modified: NewTimestamp) -> Result<()> {
    let set = match node {
        Node::Dir(dir) if !dir.is_writable => return Err(ErrorCode::NotPermitted.into()),
        Node::File(file) if file.is_input() => return Err(ErrorCode::NotPermitted.into()),
        Node::Dir(dir) => {
            let now = dir.shared.clock.now();
            dir.state.lock().times.set(accessed, modified, now)
        }
        Node::File(file) => file.set_times(accessed, modified),
    };
    if set { Ok(()) } else { Err(ErrorCode::Invalid.into()) }
}
