//! Renders the Mandelbrot set in colour, lit from the side.
//!
//! The fractional count of steps gives the colour. The gradient of the potential gives a slope,
//! which is lit like a landscape. Formulas: "Plotting algorithms for the Mandelbrot set",
//! Wikipedia, sections "Continuous (smooth) coloring" and "Exterior distance estimation".

/// The visible part of the plane, and the size in pixels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) zoom: f64,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

type Colour = [f32; 3];

impl View {
    /// Returns rows of red, green and blue bytes, from the top.
    pub(crate) fn render(&self) -> Vec<u8> {
        let Self { width, height, .. } = *self;
        let centres: Vec<Colour> = (0..height)
            .flat_map(|row| (0..width).map(move |column| (column, row)))
            .map(|(column, row)| self.colour(column as f64, row as f64))
            .collect();

        let mut bytes = Vec::with_capacity(3 * centres.len());
        for row in 0..height {
            for column in 0..width {
                let centre = centres[row * width + column];
                // Averages nine samples only where neighbours differ. Most pixels need only one
                // sample, which takes a ninth of the time.
                let near =
                    [(1, 0), (0, 1), (-1, 0), (0, -1)].into_iter().filter_map(|(right, down)| {
                        let column =
                            column.checked_add_signed(right).filter(|&column| column < width)?;
                        let row = row.checked_add_signed(down).filter(|&row| row < height)?;
                        Some(centres[row * width + column])
                    });
                let colour = if near.into_iter().any(|other| differ(centre, other)) {
                    self.average(centre, column as f64, row as f64)
                } else {
                    centre
                };
                bytes.extend(colour.map(encode));
            }
        }
        bytes
    }

    /// The average of nine samples in a pixel. `centre` is the middle one.
    fn average(&self, centre: Colour, column: f64, row: f64) -> Colour {
        let mut sum = centre;
        for down in -1..=1 {
            for right in -1..=1 {
                if (right, down) != (0, 0) {
                    let sample =
                        self.colour(column + f64::from(right) / 3.0, row + f64::from(down) / 3.0);
                    for (sum, sample) in sum.iter_mut().zip(sample) {
                        *sum += sample;
                    }
                }
            }
        }
        sum.map(|sum| sum / 9.0)
    }

    /// The colour at a position in pixels, relative to the centre of the first pixel.
    fn colour(&self, column: f64, row: f64) -> Colour {
        let pixel = 4.0 / self.zoom.exp2() / self.width.max(self.height) as f64;
        let x = self.x + (column + 0.5 - self.width as f64 / 2.0) * pixel;
        let y = self.y - (row + 0.5 - self.height as f64 / 2.0) * pixel;
        // A deeper zoom needs more steps to resolve the edge.
        let steps = (400.0 + 120.0 * self.zoom.max(0.0)) as u32;
        match escape(x, y, steps) {
            None => [0.002, 0.004, 0.012],
            Some(escape) => escape.colour(pixel),
        }
    }
}

/// How a point outside the set escapes.
struct Escape {
    /// The fractional number of steps.
    steps: f64,
    /// The direction in which the potential rises, as a unit vector.
    slope: (f64, f64),
    /// An estimate of the distance to the set.
    distance: f64,
}

/// The squared escape radius, large enough that fractional steps have no seams.
const FAR: f64 = 1e6;

/// Iterates z² + c; `None` if the point c has not escaped after `steps` steps.
fn escape(cx: f64, cy: f64, steps: u32) -> Option<Escape> {
    // Skips the two largest parts of the set, where each point would take all steps.
    let q = (cx - 0.25) * (cx - 0.25) + cy * cy;
    if q * (q + (cx - 0.25)) <= 0.25 * cy * cy || (cx + 1.0) * (cx + 1.0) + cy * cy <= 0.0625 {
        return None;
    }
    let (mut x, mut y) = (0.0_f64, 0.0_f64);
    // The derivative of z with respect to c.
    let (mut dx, mut dy) = (0.0_f64, 0.0_f64);
    for step in 0..steps {
        (dx, dy) = (2.0 * (x * dx - y * dy) + 1.0, 2.0 * (x * dy + y * dx));
        (x, y) = (x * x - y * y + cx, 2.0 * x * y + cy);
        let square = x * x + y * y;
        if square > FAR {
            let size = square.sqrt();
            let derivative = dx.hypot(dy);
            // z divided by its derivative points along the gradient.
            let (sx, sy) = (x * dx + y * dy, y * dx - x * dy);
            let length = sx.hypot(sy);
            return Some(Escape {
                steps: f64::from(step) + 1.0 - (size.ln() / FAR.sqrt().ln()).log2(),
                slope: (sx / length, sy / length),
                distance: 2.0 * size * size.ln() / derivative,
            });
        }
    }
    None
}

