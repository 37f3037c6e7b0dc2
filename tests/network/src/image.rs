//! Builds a container image with a host that was built for tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Creates an image like the one of users: the host is not root, and the image contains only the
/// host, its libraries and certificates. `scratch` is a directory on the file system of the host
/// program, and `daemon` is a `DOCKER_HOST`.
///
/// # Panics
/// If the image cannot be created.
pub fn import(host: &Path, scratch: &Path, daemon: &str, name: &str) {
    let root = scratch.join(format!("image-{}", std::process::id()));
    fs::create_dir(&root).expect("a directory for the image");
    fill(&root, host);
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .args(["--owner=0", "--group=0", "-c", "."])
        .stdout(Stdio::piped())
        .spawn()
        .expect("tar");
    let layers = tar.stdout.take().expect("a pipe");
    let imported = Command::new("docker")
        .env("DOCKER_HOST", daemon)
        .args(["import", "--change", "ENTRYPOINT [\"/host\"]", "--change", "USER 65532:65532"])
        .args(["--change", "ENV HOST_CACHE_DIR=/cache", "-", name])
        .stdin(layers)
        .output()
        .expect("docker");
    let packed = tar.wait().expect("tar").success();
    fs::remove_dir_all(&root).expect("the directory of the image");
    let said = String::from_utf8_lossy(&imported.stderr);
    assert!(imported.status.success(), "the image can't be made: {said}");
    assert!(packed, "the image can't be packed");
}

/// Copies the files of the image to `root`.
fn fill(root: &Path, host: &Path) {
    set_mode(root, 0o755);
    let place = |from: &Path| {
        let to = root.join(from.strip_prefix("/").expect("an absolute path"));
        fs::create_dir_all(to.parent().expect("a directory")).expect("a directory of the image");
        fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    };
    let linked = Command::new("ldd").arg(host).output().expect("ldd");
    let linked = String::from_utf8_lossy(&linked.stdout);
    linked.split_whitespace().map(Path::new).filter(|word| word.is_absolute()).for_each(place);
    place(Path::new("/etc/ssl/certs/ca-certificates.crt"));
    // A link instead of a copy, because the program is large.
    fs::hard_link(host, root.join("host")).expect("a link to the host");
    for shared in ["cache", "tmp"] {
        let path = root.join(shared);
        fs::create_dir(&path).expect("a directory of the image");
        set_mode(&path, 0o1777);
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}
