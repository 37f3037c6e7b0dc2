//! Keys and signatures in minisign's format, implemented from its description
//! (<https://jedisct1.github.io/minisign/>).

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ed25519_compact::{KeyPair, Seed};

/// A pair of keys.
pub struct Signer {
    keys: KeyPair,
    id: [u8; 8],
}

impl Signer {
    /// The key pair with this number, which is the same each time.
    pub fn new(number: u8) -> Self {
        Self { keys: KeyPair::from_seed(Seed::new([number; 32])), id: [number; 8] }
    }

    /// The content of the public key file.
    pub fn public_key(&self) -> String {
        let key = [&b"Ed"[..], &self.id, &self.keys.pk[..]].concat();
        format!("untrusted comment: minisign public key\n{}\n", BASE64_STANDARD.encode(key))
    }

    /// The content of the signature file for `bytes`, with a trusted comment.
    pub fn sign(&self, bytes: &[u8], comment: &str) -> String {
        let hash = blake2b_simd::Params::new().hash_length(64).hash(bytes);
        self.file(b"ED", hash.as_bytes(), comment)
    }

    /// The same in the old format, which signs the bytes themselves and not their hash.
    pub fn sign_as_before(&self, bytes: &[u8], comment: &str) -> String {
        self.file(b"Ed", bytes, comment)
    }

    fn file(&self, kind: &[u8], signed: &[u8], comment: &str) -> String {
        let signature = self.keys.sk.sign(signed, None);
        let of_all = self.keys.sk.sign([&signature[..], comment.as_bytes()].concat(), None);
        format!(
            "untrusted comment: signature\n{}\ntrusted comment: {comment}\n{}\n",
            BASE64_STANDARD.encode([kind, &self.id, &signature[..]].concat()),
            BASE64_STANDARD.encode(&of_all[..]),
        )
    }

    /// Signs a file as `minisign -S` does, for a component with this name. Returns the path of the
    /// signature file.
    pub fn sign_file(&self, file: &Path, name: &str) -> PathBuf {
        let bytes = fs::read(file).expect("a file to sign");
        let signature = self.sign(&bytes, &format!("timestamp:1\tfile:{name}.wasm\thashed"));
        let path = PathBuf::from(format!("{}.minisig", file.display()));
        fs::write(&path, signature).expect("a signature");
        path
    }
}