impl Escape {
    /// The point's colour. `pixel` is the width of a pixel in the plane.
    fn colour(&self, pixel: f64) -> Colour {
        // Steps grow without bound towards the edge. Their logarithm spreads the colours evenly.
        let along = (self.steps + 4.0).max(1.0).ln() * 0.62 - 0.62;
        let base = palette(along);

        // Light from the upper left, above the picture.
        let (sx, sy) = self.slope;
        let height = 1.4;
        let light = ((sx * -std::f64::consts::FRAC_1_SQRT_2
            + sy * std::f64::consts::FRAC_1_SQRT_2
            + height)
            / (1.0 + height))
            .max(0.0);
        let shade = 0.35 + 0.75 * light;
        let shine = light.powi(24) * 0.22;

        // A filament thinner than a pixel darkens the pixel by the share that it covers.
        let edge = (self.distance / pixel).clamp(0.0, 1.0).sqrt();
        base.map(|channel| ((f64::from(channel) * shade + shine) * (0.15 + 0.85 * edge)) as f32)
    }
}

/// A cyclic palette in linear light: night blue, sea, sand, amber, wine.
fn palette(along: f64) -> Colour {
    const COLOURS: [Colour; 6] = [
        [0.005, 0.014, 0.075],
        [0.012, 0.110, 0.330],
        [0.130, 0.520, 0.680],
        [0.930, 0.860, 0.620],
        [0.900, 0.350, 0.040],
        [0.190, 0.020, 0.060],
    ];
    let place = along.rem_euclid(1.0) * COLOURS.len() as f64;
    let index = place as usize % COLOURS.len();
    let (from, to) = (COLOURS[index], COLOURS[(index + 1) % COLOURS.len()]);
    // Smooth interpolation avoids stripes where one pair of colours meets the next.
    let t = place.fract() as f32;
    let t = t * t * (3.0 - 2.0 * t);
    std::array::from_fn(|channel| from[channel] + (to[channel] - from[channel]) * t)
}

/// Whether two colours are visibly different.
fn differ(a: Colour, b: Colour) -> bool {
    a.iter().zip(b).any(|(a, b)| (a.sqrt() - b.sqrt()).abs() > 0.03)
}

/// Converts linear light to sRGB (IEC 61966-2-1).
fn encode(linear: f32) -> u8 {
    let value = linear.clamp(0.0, 1.0);
    let value =
        if value <= 0.003_130_8 { 12.92 * value } else { 1.055 * value.powf(1.0 / 2.4) - 0.055 };
    (value * 255.0).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_set_and_what_is_not() {
        for (x, y) in [(0.0, 0.0), (-1.0, 0.0), (-0.1, 0.7), (0.25, 0.0), (-1.75, 0.0)] {
            assert!(escape(x, y, 1000).is_none(), "{x} {y}");
        }
        for (x, y) in [(0.5, 0.0), (1.0, 1.0), (-2.1, 0.0), (-0.75, 0.2)] {
            assert!(escape(x, y, 1000).is_some(), "{x} {y}");
        }
    }

    #[test]
    fn steps_have_no_seams_and_distances_are_right() {
        let at = |x: f64| escape(x, 0.0, 1000).unwrap();
        let mut last = at(0.5).steps;
        for n in 1..1000 {
            let steps = at(0.5 + f64::from(n) * 0.001).steps;
            assert!(steps < last && last - steps < 0.05, "at {n}: {last} to {steps}");
            last = steps;
        }
        // The set is about 1.7 away from 2. The estimate is accurate to a factor of 4.
        assert!((0.4..7.0).contains(&at(2.0).distance), "{}", at(2.0).distance);
    }

    #[test]
    fn the_upper_half_mirrors_the_lower_in_shape() {
        let view = View { x: -0.5, y: 0.0, zoom: 0.0, width: 32, height: 24 };
        let pixels = view.render();
        let inside = |column: usize, row: usize| pixels[(row * 32 + column) * 3 + 2] < 40;
        let mirrored = (0..12).flat_map(|row| (0..32).map(move |column| (column, row)));
        let same = mirrored
            .filter(|&(column, row)| inside(column, row) == inside(column, 23 - row))
            .count();
        assert!(same > 12 * 32 * 9 / 10, "{same}");
    }
}
