//! Writes a black-and-white mask for each input and threshold T: `2_threshold/NAME.T.png` is white
//! where the gray value is at least T. The payload, `{"complexID": 7, "thresholds": [64, 128]}`, is
//! the custom payload in SimpleTasks' documentation.

use std::collections::HashSet;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageReader};
use serde::Deserialize;
use task_host_sdk::{Context, Error, Guest, Outcome, Result, Task, info};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ComplexPayload {
    /// The producer's name for the request. Only the log contains it.
    #[serde(rename = "complexID")]
    complex_id: i64,
    /// Gray values of the input: 0 to 255, or 0 to 65535 for 16 bits.
    thresholds: Vec<i64>,
}

#[derive(Default)]
struct Threshold;

impl Guest for Threshold {
    type Payload = ComplexPayload;

    fn prepare(&mut self, task: &Task<ComplexPayload>) -> Result<()> {
        let thresholds = &task.payload().thresholds;
        if thresholds.is_empty() {
            return Err(Error::reject(
                "the payload's thresholds are empty: give at least one, such as [128]",
            ));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = thresholds.iter().find(|threshold| !seen.insert(**threshold)) {
            return Err(Error::reject(format!("the payload lists the threshold {twice} twice")));
        }
        if task.inputs().len() == 0 {
            return Err(Error::reject("the task lists no inputs: there is no image to threshold"));
        }
        Ok(())
    }

    fn execute(&mut self, task: &Task<ComplexPayload>) -> Result<Outcome> {
        let ComplexPayload { complex_id, thresholds } = task.payload();
        for input in task.inputs() {
            let reader = ImageReader::new(input.open()?).with_guessed_format()?;
            let image =
                reader.decode().with_context(|| format!("{input} can't be read as PNG or JPEG"))?;
            let (width, height) = (image.width(), image.height());
            let gray = Gray::new(image);
            for &threshold in thresholds {
                let mask = gray.mask(threshold).with_context(|| input.to_string())?;
                let white = mask.iter().filter(|&&pixel| pixel == WHITE).count();
                info!(
                    "complexID {complex_id}: {input}: {white} of {} pixels are at least {threshold}",
                    mask.len()
                );

                let mut file =
                    task.output(&format!("2_threshold/{}.{threshold}.png", input.file_stem()))?;
                PngEncoder::new_with_quality(
                    &mut file,
                    CompressionType::Fast,
                    FilterType::NoFilter,
                )
                .write_image(&mask, width, height, ExtendedColorType::L8)
                .context("the PNG")?;
                file.finish()?;
            }
        }
        Ok(task.done())
    }
}

task_host_sdk::export!(Threshold);

const WHITE: u8 = 255;

/// Gray values with the image's bit depth. Colours are weighted by their brightness.
enum Gray {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

impl Gray {
    fn new(image: DynamicImage) -> Self {
        // `into_luma8` would drop the lower 8 of 16 bits.
        if image.color().bytes_per_pixel() / image.color().channel_count() > 1 {
            Self::Sixteen(image.into_luma16().into_raw())
        } else {
            Self::Eight(image.into_luma8().into_raw())
        }
    }

    fn mask(&self, threshold: i64) -> Result<Vec<u8>> {
        match self {
            Self::Eight(values) => Ok(mask(values, in_range(threshold)?)),
            Self::Sixteen(values) => Ok(mask(values, in_range(threshold)?)),
        }
    }
}

fn in_range<T: TryFrom<i64> + Into<i64>>(threshold: i64) -> Result<T> {
    threshold.try_into().map_err(|_| {
        let largest = (1_i64 << (8 * size_of::<T>())) - 1;
        Error::reject(format!(
            "the threshold {threshold} is outside its gray values, 0 to {largest}"
        ))
    })
}

fn mask<T: Copy + PartialOrd>(values: &[T], threshold: T) -> Vec<u8> {
    values.iter().map(|&value| if value >= threshold { WHITE } else { 0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageBuffer, ImageFormat, Luma};
    use task_host_sdk::testing::Sandbox;

    fn run(image: impl Into<DynamicImage>, payload: &str) -> (Sandbox, Result<Outcome>) {
        let mut png = std::io::Cursor::new(Vec::new());
        image.into().write_to(&mut png, ImageFormat::Png).unwrap();
        let mut sandbox = Sandbox::new().unwrap();
        sandbox.input("0_input/cell.png", png.into_inner()).unwrap().payload(payload);
        let result = sandbox.run::<Threshold>();
        (sandbox, result)
    }

    fn ramp() -> GrayImage {
        GrayImage::from_raw(4, 1, vec![0, 64, 128, 255]).unwrap()
    }

    #[test]
    fn one_mask_for_each_threshold() {
        let (sandbox, result) = run(ramp(), r#"{"complexID": 7, "thresholds": [64, 255]}"#);
        assert_eq!(
            result.unwrap().outputs(),
            ["2_threshold/cell.64.png", "2_threshold/cell.255.png"]
        );
        let mask = |key| {
            image::load_from_memory(&sandbox.output(key).unwrap()).unwrap().into_luma8().into_raw()
        };
        assert_eq!(mask("2_threshold/cell.64.png"), [0, 255, 255, 255]);
        assert_eq!(mask("2_threshold/cell.255.png"), [0, 0, 0, 255]);
    }

    #[test]
    fn sixteen_bits_are_compared_as_they_are() {
        let image: ImageBuffer<Luma<u16>, _> =
            ImageBuffer::from_raw(3, 1, vec![999, 1000, 1001]).unwrap();
        let (sandbox, result) = run(image, r#"{"complexID": 7, "thresholds": [1000]}"#);
        result.unwrap();
        let mask =
            image::load_from_memory(&sandbox.output("2_threshold/cell.1000.png").unwrap()).unwrap();
        assert_eq!(mask.into_luma8().into_raw(), [0, 255, 255]);
    }

    #[test]
    fn a_payload_that_makes_no_sense_is_rejected() {
        let check = |payload: &str, expected: &str| {
            let error = run(ramp(), payload).1.unwrap_err();
            assert!(!error.is_retry());
            assert!(error.text().starts_with(expected), "{error}");
        };
        check(r#"{"complexID": 7, "thresholds": []}"#, "the payload's thresholds are empty");
        check(
            r#"{"complexID": 7, "thresholds": [3, 3]}"#,
            "the payload lists the threshold 3 twice",
        );
        check(
            r#"{"complexID": 7, "thresholds": [256]}"#,
            "input 0_input/cell.png: the threshold 256 is outside its gray values, 0 to 255",
        );
        check(
            r#"{"complexID": "x", "thresholds": [3]}"#,
            "the payload does not fit this task, at complexID: ",
        );
    }
}
