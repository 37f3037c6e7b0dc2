//! Components that use features that the engine is built without, or imports that no host provides.
//!
//! The host must refuse such features before the component runs: compiled code that uses a feature
//! left out of the engine aborts the process.

use task_host_tests::components;

use super::trial::Case;

attacks! {
    /// Calls a function through a type that may have subtypes.
    Subtypes => function_types_with_subtypes,
    /// Creates objects for a garbage collector.
    Structs => objects_for_a_garbage_collector,
    /// Holds references to objects of the host.
    Externals => references_to_things_of_the_host,
    /// Calls through a reference that is not in a table.
    References => calls_through_references,
    /// Throws an exception.
    Exceptions => exceptions,
    /// Shares a memory among threads.
    SharedMemory => a_shared_memory,
    /// Waits for another thread.
    Atomics => waits_for_other_threads,
    /// Has a 64-bit memory.
    Memory64 => a_memory_of_64_bits,
    /// Creates futures, which belong to the next version of WASI.
    Futures => futures_between_components,
    /// Imports HTTP.
    Http => an_import_that_no_host_has,
}

pub(super) fn case(attack: Attack) -> Case {
    let refused = ["can't be run"];
    match attack {
        Attack::Subtypes => {
            let fields = "(type $a (sub (func))) (type $b (sub (func (param i32))))
                (func $f (type $b)) (table 1 funcref) (elem (i32.const 0) func $f)";
            let body = "(call_indirect (type $a) (i32.const 0)) (i32.const 1040)";
            Case::given_up(components::with_body(body, 2, fields), &refused)
        }
        Attack::Structs => {
            let module = "(type $s (struct (field i32)))
                (func (drop (struct.new_default $s)))";
            Case::given_up(with_module(module), &refused)
        }
        Attack::Externals => Case::given_up(with_module("(table 1 externref)"), &refused),
        Attack::References => {
            let fields = "(type $f (func)) (func $g (type $f)) (elem declare func $g)";
            let body = "(call_ref $f (ref.func $g)) (i32.const 1040)";
            Case::done(components::with_body(body, 2, fields))
        }
        Attack::Exceptions => Case::given_up(with_module("(tag $t) (func (throw $t))"), &refused),
        Attack::SharedMemory => Case::given_up(with_module("(memory 1 1 shared)"), &refused),
        Attack::Atomics => {
            let module = "(memory 1) (func (drop (memory.atomic.wait32
                (i32.const 0) (i32.const 0) (i64.const -1))))";
            Case::given_up(with_module(module), &refused)
        }
        Attack::Memory64 => {
            let says = ["the guest ran into its memory limit of 64.0 MiB"];
            let module = "(core module $m (memory i64 65535)) (core instance (instantiate $m))";
            Case::rejected(components::composed(module), &says).with(&["--memory", "64MiB"])
        }
        Attack::Futures => {
            let future = "(type $f (future u32)) (core func $new (canon future.new $f))";
            Case::given_up(components::composed(future), &refused)
        }
        Attack::Http => {
            let http = r#"(import "wasi:http/types@0.2.0" (instance
                (export "fields" (type (sub resource)))))"#;
            Case::given_up(components::composed(http), &["can't be run", "wasi:http/types"])
        }
    }
}

/// A component that contains this core module in addition to its own.
fn with_module(fields: &str) -> Vec<u8> {
    components::composed(&format!("(core module $x {fields})"))
}
