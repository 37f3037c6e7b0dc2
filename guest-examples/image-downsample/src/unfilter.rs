//! Undoes the filters of a PNG file's rows.
//!
//! Most photographs have the filter Paeth in nearly all rows. Each of its samples needs the samples
//! before and above it, so a single row can't be computed in vectors. Four rows can: each row is
//! one pixel behind the row above it, and a step computes one pixel of each row.

use std::array;

/// The filters that this module names: <https://www.w3.org/TR/png-3/#9Filters>.
const NONE: u8 = 0;
const SUB: u8 = 1;
const UP: u8 = 2;
const AVERAGE: u8 = 3;
const PAETH: u8 = 4;

/// Undoes the filters of complete rows in place, from the row `done`. `pixels` holds rows of `row`
/// bytes, with `CHANNELS` bytes for each pixel. If `more` is true, more rows will follow, and the
/// last rows may wait for them. Returns the number of rows that are done, or `None` at an unknown
/// filter.
pub(crate) fn unfilter<const CHANNELS: usize>(
    pixels: &mut [u8],
    row: usize,
    filters: &[u8],
    mut done: usize,
    more: bool,
) -> Option<usize> {
    let black = vec![0; if done == 0 { row } else { 0 }];
    // The last row that is done, and the rows that are not done.
    let first = done.saturating_sub(1);
    let mut rows: Vec<&mut [u8]> = pixels[first * row..].chunks_exact_mut(row).collect();
    loop {
        let (before, rest) = rows.split_at_mut(done - first);
        let above = before.last().map_or(&black[..], |row| row);
        match (&filters[done..], rest) {
            (_, []) => return Some(done),
            ([PAETH, PAETH, PAETH, PAETH, ..], [a, b, c, d, ..]) => {
                paeth::<CHANNELS, 4>(above, [a, b, c, d], FourRows::default());
                done += 3;
            }
            (_, rows) if more && rows.len() < 4 => return Some(done),
            ([PAETH, ..], [row, ..]) => paeth::<CHANNELS, 1>(above, [row], Rows::<4>::default()),
            ([SUB, ..], [row, ..]) => sub::<CHANNELS>(row),
            ([UP, ..], [row, ..]) => {
                for (byte, above) in row.iter_mut().zip(above) {
                    *byte = byte.wrapping_add(*above);
                }
            }
            ([AVERAGE, ..], [row, ..]) => average::<CHANNELS>(above, row),
            ([NONE, ..], _) => {}
            _ => return None,
        }
        done += 1;
    }
}

fn sub<const CHANNELS: usize>(row: &mut [u8]) {
    let mut left = [0; CHANNELS];
    for pixel in row.as_chunks_mut::<CHANNELS>().0 {
        left = array::from_fn(|channel| pixel[channel].wrapping_add(left[channel]));
        *pixel = left;
    }
}

fn average<const CHANNELS: usize>(above: &[u8], row: &mut [u8]) {
    let mut left = [0; CHANNELS];
    let above = above.as_chunks::<CHANNELS>().0;
    for (pixel, above) in row.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(above) {
        left = array::from_fn(|channel| {
            pixel[channel].wrapping_add(u8::midpoint(left[channel], above[channel]))
        });
        *pixel = left;
    }
}

/// Undoes Paeth in `ROWS` rows.
fn paeth<const CHANNELS: usize, const ROWS: usize>(
    above: &[u8],
    rows: [&mut [u8]; ROWS],
    mut wave: impl Wave<ROWS>,
) {
    let width = above.len() / CHANNELS;
    let mut x = 0;
    // Row `n` is at the pixel `x - n`.
    while x < width + ROWS - 1 {
        // Here, each row has a pixel, and four bytes can be read at each pixel.
        while x + 1 >= ROWS && x * CHANNELS + 4 <= above.len() {
            let mut filtered = [0; ROWS];
            for n in 0..ROWS {
                filtered[n] = four_bytes(&rows[n][(x - n) * CHANNELS..][..4]);
            }
            let pixels = wave.step(four_bytes(&above[x * CHANNELS..][..4]), filtered);
            for n in 0..ROWS {
                let pixel = &mut rows[n][(x - n) * CHANNELS..][..CHANNELS];
                pixel.copy_from_slice(&pixels[n].to_le_bytes()[..CHANNELS]);
            }
            x += 1;
        }
        // At the edges, rows without a pixel use a black one.
        let pixel = |x: usize| x * CHANNELS..(x + 1) * CHANNELS;
        let inside = |n: usize| x >= n && x - n < width;
        let first = if x < width { four_bytes(&above[pixel(x)]) } else { 0 };
        let filtered =
            array::from_fn(|n| if inside(n) { four_bytes(&rows[n][pixel(x - n)]) } else { 0 });
        let pixels = wave.step(first, filtered);
        for n in (0..ROWS).filter(|n| inside(*n)) {
            rows[n][pixel(x - n)].copy_from_slice(&pixels[n].to_le_bytes()[..CHANNELS]);
        }
        x += 1;
    }
}

