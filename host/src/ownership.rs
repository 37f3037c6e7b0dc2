//! Checks the owner and permissions of directories that the host trusts.
//!
//! A directory of the cache must belong to the host's user or to root, and no other user may write
//! to it. It may be sticky instead, as `/tmp` and the root of a `tmpfs` are, because its content is
//! checked too. Its group may write if the group has no other member: many systems make directories
//! with such groups. A link on the path, in a directory that others may write to, must belong to
//! the host's user or to root.
//!
//! The user who names the cache chooses the directories on its path, so their owners and groups are
//! trusted. A directory on the path that everybody may write to and that is not sticky is only
//! reported as a risk, because some container engines make such volumes.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Stat, fstat, statat};
use rustix::io::Errno;

use crate::dirs::for_each;
use crate::shell;
use crate::system::mode;

/// The maximum number of links that are followed on one path, as in the kernel.
const MOST_LINKS: usize = 40;
const STICKY: u32 = 0o1000;
const BY_GROUP: u32 = 0o020;
const BY_OTHERS: u32 = 0o002;
/// All permissions of the group and of others.
const BESIDE_OWNER: u32 = 0o077;

/// A directory that can't be trusted, or that is a risk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {cure}")]
pub struct NotOurs {
    /// The directory or link, its owner, its mode, and the consequence.
    pub problem: String,
    /// What to do about it.
    pub cure: String,
}

/// The user that this host runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Us(u32);

impl Us {
    /// The effective user of this process.
    pub(crate) fn now() -> Self {
        Self(rustix::process::geteuid().as_raw())
    }

    /// True when a file of `owner` can be trusted.
    pub(crate) fn trusts(self, owner: u32) -> bool {
        owner == self.0 || owner == 0
    }
}

/// The metadata that decides whether a directory can be trusted.
#[derive(Debug, Clone, Copy)]
struct Owned {
    user: u32,
    group: u32,
    mode: u32,
}

impl Owned {
    fn of(meta: &fs::Metadata) -> Self {
        Self { user: meta.uid(), group: meta.gid(), mode: meta.mode() & 0o7777 }
    }

    fn of_stat(stat: &Stat) -> Self {
        Self { user: stat.st_uid, group: stat.st_gid, mode: mode(stat) & 0o7777 }
    }

    fn is_sticky(self) -> bool {
        self.mode & STICKY != 0
    }

    /// True when anybody but the owner may write.
    fn is_writable_by_others(self) -> bool {
        let by_group = self.mode & BY_GROUP != 0;
        self.mode & BY_OTHERS != 0 || (by_group && !is_private(self.group, self.user))
    }
}

/// Checks a directory that the host trusts or will make, its path, and the directories `parts` in
/// it. Missing directories are not an error. Returns a risk on the path.
///
/// # Errors
/// Names the first directory or link that can't be trusted.
pub(crate) fn check(dir: &Path, parts: &[&str]) -> Result<Option<NotOurs>, NotOurs> {
    let us = Us::now();
    let (owned, risk) = look_along(dir, us)?;
    let Some(owned) = owned else { return Ok(risk) };
    judge(us, dir, dir, owned)?;
    for part in parts {
        // A link is refused when it is opened.
        if let Ok(meta) = fs::symlink_metadata(dir.join(part)) {
            judge(us, dir, &dir.join(part), Owned::of(&meta))?;
        }
    }
    Ok(risk)
}

/// Makes a directory that only this user may enter, with `parts` in it and the directories on its
/// path; or checks an existing one, as [`check`] does. Returns a risk on the path.
///
/// # Errors
/// Errors of the system; also a [`NotOurs`] for a directory that can't be trusted.
pub(crate) fn make(dir: &Path, parts: &[&str]) -> io::Result<Option<NotOurs>> {
    check(dir, parts).map_err(io::Error::other)?;
    make_private(dir)?;
    for part in parts {
        make_private(&dir.join(part))?;
    }
    // In a directory that everybody may write to, another user may have made them first.
    check(dir, parts).map_err(io::Error::other)
}

/// Makes a directory, with those on its path, that only this user may enter, unless it exists.
///
/// # Errors
/// Errors of the system.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        // On a failing disk, an existing directory looks like a file. Then the disk's own error is
        // returned.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::metadata(dir).and(Err(error))
        }
        made => made,
    }
}

