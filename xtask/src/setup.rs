//! What the chores need beside a Rust toolchain, installed when it is missing.
//!
//! Nothing is skipped: what can't be installed is an error that says what to do.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::command::{capture, run};
use crate::project::Project;

const WASM: &str = "wasm32-wasip2";

/// The standard library for guests.
pub(crate) fn wasm_target(project: &Project) -> anyhow::Result<()> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot =
        capture(Command::new(rustc).current_dir(&project.root).args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(WASM).join("lib").is_dir() {
        return Ok(());
    }
    let installed =
        run(Command::new("rustup").current_dir(&project.root).args(["target", "add", WASM]));
    installed.with_context(|| {
        format!(
            "guests are built for {WASM}, whose standard library is not installed. With a Rust \
             toolchain from https://rustup.rs, `rustup target add {WASM}` installs it; a toolchain \
             from a distribution has it in a package such as `rust-std-static-{WASM}`"
        )
    })
}

/// The Python that tests and measurements work with: a virtual environment with the real
/// python-task-queue. It is kept in the user's cache, beside others of other clones; a link
/// in the build directory leads tests to it.
pub(crate) fn python(project: &Project) -> anyhow::Result<PathBuf> {
    let requirements = project.root.join("tests/python/requirements.txt");
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("{} can't be read", requirements.display()))?;
    let base = base_python()?;
    let version = capture(Command::new(&base).arg("--version"))?;

    let mut key = DefaultHasher::new();
    (&wanted, &version, env::consts::ARCH).hash(&mut key);
    let environment = cache_dir()?.join(format!("python-{:016x}", key.finish()));
    let python = environment.join("bin/python");
    // Written last: an environment without it was not finished.
    let finished = environment.join("finished");
    if !finished.is_file() {
        if environment.exists() {
            fs::remove_dir_all(&environment)
                .with_context(|| format!("{} can't be removed", environment.display()))?;
        }
        fs::create_dir_all(environment.parent().unwrap_or(&environment))?;
        run(Command::new(&base).args(["-m", "venv"]).arg(&environment))?;
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&requirements))
        .context("the Python packages of the tests can't be installed; a network is needed once")?;
        fs::write(&finished, "")?;
    }

    let link = project.target.join("python");
    if fs::read_link(&link).ok().as_deref() != Some(&environment) {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&environment, &link)
            .with_context(|| format!("{} can't be made", link.display()))?;
    }
    Ok(python)
}

/// A `python3` that can make virtual environments.
fn base_python() -> anyhow::Result<PathBuf> {
    let python = PathBuf::from("python3");
    let works = || {
        let check = Command::new(&python)
            .args(["-c", "import venv, ensurepip"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        check.is_ok_and(|status| status.success())
    };
    if works() {
        return Ok(python);
    }
    let is_root = capture(Command::new("id").arg("-u"))?.trim() == "0";
    if is_root && Path::new("/usr/bin/apt-get").exists() {
        run(Command::new("apt-get").args(["update", "-q"]))?;
        run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args([
            "install",
            "-q",
            "-y",
            "--no-install-recommends",
            "python3",
            "python3-venv",
        ]))?;
    }
    if !works() {
        bail!(
            "Python 3 with its venv module is needed to test against the real python-task-queue: \
             install python3 and python3-venv (Debian, Ubuntu), python3 (Fedora) or python \
             (Homebrew, Arch), and run this again"
        );
    }
    Ok(python)
}

/// Where what is installed for the tests is kept between runs, outside the clone.
fn cache_dir() -> anyhow::Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .context("neither HOME nor XDG_CACHE_HOME is set: there is no place for a cache")?;
    Ok(cache.join("task-host-dev"))
}