/// The bytes of a pixel, at most four, as one number.
#[inline(always)]
fn four_bytes(pixel: &[u8]) -> u32 {
    let mut bytes = [0; 4];
    bytes[..pixel.len()].copy_from_slice(pixel);
    u32::from_le_bytes(bytes)
}

/// The state of a step: the pixels before the current pixels.
trait Wave<const ROWS: usize> {
    /// Computes the next pixel of each row. `first` is the pixel above the first row's pixel.
    fn step(&mut self, first: u32, filtered: [u32; ROWS]) -> [u32; ROWS];
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
type FourRows = Rows<16>;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
type FourRows = vectors::FourRows;

/// The code for every machine: four samples for each row, in arrays that compilers can vectorize.
struct Rows<const LANES: usize> {
    left: [i16; LANES],
    above_left: [i16; LANES],
}

impl<const LANES: usize> Default for Rows<LANES> {
    fn default() -> Self {
        Self { left: [0; LANES], above_left: [0; LANES] }
    }
}

impl<const ROWS: usize, const LANES: usize> Wave<ROWS> for Rows<LANES> {
    #[inline(always)]
    fn step(&mut self, first: u32, filtered: [u32; ROWS]) -> [u32; ROWS] {
        const { assert!(LANES == 4 * ROWS) }
        // The pixel above is the one that the row above has just computed.
        let mut above = [0; LANES];
        above[..4].copy_from_slice(&first.to_le_bytes().map(i16::from));
        above[4..].copy_from_slice(&self.left[..LANES - 4]);
        let mut samples = [0; LANES];
        for n in 0..ROWS {
            samples[4 * n..][..4].copy_from_slice(&filtered[n].to_le_bytes());
        }
        for n in 0..LANES {
            let (a, b, c) = (self.left[n], above[n], self.above_left[n]);
            // The specification's choice, without absolute values, as in stb_image.
            let threshold = 3 * c - b - a;
            let (low, high) = (a.min(b), a.max(b));
            let other = if high <= threshold { low } else { c };
            let predicted = if threshold <= low { high } else { other };
            self.left[n] = (predicted + i16::from(samples[n])) & 0xff;
            samples[n] = self.left[n] as u8;
        }
        self.above_left = above;
        array::from_fn(|n| four_bytes(&samples[4 * n..][..4]))
    }
}

/// Code with WebAssembly's vectors, because the compiler vectorizes only a part of the arrays.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod vectors {
    use core::arch::wasm32::*;

    /// Four samples of 16 bits for each row: two rows in each vector.
    pub(super) struct FourRows {
        left: [v128; 2],
        above_left: [v128; 2],
    }

    impl Default for FourRows {
        fn default() -> Self {
            let black = [u64x2_splat(0); 2];
            Self { left: black, above_left: black }
        }
    }

    impl super::Wave<4> for FourRows {
        #[inline(always)]
        fn step(&mut self, first: u32, filtered: [u32; 4]) -> [u32; 4] {
            let first = u16x8_extend_low_u8x16(u32x4(first, 0, 0, 0));
            let [left_0, left_1] = self.left;
            // The pixel above is the one that the row above has just computed.
            let above =
                [u64x2_shuffle::<0, 2>(first, left_0), u64x2_shuffle::<1, 2>(left_0, left_1)];
            let [f0, f1, f2, f3] = filtered;
            let filtered = u32x4(f0, f1, f2, f3);
            self.left = [
                undo(left_0, above[0], self.above_left[0], u16x8_extend_low_u8x16(filtered)),
                undo(left_1, above[1], self.above_left[1], u16x8_extend_high_u8x16(filtered)),
            ];
            self.above_left = above;
            let pixels = u8x16_narrow_i16x8(self.left[0], self.left[1]);
            [
                u32x4_extract_lane::<0>(pixels),
                u32x4_extract_lane::<1>(pixels),
                u32x4_extract_lane::<2>(pixels),
                u32x4_extract_lane::<3>(pixels),
            ]
        }
    }

    /// Undoes Paeth like [`super::Rows`].
    #[inline(always)]
    fn undo(a: v128, b: v128, c: v128, filtered: v128) -> v128 {
        let threshold = i16x8_sub(i16x8_sub(i16x8_add(i16x8_add(c, c), c), b), a);
        let (low, high) = (i16x8_min(a, b), i16x8_max(a, b));
        let other = v128_bitselect(c, low, i16x8_gt(high, threshold));
        let predicted = v128_bitselect(other, high, i16x8_gt(threshold, low));
        v128_and(i16x8_add(predicted, filtered), i16x8_splat(0xff))
    }
}
