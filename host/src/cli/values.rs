//! From the text of an option to its value: the units people write, and what was expected.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use task_host::environment::with_home;
use task_host::key::Prefix;

/// A value, or what is wrong with the text.
pub(crate) type Parsed<T> = Result<T, String>;

/// `5m`, `1h 30m`, `250ms`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Parsed<Duration> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|_| "is not a time; write for example 30s, 5m or 1h 30m".to_owned())
}

/// A time that is not zero.
pub(crate) fn some_time(text: &str) -> Parsed<Duration> {
    match duration(text)? {
        Duration::ZERO => Err("has to be more than nothing".to_owned()),
        time => Ok(time),
    }
}

/// `512MiB`, `4GB`; a bare number is bytes.
pub(crate) fn size(text: &str) -> Parsed<ByteSize> {
    text.parse()
        .map_err(|_| "is not a size in bytes; write for example 512MiB, 4GB or 100000".to_owned())
}

/// A whole number that is not zero.
pub(crate) fn positive(text: &str) -> Parsed<u64> {
    match whole(text)? {
        0 => Err("has to be 1 or more".to_owned()),
        n => Ok(n),
    }
}

/// A whole number.
pub(crate) fn whole(text: &str) -> Parsed<u64> {
    text.replace('_', "").parse().map_err(|_| "is not a whole number".to_owned())
}

/// Of variables and files: on or off.
pub(crate) fn switch(text: &str) -> Parsed<bool> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

/// A path of at least one character.
pub(crate) fn path(text: &str) -> Parsed<PathBuf> {
    if text.is_empty() {
        return Err("is empty; write a path".to_owned());
    }
    with_home(text).map(PathBuf::from)
}

/// A place in a bucket.
pub(crate) fn prefix(text: &str) -> Parsed<Prefix> {
    Prefix::new(text.trim_end_matches('/')).map_err(|e| e.to_string())
}

/// When something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Auto,
    Always,
    Never,
}

/// `auto`, `always` or `never`.
pub(crate) fn when(text: &str) -> Parsed<When> {
    match text {
        "auto" => Ok(When::Auto),
        "always" => Ok(When::Always),
        "never" => Ok(When::Never),
        _ => Err("is not one of auto, always and never".to_owned()),
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Auto,
    Human,
    Json,
}

/// `auto`, `human` or `json`.
pub(crate) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err("is not one of auto, human and json".to_owned()),
    }
}

/// A level for all that is ours, or filters such as `info,guest=debug`.
pub(crate) fn log_level(text: &str) -> Parsed<String> {
    let filter = match text {
        "off" | "error" | "warn" | "info" | "debug" | "trace" => {
            format!("warn,task_host={text},host={text},guest={text}")
        }
        _ if text.contains('=') => text.to_owned(),
        _ => {
            return Err("is not one of error, warn, info, debug and trace, \
                        nor filters such as info,guest=debug"
                .to_owned());
        }
    };
    match tracing_subscriber::EnvFilter::builder().parse(&filter) {
        Ok(_) => Ok(filter),
        Err(error) => Err(format!("is no filter for log lines: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_as_people_write_them() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("soon").is_err());
        assert_eq!(size("1GiB"), Ok(ByteSize::gib(1)));
        assert_eq!(size("4096"), Ok(ByteSize(4096)));
        assert!(size("much").is_err());
        assert_eq!(whole("10_000"), Ok(10_000));
        assert!(positive("0").is_err());
        assert!(positive("-1").is_err());
        assert_eq!(prefix("components/").unwrap().as_str(), "components");
        assert!(log_level("loud").is_err());
        assert!(log_level("info,guest=debug").is_ok());
    }
}
