//! The values of one measurement over all rounds.

/// Measured values, one per round.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) values: Vec<f64>,
}

impl Series {
    pub(super) fn new(name: &str, unit: &'static str) -> Self {
        Self { name: name.to_owned(), unit, values: Vec::new() }
    }

    pub(super) fn push(&mut self, value: f64) {
        println!("  {}: {} {}", self.name, rounded(value), self.unit);
        self.values.push(value);
    }

    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// The median, with the smallest and the largest value.
    pub(super) fn shown(&self) -> String {
        let (low, high) = self
            .values
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
        let median = rounded(self.median());
        match self.values.len() {
            0 => String::new(),
            1 => median,
            _ => format!("{median} ({} to {})", rounded(low), rounded(high)),
        }
    }
}

/// Three significant digits, with thousands separators.
fn rounded(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut shown = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let of =
            |values: &[f64]| Series { values: values.to_vec(), ..Series::new("", "") }.median();
        assert_eq!(of(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.123, 12.34, 123.4, 1234.5, 1_234_567.0].map(rounded);
        assert_eq!(all, ["0.12", "12.3", "123", "1,234", "1,234,567"]);
    }
}
