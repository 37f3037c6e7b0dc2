//! Checksums that a store sends with an object, and the check of a file against them.
//!
//! | service | header | covers |
//! |---|---|---|
//! | S3 | `x-amz-checksum-{crc64nvme,crc32c,crc32,sha256}` | the whole object, unless composite |
//! | Google | `x-goog-hash: crc32c=…,md5=…` | the whole object as it is stored |
//! | Azure, others | `content-md5` | the whole object, if the response has all of it |
//!
//! An entity tag is not a checksum: in S3 it is the MD5 of only some objects, and a response does
//! not say of which.

use std::fs::File;
use std::io::{self, Read, Seek};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use crc_fast::CrcAlgorithm;
use md5::{Digest as _, Md5};
use sha2::Sha256;

/// The number of bytes that are read at once.
const CHUNK: usize = 256 * 1024;

/// The checksums of one object, as bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Checksums(Vec<(Algorithm, Vec<u8>)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Crc64Nvme,
    Crc32c,
    Crc32,
    Sha256,
    Md5,
}

/// The cheapest first, because only one is checked.
const HEADERS: [(&str, Algorithm); 5] = [
    ("x-amz-checksum-crc64nvme", Algorithm::Crc64Nvme),
    ("x-amz-checksum-crc32c", Algorithm::Crc32c),
    ("x-amz-checksum-crc32", Algorithm::Crc32),
    ("x-amz-checksum-sha256", Algorithm::Sha256),
    ("content-md5", Algorithm::Md5),
];

impl Checksums {
    /// The checksums in the headers of a response. Skips unreadable checksums and composite ones,
    /// which are computed from the checksums of parts.
    pub(super) fn of_headers<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Self {
        let mut checksums = Self::default();
        let composite = header("x-amz-checksum-type") == Some("COMPOSITE");
        for (name, algorithm) in HEADERS {
            if let Some(value) = header(name)
                && !(composite && algorithm != Algorithm::Md5)
            {
                checksums.add(algorithm, value);
            }
        }
        // Google decompresses stored gzip for clients that do not accept gzip, but sends the
        // checksum of the stored bytes.
        let stored = header("x-goog-stored-content-encoding").unwrap_or("identity");
        if let Some(hash) = header("x-goog-hash")
            && stored == header("content-encoding").unwrap_or("identity")
        {
            for part in hash.split(',') {
                match part.trim().split_once('=') {
                    Some(("crc32c", value)) => checksums.add(Algorithm::Crc32c, value),
                    Some(("md5", value)) => checksums.add(Algorithm::Md5, value),
                    _ => {}
                }
            }
        }
        checksums
    }

    fn add(&mut self, algorithm: Algorithm, value: &str) {
        let length = match algorithm {
            Algorithm::Crc64Nvme => 8,
            Algorithm::Crc32c | Algorithm::Crc32 => 4,
            Algorithm::Sha256 => 32,
            Algorithm::Md5 => 16,
        };
        if let Ok(bytes) = BASE64_STANDARD.decode(value)
            && bytes.len() == length
        {
            self.0.push((algorithm, bytes));
        }
    }

    /// True when there is no checksum to check.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Starts to compute a checksum of bytes as they arrive. `None` if there is no checksum to
    /// compare with.
    pub(super) fn start(&self) -> Option<RunningChecksum> {
        let (algorithm, want) = self.0.first()?;
        let crc = |algorithm| RunningState::Crc(crc_fast::Digest::new(algorithm));
        let state = match algorithm {
            Algorithm::Crc64Nvme => crc(CrcAlgorithm::Crc64Nvme),
            Algorithm::Crc32c => crc(CrcAlgorithm::Crc32Iscsi),
            Algorithm::Crc32 => crc(CrcAlgorithm::Crc32IsoHdlc),
            Algorithm::Sha256 => RunningState::Sha256(Sha256::new()),
            Algorithm::Md5 => RunningState::Md5(Md5::new()),
        };
        Some(RunningChecksum { algorithm: *algorithm, want: want.clone(), state })
    }

