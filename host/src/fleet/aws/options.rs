//! Parses and checks the options of an engine.

use std::collections::BTreeMap;

use super::Aws;
use crate::fleet::EngineError;

/// Options that were given for an engine.
#[derive(Clone, Copy)]
pub(in crate::fleet) struct Options<'a> {
    aws: &'a Aws,
    given: &'a BTreeMap<String, Vec<String>>,
}

impl<'a> Options<'a> {
    /// The options, if the engine knows all of them and each has one value.
    pub(in crate::fleet) fn new(
        aws: &'a Aws,
        given: &'a BTreeMap<String, Vec<String>>,
        known: &[&str],
    ) -> Result<Self, EngineError> {
        for (name, values) in given {
            if !known.contains(&&**name) {
                let cure = format!("the options are {}", known.join(", "));
                return Err(aws.unfit(format_args!("there is no option {name}"), &cure));
            }
            if values.len() > 1 {
                let problem = format!("option {name} was given {} times", values.len());
                return Err(aws.unfit(problem, "give it once; a list is written as A,B"));
            }
        }
        Ok(Self { aws, given })
    }

    /// The value of an option. `None` if it is absent or empty.
    pub(in crate::fleet) fn get(&self, name: &str) -> Option<&'a str> {
        Some(self.given.get(name)?.first()?.as_str()).filter(|value| !value.is_empty())
    }

    /// The values of an option that is a list.
    pub(in crate::fleet) fn list(&self, name: &str) -> Vec<&'a str> {
        let values = self.get(name).unwrap_or_default().split(',').map(str::trim);
        values.filter(|value| !value.is_empty()).collect()
    }

    /// The value of an option that must be one of `words`, in any case.
    pub(in crate::fleet) fn one_of(
        &self,
        name: &str,
        words: &[&'static str],
    ) -> Result<Option<&'static str>, EngineError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let word = words.iter().find(|word| word.eq_ignore_ascii_case(value));
        word.map(|word| Some(*word)).ok_or_else(|| self.wrong(name, value, &words.join(" or ")))
    }

    /// The value of an option that is true or false, as AWS writes it: `ENABLED` or `DISABLED`.
    pub(in crate::fleet) fn switch(&self, name: &str) -> Result<Option<&'static str>, EngineError> {
        let word = self.one_of(name, &["true", "false", "ENABLED", "DISABLED"])?;
        let is_on = |word| ["true", "ENABLED"].contains(&word);
        Ok(word.map(|word| if is_on(word) { "ENABLED" } else { "DISABLED" }))
    }

    /// The value of an option that is a number of GiB.
    pub(in crate::fleet) fn gibibytes(&self, name: &str) -> Result<Option<u32>, EngineError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.trim_end_matches("GiB").trim().parse::<u32>().ok();
        let number = number.filter(|number| (21..=200).contains(number));
        number.map(Some).ok_or_else(|| self.wrong(name, value, "21 to 200 (GiB)"))
    }

    /// The error for a missing option.
    pub(in crate::fleet) fn needed(&self, name: &str, value: &str, why: &str) -> EngineError {
        self.aws.unfit(why, &format!("give it with -o {name}={value}"))
    }

    /// The error for an option that conflicts with the other settings.
    pub(in crate::fleet) fn useless(&self, name: &str, why: &str) -> EngineError {
        self.aws.unfit(format_args!("option {name}: {why}"), "leave it out")
    }

    fn wrong(&self, name: &str, value: &str, right: &str) -> EngineError {
        self.aws
            .unfit(format_args!("option {name}: unknown value {value}"), &format!("use {right}"))
    }
}

/// A count from AWS. Negative numbers become 0.
pub(in crate::fleet) fn whole(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}
