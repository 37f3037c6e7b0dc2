//! Reads the most common PNG files: 8 bits per sample, without palette, not interlaced.
//!
//! The `png` crate has fast code for undoing filters only on x86 and ARM. In WebAssembly, this
//! module reads a file in two thirds of the time. It leaves all other kinds of files, and the
//! errors of damaged files, to the `image` crate.

use fdeflate::Decompressor;
use image::{DynamicImage, GrayAlphaImage, GrayImage, RgbImage, RgbaImage};

use super::unfilter::unfilter;

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// The largest ratio by which DEFLATE can compress data.
const LARGEST_RATIO: usize = 1032;
/// The bit of a chunk's name that says that a reader may ignore the chunk. In a letter, this bit
/// means lower case.
const ANCILLARY: u8 = 0x20;
/// The number of bytes that compressed data may refer back to.
const LOOK_BACK: usize = 32 << 10;
/// The number of bytes that are decompressed at a time. It is small, so that the bytes are still in
/// the processor's cache for the next step.
const NEW: usize = 32 << 10;

/// Decodes a file. Returns `None` if the file is of another kind or damaged.
pub(crate) fn read(file: &[u8]) -> Option<DynamicImage> {
    let mut chunks = Chunks(file.strip_prefix(SIGNATURE)?);
    let (b"IHDR", header) = chunks.next()? else { return None };
    let header = Header::parse(header)?;
    let row = header.width.checked_mul(header.channels)?;
    let size = row.checked_mul(header.height)?;
    // Does not allocate more than the file can fill.
    if size / LARGEST_RATIO > file.len() {
        return None;
    }
    let mut rows = Rows { pixels: vec![0; size], row, filled: 0, filters: Vec::new(), done: 0 };
    let mut inflater = Inflater::new();
    let (mut has_begun, mut is_over) = (false, false);
    loop {
        match chunks.next()? {
            // All `IDAT` chunks must be adjacent.
            (b"IDAT", _) if is_over => return None,
            (b"IDAT", data) => {
                has_begun = true;
                inflater.read(data, false, header.channels, &mut rows)?;
            }
            (b"IEND", _) => break,
            // A transparent colour needs another channel.
            (b"tRNS", _) => return None,
            // Other chunks without this bit are essential, except a palette, which is rare here.
            (kind, _) if kind[0] & ANCILLARY == 0 => return None,
            _ => is_over = has_begun,
        }
    }
    // The last bytes may still be in the decompressor.
    inflater.read(&[], true, header.channels, &mut rows)?;
    let pixels = rows.pixels;
    let (width, height) = (header.width as u32, header.height as u32);
    match header.channels {
        1 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8),
        2 => GrayAlphaImage::from_raw(width, height, pixels).map(DynamicImage::ImageLumaA8),
        3 => RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
        _ => RgbaImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgba8),
    }
}

/// Decompresses data into a window. The new bytes become rows.
struct Inflater {
    decompressor: Decompressor,
    window: Vec<u8>,
    filled: usize,
}

impl Inflater {
    fn new() -> Self {
        let mut decompressor = Decompressor::new();
        // Every chunk already has a checksum.
        decompressor.ignore_adler32();
        Self { decompressor, window: vec![0; LOOK_BACK + NEW], filled: 0 }
    }

    /// Decompresses `data`. Returns `None` if the data is not valid, or if `end` is set and a row
    /// or the end of the data is missing.
    fn read(&mut self, mut data: &[u8], end: bool, channels: usize, rows: &mut Rows) -> Option<()> {
        while !self.decompressor.is_done() {
            let (read, written) =
                self.decompressor.read(data, &mut self.window, self.filled, end).ok()?;
            rows.push(&self.window[self.filled..self.filled + written], channels)?;
            data = &data[read..];
            self.filled += written;
            if self.filled < self.window.len() {
                break;
            }
            self.window.copy_within(NEW.., 0);
            self.filled = LOOK_BACK;
        }
        let is_whole = self.decompressor.is_done() && rows.is_full();
        (is_whole || !end).then_some(())
    }
}

/// The rows of the picture.
struct Rows {
    pixels: Vec<u8>,
    /// The number of bytes in a row.
    row: usize,
    /// The number of bytes of pixels received so far.
    filled: usize,
    /// The filter of each row received so far, including an incomplete one.
    filters: Vec<u8>,
    /// The number of rows whose filter is undone.
    done: usize,
}

impl Rows {
    fn is_full(&self) -> bool {
        self.filled == self.pixels.len()
    }

    /// Adds bytes. Returns `None` at an unknown filter. Ignores bytes after the last row.
    fn push(&mut self, mut bytes: &[u8], channels: usize) -> Option<()> {
        while let ([filter, rest @ ..], false) = (bytes, self.is_full()) {
            if self.filled == self.filters.len() * self.row {
                self.filters.push(*filter);
                bytes = rest;
            }
            let count = bytes.len().min(self.filters.len() * self.row - self.filled);
            self.pixels[self.filled..][..count].copy_from_slice(&bytes[..count]);
            self.filled += count;
            bytes = &bytes[count..];
        }
        let unfilter = match channels {
            1 => unfilter::<1>,
            2 => unfilter::<2>,
            3 => unfilter::<3>,
            _ => unfilter::<4>,
        };
        let complete = self.filled / self.row * self.row;
        let more = !self.is_full();
        let pixels = &mut self.pixels[..complete];
        self.done = unfilter(pixels, self.row, &self.filters, self.done, more)?;
        Some(())
    }
}

/// The layout of the pixels.
struct Header {
    width: usize,
    height: usize,
    channels: usize,
}

