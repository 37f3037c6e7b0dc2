//! Content encodings: the `Content-Encoding` header, and gzip in both directions.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::{GzEncoder, MultiGzDecoder};

use super::checksums::{Checksums, RunningChecksum};

/// The longest name of an encoding that an error shows, in bytes.
const SHOWN: usize = 40;

/// The encoding in which an object is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum ContentEncoding {
    /// Not encoded.
    #[default]
    Plain,
    /// gzip.
    Gzip,
    /// Another encoding, by name.
    Other(String),
}

impl ContentEncoding {
    /// Parses a `Content-Encoding` header. `aws-chunked` is ignored, because it names how a client
    /// uploaded the object.
    pub(super) fn of_header(value: &str) -> Self {
        let names = value.split(',').map(|name| name.trim().to_ascii_lowercase());
        let names: Vec<String> =
            names.filter(|name| !matches!(&**name, "" | "identity" | "aws-chunked")).collect();
        match names.as_slice() {
            [] => Self::Plain,
            [one] if one == "gzip" || one == "x-gzip" => Self::Gzip,
            _ => Self::Other(names.join(", ").chars().take(SHOWN).collect()),
        }
    }
}

/// Why decoding stopped.
#[derive(Debug)]
pub(super) enum DecodeError {
    /// The local disk failed.
    Disk(io::Error),
    /// The decoded bytes exceed the limit.
    TooLarge,
}

/// Decodes an object's bytes in order, and computes the checksum of the stored bytes.
pub(super) struct Gunzip {
    decoder: MultiGzDecoder<BoundedFile>,
    checksum: Option<RunningChecksum>,
    stored: u64,
    /// Why the bytes are not gzip. The checksum is still computed, because the bytes may have been
    /// damaged in transit.
    wrong: Option<String>,
}

impl Gunzip {
    /// Writes at most `limit` decoded bytes to `file`.
    pub(super) fn new(file: Arc<File>, limit: u64, checksums: &Checksums) -> Self {
        let bounded = BoundedFile { file, at: 0, limit, fault: None };
        let decoder = MultiGzDecoder::new(bounded);
        Self { decoder, checksum: checksums.start(), stored: 0, wrong: None }
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        self.stored += bytes.len() as u64;
        if let Some(checksum) = &mut self.checksum {
            checksum.update(bytes);
        }
        if self.wrong.is_none() {
            let fed = self.decoder.write_all(bytes);
            self.note(fed)?;
        }
        Ok(())
    }

    /// Writes the rest and returns the number of decoded bytes. The inner error means that the
    /// stored bytes are not gzip. Bytes that were damaged in transit give a [`DecodeError::Disk`]
    /// of the kind `InvalidData`.
    pub(super) fn finish(&mut self) -> Result<Result<u64, String>, DecodeError> {
        // An empty object is valid, whatever its header says.
        if self.wrong.is_none() && self.stored > 0 {
            let done = self.decoder.try_finish();
            self.note(done)?;
        }
        if let Some(checksum) = self.checksum.take() {
            checksum.check().map_err(DecodeError::Disk)?;
        }
        Ok(self.wrong.take().map_or(Ok(self.decoder.get_ref().at), Err))
    }

    fn note(&mut self, done: io::Result<()>) -> Result<(), DecodeError> {
        let Err(error) = done else { return Ok(()) };
        if let Some(fault) = self.decoder.get_mut().fault.take() {
            return Err(fault);
        }
        self.wrong = Some(match error.kind() {
            io::ErrorKind::UnexpectedEof => "it is truncated".to_owned(),
            _ => error.to_string(),
        });
        Ok(())
    }
}

/// A file that takes at most `limit` bytes.
#[derive(Debug)]
struct BoundedFile {
    file: Arc<File>,
    at: u64,
    limit: u64,
    /// The error that the writer's `io::Error` can't carry.
    fault: Option<DecodeError>,
}

