//! Downsamples PNG and JPEG images by averaging, as one level of an image pyramid. Each input
//! becomes `1_downsampled/NAME.png`. All fields of the payload are optional:
//! `{"factor": 2, "output": "1_downsampled"}`.

mod average;
mod png;
mod unfilter;

use std::io::Cursor;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{DynamicImage, ImageReader};
use serde::Deserialize;
use task_host_sdk::{Context, Error, Guest, Input, Outcome, Result, Task, info};

use average::downsample;

/// The sum of this many rows fits `Sample::Sum`.
const LARGEST_FACTOR: usize = 64;

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// The number of pixels that become one pixel, in each direction.
    factor: usize,
    /// The prefix of the outputs' keys.
    output: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { factor: 2, output: "1_downsampled".to_owned() }
    }
}

#[derive(Default)]
pub(crate) struct Downsample {
    options: Options,
}

impl Guest for Downsample {
    type Payload = Option<Options>;

    fn prepare(&mut self, task: &Task<Self::Payload>) -> Result<()> {
        self.options = task.payload().clone().unwrap_or_default();
        if !(1..=LARGEST_FACTOR).contains(&self.options.factor) {
            return Err(Error::reject(format!(
                "the payload's factor is {}; it can be 1 to {LARGEST_FACTOR}",
                self.options.factor
            )));
        }
        if task.inputs().len() == 0 {
            return Err(Error::reject("the task lists no inputs: there is no image to downsample"));
        }
        Ok(())
    }

    fn execute(&mut self, task: &Task<Self::Payload>) -> Result<Outcome> {
        let Options { factor, output } = &self.options;
        for input in task.inputs() {
            let image = decode(&input)?;
            let (width, height) = (image.width(), image.height());
            let small = shrink(image, *factor).with_context(|| input.to_string())?;
            info!("{input}: {width}x{height} to {}x{}", small.width(), small.height());

            let mut file = task.output(&format!("{output}/{}.png", input.file_stem()))?;
            // Prefers speed to size: the file is about a sixth larger. Choosing a filter for each
            // line would take longer, and would not make the file of a photograph smaller.
            let encoder =
                PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Avg);
            small.write_with_encoder(encoder).context("the PNG")?;
            file.finish()?;
        }
        Ok(task.done())
    }
}

task_host_sdk::export!(Downsample);

/// Detects the format from the contents and ignores the key's extension.
fn decode(input: &Input) -> Result<DynamicImage> {
    let file = input.read()?;
    if let Some(image) = png::read(&file) {
        return Ok(image);
    }
    let reader = ImageReader::new(Cursor::new(file)).with_guessed_format()?;
    reader.decode().with_context(|| format!("{input} can't be read as PNG or JPEG"))
}

/// Supports every layout of 8 and 16 bits. The decoder expands palettes and samples of fewer bits.
fn shrink(image: DynamicImage, factor: usize) -> Result<DynamicImage> {
    macro_rules! each {
        ($($layout:ident: $channels:literal, alpha $alpha:literal;)+) => {
            match image {
                $(DynamicImage::$layout(image) => {
                    let (width, height) = (image.width() as usize, image.height() as usize);
                    let samples = downsample::<_, $channels, $alpha>(image.as_raw(), width, height, factor);
                    let (width, height) = (width.div_ceil(factor) as u32, height.div_ceil(factor) as u32);
                    image::ImageBuffer::from_raw(width, height, samples).map(DynamicImage::$layout)
                })+
                _ => None,
            }
        };
    }
    let layout = image.color();
    let small = each! {
        ImageLuma8: 1, alpha false;
        ImageLumaA8: 2, alpha true;
        ImageRgb8: 3, alpha false;
        ImageRgba8: 4, alpha true;
        ImageLuma16: 1, alpha false;
        ImageLumaA16: 2, alpha true;
        ImageRgb16: 3, alpha false;
        ImageRgba16: 4, alpha true;
    };
    small.with_context(|| format!("its pixels are {layout:?}: not gray or colour of 8 or 16 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageFormat, Luma, RgbImage};
    use task_host_sdk::testing::Sandbox;

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn png_and_jpeg_become_png_of_half_the_size() {
        let gray = GrayImage::from_fn(5, 4, |x, _| Luma([if x % 2 == 0 { 10 } else { 20 }]));
        let rgb = RgbImage::from_pixel(16, 16, image::Rgb([200, 100, 50]));
        let mut sandbox = Sandbox::new().unwrap();
        sandbox.input("0_input/a.png", encoded(gray, ImageFormat::Png)).unwrap();
        sandbox.input("0_input/b.jpg", encoded(rgb, ImageFormat::Jpeg)).unwrap();
        let outcome = sandbox.run::<Downsample>().unwrap();
        assert_eq!(outcome.outputs(), ["1_downsampled/a.png", "1_downsampled/b.png"]);

        let a = image::load_from_memory(&sandbox.output("1_downsampled/a.png").unwrap()).unwrap();
        assert_eq!(
            a,
            DynamicImage::ImageLuma8(
                GrayImage::from_raw(3, 2, vec![15, 15, 10, 15, 15, 10]).unwrap()
            )
        );
        let b = image::load_from_memory(&sandbox.output("1_downsampled/b.png").unwrap()).unwrap();
        assert_eq!((b.width(), b.height(), b.color()), (8, 8, image::ColorType::Rgb8));
    }

    #[test]
    fn what_no_further_try_changes_is_rejected() {
        let run = |payload: &str, input: Option<&str>| {
            let mut sandbox = Sandbox::new().unwrap();
            if let Some(text) = input {
                sandbox.input("0_input/a.png", text).unwrap();
            }
            sandbox.payload(payload).run::<Downsample>().unwrap_err()
        };
        let check = |error: Error, expected: &str| {
            assert!(!error.is_retry());
            assert!(error.text().starts_with(expected), "{error}");
        };
        check(
            run("null", Some("not an image")),
            "input 0_input/a.png can't be read as PNG or JPEG: ",
        );
        check(run("null", None), "the task lists no inputs");
        check(run(r#"{"factor": 0}"#, Some("")), "the payload's factor is 0; it can be 1 to 64");
        check(
            run(r#"{"factr": 2}"#, Some("")),
            "the payload does not fit this task, at factr: unknown field `factr`",
        );
    }
}
