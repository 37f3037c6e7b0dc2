//! Root certificates for machines that have none, such as an empty container.
//!
//! The clients of S3, SQS, Google and web servers read the machine's certificates. Without any, one
//! client panics, one fails with "builder error", and one rejects every server. All of them read
//! `SSL_CERT_FILE`, so this module provides a file with Mozilla's certificates for this variable.
//! These certificates are part of this program.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Once, OnceLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

use crate::environment::Environment;
use crate::system::file_in_memory;

/// The variable with the path of the certificate file.
pub const VARIABLE: &str = "SSL_CERT_FILE";
const DIRECTORY: &str = "SSL_CERT_DIR";

/// The file with this program's certificates. It stays open, because clients open it through its
/// descriptor.
static BUNDLED: OnceLock<Bundled> = OnceLock::new();

struct Bundled {
    _file: File,
    /// The variable that should have named certificates, with its value, if one is set.
    named: Option<String>,
}

/// The path of a file with this program's certificates, if the machine has no certificates. The
/// caller sets [`VARIABLE`] to the path before any other thread runs.
pub fn missing(environment: &Environment) -> Option<PathBuf> {
    let named = [VARIABLE, DIRECTORY]
        .iter()
        .find_map(|name| Some(format!("{name}={}", environment.get(name)?)));
    if has_own(named.is_some()) {
        return None;
    }
    // If this fails, each client that needs certificates reports its own error.
    let (file, path) = bundle().ok()?;
    BUNDLED.set(Bundled { _file: file, named }).ok()?;
    Some(path)
}

/// If this program's certificates are used, logs this once.
pub(crate) fn tell() {
    static TOLD: Once = Once::new();
    let Some(Bundled { named, .. }) = BUNDLED.get() else { return };
    TOLD.call_once(|| match named {
        Some(named) => tracing::warn!(
            "{named}: found no root certificates there; using Mozilla's, which are part of this \
             program"
        ),
        None => tracing::info!(
            "this machine has no root certificates; using Mozilla's, which are part of this \
             program"
        ),
    });
}

fn has_own(is_named: bool) -> bool {
    // Nearly every machine has this file. Reading all certificates would take ten milliseconds.
    let file = openssl_probe::probe().cert_file;
    let is_there = |file: &PathBuf| file.metadata().is_ok_and(|meta| meta.len() > 0);
    if !is_named && file.as_ref().is_some_and(is_there) {
        return true;
    }
    !rustls_native_certs::load_native_certs().certs.is_empty()
}

/// Writes a file with the certificates, and returns it with its path. Child processes inherit the
/// file, because clients start programs to get credentials.
fn bundle() -> io::Result<(File, PathBuf)> {
    let (mut file, path) = file_in_memory("ca-certificates")?;
    let mut text = String::new();
    for certificate in TLS_SERVER_ROOT_CERTS {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = BASE64_STANDARD.encode(certificate);
        for line in encoded.as_bytes().chunks(64) {
            text.extend(line.iter().map(|byte| char::from(*byte)));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    file.write_all(text.as_bytes())?;
    Ok((file, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_certificates_can_be_read_by_the_clients() {
        let (_file, path) = bundle().unwrap();
        for _ in 0..2 {
            let read = rustls_native_certs::load_certs_from_paths(Some(&path), None);
            assert!(read.errors.is_empty(), "{:?}", read.errors);
            assert_eq!(read.certs.len(), TLS_SERVER_ROOT_CERTS.len());
        }
    }
}
