//! Averages squares of pixels, as image pyramids of volumes do.
//!
//! The stored values are averaged without removing gamma. Microscopy images are linear, and
//! photographs become slightly darker. Halves round up. If a square is cut at the right or lower
//! edge, its remaining pixels are averaged, so an odd size rounds up and no pixel is lost. Colours
//! are weighted by their opacity.

use std::ops::AddAssign;

/// The value of one channel of one pixel.
pub(crate) trait Sample: Copy + Into<u64> {
    /// Holds the sum of one sample from each row of the largest square. The type is small, so that
    /// a vector register holds many sums.
    type Sum: Copy + Default + AddAssign + From<Self> + Into<u64>;

    fn narrow(value: u64) -> Self;
}

impl Sample for u8 {
    type Sum = u16;

    fn narrow(value: u64) -> Self {
        value as u8
    }
}

impl Sample for u16 {
    type Sum = u32;

    fn narrow(value: u64) -> Self {
        value as u16
    }
}

/// Averages squares of `factor` by `factor` pixels. `samples` holds `width * height` pixels of
/// `CHANNELS` samples. With `ALPHA`, the last sample of a pixel is its opacity.
pub(crate) fn downsample<T: Sample, const CHANNELS: usize, const ALPHA: bool>(
    samples: &[T],
    width: usize,
    height: usize,
    factor: usize,
) -> Vec<T> {
    let mut small = Vec::with_capacity(width.div_ceil(factor) * height.div_ceil(factor) * CHANNELS);
    if width == 0 {
        return small;
    }
    let mut sums = vec![T::Sum::default(); width * CHANNELS];
    for rows in samples.chunks(width * CHANNELS * factor) {
        if ALPHA {
            weighted_row::<T, CHANNELS>(rows, width, factor, &mut small);
            continue;
        }
        // Adds up the rows first, in whole vectors, so that only one row is left to average.
        sums.fill(T::Sum::default());
        for row in rows.chunks_exact(width * CHANNELS) {
            for (sum, sample) in sums.iter_mut().zip(row) {
                *sum += T::Sum::from(*sample);
            }
        }
        row::<T, CHANNELS>(&sums, rows.len() / (width * CHANNELS), factor, &mut small);
    }
    small
}

/// Averages the squares in a row whose samples are sums of `rows` rows.
fn row<T: Sample, const CHANNELS: usize>(
    sums: &[T::Sum],
    rows: usize,
    factor: usize,
    small: &mut Vec<T>,
) {
    let mut rest = sums;
    if factor == 2 && rows == 2 {
        // The usual case has constants, so that the compiler removes the loop and the division.
        let pairs = sums.chunks_exact(2 * CHANNELS);
        rest = pairs.remainder();
        small.extend(pairs.flat_map(|pair| {
            let average: [T; CHANNELS] = std::array::from_fn(|channel| {
                let sum: u64 = pair[channel].into() + pair[CHANNELS + channel].into();
                T::narrow((sum + 2) / 4)
            });
            average
        }));
    }
    for square in rest.chunks(factor * CHANNELS) {
        let count = (rows * square.len() / CHANNELS) as u64;
        for channel in 0..CHANNELS {
            let sum: u64 =
                square.iter().skip(channel).step_by(CHANNELS).map(|&sum| sum.into()).sum();
            small.push(T::narrow((sum + count / 2) / count));
        }
    }
}

