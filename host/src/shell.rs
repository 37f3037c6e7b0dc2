//! Quotes texts as words of a shell's command line.

use std::fmt;

/// The text as one word in single quotes, in which a shell interprets nothing.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// As [`quoted`], but without quotes if the text needs none. For commands that are shown to people.
pub fn word(text: impl fmt::Display) -> String {
    let text = &*text.to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    quoted(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_a_word_as_it_is() {
        let hostile = "a 'b' $(c) \"d\"\n`e` \\ é;#";
        for text in ["", "a", "--name=a.b/c:1,2@3%4+5", "~", "a*", hostile] {
            for written in [quoted(text), word(text)] {
                let print = format!("printf %s {written}");
                let shell = std::process::Command::new("sh").args(["-c", &print]).output();
                let read = shell.expect("a shell").stdout;
                assert_eq!(String::from_utf8_lossy(&read), text, "{written}");
            }
        }
        assert_eq!(word("/a=b"), "/a=b");
    }
}
