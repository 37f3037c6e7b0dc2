//! The core modules that a host runs: programs for WASI preview 1, and tasks that are not
//! components yet.

use std::collections::HashSet;
use std::sync::LazyLock;

use wasi_preview1_component_adapter_provider as provider;
use wasmparser::{Parser, Payload};

use crate::sandbox::Kind;

/// The module name of all imports of preview 1.
pub(super) const PREVIEW1: &str = provider::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
/// The function that a program with a `main` exports.
const START: &str = "_start";
/// The prefix of the name of the interface that ends a program in WASI 0.2.
const EXIT_INTERFACE: &str = "wasi:cli/exit@0.2.";

/// The functions that the adapter provides to programs, and an interface that it imports.
pub(super) struct Adapter {
    functions: HashSet<&'static str>,
    /// The interface that ends a program.
    pub(super) exit: &'static str,
}

/// The adapter that this program contains.
pub(super) static ADAPTER: LazyLock<Adapter> = LazyLock::new(|| {
    let mut adapter = Adapter { functions: HashSet::new(), exit: EXIT_INTERFACE };
    // The adapter is part of this program, so parsing it does not fail.
    let payloads = Parser::new(0).parse_all(provider::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER);
    for payload in payloads.flatten() {
        match payload {
            Payload::ExportSection(section) => {
                adapter.functions.extend(section.into_iter().flatten().map(|export| export.name));
            }
            Payload::ImportSection(section) => {
                let mut modules = section.into_imports().flatten().map(|import| import.module);
                if let Some(exit) = modules.find(|module| module.starts_with(EXIT_INTERFACE)) {
                    adapter.exit = exit;
                }
            }
            _ => {}
        }
    }
    adapter
});

/// The kind of a core module with these exports. None if a host can't run it.
pub(super) fn kind<'a>(mut exports: impl Iterator<Item = &'a str> + Clone) -> Option<Kind> {
    match Kind::of_exports(exports.clone()) {
        Some(task @ (Kind::Task | Kind::TaskWithPlan)) => Some(task),
        _ => exports.any(|name| name == START).then_some(Kind::Program),
    }
}

/// Why a core module can't become a component, as far as the names of imports and exports show.
pub(super) fn problem(
    kind: Option<Kind>,
    imports: &[String],
    exports: &[String],
) -> Option<String> {
    let is_reactor = || exports.iter().any(|name| name == "_initialize");
    match kind {
        // The encoder checks the imports against the interface that the module says it implements.
        Some(Kind::Task | Kind::TaskWithPlan) => return None,
        Some(Kind::Program) => {}
        None if is_reactor() => {
            return Some(
                "is a core module without a `main`: it exports `_initialize`, as libraries do, and \
                 not `prepare`, `execute` and `finalize`, as tasks do; build it as a program"
                    .to_owned(),
            );
        }
        None => {
            return Some(
                "is a core module that is neither a program for WASI nor a task: it exports no \
                 `_start`; build it for WASI (Rust: `cargo build --target wasm32-wasip2`)"
                    .to_owned(),
            );
        }
    }
    let offered = |import: &&String| {
        import
            .strip_prefix(PREVIEW1)
            .and_then(|rest| rest.strip_prefix('.'))
            .is_some_and(|name| ADAPTER.functions.contains(name))
    };
    let refused: Vec<&str> =
        imports.iter().filter(|import| !offered(import)).map(String::as_str).collect();
    let cure = match refused.first()? {
        name if name.starts_with("wasi_unstable.") => {
            "this is WASI preview 0; build the program with newer tools"
        }
        name if name.starts_with("wasi.thread") => {
            "a task has one thread; build it without threads"
        }
        name if name.starts_with("env.") => {
            "the linker leaves what it does not find to the host; link the library that has it, or \
             build without what needs it"
        }
        _ => "a program may import WASI preview 1 (`wasi_snapshot_preview1`), and no more",
    };
    Some(format!("imports interfaces that hosts do not provide: {}; {cure}", refused.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_adapter_is_read() {
        assert!(ADAPTER.functions.contains("proc_exit") && ADAPTER.functions.contains("path_open"));
        assert!(ADAPTER.exit.len() > EXIT_INTERFACE.len());
    }
}
