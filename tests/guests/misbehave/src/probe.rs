//! Actions that look around, and try actions that a guest must not be able to do.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use serde_json::{Value, json};
use task_host_sdk::{Context, Result, Task};

use crate::Action;

/// The tried actions, and their results.
#[derive(Default)]
pub(crate) struct Tried(pub(crate) Vec<Value>);

impl Tried {
    pub(crate) fn this(&mut self, what: impl Into<String>, result: io::Result<()>) {
        let what = what.into();
        self.0.push(match result {
            Ok(()) => json!({"what": what, "ok": true}),
            Err(error) => json!({"what": what, "ok": false, "error": error.to_string()}),
        });
    }
}

fn report(task: &Task<Action>, value: Value) -> Result<()> {
    task.write("report.json", format!("{value:#}\n"))
}

/// Creates a symbolic link with the C library, because the standard library's function is not
/// stable for WASI.
pub(crate) fn symlink(target: &str, link: &Path) -> io::Result<()> {
    unsafe extern "C" {
        fn symlink(target: *const c_char, link: *const c_char) -> c_int;
    }
    let target = CString::new(target)?;
    let link = CString::new(link.to_string_lossy().as_bytes())?;
    // SAFETY: both are strings that end with a zero and live until the call returns.
    match unsafe { symlink(target.as_ptr(), link.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn odd_names(task: &Task<Action>, names: Option<&[String]>) -> Result<()> {
    let long = "l".repeat(255);
    let usual = [
        "line\nbreak",
        "tab\ttab",
        "bell\u{7}",
        "-rf",
        "--help",
        "back\\slash",
        "\u{202e}gpj.exe",
        "\u{feff}bom",
        "zero\u{200b}width",
        " leading and trailing ",
        "...",
        "..hidden",
        "a:b",
        "c?d*e",
        "%2e%2e%2f",
        "quote\"'`$(x)",
        "CON",
        "e\u{301}",
        "é",
        &long,
    ];
    let names: Vec<&str> =
        names.map_or(usual.to_vec(), |names| names.iter().map(String::as_str).collect());
    let mut written = Vec::new();
    let mut failed = BTreeMap::new();
    for name in names {
        match fs::write(task.outputs_dir().join(name), name) {
            Ok(()) => written.push(name),
            Err(error) => drop(failed.insert(name, error.to_string())),
        }
    }
    report(task, json!({"written": written, "failed": failed}))
}

pub(crate) fn write_input(task: &Task<Action>) -> Result<()> {
    let inputs: Vec<_> = task.inputs().collect();
    let before: Vec<_> = inputs.iter().map(|input| input.read().ok()).collect();
    let outputs = task.outputs_dir();
    let mut tried = Tried::default();
    for input in &inputs {
        let (key, path) = (input.key(), input.path());
        let mut opened = |what: &str, options: &mut OpenOptions| {
            tried.this(
                format!("{what} {key}"),
                options.open(path).and_then(|mut file| file.write_all(b"changed")),
            );
        };
        opened("write", OpenOptions::new().write(true));
        opened("read and write", OpenOptions::new().read(true).write(true));
        opened("append", OpenOptions::new().append(true));
        opened("truncate", OpenOptions::new().write(true).truncate(true));
        opened("create", OpenOptions::new().write(true).create(true));

        let reading = || File::open(path);
        tried.this(
            format!("write by a reader of {key}"),
            reading().and_then(|mut f| f.write_all(b"changed")),
        );
        tried.this(format!("set the length of {key}"), reading().and_then(|f| f.set_len(0)));
        let times = FileTimes::new()
            .set_modified(SystemTime::UNIX_EPOCH)
            .set_accessed(SystemTime::UNIX_EPOCH);
        tried.this(format!("set the times of {key}"), reading().and_then(|f| f.set_times(times)));
        let writable = fs::metadata(path).map(|metadata| {
            let mut permissions = metadata.permissions();
            #[expect(clippy::permissions_set_readonly_false, reason = "it must not work")]
            permissions.set_readonly(false);
            permissions
        });
        tried.this(
            format!("make {key} writable"),
            writable.and_then(|p| fs::set_permissions(path, p)),
        );

        // Writes through another name in the writable directory.
        let hard = outputs.join("hard-link");
        tried.this(format!("hard link to {key} in the outputs"), fs::hard_link(path, &hard));
        tried.this(
            format!("write {key} by a hard link"),
            OpenOptions::new().write(true).open(&hard).and_then(|mut f| f.write_all(b"changed")),
        );
        let soft = outputs.join("soft-link");
        if symlink(&format!("../inputs/{key}"), &soft).is_ok() {
            tried.this(
                format!("write {key} by a symbolic link"),
                OpenOptions::new()
                    .write(true)
                    .open(&soft)
                    .and_then(|mut f| f.write_all(b"changed")),
            );
        }
        let _ = fs::remove_file(&hard);
        let _ = fs::remove_file(&soft);

        let other = outputs.join("other");
        fs::write(&other, "changed").context("output other")?;
        tried.this(format!("rename an output to {key}"), fs::rename(&other, path));
        tried.this(
            format!("hard link of an output as {key}.new"),
            fs::hard_link(&other, path.with_extension("new")),
        );
        let _ = fs::remove_file(&other);
        tried.this(format!("rename {key}"), fs::rename(path, path.with_extension("moved")));
        tried.this(
            format!("rename {key} into the outputs"),
            fs::rename(path, outputs.join("moved")),
        );
        let _ = fs::remove_file(outputs.join("moved"));
        tried.this(format!("remove {key}"), fs::remove_file(path));
    }
    let inside = task.inputs_dir();
    tried.this("create a file", fs::write(inside.join("new.txt"), "new"));
    tried.this("create a directory", fs::create_dir(inside.join("new")));
    tried.this("create a symbolic link", symlink("x", &inside.join("new-link")));
    tried.this("remove the directory", fs::remove_dir_all(inside));

    let changed: Vec<_> = inputs
        .iter()
        .zip(before)
        .filter(|(input, before)| input.read().ok() != *before)
        .map(|(input, _)| input.key())
        .collect();
    report(task, json!({"tried": tried.0, "changed": changed}))
}

pub(crate) fn escape(task: &Task<Action>) -> Result<()> {
    let mut tried = Tried::default();
    let (inputs, outputs) = (task.inputs_dir(), task.outputs_dir());

    let mut files: Vec<PathBuf> =
        ["/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/cmdline", "/dev/zero"]
            .into_iter()
            .map(PathBuf::from)
            .collect();
    for up in ["..", "../..", "../../..", "../../../../../../../../.."] {
        for from in [inputs, outputs, Path::new(""), Path::new("/")] {
            files.push(from.join(up).join("etc/passwd"));
        }
    }
    files.push(outputs.join("a/../../../../../../../etc/passwd"));
    for file in &files {
        tried.this(format!("read {}", file.display()), first_byte(file));
    }
    for directory in [
        "/",
        ".",
        "..",
        "/..",
        "/etc",
        "/proc",
        "/tmp",
        "/home",
        "/root",
        "/inputs/..",
        "/outputs/..",
    ] {
        let entries = fs::read_dir(directory).and_then(|mut entries| match entries.next() {
            Some(entry) => entry.map(drop),
            None => Err(io::Error::other("no entries")),
        });
        tried.this(format!("list {directory}"), entries);
    }
    for file in [
        "/escaped",
        "/tmp/escaped",
        "../escaped",
        "/inputs/../escaped",
        "/outputs/../escaped",
        "/outputs/../../escaped",
    ] {
        tried.this(format!("write {file}"), fs::write(file, "escaped"));
    }
    tried.this("rename out", {
        let inside = outputs.join("inside");
        fs::write(&inside, "inside").and_then(|()| fs::rename(&inside, outputs.join("../escaped")))
    });
    let _ = fs::remove_file(outputs.join("inside"));
    tried.this("hard link from outside", fs::hard_link("/etc/passwd", outputs.join("passwd")));
    tried.this(
        "hard link from outside, relative",
        fs::hard_link(outputs.join("../../../../../etc/passwd"), outputs.join("passwd")),
    );

    // A guest may be able to create links. Following a link out of its directories must fail, both
    // for the link itself and as a directory in a path.
    let link = outputs.join("way-out");
    for target in [
        "/etc/passwd",
        "../../../../../../../../etc/passwd",
        "../inputs/../../../../../../etc/passwd",
        "/proc/self/environ",
    ] {
        if symlink(target, &link).is_ok() {
            tried.this(format!("read by a link to {target}"), first_byte(&link));
            tried.this(
                format!("write by a link to {target}"),
                OpenOptions::new().append(true).open(&link).map(drop),
            );
            tried.this(format!("hard link to a link to {target}"), {
                let hard = outputs.join("hard");
                fs::hard_link(&link, &hard).and_then(|()| first_byte(&hard))
            });
            let _ = fs::remove_file(outputs.join("hard"));
            let _ = fs::remove_file(&link);
        }
    }
    for target in ["/", "..", "../../../../../../../..", "/proc/self/root"] {
        if symlink(target, &link).is_ok() {
            tried.this(
                format!("read etc/passwd below a link to {target}"),
                first_byte(&link.join("etc/passwd")),
            );
            tried.this(
                format!("write below a link to {target}"),
                fs::write(link.join("escaped"), "escaped"),
            );
            tried.this(format!("list a link to {target}"), fs::read_dir(&link).map(drop));
            tried.this(format!("rename below a link to {target}"), {
                let inside = outputs.join("inside");
                fs::write(&inside, "inside")
                    .and_then(|()| fs::rename(&inside, link.join("escaped")))
            });
            let _ = fs::remove_file(outputs.join("inside"));
            let _ = fs::remove_file(&link);
        }
    }
    report(task, json!({"tried": tried.0}))
}

/// Reads one byte, if there is one, because opening a file alone may prove nothing.
fn first_byte(path: &Path) -> io::Result<()> {
    File::open(path)?.read_exact(&mut [0])
}

pub(crate) fn environment(task: &Task<Action>) -> Result<()> {
    let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
    let vars: BTreeMap<_, _> =
        std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
    let args: Vec<_> = std::env::args_os().map(text).collect();
    let current = std::env::current_dir().map(|path| path.to_string_lossy().into_owned()).ok();
    report(task, json!({"vars": vars, "args": args, "current_dir": current}))
}

pub(crate) fn network(task: &Task<Action>, address: &str) -> Result<()> {
    let mut tried = Tried::default();
    tried.this(format!("connect to {address}"), TcpStream::connect(address).map(drop));
    tried.this("listen on 127.0.0.1", TcpListener::bind("127.0.0.1:0").map(drop));
    tried.this("bind UDP on 127.0.0.1", UdpSocket::bind("127.0.0.1:0").map(drop));
    let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"x", address));
    tried.this(format!("send UDP to {address}"), sent.map(drop));
    for name in ["localhost:80", "task-host.example:80"] {
        let found = name
            .to_socket_addrs()
            .and_then(|mut found| found.next().ok_or(io::ErrorKind::NotFound.into()));
        tried.this(format!("look up {name}"), found.map(drop));
    }
    report(task, json!({"tried": tried.0}))
}

pub(crate) fn stdin(task: &Task<Action>) -> Result<()> {
    let mut bytes = Vec::new();
    report(
        task,
        match io::stdin().read_to_end(&mut bytes) {
            Ok(bytes) => json!({"bytes": bytes}),
            Err(error) => json!({"error": error.to_string()}),
        },
    )
}

/// The number of executions in this instance: one, if each execution gets a fresh instance.
static RUNS: AtomicU32 = AtomicU32::new(0);

pub(crate) fn leave(task: &Task<Action>) -> Result<()> {
    let runs = RUNS.fetch_add(1, Ordering::Relaxed) + 1;
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    list(task.inputs_dir(), "", &mut inputs).context("list the inputs")?;
    list(task.outputs_dir(), "", &mut outputs).context("list the outputs")?;
    report(task, json!({"runs": runs, "inputs": inputs, "outputs": outputs}))?;
    for key in ["left.txt", ".hidden", "left/behind/deep.txt", "left/-rf"] {
        task.write(key, format!("task {} was here", task.id()))?;
    }
    fs::create_dir_all(task.outputs_dir().join("left/empty"))?;
    Ok(())
}

/// Lists the paths of everything below a directory. Paths of directories end with a slash.
fn list(directory: &Path, prefix: &str, paths: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            paths.push(format!("{path}/"));
            list(&entry.path(), &format!("{path}/"), paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}
