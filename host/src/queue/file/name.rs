//! The names of messages in `queue/`, `{T}--{id}.json`, and the clock that `T` is read by.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The name of a message file: the second from which it may be leased, and its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name {
    text: Box<str>,
    /// Where the two dashes are.
    dashes: usize,
}

impl Name {
    /// Reads a file name. `None` is a file that is no message: nothing of ours and nothing
    /// that the Python client could have written.
    ///
    /// An id names files in other directories, so what could lead out of them, or be
    /// mistaken for a file that is not about a message, is not an id.
    pub(super) fn parse(text: &str) -> Option<Name> {
        let dashes = text.find("--")?;
        let (due, rest) = (&text[..dashes], &text[dashes + 2..]);
        let name = Name { text: text.into(), dashes };
        let due_is_number = !due.is_empty() && due.bytes().all(|b| b.is_ascii_digit());
        (due_is_number && !rest.contains("--") && is_id(name.id())).then_some(name)
    }

    /// The name of the message `id` when it is due at `due`.
    pub(super) fn new(due: u64, id: &str) -> Name {
        let text = format!("{due}--{id}.json").into_boxed_str();
        let dashes = text.find("--").unwrap_or_default();
        Name { text, dashes }
    }

    /// The name of the same message when it is due at another second.
    pub(super) fn at(&self, due: u64) -> Name {
        let mut text = due.to_string();
        let dashes = text.len();
        text.push_str(&self.text[self.dashes..]);
        Name { text: text.into(), dashes }
    }

    /// The unix second from which the message may be leased. A number too large to be a
    /// time is as far away as there is.
    pub(super) fn due(&self) -> u64 {
        self.text[..self.dashes].parse().unwrap_or(u64::MAX)
    }

    /// The id: what follows the dashes, without the extension.
    pub(super) fn id(&self) -> &str {
        let rest = &self.text[self.dashes + 2..];
        match rest.rfind('.') {
            Some(dot) if dot > 0 => &rest[..dot],
            _ => rest,
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The name as a line of a movement file.
    pub(super) fn line(&self) -> String {
        format!("{}\n", self.text)
    }
}

/// Whether a text can be the id of a message.
pub(super) fn is_id(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(plain)
}

/// The time of day. A clock before 1970 reads as 1970.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The first whole second that is no less than `after` away from `now`.
pub(super) fn second_after(now: Duration, after: Duration) -> u64 {
    if after.is_zero() {
        // Due at once: the second that has begun.
        return now.as_secs();
    }
    let end = now.saturating_add(after);
    end.as_secs()
        .saturating_add(u64::from(end.subsec_nanos() > 0))
        // A lease that ends in the second in which it begins would be none.
        .max(now.as_secs().saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_messages_are_names() {
        let id = "8d8a8f2c-9f0b-4a3e-8f57-0d5c0a9a2f11";
        let name = Name::parse(&format!("17--{id}.json")).unwrap();
        assert_eq!((name.due(), name.id()), (17, id));
        assert_eq!(name.at(20).as_str(), format!("20--{id}.json"));
        assert_eq!(Name::new(0, id).as_str(), format!("0--{id}.json"));

        let far = Name::parse("99999999999999999999999--x.json").unwrap();
        assert_eq!(far.due(), u64::MAX);
        assert_eq!(Name::parse("0--a.b.json").unwrap().id(), "a.b");
        assert_eq!(Name::parse("0--plain").unwrap().id(), "plain");

        for foreign in [
            "",
            "x",
            "0-x.json",
            "--x.json",
            "x--y.json",
            "-1--x.json",
            "0--",
            "0--.json",
            "0--...json",
            "0--a--b.json",
            "0--a b.json",
            "0--ä.json",
            "1.5--x.json",
            "0--a\n.json",
        ] {
            assert_eq!(Name::parse(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn a_lease_never_ends_early() {
        let now = Duration::from_millis(100_900);
        assert_eq!(second_after(now, Duration::ZERO), 100);
        assert_eq!(second_after(now, Duration::from_millis(1)), 101);
        assert_eq!(second_after(now, Duration::from_secs(1)), 102);
        assert_eq!(second_after(now, Duration::MAX), u64::MAX);
        assert_eq!(second_after(Duration::from_secs(5), Duration::from_nanos(1)), 6);
    }
}
