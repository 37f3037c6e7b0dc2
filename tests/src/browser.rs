//! A browser that checks the status page: the programs in `tests/browser`.

use std::path::Path;
use std::process::Command;

use crate::built;
use crate::process::Finished;

/// Runs a check of `tests/browser/check.mjs` with the page of the server at this address, and
/// requires success. Leaves pictures in `pictures` in the build directory.
#[track_caller]
pub fn check_page(check: &str, address: &str) {
    let pictures = built::target().join("pictures");
    std::fs::create_dir_all(&pictures).expect("a directory for pictures");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/check.mjs");
    let mut node = Command::new("node");
    node.arg(script).args([check, &format!("http://{address}/")]).arg(pictures);
    node.env("BROWSER", "/usr/bin/chromium").env("BROWSER_PACKAGES", built::browser_packages());
    let finished = Finished::run(&mut node).good();
    print!("{}", finished.stdout);
}
