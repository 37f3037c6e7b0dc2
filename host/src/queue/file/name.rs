//! The names of messages in `queue/`: `{T}--{id}.json`.

use std::time::Duration;

/// The end of every name.
const EXTENSION: &str = ".json";

/// The name of a message's file: the second from which the message may be leased, and its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name {
    text: Box<str>,
    /// The position of the two dashes.
    dashes: usize,
}

impl Name {
    /// Parses a file name. Returns `None` for a file that is not a message.
    ///
    /// Editors, `sed -i`, rsync, NFS, backups and desktops leave files next to the messages:
    /// `0--id.json~`, `.0--id.json.swp`, `.nfs0001`, `0--id (copy).json`. If a copy counted as a
    /// message, its task would run twice. The id is also a file name in other directories, so it
    /// must not contain a path.
    pub(super) fn parse(text: &str) -> Option<Name> {
        let (due, id) = text.strip_suffix(EXTENSION)?.split_once("--")?;
        let due_is_number = !due.is_empty() && due.bytes().all(|b| b.is_ascii_digit());
        let is_message = due_is_number && !id.contains("--") && is_id(id) && !is_copy(id);
        is_message.then(|| Name { text: text.into(), dashes: due.len() })
    }

    /// The name of the message `id` when it is due at `due`.
    pub(super) fn new(due: u64, id: &str) -> Name {
        let text = format!("{due}--{id}{EXTENSION}").into_boxed_str();
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

    /// The unix second from which the message may be leased. If the number is too large for a time,
    /// the latest time is returned.
    pub(super) fn due(&self) -> u64 {
        self.text[..self.dashes].parse().unwrap_or(u64::MAX)
    }

    /// The id: the text between the dashes and the extension.
    pub(super) fn id(&self) -> &str {
        let rest = &self.text[self.dashes + 2..];
        rest.strip_suffix(EXTENSION).unwrap_or(rest)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The name as a line of a movement file.
    pub(super) fn line(&self) -> String {
        format!("{}\n", self.text)
    }
}

/// The maximum length of an id in bytes. With any time, such an id fits into a file name.
const LONGEST_ID: usize = 200;

/// Whether a text is a valid id.
pub(super) fn is_id(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.len() <= LONGEST_ID
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(plain)
}

/// Whether the id is that of a file that Syncthing kept after a conflict.
fn is_copy(id: &str) -> bool {
    id.contains(".sync-conflict-")
}

/// The first whole second at least `after` later than `now`.
pub(super) fn second_after(now: Duration, after: Duration) -> u64 {
    if after.is_zero() {
        // Due at once: the current second.
        return now.as_secs();
    }
    let end = now.saturating_add(after);
    end.as_secs()
        .saturating_add(u64::from(end.subsec_nanos() > 0))
        // A lease that ends within the current second would protect nothing.
        .max(now.as_secs().saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_programs_are_not_messages() {
        let id = "8d8a8f2c-9f0b-4a3e-8f57-0d5c0a9a2f11";
        let name = Name::parse(&format!("17--{id}.json")).unwrap();
        assert_eq!((name.due(), name.id()), (17, id));
        assert_eq!(name.at(20).as_str(), format!("20--{id}.json"));
        assert_eq!(Name::new(0, id).as_str(), format!("0--{id}.json"));

        let far = Name::parse("99999999999999999999999--x.json").unwrap();
        assert_eq!(far.due(), u64::MAX);
        assert_eq!(Name::parse("0--a.b.json").unwrap().id(), "a.b");

        assert!(Name::parse(&format!("0--{}.json", "a".repeat(200))).is_some());
        for foreign in [
            &*format!("0--{}.json", "a".repeat(201)),
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
            // Files that are left by editors,
            "0--a.json~",
            ".0--a.json.swp",
            "#0--a.json#",
            ".#0--a.json",
            "0--a.json.bak",
            "0--a.json.orig",
            "0--a.json.tmp",
            "0--a",
            "sedXyZ123",
            // by rsync and NFS,
            ".0--a.json.AbCdEf",
            "0--a.json.AbCdEf",
            ".nfs000000000a3c0001",
            // and by desktops.
            ".DS_Store",
            "._0--a.json",
            "Thumbs.db",
            "desktop.ini",
            "0--a (copy).json",
            "0--a (1).json",
            "0--a - Copy.json",
            "0--a copy.json",
            "0--a.json (conflict 2026-01-02).json",
            "0--a (ana's conflicted copy 2026-01-02).json",
            "0--a.sync-conflict-20260102-030405-ABCDEFG.json",
            ".syncthing.0--a.json.tmp",
            "0--a.JSON",
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