    /// Checks a file from its start. The error is `InvalidData` when its bytes differ from those in
    /// the store.
    pub(super) fn check(&self, mut file: &File) -> io::Result<()> {
        let Some(mut checksum) = self.start() else { return Ok(()) };
        file.rewind()?;
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk)? {
                0 => return checksum.check(),
                n => checksum.update(&chunk[..n]),
            }
        }
    }
}

/// A checksum of the bytes so far, and the expected value.
pub(super) struct RunningChecksum {
    algorithm: Algorithm,
    want: Vec<u8>,
    state: RunningState,
}

enum RunningState {
    Crc(crc_fast::Digest),
    Sha256(Sha256),
    Md5(Md5),
}

impl RunningChecksum {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            RunningState::Crc(checksum) => checksum.update(bytes),
            RunningState::Sha256(checksum) => checksum.update(bytes),
            RunningState::Md5(checksum) => checksum.update(bytes),
        }
    }

    /// Compares the checksums. The error is `InvalidData` when the bytes differ from those in the
    /// store.
    pub(super) fn check(self) -> io::Result<()> {
        let Self { algorithm, want, state } = self;
        let got = match state {
            RunningState::Crc(checksum) => {
                let bytes = checksum.finalize().to_be_bytes();
                bytes[bytes.len() - want.len()..].to_vec()
            }
            RunningState::Sha256(checksum) => checksum.finalize().to_vec(),
            RunningState::Md5(checksum) => checksum.finalize().to_vec(),
        };
        if got == want {
            return Ok(());
        }
        let problem = format!(
            "the {algorithm:?} checksum of the received bytes is {}, but the store has {}: the bytes \
             changed on their way",
            BASE64_STANDARD.encode(&got),
            BASE64_STANDARD.encode(&want)
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, problem))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file() -> File {
        let mut file = tempfile::tempfile().unwrap();
        // The check values of these checksums are published for this text.
        file.write_all(b"123456789").unwrap();
        file
    }

    #[test]
    fn each_kind_of_checksum_accepts_its_bytes_and_refuses_others() {
        for (name, digits) in [
            ("x-amz-checksum-crc64nvme", "ae8b14860a799888"),
            ("x-amz-checksum-crc32c", "e3069283"),
            ("x-amz-checksum-crc32", "cbf43926"),
            (
                "x-amz-checksum-sha256",
                "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
            ),
            ("content-md5", "25f9e794323b453885f5181f1b624d0b"),
        ] {
            let mut bytes = hex::decode(digits).unwrap();
            let checksums = |bytes: &[u8]| {
                let value = BASE64_STANDARD.encode(bytes);
                Checksums::of_headers(|asked| (asked == name).then_some(value.as_str()))
            };
            checksums(&bytes).check(&file()).unwrap();
            bytes[0] ^= 1;
            let error = checksums(&bytes).check(&file()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{name}");
        }
    }

    #[test]
    fn what_google_says_is_read_where_it_is_of_what_comes() {
        let crc32c = BASE64_STANDARD.encode([0xe3, 0x06, 0x92, 0x83]);
        let hash = format!("crc32c={crc32c},md5=AAAA");
        let plain = Checksums::of_headers(|name| (name == "x-goog-hash").then_some(hash.as_str()));
        plain.check(&file()).unwrap();
        assert_eq!(plain.0.len(), 1, "an md5 that is none is left out");
        let packed = Checksums::of_headers(|name| match name {
            "x-goog-hash" => Some(hash.as_str()),
            "x-goog-stored-content-encoding" => Some("gzip"),
            _ => None,
        });
        assert!(packed.is_empty());
        let stored = Checksums::of_headers(|name| match name {
            "x-goog-hash" => Some(hash.as_str()),
            "x-goog-stored-content-encoding" | "content-encoding" => Some("gzip"),
            _ => None,
        });
        stored.check(&file()).unwrap();
        assert!(!stored.is_empty());
    }

    #[test]
    fn a_checksum_of_checksums_is_none() {
        for (value, algorithm) in [("AAAAAA==-3", None), ("AAAAAA==", Some("COMPOSITE"))] {
            let checksums = Checksums::of_headers(|name| match name {
                "x-amz-checksum-crc32c" => Some(value),
                "x-amz-checksum-type" => algorithm,
                _ => None,
            });
            assert!(checksums.is_empty(), "{value}");
        }
    }
}
