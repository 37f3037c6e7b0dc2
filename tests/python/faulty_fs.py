"""A file system that passes every call to another directory, until it is told to fail.

    faulty_fs.py DIRECTORY MOUNTPOINT CONTROL

CONTROL is a file that is read before each call. It is empty, or has one line:

    FAULT CALLS

FAULT is the name of an error (`EIO`) or `hang`, which lasts until CONTROL says something else.
CALLS is `all`, `read` or `write`: which calls fail.
"""

import errno
import os
import sys
import time

from fuse import FUSE, FuseOSError, Operations

WRITING = {
    "chmod", "chown", "create", "fsync", "link", "mkdir", "mknod", "rename", "rmdir", "symlink",
    "truncate", "unlink", "utimens", "write",
}
TIMES = ("st_atime", "st_ctime", "st_mtime")
STAT = ("st_blocks", "st_gid", "st_ino", "st_mode", "st_nlink", "st_size", "st_uid")
STATVFS = (
    "f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag",
    "f_frsize", "f_namemax",
)


def fields(record, names):
    return {name: getattr(record, name) for name in names}


class Faulty(Operations):
    # Times are in whole nanoseconds, because they distinguish the versions of objects.
    use_ns = True

    def __init__(self, directory, control):
        self.directory = directory
        self.control = control

    def __call__(self, call, path, *arguments):
        self.fail(call)
        try:
            return super().__call__(call, path, *arguments)
        except OSError as error:
            raise FuseOSError(error.errno) from error

    def fail(self, call):
        while True:
            with open(self.control, encoding="utf-8") as control:
                fault, _, calls = control.read().strip().partition(" ")
            # Closing never fails here, because programs do not check it.
            if not fault or call in ("init", "destroy", "release", "releasedir", "flush"):
                return
            if calls != "all" and (call in WRITING) != (calls == "write"):
                return
            if fault != "hang":
                raise FuseOSError(getattr(errno, fault))
            time.sleep(0.02)

    def real(self, path):
        return self.directory + path

    def access(self, path, mode):
        os.lstat(self.real(path))

    def chmod(self, path, mode):
        os.chmod(self.real(path), mode)

    def chown(self, path, uid, gid):
        os.lchown(self.real(path), uid, gid)

    def create(self, path, mode, fi=None):
        return os.open(self.real(path), os.O_RDWR | os.O_CREAT, mode & 0o777)

    def flush(self, path, handle):
        return 0

    def fsync(self, path, datasync, handle):
        os.fsync(handle)

    def getattr(self, path, handle=None):
        stat = os.lstat(self.real(path))
        times = {name: getattr(stat, name + "_ns") for name in TIMES}
        return fields(stat, STAT) | times

    def link(self, new, old):
        os.link(self.real(old), self.real(new))

    def mkdir(self, path, mode):
        os.mkdir(self.real(path), mode)

    def mknod(self, path, mode, device):
        os.mknod(self.real(path), mode, device)

    def open(self, path, flags):
        return os.open(self.real(path), flags & ~(os.O_APPEND | os.O_NOFOLLOW))

    def read(self, path, size, offset, handle):
        return os.pread(handle, size, offset)

    def readdir(self, path, handle):
        return [".", "..", *os.listdir(self.real(path))]

    def readlink(self, path):
        return os.readlink(self.real(path))

    def release(self, path, handle):
        os.close(handle)

    def rename(self, old, new):
        os.rename(self.real(old), self.real(new))

    def rmdir(self, path):
        os.rmdir(self.real(path))

    def statfs(self, path):
        return fields(os.statvfs(self.real(path)), STATVFS)

    def symlink(self, new, target):
        os.symlink(target, self.real(new))

    def truncate(self, path, length, handle=None):
        os.truncate(handle if handle is not None else self.real(path), length)

    def unlink(self, path):
        os.unlink(self.real(path))

    def utimens(self, path, times=None):
        os.utime(self.real(path), ns=times, follow_symlinks=False)

    def write(self, path, data, offset, handle):
        return os.pwrite(handle, data, offset)


if __name__ == "__main__":
    directory, mountpoint, control = sys.argv[1:]
    # The kernel caches nothing, so that each call reaches this program and can fail.
    FUSE(
        Faulty(os.path.realpath(directory), control),
        mountpoint,
        foreground=True,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        hard_remove=True,
        big_writes=True,
    )