/// Lets only this user enter a directory, if it exists and belongs to this user.
///
/// # Errors
/// Errors of the system.
pub(crate) fn close(dir: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta?,
    };
    if meta.is_dir() && meta.mode() & BESIDE_OWNER != 0 && meta.uid() == Us::now().0 {
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Checks the open directory `part` of the cache `cache`, and the directories in it.
///
/// # Errors
/// Errors of the system; also a [`NotOurs`] for the first directory that can't be trusted.
pub(crate) fn check_inner(cache: &Path, part: &Path, open: impl AsFd) -> io::Result<()> {
    let us = Us::now();
    judge(us, cache, part, Owned::of_stat(&fstat(&open)?)).map_err(io::Error::other)?;
    for_each(open.as_fd(), |name, kind| {
        if !matches!(kind, FileType::Directory | FileType::Unknown) {
            return Ok(());
        }
        let stat = match statat(&open, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(io::Error::from)?,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        let path = part.join(name.to_string_lossy().as_ref());
        judge(us, cache, &path, Owned::of_stat(&stat)).map_err(io::Error::other)
    })
}

/// Applies the rule to a directory of a cache.
fn judge(us: Us, cache: &Path, dir: &Path, owned: Owned) -> Result<(), NotOurs> {
    let Owned { user, mode, .. } = owned;
    let (shown, cache) = (dir.display(), cache.display());
    if !us.trusts(user) {
        return Err(NotOurs {
            problem: format!(
                "{shown} belongs to uid {user} (mode {mode:o}), but this host runs as uid {}: its \
                 owner could change what tasks read and which code runs",
                us.0
            ),
            cure: format!(
                "choose a new directory with --cache-dir, for example {cache}/task-host; or run \
                 the host as uid {user}; or, if you trust its content, `chown -R {} {}`",
                us.0,
                shell::word(&cache)
            ),
        });
    }
    if owned.is_writable_by_others() && !owned.is_sticky() {
        let who = if mode & BY_OTHERS == 0 {
            format!("the group {}", owned.group)
        } else {
            "everybody".to_owned()
        };
        return Err(NotOurs {
            problem: format!(
                "{shown} is writable by {who} (mode {mode:o}, owner uid {user}), who could change \
                 what tasks read"
            ),
            cure: format!(
                "`chmod -R go-w {}` if you trust its content, or choose another directory with \
                 --cache-dir",
                shell::word(&cache)
            ),
        });
    }
    Ok(())
}

/// Follows the path to `dir` as the kernel does, and checks every directory and link on it. Returns
/// the metadata of `dir`, if it exists, and the first risk.
///
/// # Errors
/// Names a link that another user may have made.
fn look_along(dir: &Path, us: Us) -> Result<(Option<Owned>, Option<NotOurs>), NotOurs> {
    let mut risk = None;
    // A path that can't be examined can't be used either. Its use reports the error.
    let Ok(dir) = std::path::absolute(dir) else { return Ok((None, None)) };
    let mut ahead: VecDeque<OsString> = names(&dir).collect();
    let mut at = PathBuf::from("/");
    let mut links = 0;
    loop {
        let Ok(meta) = fs::symlink_metadata(&at) else { return Ok((None, risk)) };
        let here = Owned::of(&meta);
        let Some(name) = ahead.pop_front() else { return Ok((Some(here), risk)) };
        if here.mode & BY_OTHERS != 0 && !here.is_sticky() {
            risk.get_or_insert_with(|| NotOurs {
                problem: format!(
                    "{}, on the path to {}, is writable by everybody (mode {:o}, owner uid {}): \
                     anybody could replace the directories in it",
                    at.display(),
                    dir.display(),
                    here.mode,
                    here.user
                ),
                cure: format!(
                    "`chmod +t {}`, or choose a directory elsewhere with --cache-dir",
                    shell::word(at.display())
                ),
            });
        }
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let Ok(meta) = fs::symlink_metadata(&next) else { return Ok((None, risk)) };
        if !meta.is_symlink() {
            at = next;
            continue;
        }
        let link = Owned::of(&meta);
        if here.is_writable_by_others() && !us.trusts(link.user) {
            return Err(NotOurs {
                problem: format!(
                    "the link {}, on the path to {}, belongs to uid {} and is in a directory that \
                     others may write to (mode {:o}, owner uid {}): its owner could move the cache",
                    next.display(),
                    dir.display(),
                    link.user,
                    here.mode,
                    here.user
                ),
                cure: "remove the link, or choose another directory with --cache-dir".to_owned(),
            });
        }
        links += 1;
        let Some(target) = fs::read_link(&next).ok().filter(|_| links <= MOST_LINKS) else {
            return Ok((None, risk));
        };
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        ahead = names(&target).chain(ahead).collect();
    }
}

/// The names and `..` of a path.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// True when a group has no other member than this user, according to `/etc/passwd` and
/// `/etc/group`. A group that these files do not list may have any member.
fn is_private(group: u32, user: u32) -> bool {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    is_private_by(&read("/etc/passwd"), &read("/etc/group"), group, user)
}

fn is_private_by(passwd: &str, groups: &str, group: u32, user: u32) -> bool {
    let number = |field: Option<&&str>| field.and_then(|field| field.parse::<u32>().ok());
    let mut name = None;
    for line in passwd.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if number(fields.get(2)) == Some(user) {
            name = fields.first().copied();
        } else if number(fields.get(3)) == Some(group) {
            return false;
        }
    }
    let Some(name) = name else { return false };
    let mut known = false;
    for line in groups.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if number(fields.get(2)) == Some(group) {
            known = true;
            let members = fields.get(3).copied().unwrap_or_default();
            if members.split(',').any(|member| !member.trim().is_empty() && member != name) {
                return false;
            }
        }
    }
    known
}