/// Averages squares of pixels whose last sample is the opacity.
fn weighted_row<T: Sample, const CHANNELS: usize>(
    rows: &[T],
    width: usize,
    factor: usize,
    small: &mut Vec<T>,
) {
    let colours = CHANNELS - 1;
    for left in (0..width).step_by(factor) {
        let right = (left + factor).min(width);
        let (mut sums, mut opacity, mut count) = ([0_u64; CHANNELS], 0_u64, 0_u64);
        for row in rows.chunks_exact(width * CHANNELS) {
            for pixel in row[left * CHANNELS..right * CHANNELS].chunks_exact(CHANNELS) {
                let alpha: u64 = pixel[colours].into();
                for (sum, colour) in sums.iter_mut().zip(&pixel[..colours]) {
                    let colour: u64 = (*colour).into();
                    *sum += colour * alpha;
                }
                opacity += alpha;
                count += 1;
            }
        }
        // A transparent square becomes black, as encoders expect.
        let weight = opacity.max(1);
        small.extend(sums[..colours].iter().map(|sum| T::narrow((sum + weight / 2) / weight)));
        small.push(T::narrow((opacity + count / 2) / count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_round_half_up() {
        assert_eq!(downsample::<u8, 1, false>(&[1, 2, 3, 4, 0, 0, 0, 1], 4, 2, 2), [1, 2]);
        assert_eq!(downsample::<u8, 1, false>(&[255; 16], 4, 4, 2), [255; 4]);
        assert_eq!(downsample::<u16, 1, false>(&[65535, 65535, 65535, 65534], 2, 2, 2), [65535]);
        assert_eq!(
            downsample::<u8, 3, false>(&[0, 10, 255, 2, 20, 255, 0, 10, 0, 2, 20, 0], 2, 2, 2),
            [1, 15, 128]
        );
    }

    #[test]
    fn an_odd_edge_averages_what_is_there() {
        #[rustfmt::skip]
        let samples = [
            0, 4, 8,
            8, 4, 9,
            1, 2, 7,
        ];
        assert_eq!(downsample::<u8, 1, false>(&samples, 3, 3, 2), [4, 9, 2, 7]);
        assert_eq!(downsample::<u8, 1, false>(&samples, 3, 3, 4), [5]);
        assert_eq!(downsample::<u8, 1, false>(&samples, 3, 3, 1), samples);
        assert_eq!(downsample::<u8, 1, false>(&[], 0, 0, 2), [] as [u8; 0]);
    }

    #[test]
    fn the_largest_factor_does_not_overflow() {
        assert_eq!(downsample::<u8, 1, false>(&[255; 64 * 64], 64, 64, 64), [255]);
        assert_eq!(downsample::<u16, 1, false>(&[65535; 64 * 64], 64, 64, 64), [65535]);
        assert_eq!(downsample::<u16, 2, true>(&[65535; 64 * 64 * 2], 64, 64, 64), [65535, 65535]);
    }

    #[test]
    fn a_transparent_pixel_has_no_colour() {
        let opaque_red_among_transparent_green =
            [200, 0, 0, 255, 0, 90, 0, 0, 0, 90, 0, 0, 0, 90, 0, 0];
        assert_eq!(
            downsample::<u8, 4, true>(&opaque_red_among_transparent_green, 2, 2, 2),
            [200, 0, 0, 64]
        );
        assert_eq!(downsample::<u8, 2, true>(&[9, 0, 9, 0], 2, 1, 2), [0, 0]);
    }

    /// Compares the fast code with the plain formula on noise.
    #[test]
    fn fast_and_plain_agree() {
        let noise: Vec<u8> =
            (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for (width, height) in [(32, 32), (31, 17), (1, 9), (9, 1)] {
            let samples = &noise[..width * height * 3];
            let fast = downsample::<u8, 3, false>(samples, width, height, 2);
            let mut at = 0;
            for y in (0..height).step_by(2) {
                for x in (0..width).step_by(2) {
                    for channel in 0..3 {
                        let square: Vec<u32> = (y..(y + 2).min(height))
                            .flat_map(|y| (x..(x + 2).min(width)).map(move |x| (y, x)))
                            .map(|(y, x)| samples[(y * width + x) * 3 + channel].into())
                            .collect();
                        let mean = f64::from(square.iter().sum::<u32>()) / square.len() as f64;
                        assert_eq!(
                            f64::from(fast[at]),
                            (mean + 0.5).floor(),
                            "{width}x{height} at {x},{y}"
                        );
                        at += 1;
                    }
                }
            }
            assert_eq!(at, fast.len());
        }
    }
}
