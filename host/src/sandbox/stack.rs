//! A guest's call stack in words. The names of functions and modules are the component's: each
//! is cut, and so are their number and the whole.

use std::fmt::{self, Write};

use wasmtime::{FrameInfo, WasmBacktrace};

use crate::plain;
use crate::words::{self, Bounded};

/// Frames that are captured and shown, the innermost first.
pub(super) const MOST_FRAMES: usize = 32;
/// The most bytes of the name of a module or a function.
const MOST_OF_NAME: usize = 200;
/// The longest name, in bytes, that is demangled. Rust's own are much shorter.
const MOST_MANGLED: usize = 16 << 10;
/// The most bytes of a stack.
const MOST: usize = 12 << 10;

/// The stack of an error, in lines; nothing if it is not known.
pub(super) fn of(error: &wasmtime::Error) -> Option<String> {
    let stack = error.downcast_ref::<WasmBacktrace>()?.frames();
    if stack.is_empty() {
        return None;
    }
    let mut words = Bounded::new(MOST);
    // An error is the bound's, and the words say that they were cut.
    let _ = write(&mut words, stack);
    Some(words.finish())
}

fn write(words: &mut Bounded, stack: &[FrameInfo]) -> fmt::Result {
    words.write_str("the guest's stack:")?;
    for (n, frame) in stack.iter().enumerate() {
        let module = name(frame.module().name().unwrap_or("<unknown>"));
        write!(words, "\n  {n:>3}: ")?;
        if let Some(offset) = frame.module_offset() {
            write!(words, "{offset:#8x} - ")?;
        }
        write!(words, "{module}!{}", function(frame))?;
    }
    if stack.len() == MOST_FRAMES {
        write!(words, "\n       … (no more than {MOST_FRAMES} frames are shown)")?;
    }
    Ok(())
}

/// The name of a frame's function.
pub(super) fn function(frame: &FrameInfo) -> String {
    match frame.func_name() {
        Some(function) => name(function),
        None => format!("<wasm function {}>", frame.func_index()),
    }
}

/// A name as a person reads it. Only Rust's names are demangled: a short name in C++ may stand
/// for gigabytes.
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
        // Each of these tuples is two of the one before.
        let mut bomb = "_RNvINtC1a1bT".to_owned();
        bomb.push_str(&"T".repeat(20));
        let shown = name(&bomb);
        assert!(shown.len() < 250, "{shown}");
        let generic = format!("_ZN{}E", "4name".repeat(1000));
        let shown = name(&generic);
        assert!(shown.starts_with("name::name") && shown.len() < 250, "{shown}");
    }
}
