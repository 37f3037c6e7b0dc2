//! An action that sets the times of its outputs with every available call.

use std::ffi::{CString, c_char, c_int, c_long};
use std::fs::{self, File, FileTimes};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use task_host_sdk::{Context, Result, Task};

use crate::Action;
use crate::probe::Tried;

/// The time to set, in seconds since 1970.
const THEN: u64 = 1_000_000_000;

/// Reports the results, and leaves `file.txt` and `dir/in-it.txt`.
pub(crate) fn set(task: &Task<Action>) -> Result<()> {
    let dir = task.outputs_dir();
    task.write("file.txt", "a file")?;
    task.write("dir/in-it.txt", "another")?;
    let (file, inner) = (dir.join("file.txt"), dir.join("dir"));
    let then = UNIX_EPOCH + Duration::from_secs(THEN);
    let open = |path: &Path| {
        let times = FileTimes::new().set_modified(then).set_accessed(then);
        File::open(path)?.set_times(times)
    };
    let mut tried = Tried::default();
    let mut set = |what: &str, path: &Path, set: &dyn Fn() -> io::Result<()>| {
        let now = FileTimes::new().set_modified(SystemTime::now());
        File::open(path).and_then(|file| file.set_times(now)).context("times")?;
        let done = set().and_then(|()| match fs::metadata(path)?.modified()? {
            time if time == then => Ok(()),
            time => Err(io::Error::other(format!("the time is {time:?}"))),
        });
        tried.this(what, done);
        Ok::<(), task_host_sdk::Error>(())
    };
    set("an open file", &file, &|| open(&file))?;
    set("an open directory", &inner, &|| open(&inner))?;
    set("a name", &file, &|| by_name(&file, true))?;
    set("a directory's name", &inner, &|| by_name(&inner, true))?;
    set("a name that must not be a link", &file, &|| by_name(&file, false))?;
    set("a directory's name that must not be a link", &inner, &|| by_name(&inner, false))?;
    task.write("report.json", json!({"tried": tried.0}).to_string())
}

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

/// Sets the times of a path with the C library, because the standard library sets times of open
/// files only.
fn by_name(path: &Path, follow: bool) -> io::Result<()> {
    // The values in wasi-libc.
    const AT_FDCWD: c_int = -2;
    const AT_SYMLINK_NOFOLLOW: c_int = 1;
    unsafe extern "C" {
        fn utimensat(
            dir: c_int,
            path: *const c_char,
            times: *const [Timespec; 2],
            flags: c_int,
        ) -> c_int;
    }
    let path = CString::new(path.to_string_lossy().as_bytes())?;
    let time = || Timespec { seconds: THEN as i64, nanoseconds: 0 };
    let flags = if follow { 0 } else { AT_SYMLINK_NOFOLLOW };
    // SAFETY: the path ends with a zero, and both live until the call returns.
    match unsafe { utimensat(AT_FDCWD, path.as_ptr(), &[time(), time()], flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
