//! Files in a cache directory: entries of the index, compiled code, and records of compilations.

use task_host::cache::foreign::index_entry;
use task_host::catalog::foreign::{failure, seal, trying, unseal};
use task_host::digest::Digest;

use crate::memory::bounded;

pub(crate) fn check(input: &[u8]) {
    for read in [index_entry, failure, trying] {
        let written = bounded(64 * input.len() + 8192, || read(input));
        if let Some(written) = written {
            assert_eq!(read(&written).as_deref(), Some(&*written), "it is not read as written");
        }
    }
    sealed(input);
}

/// Code is loaded only if it is unchanged, and only for its own component.
fn sealed(code: &[u8]) {
    let component = Digest::of(b"component");
    assert_eq!(unseal(code, component), None, "nobody sealed this");
    let mut stored = seal(code, component).expect("reading memory can't fail");
    assert_eq!(unseal(&stored, component), Some(code));
    assert_eq!(unseal(&stored, Digest::of(b"another component")), None);
    assert_eq!(unseal(&stored[1..], component), None);
    assert_eq!(unseal(&stored[..stored.len() - 1], component), None);
    // The input chooses the byte to change.
    let at = code.iter().fold(0, |at: usize, byte| at.wrapping_mul(31) + usize::from(*byte));
    let at = at % stored.len();
    stored[at] ^= 1;
    assert_eq!(unseal(&stored, component), None, "byte {at} is changed");
}