impl Write for BoundedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.at + bytes.len() as u64 > self.limit {
            self.fault = Some(DecodeError::TooLarge);
            return Err(io::Error::other("too large"));
        }
        if let Err(error) = self.file.write_all_at(bytes, self.at) {
            self.fault = Some(DecodeError::Disk(error));
            return Err(io::Error::other("the disk failed"));
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses bytes.
pub(super) fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Compresses a file into parts of equal size; the last may be smaller. Equal files give equal
/// parts, because the header has no time.
pub(super) struct Gzip {
    encoder: GzEncoder<Vec<u8>>,
    part: usize,
}

impl Gzip {
    pub(super) fn new(part: usize) -> Self {
        Self { encoder: GzEncoder::new(Vec::new(), Compression::default()), part }
    }

    /// Takes the next bytes and returns the completed parts.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.encoder.write_all(bytes)?;
        let mut parts = Vec::new();
        while self.encoder.get_ref().len() > self.part {
            let rest = self.encoder.get_mut().split_off(self.part);
            parts.push(std::mem::replace(self.encoder.get_mut(), rest));
        }
        Ok(parts)
    }

    /// Returns the remaining parts.
    pub(super) fn finish(self) -> io::Result<Vec<Vec<u8>>> {
        let left = self.encoder.finish()?;
        Ok(left.chunks(self.part).map(<[u8]>::to_vec).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const LARGE: u64 = 1 << 30;

    fn decode(stored: &[u8], limit: u64) -> (Result<Result<u64, String>, DecodeError>, Vec<u8>) {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut gunzip = Gunzip::new(file.clone(), limit, &Checksums::default());
        let mut fed = Ok(());
        // Chunks of 7 bytes cut members and headers at all places.
        for chunk in stored.chunks(7) {
            fed = fed.and_then(|()| gunzip.feed(chunk));
        }
        let done = fed.and_then(|()| gunzip.finish());
        let mut got = Vec::new();
        io::Seek::rewind(&mut &*file).unwrap();
        (&*file).read_to_end(&mut got).unwrap();
        (done, got)
    }

    #[test]
    fn what_a_header_says_is_understood() {
        for (header, want) in [
            ("", ContentEncoding::Plain),
            ("identity", ContentEncoding::Plain),
            ("aws-chunked", ContentEncoding::Plain),
            ("gzip", ContentEncoding::Gzip),
            ("GZIP,aws-chunked", ContentEncoding::Gzip),
            ("x-gzip", ContentEncoding::Gzip),
            ("br", ContentEncoding::Other("br".into())),
            ("gzip, gzip", ContentEncoding::Other("gzip, gzip".into())),
        ] {
            assert_eq!(ContentEncoding::of_header(header), want, "{header}");
        }
    }

    #[test]
    fn gzip_is_decoded_with_all_its_members() {
        let one: Vec<u8> = (0..100_000_u32).flat_map(|i| i.wrapping_mul(i).to_le_bytes()).collect();
        let stored = [gzip(&one).unwrap(), gzip(b"").unwrap(), gzip(b"two").unwrap()].concat();
        let (done, got) = decode(&stored, LARGE);
        assert_eq!(done.unwrap(), Ok(400_003));
        assert!(got == [&one[..], b"two"].concat(), "{} bytes came", got.len());
        assert_eq!(decode(b"", LARGE).0.unwrap(), Ok(0), "an empty object is empty");
    }

    #[test]
    fn what_is_no_gzip_or_not_all_of_it_is_said_to_be_so() {
        let whole = gzip(&[7; 1000]).unwrap();
        let mut flipped = whole.clone();
        let last = flipped.len() - 6;
        flipped[last] ^= 1;
        let cut = &whole[..whole.len() - 3];
        for stored in [b"plain text".as_slice(), cut, &whole[..5], &flipped] {
            let (done, _) = decode(stored, LARGE);
            assert!(done.unwrap().is_err(), "{stored:?}");
        }
    }

    #[test]
    fn a_small_object_does_not_become_a_large_file() {
        let stored = gzip(&vec![0; 10 << 20]).unwrap();
        assert!(stored.len() < 20_000);
        let (done, got) = decode(&stored, 1 << 20);
        assert!(matches!(done, Err(DecodeError::TooLarge)));
        assert!(got.len() <= 1 << 20, "{}", got.len());
        assert_eq!(decode(&stored, 10 << 20).0.unwrap(), Ok(10 << 20), "exactly so many may");
    }

    #[test]
    fn parts_are_of_one_size_and_are_one_gzip() {
        let bytes: Vec<u8> =
            (0..300_000_u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect();
        let mut gzip = Gzip::new(10_000);
        let mut parts = Vec::new();
        for chunk in bytes.chunks(70_000) {
            parts.extend(gzip.feed(chunk).unwrap());
        }
        parts.extend(gzip.finish().unwrap());
        let (last, all) = parts.split_last().unwrap();
        assert!(all.iter().all(|part| part.len() == 10_000) && last.len() <= 10_000);
        let (done, got) = decode(&parts.concat(), LARGE);
        assert_eq!(done.unwrap(), Ok(300_000));
        assert!(got == bytes);
    }
}
