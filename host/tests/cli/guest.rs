//! Generates components for tests, from a core module in text form and the world of tasks.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// How a guest ends.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// Succeeds without outputs.
    Done,
    /// Returns `reject("no good")` from `prepare`.
    Reject,
    /// Traps in `execute`.
    Trap,
    /// Never returns from `execute`.
    Never,
}

/// The parts of a core module for the world of tasks, in text form.
pub(crate) struct Core<'a> {
    /// The bodies of the calls. The canonical ABI returns the address of a result in memory: at
    /// 1024 `ok`, at 1040 `ok({success: true, outputs: []})`, at 1056 `err(reject("no good"))`.
    pub(crate) prepare: &'a str,
    pub(crate) execute: &'a str,
    /// The module's name for the function behind `execute`, with the escapes of the text format.
    pub(crate) name: &'a str,
    /// The initial size of the memory in pages.
    pub(crate) pages: u32,
    /// Further fields of the module.
    pub(crate) more: &'a str,
}

impl Default for Core<'_> {
    fn default() -> Self {
        let (prepare, execute) = ("(i32.const 1024)", "(i32.const 1040)");
        Self { prepare, execute, name: "execute", pages: 2, more: "" }
    }
}

/// A component that only ends in the given way.
pub(crate) fn component(end: End) -> Vec<u8> {
    component_with(end, "")
}

/// [`component`] with further fields in its core module.
pub(crate) fn component_with(end: End, more: &str) -> Vec<u8> {
    let core = Core { more, ..Core::default() };
    component_of(&match end {
        End::Done => core,
        End::Reject => Core { prepare: "(i32.const 1056)", ..core },
        End::Trap => Core { execute: "(unreachable)", ..core },
        End::Never => Core { execute: "(loop $again (br $again)) (unreachable)", ..core },
    })
}

/// The component with that core module.
pub(crate) fn component_of(core: &Core<'_>) -> Vec<u8> {
    ComponentEncoder::default().module(&module(core)).unwrap().validate(true).encode().unwrap()
}

/// The core module, with metadata about the world that it implements.
pub(crate) fn module(core: &Core<'_>) -> Vec<u8> {
    let Core { prepare, execute, name, pages, more } = core;
    let wat = format!(
        r#"(module
            (memory (export "memory") {pages})
            (global $next (mut i32) (i32.const 65536))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (global.set $next (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
                (global.get $next)
                (global.set $next (i32.add (global.get $next) (local.get 3))))
            (func (export "prepare") (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) {prepare})
            (func $execute (@name "{name}") (export "execute")
                (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) {execute})
            (func (export "finalize")
                (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 1024))
            {more}
            (data (i32.const 1040) "\00\00\00\00\01\00\00\00\00\00\00\00\00\00\00\00")
            (data (i32.const 1056) "\01\00\00\00\01\00\00\00\40\04\00\00\07\00\00\00")
            (data (i32.const 1088) "no good"))"#
    );
    let mut module = wat::parse_str(wat).unwrap();
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../wit")).unwrap();
    let world = resolve.select_world(&[package], Some("task")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    module
}
