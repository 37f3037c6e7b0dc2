//! Docker and Slurm, which `cargo xtask test` has started, and the host under test as an image.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::built;
use crate::cloud::server;
use crate::process::Finished;

/// The variable with which Docker's programs find the daemon, and its value.
pub fn docker_variable() -> (&'static str, String) {
    ("DOCKER_HOST", server("TASK_HOST_TEST_DOCKER"))
}

/// The variable with which Slurm's programs find the controller, and its value.
pub fn slurm_variable() -> (&'static str, String) {
    ("SLURM_CONF", server("TASK_HOST_TEST_SLURM"))
}

/// `docker ARGS…`, with the daemon of the tests.
pub fn docker(args: &[&str]) -> Finished {
    Finished::run(Command::new("docker").args(args).envs([docker_variable()]))
}

/// `PROGRAM ARGS…` of Slurm, with the controller of the tests.
pub fn slurm(program: &str, args: &[&str]) -> Finished {
    Finished::run(Command::new(program).args(args).envs([slurm_variable()]))
}

/// The name of an image with the host under test. It is made once for each test program, and is what
/// users have: the host is not root, and there is nothing but its libraries and the certificates.
pub fn image() -> &'static str {
    const NAME: &str = "task-host:test";
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let root = tempfile::Builder::new().prefix("image-").tempdir_in(built::target());
        let root = root.expect("a directory for the image");
        fill(root.path());
        let mut tar = Command::new("tar")
            .arg("-C")
            .arg(root.path())
            .args(["--owner=0", "--group=0", "-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar");
        let layers = tar.stdout.take().expect("a pipe");
        let imported = Command::new("docker")
            .envs([docker_variable()])
            .args(["import", "--change", "ENTRYPOINT [\"/host\"]", "--change", "USER 65532:65532"])
            .args(["--change", "ENV HOST_CACHE_DIR=/cache"])
            .args(["-", NAME])
            .stdin(layers)
            .output()
            .expect("docker");
        let said = String::from_utf8_lossy(&imported.stderr);
        assert!(imported.status.success(), "the image can't be made: {said}");
        assert!(tar.wait().expect("tar").success(), "the image can't be packed");
    });
    NAME
}

/// The files of the image.
fn fill(root: &Path) {
    // A temporary directory is its owner's alone.
    set_mode(root, 0o755);
    let host = built::host();
    let place = |from: &Path| {
        let to = root.join(from.strip_prefix("/").expect("an absolute path"));
        fs::create_dir_all(to.parent().expect("a directory")).expect("a directory of the image");
        fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    };
    let linked = Finished::run(Command::new("ldd").arg(&host)).good();
    let libraries = linked.stdout.split_whitespace().map(Path::new);
    libraries.filter(|word| word.is_absolute()).for_each(place);
    place(Path::new("/etc/ssl/certs/ca-certificates.crt"));
    // Large, and on the same file system.
    fs::hard_link(&host, root.join("host")).expect("a link to the host");
    for shared in ["cache", "tmp"] {
        let path = root.join(shared);
        fs::create_dir(&path).expect("a directory of the image");
        set_mode(&path, 0o1777);
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}
