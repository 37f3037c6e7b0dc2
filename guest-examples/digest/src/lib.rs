//! Writes the SHA-256 of each input to `0_digest/NAME.sha256`, in the format of `sha256sum`. Reads
//! inputs in pieces, so that memory does not grow with their size.

use std::io::Read;

use sha2::{Digest as _, Sha256};
use task_host_sdk::{Context, Guest, Ignored, Outcome, Result, Task};

/// The bytes of one read. Each read calls the host, so a piece is large enough that reading costs
/// little compared with hashing.
const PIECE: usize = 256 * 1024;

#[derive(Default)]
struct Digest;

impl Guest for Digest {
    type Payload = Ignored;

    fn execute(&mut self, task: &Task) -> Result<Outcome> {
        let mut piece = vec![0; PIECE];
        for input in task.inputs() {
            let file = std::fs::File::open(input.path()).with_context(|| input.to_string())?;
            let digest = sha256(file, &mut piece).with_context(|| input.to_string())?;
            let name = input.file_name();
            // `sha256sum --check` expects two spaces and the name without directories.
            task.write(&format!("0_digest/{name}.sha256"), format!("{digest}  {name}\n"))?;
        }
        Ok(task.done())
    }
}

task_host_sdk::export!(Digest);

/// The digest of all bytes of `from`, in hexadecimal.
fn sha256(mut from: impl Read, piece: &mut [u8]) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    loop {
        match from.read(piece)? {
            0 => break,
            read => hasher.update(&piece[..read]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use task_host_sdk::testing::Sandbox;

    #[test]
    fn known_digests() {
        // FIPS 180-2, appendix B.
        let check = |from: &[u8], expected: &str| {
            assert_eq!(sha256(from, &mut [0; 7]).unwrap(), expected);
        };
        check(b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        check(
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        );
        check(
            &vec![b'a'; 1_000_000],
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
        );
    }

    #[test]
    fn the_output_is_what_sha256sum_writes() {
        let mut sandbox = Sandbox::new().unwrap();
        sandbox.input("0_input/empty.dat", b"").unwrap().run::<Digest>().unwrap();
        let expected =
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  empty.dat\n";
        assert_eq!(sandbox.output("0_digest/empty.dat.sha256").unwrap(), expected.as_bytes());
    }
}
