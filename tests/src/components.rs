//! Components that no compiler produces.

#[expect(dead_code, reason = "the tests of the command line use the rest")]
#[path = "../../host/tests/cli/guest.rs"]
mod guest;

use guest::{Core, component_of};

/// A component whose `execute` has this body, in text form. The function has the name `name`.
pub fn with_execute(name: &str, body: &str) -> Vec<u8> {
    component_of(&Core { name, execute: body, ..Core::default() })
}

/// A component whose core module has `pages` pages of initial memory, and these additional fields.
pub fn with_fields(pages: u32, fields: &str) -> Vec<u8> {
    component_of(&Core { pages, more: fields, ..Core::default() })
}

/// A component whose `execute` has this body, in a core module with `pages` pages of memory and
/// these additional fields.
pub fn with_body(body: &str, pages: u32, fields: &str) -> Vec<u8> {
    component_of(&Core { execute: body, pages, more: fields, ..Core::default() })
}

/// A component that returns a list of `outputs` outputs. Their names are all the same `bytes`
/// bytes, from the start of its memory.
pub fn listing(outputs: u32, bytes: u32) -> Vec<u8> {
    let body = format!(
        "(local $at i32) (local $n i32)
         (memory.fill (i32.const 0) (i32.const 120) (i32.const 1000))
         (local.set $at (i32.const 2097152))
         (loop $more
            (i32.store (local.get $at) (i32.const 0))
            (i32.store offset=4 (local.get $at) (i32.const {bytes}))
            (local.set $at (i32.add (local.get $at) (i32.const 8)))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $more (i32.lt_u (local.get $n) (i32.const {outputs}))))
         (i32.store offset=1048 (i32.const 0) (i32.const 2097152))
         (i32.store offset=1052 (i32.const 0) (i32.const {outputs}))
         (i32.const 1040)"
    );
    component_of(&Core { execute: &body, pages: 400, ..Core::default() })
}

/// A component with additional definitions before its main module. The main module imports nothing
/// from them.
pub fn composed(definitions: &str) -> Vec<u8> {
    composed_of(definitions, "", "", "(i32.const 1040)")
}

/// Does the same, but the main module imports functions of an instance from the definitions, and
/// calls them in `execute`.
pub fn composed_of(definitions: &str, imports: &str, with: &str, execute: &str) -> Vec<u8> {
    let text = format!(
        r#"(component
  (type $types (instance
    (type (;0;) (list string))
    (type (;1;) (record (field "id" s64) (field "name" string) (field "base-directory" string)
      (field "inputs" 0)))
    (export (;2;) "info" (type (eq 1)))
    (type (;3;) (option string))
    (type (;4;) (record (field "info" 2) (field "payload" 3) (field "attempt" u32)))
    (export (;5;) "task" (type (eq 4)))
    (type (;6;) (record (field "success" bool) (field "outputs" 0)))
    (export (;7;) "outcome" (type (eq 6)))
    (type (;8;) (variant (case "retry" string) (case "reject" string)))
    (export (;9;) "failure" (type (eq 8)))))
  (import "task-host:guest/types@0.1.0" (instance $given (type $types)))
  (alias export $given "task" (type $task-given))
  (import "task-record" (type $task (eq $task-given)))
  (alias export $given "outcome" (type $outcome-given))
  (import "outcome" (type $outcome (eq $outcome-given)))
  (alias export $given "failure" (type $failure-given))
  (import "failure" (type $failure (eq $failure-given)))
  {definitions}
  (core module $main {imports}
    (memory (export "memory") 2)
    (global $next (mut i32) (i32.const 65536))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
      (global.set $next (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get 3))))
    (func (export "prepare") (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (i32.const 1024))
    (func (export "execute") (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      {execute})
    (func (export "finalize")
      (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (i32.const 1024))
    (data (i32.const 1044) "\01"))
  (core instance $main (instantiate $main {with}))
  (alias core export $main "memory" (core memory $memory))
  (alias core export $main "cabi_realloc" (core func $realloc))
  (alias core export $main "prepare" (core func $prepare))
  (alias core export $main "execute" (core func $execute))
  (alias core export $main "finalize" (core func $finalize))
  (func (export "prepare") (param "task" $task) (result (result (error $failure)))
    (canon lift (core func $prepare) (memory $memory) (realloc $realloc)))
  (func (export "execute") (param "task" $task) (result (result $outcome (error $failure)))
    (canon lift (core func $execute) (memory $memory) (realloc $realloc)))
  (func (export "finalize") (param "task" $task) (param "outcome" $outcome)
      (result (result (error $failure)))
    (canon lift (core func $finalize) (memory $memory) (realloc $realloc))))"#
    );
    wat::parse_str(text).expect("a component")
}

/// A C++ name of a few hundred bytes that expands to gigabytes, because each template has the one
/// before it as all of its arguments.
pub fn endless_name() -> String {
    let mut name = "_Z1f1AIiiiiiiiiiiE".to_owned();
    for level in ["S0_", "S1_", "S2_", "S3_", "S4_", "S5_", "S6_"] {
        name.push_str(&format!("S_I{}E", level.repeat(10)));
    }
    name
}
