//! How this module reads what servers send with an object, for the fuzz targets.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::address::Service;
use super::checksums::Checksums;
use super::encoding::{ContentEncoding, DecodeError, Gunzip};
use super::listing::{self, Skipped};

/// The encoding that a `Content-Encoding` header names: empty for none.
pub fn content_encoding(header: &str) -> String {
    match ContentEncoding::of_header(header) {
        ContentEncoding::Plain => String::new(),
        ContentEncoding::Gzip => "gzip".to_owned(),
        ContentEncoding::Other(name) => name,
    }
}

/// A listing of S3 or Azure without the keys that are not valid here. `None` if all are valid.
pub fn prune_listing(xml: &str, is_azure: bool) -> Option<String> {
    let service = if is_azure { Service::Azure } else { Service::S3 };
    listing::prune(service, xml, &Skipped::new(String::new()))
}

/// The result of decoding an object that is stored as gzip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// The file has this many decoded bytes.
    Whole(u64),
    /// The object is not gzip.
    NotGzip,
    /// The object exceeds the limit, or does not match the checksum in the headers.
    Refused,
}

/// Decodes the gzip in `pieces` into `file`, up to `limit` bytes. Checks the stored bytes against
/// the checksums in the headers.
///
/// # Errors
/// Errors of the file.
pub fn gunzip<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    headers: &[(&str, &str)],
    file: Arc<File>,
    limit: u64,
) -> io::Result<Decoded> {
    let mut gunzip = Gunzip::new(file, limit, &checksums(headers));
    let fed = pieces.into_iter().try_for_each(|piece| gunzip.feed(piece));
    match fed.and_then(|()| gunzip.finish()) {
        Ok(Ok(size)) => Ok(Decoded::Whole(size)),
        Ok(Err(_)) => Ok(Decoded::NotGzip),
        Err(DecodeError::TooLarge) => Ok(Decoded::Refused),
        Err(DecodeError::Disk(error)) if error.kind() == io::ErrorKind::InvalidData => {
            Ok(Decoded::Refused)
        }
        Err(DecodeError::Disk(error)) => Err(error),
    }
}

/// True if the bytes match the checksum in the headers. `None` if the headers have no checksum.
pub fn has_checksum(bytes: &[u8], headers: &[(&str, &str)]) -> Option<bool> {
    let mut checksum = checksums(headers).start()?;
    checksum.update(bytes);
    Some(checksum.check().is_ok())
}

fn checksums(headers: &[(&str, &str)]) -> Checksums {
    Checksums::of_headers(|name| {
        headers.iter().find(|(header, _)| *header == name).map(|(_, value)| *value)
    })
}
