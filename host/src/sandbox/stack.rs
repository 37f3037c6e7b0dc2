//! Shows a guest's call stack. The names of functions and modules come from the component, so the
//! length of each name, the number of frames and the total length are bounded.

use std::fmt::{self, Write};

use wasmtime::{FrameInfo, WasmBacktrace};

use super::lines::Lines;
use crate::plain;
use crate::words::{self, Bounded};

/// The most frames that are captured and shown, from the innermost.
pub(super) const MOST_FRAMES: usize = 32;
/// The most bytes that are shown of the name of a module or a function.
const MOST_OF_NAME: usize = 200;
/// The longest name, in bytes, that is demangled. The names in real programs are much shorter.
const MOST_MANGLED: usize = 16 << 10;
/// The most bytes of a stack that is shown.
const MOST: usize = 12 << 10;
/// Prefixes of the names of functions in Rust's library. They call the guest's code, or a panic
/// calls them.
const LIBRARY: [&str; 9] =
    ["core::", "std::", "alloc::", "<core::", "<std::", "<alloc::", "__rust", "rust_", "abort"];

/// The call stack at the end of a guest.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// The call stack that the guest itself printed.
    told: Option<String>,
    frames: Vec<Frame>,
}

#[derive(Debug, Clone)]
struct Frame {
    function: String,
    /// The place of the code, in bytes from the start of the component.
    offset: Option<usize>,
}

impl Trace {
    /// The stack that the guest printed, or the stack of an error. None if neither is known.
    pub(super) fn of(error: &wasmtime::Error, told: Option<String>) -> Option<Self> {
        let told = told.map(|told| plain::escape_lines(&words::cut(&told, MOST)).into_owned());
        let frames = error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames);
        let frames: Vec<Frame> = frames.unwrap_or_default().iter().map(Frame::of).collect();
        (told.is_some() || !frames.is_empty()).then_some(Self { told, frames })
    }

    /// The trace as text, one frame a line, with source lines where `lines` has them.
    pub fn show(&self, lines: Option<&Lines<'_>>) -> String {
        if let Some(told) = &self.told {
            return told.clone();
        }
        let mut words = Bounded::new(MOST);
        // The only error is a reached bound, and the text then says that it was cut.
        let _ = self.write(&mut words, lines);
        words.finish()
    }

    fn write(&self, words: &mut Bounded, lines: Option<&Lines<'_>>) -> fmt::Result {
        let is_library =
            |frame: &Frame| LIBRARY.iter().any(|start| frame.function.starts_with(start));
        let only_library = self.frames.iter().all(is_library);
        let shown = self.frames.iter().filter(|frame| only_library || !is_library(frame));
        for (n, frame) in shown.enumerate() {
            let gap = if n == 0 { "" } else { "\n" };
            write!(words, "{gap}{n:>3}: {}", frame.function)?;
            let line = frame.offset.and_then(|offset| lines?.at(offset));
            match (line, frame.offset) {
                (Some(line), _) => write!(words, " at {}", plain::escape(&line))?,
                (None, Some(offset)) => write!(words, " at {offset:#x}")?,
                (None, None) => {}
            }
        }
        if self.frames.len() == MOST_FRAMES {
            write!(words, "\n     … (no more than {MOST_FRAMES} frames are kept)")?;
        }
        Ok(())
    }
}

impl Frame {
    fn of(frame: &FrameInfo) -> Self {
        Self { function: function(frame), offset: frame.module_offset() }
    }
}

/// The name of a frame's function.
pub(super) fn function(frame: &FrameInfo) -> String {
    match frame.func_name() {
        Some(function) => name(function),
        None => {
            let module = name(frame.module().name().unwrap_or("<unknown>"));
            format!("{module}!<function {}>", frame.func_index())
        }
    }
}

/// A readable form of a name. Only Rust's names are demangled: a short mangled name in C++ may
/// expand to gigabytes.
pub(super) fn name(raw: &str) -> String {
    let rust = (raw.len() <= MOST_MANGLED).then(|| rustc_demangle::try_demangle(raw).ok());
    match rust.flatten() {
        Some(name) => words::bounded_line(&format_args!("{name:#}"), MOST_OF_NAME),
        None => plain::escape(&words::cut(raw, MOST_OF_NAME)).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rust_are_demangled_and_others_are_left_as_they_are() {
        assert_eq!(name("_ZN4core3ptr4read17h0123456789abcdefE"), "core::ptr::read");
        assert_eq!(name("_RNvCs1234_7mycrate3foo"), "mycrate::foo");
        assert_eq!(name("_Z1f1AIiiE"), "_Z1f1AIiiE");
        assert_eq!(name("main\n\x1b[2J"), "main\\n\\u{1b}[2J");
    }

    #[test]
    fn a_name_that_stands_for_much_is_cut() {
        let long = name(&"x".repeat(100_000));
        assert!(long.ends_with("x … (99800 bytes cut)") && long.len() < 250, "{long}");
        // Each of these tuples contains the one before it twice.
        let mut bomb = "_RNvINtC1a1bT".to_owned();
        bomb.push_str(&"T".repeat(20));
        let shown = name(&bomb);
        assert!(shown.len() < 250, "{shown}");
        let generic = format!("_ZN{}E", "4name".repeat(1000));
        let shown = name(&generic);
        assert!(shown.starts_with("name::name") && shown.len() < 250, "{shown}");
    }
}
