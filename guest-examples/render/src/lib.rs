//! Renders a part of the Mandelbrot set: a task without inputs.
//!
//! All fields of the payload are optional: `{"x": -0.5, "y": 0, "zoom": 0, "width": 960, "height":
//! 720, "output": "0_render/mandelbrot.png"}`. They are the centre of the picture, the number of
//! times it is magnified by two (0 shows the whole set), the size in pixels, and the key of the
//! output. A point's colour depends only on the point, so adjacent pictures fit together.

mod mandelbrot;

use serde::Deserialize;
use task_host_sdk::{Context, Error, Guest, Outcome, Result, Task};

use mandelbrot::View;

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Picture {
    x: f64,
    y: f64,
    zoom: f64,
    width: u32,
    height: u32,
    output: String,
}

impl Default for Picture {
    fn default() -> Self {
        Self {
            x: -0.5,
            y: 0.0,
            zoom: 0.0,
            width: 960,
            height: 720,
            output: "0_render/mandelbrot.png".to_owned(),
        }
    }
}

#[derive(Default)]
struct Render {
    picture: Picture,
}

impl Guest for Render {
    type Payload = Option<Picture>;

    fn prepare(&mut self, task: &Task<Self::Payload>) -> Result<()> {
        self.picture = task.payload().clone().unwrap_or_default();
        let Picture { x, y, zoom, width, height, output } = &self.picture;
        for (name, size) in [("width", *width), ("height", *height)] {
            if !(1..=8192).contains(&size) {
                return Err(Error::reject(format!(
                    "the payload's {name} is {size}; it can be 1 to 8192 pixels"
                )));
            }
        }
        // With a larger zoom, neighbouring pixels would have equal coordinates.
        if !(-2.0..=44.0).contains(zoom) {
            return Err(Error::reject(format!("the payload's zoom is {zoom}; it can be -2 to 44")));
        }
        if x.abs() > 4.0 || y.abs() > 4.0 {
            return Err(Error::reject(format!(
                "the payload's x and y are {x} and {y}; there is nothing beyond -4 to 4"
            )));
        }
        if !output.ends_with(".png") {
            return Err(Error::reject(format!(
                "the payload's output is {output:?}; it is a PNG and has to end in .png"
            )));
        }
        Ok(())
    }

    fn execute(&mut self, task: &Task<Self::Payload>) -> Result<Outcome> {
        let Picture { x, y, zoom, width, height, ref output } = self.picture;
        let pixels = View { x, y, zoom, width: width as usize, height: height as usize }.render();

        let mut file = task.output(output)?;
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_compression(png::Compression::Balanced);
        let mut writer = encoder.write_header().context("the PNG")?;
        writer.write_image_data(&pixels).context("the PNG")?;
        writer.finish().context("the PNG")?;
        file.finish()?;
        Ok(task.done())
    }
}

task_host_sdk::export!(Render);

#[cfg(test)]
mod tests {
    use super::*;
    use task_host_sdk::testing::Sandbox;

    #[test]
    fn a_picture_of_the_size_that_was_asked_for() {
        let mut sandbox = Sandbox::new().unwrap();
        sandbox
            .payload(r#"{"width": 40, "height": 30, "output": "tiles/a.png"}"#)
            .run::<Render>()
            .unwrap();
        let png = sandbox.output("tiles/a.png").unwrap();
        let reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        assert_eq!(reader.info().size(), (40, 30));
    }

    #[test]
    fn a_payload_that_makes_no_sense_is_rejected() {
        let check = |payload: &str, expected: &str| {
            let error = Sandbox::new().unwrap().payload(payload).run::<Render>().unwrap_err();
            assert!(!error.is_retry());
            assert!(error.text().starts_with(expected), "{error}");
        };
        check(r#"{"width": 0}"#, "the payload's width is 0; it can be 1 to 8192 pixels");
        check(r#"{"zoom": 50}"#, "the payload's zoom is 50; it can be -2 to 44");
        check(r#"{"x": 5}"#, "the payload's x and y are 5 and 0;");
        check(r#"{"output": "a.jpg"}"#, "the payload's output is \"a.jpg\"; it is a PNG");
        check(
            r#"{"output": "../a.png", "width": 8, "height": 8}"#,
            "output key \"../a.png\" is not a relative path",
        );
        check(
            r#"{"size": 8}"#,
            "the payload does not fit this task, at size: unknown field `size`",
        );
    }

    /// Writes sample pictures: `cargo test -p render -- --ignored`.
    #[test]
    #[ignore = "writes to the directory for temporary files, for a person to look at"]
    fn gallery() {
        for (name, payload) in [
            ("whole", r#"{}"#),
            ("seahorses", r#"{"x": -0.7436, "y": 0.1318, "zoom": 9}"#),
            ("spiral", r#"{"x": -0.743643887037151, "y": 0.131825904205330, "zoom": 15}"#),
            ("elephants", r#"{"x": 0.2925, "y": 0.0149, "zoom": 8}"#),
            ("mini", r#"{"x": -1.7687788, "y": 0.0017389, "zoom": 14}"#),
        ] {
            let mut sandbox = Sandbox::new().unwrap();
            sandbox.payload(payload).run::<Render>().unwrap();
            let to = std::env::temp_dir().join(format!("render-{name}.png"));
            std::fs::write(to, sandbox.output("0_render/mandelbrot.png").unwrap()).unwrap();
        }
    }
}
