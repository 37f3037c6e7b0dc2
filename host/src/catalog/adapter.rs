//! Makes components of core modules: of programs for WASI preview 1, and of tasks that no tool has
//! made a component of.
//!
//! wasmtime's adapter translates the calls of preview 1 to those of WASI 0.2. The process that
//! compiles a component does this, so that the bucket has the file that its author built and signed.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::LazyLock;

use wasi_preview1_component_adapter_provider as provider;
use wasm_encoder::{
    ImportSection, Module, RawSection, reencode::Reencode, reencode::RoundtripReencoder,
};
use wasmparser::{Parser, Payload};
use wit_component::ComponentEncoder;

use super::contents::Contents;
use crate::sandbox::Kind;

/// The module of all imports of preview 1.
const PREVIEW1: &str = provider::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
/// What a program with a `main` exports.
const START: &str = "_start";
/// The call that ends a program.
const EXIT: &str = "proc_exit";
/// The function of WASI 0.2 that does the same. The adapter uses another, which loses the exit code.
const EXIT_WITH_CODE: &str = "exit-with-code";
/// How the name of its interface begins.
const EXIT_INTERFACE: &str = "wasi:cli/exit@0.2.";

/// What the adapter offers to programs, and what it takes from the host.
struct Adapter {
    functions: HashSet<&'static str>,
    exit: &'static str,
}

static ADAPTER: LazyLock<Adapter> = LazyLock::new(|| {
    let mut adapter = Adapter { functions: HashSet::new(), exit: EXIT_INTERFACE };
    // It is part of this program, so it can be read.
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

/// The kind of a core module with these exports. None if no host runs it.
pub(super) fn kind<'a>(mut exports: impl Iterator<Item = &'a str> + Clone) -> Option<Kind> {
    match Kind::of_exports(exports.clone()) {
        Some(Kind::Task) => Some(Kind::Task),
        _ => exports.any(|name| name == START).then_some(Kind::Program),
    }
}

/// Why no component can be made of a core module, as far as its names tell.
pub(super) fn problem(contents: &Contents) -> Option<String> {
    let is_reactor = || contents.exports.iter().any(|name| name == "_initialize");
    match contents.kind {
        // The encoder compares its imports with the interface that it says it implements.
        Some(Kind::Task) => return None,
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
        contents.imports.iter().filter(|import| !offered(import)).map(String::as_str).collect();
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
    Some(format!("imports what no host offers: {}; {cure}", refused.join(", ")))
}

/// The file itself if it is a component, or a component that is made of a core module.
///
/// # Errors
/// Says why there can be none.
pub fn component_of(wasm: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if !Parser::is_core_wasm(wasm) {
        return Ok(Cow::Borrowed(wasm));
    }
    let contents = Contents::of(wasm)?;
    if let Some(problem) = problem(&contents) {
        return Err(problem);
    }
    let adapter = match contents.kind {
        Some(Kind::Program) => provider::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
        Some(Kind::Task) | None => provider::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
    };
    let encoded = keep_exit_code(wasm).and_then(|module| {
        ComponentEncoder::default()
            .module(&module)?
            .adapter(PREVIEW1, adapter)?
            .validate(true)
            .encode()
    });
    encoded.map(Cow::Owned).map_err(|error| format!("can't be made a component: {error:#}"))
}

/// The module, which ends through WASI 0.2 and not through the adapter.
fn keep_exit_code(wasm: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut module = Module::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        if let Payload::ImportSection(section) = payload {
            let mut imports = ImportSection::new();
            for import in section.into_imports() {
                let import = import?;
                let (from, name) = match (import.module, import.name) {
                    (PREVIEW1, EXIT) => (ADAPTER.exit, EXIT_WITH_CODE),
                    names => names,
                };
                imports.import(from, name, RoundtripReencoder.entity_type(import.ty)?);
            }
            module.section(&imports);
        } else if let Some((id, range)) = payload.as_section() {
            module.section(&RawSection { id, data: &wasm[range] });
        }
    }
    Ok(module.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that ends with this code, after it has read what it has on standard input.
    fn program(code: u8) -> Vec<u8> {
        wat::parse_str(format!(
            r#"(module
                (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                (import "wasi_snapshot_preview1" "fd_read"
                    (func $read (param i32 i32 i32 i32) (result i32)))
                (memory (export "memory") 1)
                (func (export "_start")
                    (i32.store (i32.const 4) (i32.const 100))
                    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
                    (call $exit (i32.const {code}))))"#
        ))
        .unwrap()
    }

    #[test]
    fn a_program_becomes_a_component_that_tells_its_exit_code() {
        let component = component_of(&program(75)).unwrap().into_owned();
        let contents = Contents::of(&component).unwrap();
        assert_eq!(contents.problem(), None);
        assert_eq!((contents.kind, contents.format), (Some(Kind::Program), "component"));
        assert!(contents.imports.iter().any(|name| name.starts_with(EXIT_INTERFACE)));
        // What is a component stays as it is.
        assert!(matches!(component_of(&component).unwrap(), Cow::Borrowed(_)));
    }

    #[test]
    fn the_adapter_is_read() {
        assert!(ADAPTER.functions.contains(EXIT) && ADAPTER.functions.contains("path_open"));
        assert!(ADAPTER.exit.len() > EXIT_INTERFACE.len());
    }

    #[test]
    fn a_task_that_is_no_component_yet_becomes_one() {
        let module = super::super::guest::module(&super::super::guest::Core::default());
        let component = component_of(&module).unwrap();
        let contents = Contents::of(&component).unwrap();
        assert_eq!((contents.problem(), contents.kind), (None, Some(Kind::Task)));
    }

    #[test]
    fn what_can_not_be_a_component_says_why() {
        let check = |wat: &str, want: &str| {
            let problem = component_of(&wat::parse_str(wat).unwrap()).unwrap_err();
            assert!(problem.contains(want), "{problem}");
        };
        check("(module)", "neither a program for WASI nor a task");
        check(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i64)))
                (memory (export "memory") 1) (func (export "_start")))"#,
            "can't be made a component",
        );
    }
}
