//! File systems with faults: a small disk that can be full, and a file system that fails on
//! request.
//!
//! Both need root, and the second needs `/dev/fuse`. If mounting fails, the test fails.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::built::python;
use crate::process::Finished;
use task_host_test_network::wait::eventually;

/// The maximum number of files and directories on a small disk.
const FILES: usize = 4_000;

/// A small file system in memory (tmpfs). Dropping this unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    options: String,
}

impl SmallDisk {
    /// Creates a directory, and mounts a file system of `mib` MiB there.
    pub fn mount(path: PathBuf, mib: usize) -> Self {
        fs::create_dir_all(&path).expect("a mount point");
        let disk = Self { path, options: format!("size={mib}m,nr_inodes={FILES}") };
        disk.mount_again();
        disk
    }

    /// Mounts a new, empty file system at the same path.
    pub fn mount_again(&self) {
        mount(&["-t", "tmpfs", "-o", &self.options, "task-host-test"], &self.path);
    }

    /// Unmounts the file system, even if it is in use.
    pub fn unmount(&self) {
        unmount(&self.path);
    }

    /// Uses all remaining space.
    pub fn fill(&self) {
        fs::create_dir_all(self.filler()).expect("a directory of files that fill the disk");
        let mut file =
            File::create(self.filler().join("bytes")).expect("a file that fills the disk");
        for size in [64 << 10, 1] {
            let piece = vec![0; size];
            while file.write_all(&piece).is_ok() {}
        }
    }

    /// Uses all remaining space for files, so that not even empty files can be created.
    pub fn fill_names(&self) {
        fs::create_dir_all(self.filler()).expect("a directory of files that fill the disk");
        let made = |n: &usize| File::create(self.filler().join(n.to_string())).is_ok();
        let count = (0..=FILES).take_while(made).count();
        assert!(count < FILES, "the disk has room for any number of files");
    }

    /// Removes the files of `fill` and `fill_names`.
    pub fn empty(&self) {
        fs::remove_dir_all(self.filler()).expect("the files that fill the disk");
    }

    /// From now on, all writes fail, also to open files.
    pub fn make_read_only(&self) {
        // Waits for a moment at which no file is open for writing.
        eventually("a disk that nobody writes to", || self.remount("ro").then_some(()));
    }

    /// From now on, writes work again.
    pub fn make_writable(&self) {
        assert!(self.remount("rw"), "{} can't be made writable", self.path.display());
    }

    fn remount(&self, how: &str) -> bool {
        let option = format!("remount,{how}");
        let mut command = Command::new("mount");
        command.args(["-o", &option]).arg(&self.path).stderr(Stdio::null());
        command.status().expect("mount").success()
    }

    fn filler(&self) -> PathBuf {
        self.path.join(".filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        detach(&self.path);
    }
}

/// A file system that passes calls to a directory until it is told to fail. Dropping this unmounts
/// it.
#[derive(Debug)]
pub struct FaultyDisk {
    path: PathBuf,
    control: PathBuf,
    server: Child,
}

impl FaultyDisk {
    /// Creates a directory, and mounts a file system there. Its files are in a directory beside it.
    pub fn mount(path: PathBuf) -> Self {
        let beside = |suffix: &str| PathBuf::from(format!("{}.{suffix}", path.display()));
        let (directory, control) = (beside("backing"), beside("control"));
        for made in [&path, &directory] {
            fs::create_dir_all(made).expect("a directory");
        }
        fs::write(&control, "").expect("a file that tells how to fail");
        let log = File::create(beside("log")).expect("a log");
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/faulty_fs.py");
        let server = Command::new(python("python"))
            .args([&program, &directory, &path, &control])
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a log"))
            .stdout(log)
            .spawn()
            .expect("faulty_fs.py can't be started");
        let mut disk = Self { path, control, server };
        let what = format!("a file system at {}; see {}", disk.path.display(), beside_log(&disk));
        eventually(&what, || {
            let ended = disk.server.try_wait().expect("the state of a child");
            assert!(ended.is_none(), "faulty_fs.py ended: {}", read(&beside_log(&disk)));
            is_mounted(&disk.path).then_some(())
        });
        disk
    }

    /// From now on, `calls` (`all`, `read`, `write`) get the fault `fault` (`EIO`, or `hang`).
    pub fn fail(&self, fault: &str, calls: &str) {
        self.tell(&format!("{fault} {calls}"));
    }

    /// From now on, all calls work.
    pub fn mend(&self) {
        self.tell("");
    }

    fn tell(&self, text: &str) {
        // Renames the file into place, so that the server never reads half of it.
        let new = self.control.with_extension("new");
        fs::write(&new, text).expect("a file that tells how to fail");
        fs::rename(new, &self.control).expect("a file that tells how to fail");
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        // Killing the server makes hanging calls return an error.
        let _ = self.server.kill();
        let _ = self.server.wait();
        detach(&self.path);
    }
}

fn beside_log(disk: &FaultyDisk) -> String {
    format!("{}.log", disk.path.display())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("a list of mounts");
    let path = path.to_str().expect("a path that is text");
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(path))
}

fn mount(args: &[&str], path: &Path) {
    Finished::run(Command::new("mount").args(args).arg(path)).good();
}

fn unmount(path: &Path) {
    Finished::run(Command::new("umount").arg("-l").arg(path)).good();
}

fn detach(path: &Path) {
    // The test may have unmounted the file system.
    if is_mounted(path) {
        let _ = Command::new("umount").arg("-l").arg(path).status();
    }
}
