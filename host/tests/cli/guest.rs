//! Components made on the spot: a core module in text form, and our world around it.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// How a guest ends.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// Done, with no outputs.
    Done,
    /// `reject("no good")` from `prepare`.
    Reject,
    /// A trap in `execute`.
    Trap,
    /// Not at all.
    Never,
}

/// A component of our world that does nothing but end.
pub(crate) fn component(end: End) -> Vec<u8> {
    component_with(end, "")
}

/// The same with more in its core module.
pub(crate) fn component_with(end: End, more: &str) -> Vec<u8> {
    let (prepare, execute) = match end {
        End::Done => ("(i32.const 1024)", "(i32.const 1040)"),
        End::Reject => ("(i32.const 1056)", "(i32.const 1040)"),
        End::Trap => ("(i32.const 1024)", "(unreachable)"),
        End::Never => ("(i32.const 1024)", "(loop $again (br $again)) (unreachable)"),
    };
    // The results are laid out as the canonical ABI has them: at 1024 `ok`, at 1040
    // `ok({success: true, outputs: []})`, at 1056 `err(reject("no good"))`.
    let wat = format!(
        r#"(module
            (memory (export "memory") 2)
            (global $next (mut i32) (i32.const 65536))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (global.set $next (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
                (global.get $next)
                (global.set $next (i32.add (global.get $next) (local.get 3))))
            (func (export "prepare") (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) {prepare})
            (func (export "execute") (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) {execute})
            (func (export "finalize")
                (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 1024))
            (data (i32.const 1040) "\00\00\00\00\01\00\00\00\00\00\00\00\00\00\00\00")
            (data (i32.const 1056) "\01\00\00\00\01\00\00\00\40\04\00\00\07\00\00\00")
            (data (i32.const 1088) "no good")
            {more})"#
    );
    let mut module = wat::parse_str(wat).unwrap();
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../wit")).unwrap();
    let world = resolve.select_world(&[package], Some("task")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
}
