//! The example guest's own PNG reader: it reads the same pictures as the `image` crate.

// A program can't link a component, so this compiles the component's source files.
#[path = "../../../guest-examples/image-downsample/src/png.rs"]
mod png;
#[path = "../../../guest-examples/image-downsample/src/unfilter.rs"]
mod unfilter;

use image::{ImageFormat, ImageReader};

use crate::memory::bounded;

/// The bytes before the first chunk.
const SIGNATURE: usize = 8;

pub(crate) fn check(input: &[u8]) {
    read(input);
    let mut file = input.to_vec();
    write_checksums(&mut file);
    read(&file);
}

fn read(file: &[u8]) {
    // DEFLATE expands a byte to at most 1032 bytes. A row of one pixel takes a filter and a slice.
    let Some(image) = bounded(20 * 1032 * file.len() + (1 << 20), || png::read(file)) else {
        return;
    };
    let mut theirs = ImageReader::with_format(std::io::Cursor::new(file), ImageFormat::Png);
    theirs.no_limits();
    let theirs = theirs.decode().unwrap_or_else(|error| panic!("the crate refuses it: {error}"));
    assert!(image == theirs, "{:?} differs from {:?}", image.color(), theirs.color());
}

/// Writes the right checksum into each chunk, because the fuzzer can't guess it.
fn write_checksums(file: &mut [u8]) {
    let mut rest = file.get_mut(SIGNATURE..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk_mut::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some((checked, after)) = after.split_at_mut_checked(length.saturating_add(4)) else {
            return;
        };
        let Some((checksum, after)) = after.split_first_chunk_mut::<4>() else { return };
        *checksum = crc32fast::hash(checked).to_be_bytes();
        rest = after;
    }
}
