//! A directory that becomes a package, and tools that pack it reproducibly.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::command::{capture, run};

/// A directory that becomes a package. Its files have the same modes as in the package, whatever
/// the umask is.
pub(crate) struct Stage {
    dir: PathBuf,
    time: u64,
}

impl Stage {
    /// Creates an empty directory.
    pub(crate) fn new(dir: &Path, time: u64) -> anyhow::Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        }
        fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        let stage = Self { dir: dir.to_owned(), time };
        stage.mode("", 0o755)?;
        Ok(stage)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates a directory and its missing parents.
    pub(crate) fn directory(&self, name: &str, mode: u32) -> anyhow::Result<()> {
        let mut above = String::new();
        for part in name.split('/') {
            above = if above.is_empty() { part.to_owned() } else { format!("{above}/{part}") };
            if !self.dir.join(&above).is_dir() {
                fs::create_dir(self.dir.join(&above))?;
                self.mode(&above, 0o755)?;
            }
        }
        self.mode(name, mode)
    }

    pub(crate) fn write(&self, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
        self.above(name)?;
        fs::write(self.dir.join(name), text).with_context(|| name.to_owned())?;
        self.mode(name, mode)
    }

    pub(crate) fn copy(&self, from: &Path, name: &str, mode: u32) -> anyhow::Result<()> {
        self.above(name)?;
        fs::copy(from, self.dir.join(name)).with_context(|| format!("{}", from.display()))?;
        self.mode(name, mode)
    }

    /// Copies all files below a directory.
    pub(crate) fn copy_all(&self, from: &Path, name: &str) -> anyhow::Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("{}", from.display()))? {
            let entry = entry?;
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.copy_all(&entry.path(), &name)?;
            } else {
                // Follows symbolic links.
                let is_program = fs::metadata(entry.path())?.permissions().mode() & 0o100 != 0;
                self.copy(&entry.path(), &name, if is_program { 0o755 } else { 0o644 })?;
            }
        }
        Ok(())
    }

    /// Packs these entries of the directory. The files in the archive belong to root.
    pub(crate) fn tar(&self, entries: &[&str], to: &Path) -> anyhow::Result<()> {
        run(Command::new("tar")
            .args(["--create", "--format=ustar", "--sort=name", "--numeric-owner"])
            .args(["--owner=0", "--group=0", &format!("--mtime=@{}", self.time), "--file"])
            .arg(to)
            .arg("--directory")
            .arg(&self.dir)
            .args(entries))
    }

    fn above(&self, name: &str) -> anyhow::Result<()> {
        name.rsplit_once('/').map_or(Ok(()), |(above, _)| {
            let is_there = self.dir.join(above).is_dir();
            if is_there { Ok(()) } else { self.directory(above, 0o755) }
        })
    }

    fn mode(&self, name: &str, mode: u32) -> anyhow::Result<()> {
        fs::set_permissions(self.dir.join(name), Permissions::from_mode(mode))
            .with_context(|| name.to_owned())
    }
}

/// Compresses a file. The result contains no file name and no time.
pub(crate) fn gzip(file: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("gzip")
        .args(["--no-name", "--stdout"])
        .arg(file)
        .stdout(File::create(to).with_context(|| format!("{}", to.display()))?)
        .status()
        .context("cannot start gzip")?;
    ensure!(status.success(), "gzip {}: {status}", file.display());
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(crate) fn sha256(file: &Path) -> anyhow::Result<String> {
    let sums = capture(Command::new("sha256sum").arg("--binary").arg(file))?;
    let sum = sums.split_whitespace().next().context("sha256sum printed nothing")?;
    Ok(sum.to_owned())
}
