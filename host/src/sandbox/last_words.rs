//! Finds the reason for a guest's end in its log: a panic, an exception, a failed assertion.

use std::fmt::Write;

/// How Rust's standard library and the SDK announce a panic.
const PANIC: &str = "panicked at ";
/// How Python announces an exception.
const TRACEBACK: &str = "Traceback (most recent call last):";
/// Prefixes of lines that say why a program ended: in Go, C and C++, and in Rust after a failed
/// allocation.
const ENDS: [&str; 5] =
    ["panic: ", "fatal error: ", "Assertion failed: ", "libc++abi: ", "memory allocation of "];
/// The message of componentize-py's panic after it has printed the traceback of an exception.
const OF_PYTHON: &str = "Python function threw an unexpected exception";
/// Prefixes of the lines that can follow the message of a Rust panic.
const AFTER_PANIC: [&str; 3] = ["note: ", "stack backtrace:", "host: "];
/// Parts of the paths of Python's own library, whose frames are left out.
const LIBRARY: [&str; 2] = ["<", "/lib/python3"];

/// The reason for a guest's end, from its log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LastWords {
    /// Why the guest ended; the first line has the cause.
    pub(super) cause: String,
    /// The call stack, if the guest printed it.
    pub(super) trace: Option<String>,
}

/// The reason for the guest's end in the end of its log, if there is one.
pub(super) fn of(log: &str) -> Option<LastWords> {
    let mut lines: Vec<&str> = log.lines().collect();
    let mut exception = None;
    for at in (0..lines.len()).rev() {
        let line = lines[at];
        if let Some(position) = panic(line) {
            let panic = of_panic(position, &lines[at + 1..]);
            if !panic.cause.ends_with(OF_PYTHON) {
                return Some(panic);
            }
            exception = Some(panic);
            lines.truncate(at);
            continue;
        }
        if line == TRACEBACK {
            return of_python(&lines[at + 1..]).or(exception);
        }
        if ENDS.iter().any(|end| line.starts_with(end)) {
            return Some(LastWords { cause: line.to_owned(), trace: None });
        }
        if exception.is_none() && is_exception(line) {
            let cause = line.strip_prefix("Uncaught ").unwrap_or(line).to_owned();
            exception = Some(LastWords { cause, trace: None });
        }
    }
    exception
}

/// The rest of the line after `panicked at`, if the line announces a panic.
fn panic(line: &str) -> Option<&str> {
    // The guest may have printed text without a newline before.
    if let Some((_, after)) = line.rsplit_once("ERROR panicked at ") {
        return Some(after);
    }
    let (before, after) = line.split_once(PANIC)?;
    (before.is_empty() || before.starts_with("thread ")).then_some(after)
}

/// Reads the message of a panic: Rust's standard library prints it on the lines after the position,
/// the SDK on the same line.
fn of_panic(position: &str, next: &[&str]) -> LastWords {
    let mut cause = format!("{PANIC}{}", position.trim_end());
    let is_after = |line: &&&str| !AFTER_PANIC.iter().any(|after| line.starts_with(after));
    for line in next.iter().take_while(is_after) {
        let separator = if cause.ends_with(':') { " " } else { "\n" };
        cause.push_str(separator);
        cause.push_str(line);
    }
    cause.truncate(cause.trim_end().len());
    LastWords { cause, trace: None }
}

/// Reads a traceback: its frames are indented, and the exception follows them.
fn of_python(lines: &[&str]) -> Option<LastWords> {
    let is_frame = |line: &&str| line.starts_with(' ') || line.is_empty();
    let end = lines.iter().position(|line| !is_frame(line))?;
    let (frames, exception) = lines.split_at(end);
    let mut trace = String::new();
    let (mut is_shown, mut last) = (true, None);
    for line in frames {
        if let Some(file) = line.trim_start().strip_prefix("File \"") {
            is_shown = !LIBRARY.iter().any(|library| file.contains(library));
            last = if is_shown { position(file).or(last) } else { last };
        }
        if is_shown {
            // Writing to a string can't fail.
            let _ = writeln!(trace, "{line}");
        }
    }
    let mut cause = exception[0].to_owned();
    if let Some((file, line)) = last {
        let _ = write!(cause, " ({file}:{line})");
    }
    for line in exception[1..].iter().take_while(|line| !line.is_empty()) {
        let _ = write!(cause, "\n{line}");
    }
    let trace = trace.trim_end();
    Some(LastWords { cause, trace: (!trace.is_empty()).then(|| trace.to_owned()) })
}

/// The file name without directories, and the line number, in `/app/app.py", line 12, in run`.
fn position(frame: &str) -> Option<(&str, &str)> {
    let (file, rest) = frame.split_once("\", line ")?;
    let line = rest.split(',').next()?;
    Some((file.rsplit('/').next().unwrap_or(file), line))
}

/// Whether a line is an uncaught exception as most languages print it: `TypeError: …`.
fn is_exception(line: &str) -> bool {
    let line = line.strip_prefix("Uncaught ").unwrap_or(line);
    let Some((name, _)) = line.split_once(": ") else { return false };
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_'));
    is_name && (name.ends_with("Error") || name.ends_with("Exception"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(log: &str, cause: &str, trace: Option<&str>) {
        let (cause, trace) = (cause.to_owned(), trace.map(str::to_owned));
        assert_eq!(of(log), Some(LastWords { cause, trace }), "{log}");
    }

    #[test]
    fn the_cause_of_a_panic_is_told() {
        let want = "panicked at src/lib.rs:10:44: index out of bounds: the len is 10";
        let hint = "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace";
        let message = "index out of bounds: the len is 10";
        check(
            &format!("one\n\nthread 'main' (1) panicked at src/lib.rs:10:44:\n{message}\n{hint}\n"),
            want,
            None,
        );
        check(&format!("INFO one\nERROR {want}\n"), want, None);
        check(&format!("tile 7ERROR {want}\n"), want, None);
        check(
            "thread '<unnamed>' panicked at a.rs:1:2:\nassertion failed\n  left: 1\n right: 2\n",
            "panicked at a.rs:1:2: assertion failed\n  left: 1\n right: 2",
            None,
        );
        check(
            "panic: runtime error: nil map\n\ngoroutine 1\n",
            "panic: runtime error: nil map",
            None,
        );
        check("Assertion failed: x > 0 (a.c: f: 7)\n", "Assertion failed: x > 0 (a.c: f: 7)", None);
    }

    #[test]
    fn the_cause_of_an_exception_is_told_with_its_place() {
        let frames = "  File \"/app/app.py\", line 12, in run\n    return task['class']";
        check(
            &format!(
                "one\n{TRACEBACK}\n  File \"<frozen importlib>\", line 3, in f\n    g()\n{frames}\n  File \
                 \"/usr/lib/python3.14/json/decoder.py\", line 3, in decode\n    x\nKeyError: 'class'\n"
            ),
            "KeyError: 'class' (app.py:12)",
            Some(frames),
        );
        check(
            &format!(
                "{TRACEBACK}\nA: b\n\nDuring handling:\n\n{TRACEBACK}\n{frames}\nC: d\n e\n\nx"
            ),
            "C: d (app.py:12)\n e",
            Some(frames),
        );
        check(
            "Uncaught TypeError: x is not a function\n    at f (a.js:1:2)\n",
            "TypeError: x is not a function",
            None,
        );
    }

    #[test]
    fn a_log_without_a_cause_tells_none() {
        for log in ["", "one\ntwo\n", "he panicked at night", "Error reading: x", TRACEBACK] {
            assert_eq!(of(log), None, "{log}");
        }
    }
}
