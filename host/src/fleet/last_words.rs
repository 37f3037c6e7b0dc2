//! Finds the reason for a worker's end in its log.

/// The last error in a log, or the last line of the log.
pub(super) fn last_words(log: &str) -> Option<String> {
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines.clone().rfind(|line| line.starts_with("error: "));
    let line = error.or(lines.next_back())?;
    let fields: Option<serde_json::Value> = serde_json::from_str(line).ok();
    let message = fields.and_then(|fields| Some(fields["message"].as_str()?.to_owned()));
    Some(message.unwrap_or(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_an_error_or_the_last_message() {
        let log =
            "{\"level\":\"INFO\",\"message\":\"started\"}\nerror: no bucket\nhint: make one\n";
        assert_eq!(last_words(log).as_deref(), Some("error: no bucket"));
        let log = "{\"level\":\"INFO\",\"message\":\"stopped\"}\n";
        assert_eq!(last_words(log).as_deref(), Some("stopped"));
        assert_eq!(last_words("\n"), None);
    }
}
