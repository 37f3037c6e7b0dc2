//! The name of a fleet.

use std::fmt;
use std::str::FromStr;

/// The name of a fleet. It can be a part of the names of every engine: 1 to 40 lower-case letters,
/// digits and hyphens, with a letter at the start and no hyphen at the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct FleetName(String);

/// The error for a text that is not the name of a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not the name of a fleet: write 1 to 40 lower-case letters, digits and hyphens, with a letter \
     at the start and no hyphen at the end"
)]
pub struct NameError;

impl FleetName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FleetName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_good = (1..=40).contains(&text.len())
            && text.chars().all(is_known)
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-');
        if is_good { Ok(Self(text.to_owned())) } else { Err(NameError) }
    }
}

impl fmt::Display for FleetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_all_engines() {
        let longest = "a".repeat(40);
        for good in ["n", "night", "night-2", &longest] {
            assert_eq!(good.parse::<FleetName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        let longer = "a".repeat(41);
        for bad in ["", "2n", "-a", "a-", "Night", "a_b", "a b", "a;b", "ä", &longer] {
            assert_eq!(bad.parse::<FleetName>(), Err(NameError), "{bad}");
        }
    }
}
