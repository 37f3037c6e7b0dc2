//! The whole terminal, whose lines are replaced again and again.
//!
//! The crate `console`, which `indicatif` uses too, is enough for this. A library for terminal
//! interfaces would be much larger.

use std::io::{self, Read};

use console::{Style, Term};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use task_host::plain;
use tokio::sync::oneshot;

/// The style of a line on a terminal with colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    /// A heading.
    Title,
    /// Something is wrong.
    Bad,
}

/// A line of the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) tone: Tone,
}

/// A terminal whose lines are replaced. The cursor is hidden until [`Screen::leave`].
pub(crate) struct Screen(Term);

/// The keyboard without echo, so that typed keys do not disturb the screen. The previous mode is
/// restored on drop, even in a panic.
pub(crate) struct Keys(Termios);

impl Keys {
    /// Stops the echo. None if standard input is not a terminal. Ctrl-C and Ctrl-Z still work.
    pub(crate) fn open() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON;
        tcsetattr(io::stdin(), OptionalActions::Now, &quiet).ok()?;
        Some(Self(before))
    }

    /// Resolves when `q` is pressed. The reading thread ends with the process.
    pub(crate) fn quit(&self) -> oneshot::Receiver<()> {
        let (pressed, quit) = oneshot::channel();
        // Without the thread, Ctrl-C still ends the command.
        let _ = std::thread::Builder::new().spawn(move || {
            if io::stdin()
                .lock()
                .bytes()
                .map_while(Result::ok)
                .any(|key| matches!(key, b'q' | b'Q'))
            {
                let _ = pressed.send(());
            }
        });
        quit
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // Discard pending keys, which are not meant for the shell.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

impl Screen {
    /// Whether standard output is a terminal.
    pub(crate) fn is_there() -> bool {
        Term::stdout().is_term()
    }

    /// Clears the terminal on standard output.
    pub(crate) fn open() -> io::Result<Self> {
        let term = Term::buffered_stdout();
        term.hide_cursor()?;
        term.clear_screen()?;
        Ok(Self(term))
    }

    /// Shows the cursor below the last line, for the shell's prompt.
    pub(crate) fn leave(&self) -> io::Result<()> {
        self.0.write_line("")?;
        self.0.show_cursor()?;
        self.0.flush()
    }

    /// The width in columns and the height in rows.
    pub(crate) fn size(&self) -> (usize, usize) {
        let (rows, columns) = self.0.size();
        (columns.into(), rows.into())
    }

    /// Replaces all lines. Control characters in the texts are escaped.
    pub(crate) fn show(&self, lines: &[Line]) -> io::Result<()> {
        let (width, height) = self.size();
        self.0.move_cursor_to(0, 0)?;
        for (row, line) in lines.iter().take(height).enumerate() {
            if row > 0 {
                self.0.write_line("")?;
            }
            self.0.clear_line()?;
            let text = fitted(&line.text, width);
            let style = match line.tone {
                Tone::Plain => Style::new(),
                Tone::Title => Style::new().bold(),
                Tone::Bad => Style::new().red(),
            };
            self.0.write_str(&style.apply_to(text).to_string())?;
        }
        self.0.clear_to_end_of_screen()?;
        self.0.flush()
    }
}

/// The text with control characters escaped, in at most `width` columns. Some characters take two
/// columns.
pub(crate) fn fitted(text: &str, width: usize) -> String {
    console::truncate_str(&plain::escape(text), width, "…").into_owned()
}

/// The number of columns that a text takes.
pub(crate) fn width(text: &str) -> usize {
    console::measure_text_width(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_and_obeys_nothing() {
        assert_eq!(fitted("plain", 10), "plain");
        assert_eq!(fitted("a\u{1b}[2Jb\nc", 40), "a\\u{1b}[2Jb\\nc");
        assert_eq!(fitted("\u{1b}]0;title\u{7}", 12), "\\u{1b}]0;ti…");
        for text in ["日本語日本語日本語", "éééééééééééé", "a\u{202e}bcdefghijk"]
        {
            let fitted = fitted(text, 7);
            assert!(width(&fitted) <= 7 && fitted.ends_with('…'), "{fitted}");
        }
    }
}
