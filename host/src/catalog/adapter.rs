//! Makes components from core modules: from programs for WASI preview 1, and from tasks that are
//! not components yet.
//!
//! wasmtime's adapter translates calls of preview 1 to WASI 0.2. The process that compiles a
//! component does this, so that the bucket keeps the file that its author built and signed.

use std::borrow::Cow;

use wasi_preview1_component_adapter_provider as provider;
use wasm_encoder::reencode::{Reencode, RoundtripReencoder};
use wasm_encoder::{ImportSection, Module, RawSection};
use wasmparser::{Parser, Payload};
use wit_component::ComponentEncoder;

use super::contents::Contents;
use super::preview1::{ADAPTER, PREVIEW1};
use crate::sandbox::Kind;

/// The function of preview 1 that ends a program.
const EXIT: &str = "proc_exit";
/// The function of WASI 0.2 that ends a program with an exit code. The adapter uses another
/// function, which loses the code.
const EXIT_WITH_CODE: &str = "exit-with-code";
/// Returns a component as it is, and makes a component from a core module.
///
/// # Errors
/// Says why the file can't become a component.
pub fn component_of(wasm: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if !Parser::is_core_wasm(wasm) {
        return Ok(Cow::Borrowed(wasm));
    }
    let contents = Contents::of(wasm)?;
    if let Some(problem) = contents.problem() {
        return Err(problem);
    }
    let adapter = match contents.kind {
        Some(Kind::Program) => provider::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
        Some(Kind::Task | Kind::TaskWithPlan) | None => {
            provider::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER
        }
    };
    let encoded = keep_exit_code(wasm).and_then(|module| {
        ComponentEncoder::default()
            .module(&module)?
            .adapter(PREVIEW1, adapter)?
            .validate(true)
            .encode()
    });
    encoded.map(Cow::Owned).map_err(|error| format!("can't be converted to a component: {error:#}"))
}

/// The same module, which exits through WASI 0.2 instead of the adapter.
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

    /// A program that reads its standard input and ends with this exit code.
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
        assert!(contents.imports.iter().any(|name| name.starts_with(ADAPTER.exit)));
        // A component is returned as it is.
        assert!(matches!(component_of(&component).unwrap(), Cow::Borrowed(_)));
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
            "can't be converted to a component",
        );
    }
}
