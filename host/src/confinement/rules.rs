//! Collects the paths and ports that a host may use.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{links, machine, ports};
use crate::environment::Environment;

/// Directories with so much other data that a host gets no access to them only because they contain
/// one of its own directories. The same applies to the user's home directory.
const TOO_MUCH: &[&str] = &[
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/usr/local",
    "/var",
    "/var/lib",
];

/// The files, directories and ports that a host may use.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Paths that the host reads.
    pub(super) read: Vec<PathBuf>,
    /// Paths that the host reads and that have programs.
    pub(super) run: Vec<PathBuf>,
    /// Paths that the host reads and changes.
    pub(super) write: Vec<PathBuf>,
    /// Ports that the host connects to.
    pub(super) connect: BTreeSet<u16>,
    /// Ports that the host listens on.
    pub(super) listen: BTreeSet<u16>,
    home: Option<PathBuf>,
}

impl Rules {
    /// The rules that any host needs in this environment: for the system's programs and libraries,
    /// the names of machines and users, certificates, and the credentials of cloud services.
    pub fn of(environment: &Environment) -> Self {
        let home = environment.home("").and_then(|home| fs::canonicalize(home).ok());
        let mut rules = Self { home, ..Self::default() };
        machine::add(&mut rules, environment);
        ports::add(&mut rules.connect, environment);
        rules
    }

    /// Adds a directory that the host reads and changes. Also adds the nearest existing directory
    /// above it, so that the directory can be replaced. If the directory above has too much other
    /// data, adds only the directory itself, and creates it now if `is_made` is true.
    ///
    /// # Errors
    /// When the directory can't be created.
    pub fn own(&mut self, dir: &Path, is_made: bool) -> io::Result<()> {
        let dir = std::path::absolute(dir)?;
        let there = fs::canonicalize(&dir).ok();
        let above = match &there {
            Some(there) => there.parent().map(Path::to_owned),
            None => dir.ancestors().skip(1).find_map(|part| fs::canonicalize(part).ok()),
        };
        match above {
            Some(above) if !self.is_too_much(&above) => self.write.push(above),
            _ if there.is_none() && is_made => fs::create_dir_all(&dir)?,
            _ => {}
        }
        self.write.push(dir);
        Ok(())
    }

    /// Adds a directory that the host only reads. The directory may be replaced.
    pub fn read(&mut self, dir: &Path) {
        if let Some(above) = fs::canonicalize(dir).ok().as_deref().and_then(Path::parent)
            && !self.is_too_much(above)
        {
            self.read.push(above.to_owned());
        }
        self.read.push(dir.to_owned());
    }

    /// Adds a file or directory that the host reads and changes. Does not check what it contains.
    pub fn allow(&mut self, path: &Path) {
        self.write.push(path.to_owned());
    }

    /// Adds the targets of a bucket's links, as far as a short search finds them.
    pub fn follow_links(&mut self, bucket: &Path, is_written: bool) {
        let found = links::targets(bucket).into_iter();
        let found: Vec<_> = found.filter(|target| !self.is_too_much(target)).collect();
        let paths = if is_written { &mut self.write } else { &mut self.read };
        paths.extend(found);
    }

    /// Adds the ports in the URL of a queue or bucket.
    pub fn connect(&mut self, url: &str) {
        self.connect.extend(ports::in_text(url));
    }

    /// Adds a port that the host listens on.
    pub fn listen(&mut self, port: u16) {
        self.listen.insert(port);
    }

    /// Adds a file that the host reads, and its directory, because the file may be replaced.
    pub(super) fn read_file(&mut self, file: &Path) {
        self.read.push(file.to_owned());
        // If the file is a link, its target may be replaced too.
        for path in [Some(file.to_owned()), fs::canonicalize(file).ok()].into_iter().flatten() {
            let dir = path.parent().and_then(|dir| fs::canonicalize(dir).ok());
            self.read.extend(dir.filter(|dir| !self.is_too_much(dir)));
        }
    }

    /// Every path that a rule names.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.read, &self.run, &self.write].into_iter().flatten().map(PathBuf::as_path)
    }

    fn is_too_much(&self, dir: &Path) -> bool {
        TOO_MUCH.iter().any(|path| Path::new(path) == dir) || self.home.as_deref() == Some(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path, home: &Path, is_made: bool) -> Vec<PathBuf> {
        let mut rules = Rules { home: Some(home.to_owned()), ..Rules::default() };
        rules.own(dir, is_made).unwrap();
        rules.write
    }

    #[test]
    fn the_directory_above_is_named_unless_it_is_too_much() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let [queue, deep] = ["queue", "a/b/queue"].map(|name| root.join(name));
        let elsewhere = Path::new("/nowhere");
        assert_eq!(written(&queue, elsewhere, true), [root.clone(), queue.clone()]);
        assert!(!queue.exists(), "it is left to be made");
        assert_eq!(written(&deep, elsewhere, true), [root.clone(), deep]);
        // In a home directory, only the directory itself is named, and it must exist.
        assert_eq!(written(&queue, &root, false), std::slice::from_ref(&queue));
        assert!(!queue.exists());
        assert_eq!(written(&queue, &root, true), std::slice::from_ref(&queue));
        assert!(queue.is_dir());
        // The target of a link may be replaced.
        let link = root.join("link");
        fs::create_dir_all(root.join("other/place")).unwrap();
        std::os::unix::fs::symlink("other/place", &link).unwrap();
        assert_eq!(written(&link, &root, true), [root.join("other"), link.clone()]);
    }

    #[test]
    fn a_top_level_directory_does_not_open_the_root() {
        assert_eq!(written(Path::new("/usr"), Path::new("/nowhere"), false), [Path::new("/usr")]);
    }
}
