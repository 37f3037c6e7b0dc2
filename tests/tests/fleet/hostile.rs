//! Names that are harmful if a shell or a careless parser reads them.

use std::fs;
use std::os::unix::fs::symlink;

use task_host_tests::Place;

/// A directory name with shell syntax.
pub(crate) const NAME: &str = "a 'b' \"c\" $(touch pwned) `touch pwned` ;#&|*?~ %j --x=y";

/// Options of `up` for the queue and the bucket of a place, with paths through a directory of this
/// name.
pub(crate) fn options(place: &Place, name: &str) -> Vec<String> {
    let dir = place.path().join(name);
    fs::create_dir(&dir).expect("a directory with a bad name");
    for part in ["queue", "bucket"] {
        symlink(place.path().join(part), dir.join(part)).expect("a link");
    }
    let dir = dir.to_str().expect("a path that is text");
    ["--fq".to_owned(), format!("{dir}/queue"), "--bucket".to_owned(), format!("{dir}/bucket")]
        .into()
}
