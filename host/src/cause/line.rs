//! Finds the line of an error that tells the cause, after a traceback, thread name or position.

const PYTHON: &str = "Traceback (most recent call last)";
const RUST: &str = "panicked at ";
const JULIA: &str = "nested task error: ";
/// The prefixes of errors that name the guest's call.
const CALLS: [&str; 4] = ["instantiate: ", "prepare: ", "execute: ", "finalize: "];

/// The line of an error that tells the cause.
pub(super) fn of(text: &str) -> &str {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = without_call(lines.clone().next().unwrap_or_default().trim());
    if first.starts_with(PYTHON) {
        // The exception follows the indented frames.
        let is_frame = |line: &&str| line.starts_with([' ', '\t']) || line.starts_with(PYTHON);
        return lines.rfind(|line| !is_frame(line)).unwrap_or(first).trim();
    }
    if first.starts_with("TaskFailedException")
        && let Some(nested) = lines.find_map(|line| line.split_once(JULIA))
    {
        return nested.1.trim();
    }
    match first.split_once(RUST) {
        Some((before, after)) if before.is_empty() || before.starts_with("thread ") => {
            let message = after_position(after).trim();
            match message.is_empty() {
                true => lines.nth(1).map_or(first, str::trim),
                false => message,
            }
        }
        _ => first,
    }
}

fn without_call(line: &str) -> &str {
    CALLS.iter().find_map(|call| line.strip_prefix(call)).unwrap_or(line)
}

/// The text after a position such as `src/lib.rs:10:44:`. The whole text if there is no position.
fn after_position(text: &str) -> &str {
    let colons = text.match_indices(':');
    for (at, _) in colons {
        let after = &text[at + 1..];
        let numbers = after.split(':').take(2);
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let length: usize = numbers.clone().map(|part| part.len() + 1).sum();
        if numbers.clone().count() == 2 && numbers.clone().all(is_number) {
            return after.get(length..).unwrap_or_default();
        }
        if after.starts_with(' ') {
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found_behind_what_surrounds_it() {
        let check = |text: &str, want: &str| assert_eq!(of(text), want, "{text:?}");
        check("\n  one\ntwo", "one");
        check("execute: no image", "no image");
        check("panicked at src/lib.rs:10:44: too long: 7", "too long: 7");
        check("execute: panicked at a:\\b.rs:1:2: x", "x");
        check("thread 'main' (1) panicked at src/lib.rs:10:44:\nthe message\nmore", "the message");
        check("panicked at src/lib.rs:10:44:", "panicked at src/lib.rs:10:44:");
        check("he panicked at night", "he panicked at night");
        check("Traceback (most recent call last):\n  File \"a\"\n    x\nE: f\n", "E: f");
        check(
            "Traceback (most recent call last):\n  a\nE: f\n\nDuring it:\n\nTraceback (most recent \
             call last):\n  b\nG: h",
            "G: h",
        );
        check("TaskFailedException\n\n    nested task error: KeyError: x\n", "KeyError: x");
        check("", "");
    }
}
