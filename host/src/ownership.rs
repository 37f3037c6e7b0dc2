//! Who owns a directory that the host trusts, and who may write to it.
//!
//! The rule: a directory of the cache belongs to the user that this host runs as, or to root, and
//! nobody else may write to it. It may be sticky instead, as `/tmp` and the root of a `tmpfs` are:
//! what is in it is looked at too. A link on the way to it, in a directory that others may write to, counts only
//! if it belongs to this user or to root. A group that has nobody else in it may write: many
//! systems make directories so.
//!
//! The directories on the way are chosen by whoever names the cache, so their owners and groups are
//! trusted. If everybody may write to one that is not sticky, that is a risk to be told of, and no
//! more: some container engines make volumes so.

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

/// Links that are followed on one way, as the kernel has it.
const MOST_LINKS: usize = 40;
const STICKY: u32 = 0o1000;
const BY_GROUP: u32 = 0o020;
const BY_OTHERS: u32 = 0o002;
/// Who may read, write or enter beside the owner.
const BESIDE_OWNER: u32 = 0o077;

/// A directory can't be trusted, or only at a risk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {cure}")]
pub struct NotOurs {
    /// The directory or link, its owner, its mode, and what that leads to.
    pub problem: String,
    /// What to do about it.
    pub cure: String,
}

/// The user that this host runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Us(u32);

impl Us {
    /// By a system call.
    pub(crate) fn now() -> Self {
        Self(rustix::process::geteuid().as_raw())
    }

    /// Whether what belongs to `owner` can be trusted.
    pub(crate) fn trusts(self, owner: u32) -> bool {
        owner == self.0 || owner == 0
    }
}

/// What the rule is about.
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
        Self { user: stat.st_uid, group: stat.st_gid, mode: stat.st_mode & 0o7777 }
    }

    fn is_sticky(self) -> bool {
        self.mode & STICKY != 0
    }

    /// Whether anybody but its owner may write to it.
    fn is_writable_by_others(self) -> bool {
        let by_group = self.mode & BY_GROUP != 0;
        self.mode & BY_OTHERS != 0 || (by_group && !is_private(self.group, self.user))
    }
}

/// Looks at a directory that the host trusts, or will make, at its way, and at the directories
/// `parts` in it. What is not there is no problem. Returns a risk on the way.
///
/// # Errors
/// Names the first that can't be trusted.
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

/// Makes a directory, with `parts` in it and those on its way, that only this user may enter; or
/// checks one that is there, as [`check`] does. Returns a risk on the way.
///
/// # Errors
/// Those of the system; and a [`NotOurs`] for a directory that can't be trusted.
pub(crate) fn make(dir: &Path, parts: &[&str]) -> io::Result<Option<NotOurs>> {
    check(dir, parts).map_err(io::Error::other)?;
    make_private(dir)?;
    for part in parts {
        make_private(&dir.join(part))?;
    }
    // Somebody may have been quicker than this host, in a directory that is writable by all.
    check(dir, parts).map_err(io::Error::other)
}

/// Makes a directory, with those on its way, that only this user may enter, unless it is there.
///
/// # Errors
/// Those of the system.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Sees to it that only this user may enter a directory, if it is there and this user's.
///
/// # Errors
/// Those of the system.
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

/// Looks at the directory `part` of the cache `cache`, which is open, and at those in it.
///
/// # Errors
/// Those of the system; and a [`NotOurs`] for the first that can't be trusted.
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

/// Judges a directory of a cache.
fn judge(us: Us, cache: &Path, dir: &Path, owned: Owned) -> Result<(), NotOurs> {
    let Owned { user, mode, .. } = owned;
    let (shown, cache) = (dir.display(), cache.display());
    if !us.trusts(user) {
        return Err(NotOurs {
            problem: format!(
                "{shown} belongs to uid {user} (mode {mode:o}), and this host runs as uid {}: \
                 whoever owns it decides what tasks read and what code runs",
                us.0
            ),
            cure: format!(
                "name a directory that is not there yet with --cache-dir, like {cache}/task-host; \
                 or run the host as uid {user}; or, if you trust all that is in it, \
                 `chown -R {} {cache}`",
                us.0
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
                "{shown} can be written to by {who} (mode {mode:o}, owner uid {user}), who could \
                 decide what tasks read"
            ),
            cure: format!(
                "`chmod -R go-w {cache}` if you trust all that is in it, or name another directory \
                 with --cache-dir"
            ),
        });
    }
    Ok(())
}

/// Goes the way to `dir` as the kernel does, and looks at all that it passes. Returns what it finds
/// there, if anything, and the first risk.
///
/// # Errors
/// Names a link that somebody else may have made.
fn look_along(dir: &Path, us: Us) -> Result<(Option<Owned>, Option<NotOurs>), NotOurs> {
    let mut risk = None;
    // What can't be looked at can't be used either, which is told where it is tried.
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
                    "{}, on the way to {}, can be written to by everybody (mode {:o}, owner uid \
                     {}): anybody could put another directory in its place",
                    at.display(),
                    dir.display(),
                    here.mode,
                    here.user
                ),
                cure: format!(
                    "`chmod +t {}`, or name a directory elsewhere with --cache-dir",
                    at.display()
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
                    "the link {}, on the way to {}, belongs to uid {}, and is in a directory that \
                     others may write to (mode {:o}, owner uid {}): whoever owns it decides where \
                     the cache is",
                    next.display(),
                    dir.display(),
                    link.user,
                    here.mode,
                    here.user
                ),
                cure: "remove the link, or name another directory with --cache-dir".to_owned(),
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

/// The names along a path, and `..`.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Whether a group has nobody in it but this user, as far as the files of the system know. One
/// that they don't know may have anybody in it.
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
