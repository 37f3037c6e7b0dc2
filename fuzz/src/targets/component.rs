//! Components: the host's description of a file, and the names in call stacks.
//!
//! Compiling is not checked here: wasmtime has its own fuzz targets, and the host compiles in a
//! process with limits.

use task_host::catalog::Contents;
use task_host::plain;
use task_host::sandbox::foreign::name_in_stack;
use task_host::sandbox::{CALLS, Kind};

use crate::memory::bounded;

/// The most bytes of a shown name: 200, each of which may be escaped, and the note of a cut.
const LONGEST: usize = 200 * 8 + 40;

/// wasmparser reserves memory for as many items as a section announces, which may be a million.
const RESERVED: usize = 384 << 20;

pub(crate) fn check(input: &[u8]) {
    let contents = bounded(1024 * input.len() + RESERVED, || Contents::of(input));
    match contents {
        Ok(contents) => described(input, &contents),
        Err(problem) => assert!(problem.starts_with("is ")),
    }
    if let Ok(text) = std::str::from_utf8(input) {
        // A short mangled name can stand for a very long one.
        let shown = bounded(256 << 10, || name_in_stack(text));
        assert!(shown.len() <= LONGEST, "{} bytes: {shown}", shown.len());
        assert_eq!(plain::first_odd(&shown), None, "{shown}");
    }
}

fn described(input: &[u8], contents: &Contents) {
    assert!(matches!(contents.format, "component" | "core module"));
    let lists = [&contents.exports, &contents.imports, &contents.languages, &contents.tools];
    let bytes: usize = lists.iter().flat_map(|list| list.iter()).map(String::len).sum();
    // A dot or a space may join two names of the file.
    assert!(bytes <= 2 * input.len(), "{bytes} bytes of names");
    match contents.problem() {
        Some(problem) => assert!(!problem.is_empty()),
        None => {
            let exports =
                |name: &str| contents.exports.iter().any(|export| export.starts_with(name));
            match contents.kind {
                Some(Kind::Task) => assert!(CALLS.into_iter().all(exports)),
                Some(Kind::TaskWithPlan) => {
                    assert!(CALLS.into_iter().all(exports) && exports("plan"));
                }
                Some(Kind::Program) => assert!(exports("wasi:cli/run@0.2.") || exports("_start")),
                None => panic!("nothing that runs, without a problem"),
            }
            let is_offered = |name: &String| {
                contents.format == "core module"
                    || name.starts_with("wasi:")
                    || name.starts_with("task-host:guest/")
            };
            assert!(contents.imports.iter().all(is_offered), "{:?}", contents.imports);
        }
    }
}