impl Header {
    fn parse(header: &[u8]) -> Option<Self> {
        let header: &[u8; 13] = header.try_into().ok()?;
        let [w0, w1, w2, w3, h0, h1, h2, h3, depth, colour, compression, filter, interlace] =
            *header;
        let (width, height) =
            (u32::from_be_bytes([w0, w1, w2, w3]), u32::from_be_bytes([h0, h1, h2, h3]));
        let channels = match colour {
            0 => 1,
            4 => 2,
            2 => 3,
            6 => 4,
            _ => return None,
        };
        if (depth, compression, filter, interlace) != (8, 0, 0, 0) || width == 0 || height == 0 {
            return None;
        }
        Some(Self { width: width.try_into().ok()?, height: height.try_into().ok()?, channels })
    }
}

/// The chunks of a file after its signature, as kinds and data with correct checksums.
struct Chunks<'a>(&'a [u8]);

impl<'a> Chunks<'a> {
    fn next(&mut self) -> Option<(&'a [u8; 4], &'a [u8])> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (checked, rest) = rest.split_at_checked(length.checked_add(4)?)?;
        let (checksum, rest) = rest.split_first_chunk::<4>()?;
        if crc32fast::hash(checked) != u32::from_be_bytes(*checksum) {
            return None;
        }
        self.0 = rest;
        checked.split_first_chunk::<4>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    use image::{DynamicImage, ImageBuffer, ImageFormat};
    use std::io::Cursor;

    /// A smooth picture with noise, for which the filters give different results.
    fn picture(width: u32, height: u32) -> DynamicImage {
        let sample = |x: u32, y: u32, channel: u32| {
            let noise = (x ^ y.wrapping_mul(977)).wrapping_mul(2_654_435_761) >> 29;
            (x * (channel + 1) + y * 3 + noise) as u8
        };
        DynamicImage::ImageRgba8(ImageBuffer::from_fn(width, height, |x, y| {
            image::Rgba([0, 1, 2, 3].map(|channel| sample(x, y, channel)))
        }))
    }

    fn encoded(image: &DynamicImage, filter: FilterType) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, filter);
        image.write_with_encoder(encoder).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn the_picture_is_that_of_the_image_crate() {
        use FilterType::{Adaptive, Avg, NoFilter, Paeth, Sub, Up};
        for (width, height) in [(1, 1), (2, 4), (3, 9), (4, 5), (5, 4), (67, 33)] {
            let rgba = picture(width, height);
            for image in [
                DynamicImage::ImageLuma8(rgba.to_luma8()),
                DynamicImage::ImageLumaA8(rgba.to_luma_alpha8()),
                DynamicImage::ImageRgb8(rgba.to_rgb8()),
                rgba,
            ] {
                for filter in [NoFilter, Sub, Up, Avg, Paeth, Adaptive] {
                    let read = read(&encoded(&image, filter));
                    assert!(
                        read.as_ref() == Some(&image),
                        "{width}x{height}, {:?}, {filter:?}",
                        image.color()
                    );
                }
            }
        }
    }

    #[test]
    fn real_tiles_are_those_of_the_image_crate() {
        // Another package compiles this file too.
        let above = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
        let mut tiles = above.map(|dir| dir.join("guest-examples/data/tiles/cell"));
        let tiles = tiles.find(|tiles| tiles.is_dir()).unwrap();
        let mut count = 0;
        for tile in std::fs::read_dir(tiles).unwrap() {
            let file = std::fs::read(tile.unwrap().path()).unwrap();
            if let Some(image) = read(&file) {
                assert_eq!(image, image::load_from_memory(&file).unwrap());
                count += 1;
            }
        }
        assert!(count > 0, "no tile was read");
    }

    #[test]
    fn other_and_damaged_files_are_left_to_the_image_crate() {
        let image = picture(40, 30);
        let file = encoded(&image, FilterType::Paeth);
        assert_eq!(read(&file), Some(image.clone()));
        for end in 0..file.len() {
            assert_eq!(read(&file[..end]), None, "cut after {end} bytes");
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x20;
            assert_eq!(read(&damaged), None, "byte {at}");
        }
        // The `image` crate ignores a damaged comment.
        let mut commented = file.clone();
        let end_chunk = file.len() - 12;
        commented.splice(end_chunk..end_chunk, *b"\0\0\0\x04tEXta\0bc????");
        assert_eq!(read(&commented), None);
        assert_eq!(image::load_from_memory(&commented).unwrap(), image);
        // The name of an unknown essential chunk need not begin with a letter.
        let mut unknown = file.clone();
        let data = *b"\x87IDOx";
        let chunk = [&[0, 0, 0, 1], &data[..], &crc32fast::hash(&data).to_be_bytes()].concat();
        let after_header = 33;
        unknown.splice(after_header..after_header, chunk);
        assert_eq!(read(&unknown), None);
        assert!(image::load_from_memory(&unknown).is_err());
        let mut jpeg = Cursor::new(Vec::new());
        image.to_rgb8().write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
        assert_eq!(read(&jpeg.into_inner()), None);
        let sixteen = DynamicImage::ImageRgb16(image.to_rgb16());
        assert_eq!(read(&encoded(&sixteen, FilterType::Paeth)), None);
    }

    #[test]
    fn a_size_that_the_file_cannot_fill_is_not_allocated() {
        let mut file = encoded(&picture(4, 4), FilterType::Sub);
        let huge = 30_000_u32.to_be_bytes();
        file[16..20].copy_from_slice(&huge);
        file[20..24].copy_from_slice(&huge);
        let checksum = crc32fast::hash(&file[12..29]).to_be_bytes();
        file[29..33].copy_from_slice(&checksum);
        assert_eq!(read(&file), None);
    }
}
