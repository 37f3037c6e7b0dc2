//! Lists what a WebAssembly file contains, and says why it can't be a task's component.

use std::collections::BTreeMap;

use serde::Serialize;
use wasmparser::{
    ComponentTypeRef, Encoding, KnownCustom, Parser, Payload, Validator, WasmFeatures,
};

use super::preview1;
use crate::sandbox::{CALLS, Kind, version_problem};

/// Imports, exports and producers of a file, with their names as in the file.
#[derive(Debug, Default, Serialize)]
pub struct Contents {
    /// The kind of the component; null if the host can't run the file.
    pub kind: Option<Kind>,
    /// `component` or `core module`. The host makes a component from a core module.
    pub format: &'static str,
    /// The names of exports.
    pub exports: Vec<String>,
    /// The names of imports.
    pub imports: Vec<String>,
    /// The languages that the task was written in, as far as its tools recorded them.
    pub languages: Vec<String>,
    /// The tools that made the file, with their versions, if they recorded them.
    pub tools: Vec<String>,
}

/// The interfaces of WASI 0.2 that a guest may import.
const OFFERED: [(&str, &[&str]); 6] = [
    ("wasi:io", &["error", "poll", "streams"]),
    ("wasi:clocks", &["monotonic-clock", "wall-clock"]),
    ("wasi:random", &["insecure", "insecure-seed", "random"]),
    ("wasi:filesystem", &["preopens", "types"]),
    (
        "wasi:cli",
        &[
            "environment",
            "exit",
            "stderr",
            "stdin",
            "stdout",
            "terminal-input",
            "terminal-output",
            "terminal-stderr",
            "terminal-stdin",
            "terminal-stdout",
        ],
    ),
    // Language runtimes import these. Every use is refused.
    (
        "wasi:sockets",
        &[
            "instance-network",
            "ip-name-lookup",
            "network",
            "tcp",
            "tcp-create-socket",
            "udp",
            "udp-create-socket",
        ],
    ),
];

/// The format of a file that is not a component.
const CORE: &str = "core module";

fn read(bytes: &[u8]) -> wasmparser::Result<Contents> {
    let mut found = Contents::default();
    let mut made: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut libraries = Vec::new();
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version { encoding, .. } => {
                depth += 1;
                if depth == 1 {
                    found.format = match encoding {
                        Encoding::Component => "component",
                        Encoding::Module => CORE,
                    };
                }
            }
            Payload::End(_) => depth -= 1,
            Payload::ImportSection(section) if depth == 1 => {
                for import in section.into_imports() {
                    let import = import?;
                    found.imports.push(format!("{}.{}", import.module, import.name));
                }
            }
            Payload::ExportSection(section) if depth == 1 => {
                for export in section {
                    found.exports.push(export?.name.to_owned());
                }
            }
            // wit-component links a library by a module that exports the addresses of each library.
            Payload::ExportSection(section) => {
                for export in section {
                    libraries.extend(export?.name.strip_suffix(LIBRARY));
                }
            }
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    let import = import?;
                    // The host need not provide types.
                    if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                        found.imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    found.exports.push(export?.name.name.to_owned());
                }
            }
            Payload::CustomSection(section) => {
                if let KnownCustom::Producers(fields) = section.as_known() {
                    for field in fields {
                        let field = field?;
                        let names = made.entry(field.name).or_default();
                        for value in field.values {
                            let value = value?;
                            names.push(
                                format!("{} {}", value.name, value.version).trim().to_owned(),
                            );
                        }
                    }
                }
            }
            _ => {}
        }
    }
    let mut take = |field| {
        let mut names: Vec<String> = made.remove(field).unwrap_or_default();
        names.sort();
        names.dedup();
        names
    };
    let exports = found.exports.iter().map(String::as_str);
    found.kind = match found.format == CORE {
        true => preview1::kind(exports),
        false => Kind::of_exports(exports),
    };
    found.tools = take("processed-by");
    found.languages = languages(take("language"), &found.tools, &libraries);
    Ok(found)
}

/// The suffix of a library's name in the exports of the module that links the library.
const LIBRARY: &str = ":memory_base";
/// Prefixes of the names of libraries and tools, with the language of the tasks that they are used
/// for. The libraries themselves are written in other languages.
const RUNTIMES: [(&str, &str); 7] = [
    ("libpython", "Python"),
    ("libcomponentize_py", "Python"),
    ("componentize-py", "Python"),
    ("componentize_qjs", "JavaScript"),
    ("componentize-js", "JavaScript"),
    ("ComponentizeJS", "JavaScript"),
    ("jco", "JavaScript"),
];

/// The languages that the task itself is written in. Left out are the languages of what is linked
/// with the task: the runtime of an interpreted language, the C library of a Rust program, and the
/// adapters of a C program, which are written in Rust.
fn languages(recorded: Vec<String>, tools: &[String], libraries: &[&str]) -> Vec<String> {
    let mut names = tools.iter().map(String::as_str).chain(libraries.iter().copied());
    let runtime = names.find_map(|name| {
        let known = RUNTIMES.iter().find(|(begin, _)| name.starts_with(begin));
        known.map(|(_, language)| *language)
    });
    if let Some(language) = runtime {
        return vec![language.to_owned()];
    }
    let has = |tool: &str| tools.iter().any(|name| name.starts_with(tool));
    let is_kept = |language: &String| match (has("wit-bindgen-rust"), has("wit-bindgen-c")) {
        (true, _) => language.starts_with("Rust"),
        (false, true) => !language.starts_with("Rust"),
        (false, false) => true,
    };
    let kept: Vec<String> = recorded.iter().filter(|language| is_kept(language)).cloned().collect();
    if kept.is_empty() { recorded } else { kept }
}

impl Contents {
    /// Reads a file.
    ///
    /// # Errors
    /// If the bytes are not WebAssembly, says what they are.
    pub fn of(bytes: &[u8]) -> Result<Self, String> {
        if !bytes.starts_with(b"\0asm") {
            return Err(match std::str::from_utf8(bytes) {
                _ if bytes.is_empty() => "is empty",
                Ok(text) if text.trim_start().starts_with('(') => {
                    "is WebAssembly text; convert it with `wasm-tools parse`"
                }
                Ok(_) => "is a text file, not WebAssembly",
                Err(_) => "is not WebAssembly",
            }
            .to_owned());
        }
        Validator::new_with_features(WasmFeatures::all())
            .validate_all(bytes)
            .map_err(|e| format!("is damaged WebAssembly: {e}"))?;
        read(bytes).map_err(|e| format!("is damaged WebAssembly: {e}"))
    }

    /// Why the file can't be a task's component, as far as the names of imports and exports show.
    pub fn problem(&self) -> Option<String> {
        if self.format == CORE {
            return preview1::problem(self.kind, &self.imports, &self.exports);
        }
        if let Some(problem) = self.imports.iter().find_map(|import| version_problem(import)) {
            return Some(problem);
        }
        if self.kind.is_none() {
            return Some(self.other_world());
        }
        let refused: Vec<&str> =
            self.imports.iter().map(String::as_str).filter(|name| !is_offered(name)).collect();
        if !refused.is_empty() {
            return Some(format!(
                "imports interfaces that hosts do not provide: {}; a task has files, clocks, \
                 random numbers and standard output (WASI 0.2), and no network",
                refused.join(", ")
            ));
        }
        None
    }

    fn other_world(&self) -> String {
        let has = |call: &&str| self.exports.iter().any(|name| name == call);
        let missing: Vec<String> =
            CALLS.iter().filter(|call| !has(call)).map(|name| format!("`{name}`")).collect();
        let missing = missing.join(", ");
        let exports = match &self.exports[..] {
            [] => "nothing".to_owned(),
            names => names.join(", "),
        };
        format!(
            "is neither a task nor a program: a task exports `prepare`, `execute` and `finalize`, \
             and it does not export {missing}; a program exports `wasi:cli/run` of WASI 0.2; \
             it exports {exports}"
        )
    }
}

fn is_offered(import: &str) -> bool {
    let (path, version) = import.split_once('@').unwrap_or((import, ""));
    let Some((package, interface)) = path.split_once('/') else { return false };
    if package == "task-host:guest" {
        return true;
    }
    version.starts_with("0.2.")
        && OFFERED.iter().any(|(p, interfaces)| *p == package && interfaces.contains(&interface))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wat: &str, want: Option<&str>) {
        let contents = Contents::of(&wat::parse_str(wat).unwrap()).unwrap();
        match (contents.problem(), want) {
            (None, None) => {}
            (Some(problem), Some(want)) => assert!(problem.contains(want), "{wat}\n{problem}"),
            other => panic!("{wat}\n{other:?}"),
        }
    }

    #[test]
    fn what_is_no_component_of_a_task_says_what_it_is() {
        check("(module)", Some("is a core module that is neither a program for WASI nor a task"));
        check(r#"(module (func (export "_initialize")))"#, Some("without a `main`"));
        check(
            r#"(module
                (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
                (func (export "_start")))"#,
            None,
        );
        check(
            "(component)",
            Some(
                "does not export `prepare`, `execute`, `finalize`; a program exports `wasi:cli/run` \
                 of WASI 0.2; it exports nothing",
            ),
        );
        check(
            r#"(component (import "f" (func)) (export "wasi:http/x@0.3.0" (func 0)))"#,
            Some("exports wasi:http/x"),
        );
    }

    #[test]
    fn the_language_is_that_of_the_task_and_not_of_what_came_with_it() {
        let check = |recorded: &[&str], tools: &[&str], libraries: &[&str], want: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let tools: Vec<String> = owned(tools);
            assert_eq!(languages(owned(recorded), &tools, libraries), want, "{tools:?}");
        };
        check(&["Rust"], &["rustc 1.75.0"], &["libc.so", "libpython3.14.so"], &["Python"]);
        check(&["Rust"], &["rustc 1.96.0"], &["componentize_qjs_runtime.wasm"], &["JavaScript"]);
        check(&["Rust"], &["ComponentizeJS 0.19.3"], &[], &["JavaScript"]);
        check(
            &["C11", "Rust"],
            &["wit-bindgen-c 0.51.0", "wit-bindgen-rust 0.45.0"],
            &[],
            &["Rust"],
        );
        check(&["C99", "Rust"], &["clang 14", "wit-bindgen-c 0.61.1"], &[], &["C99"]);
        check(&["Rust"], &["wit-bindgen-c 0.61.1"], &[], &["Rust"]);
        check(&["Go"], &["TinyGo 0.40"], &[], &["Go"]);
        check(&[], &[], &[], &[]);
    }

    #[test]
    fn a_linked_library_is_found_in_the_module_that_links_it() {
        let wat = r#"(component (core module (global (export "libpython3.14.so:memory_base") i32
            (i32.const 0))))"#;
        assert_eq!(Contents::of(&wat::parse_str(wat).unwrap()).unwrap().languages, ["Python"]);
    }

    #[test]
    fn imports_that_nobody_offers_are_named() {
        let calls = r#"
            (core module $m (func (export "f")))
            (core instance $i (instantiate $m))
            (func $f (canon lift (core func $i "f")))
            (export "prepare" (func $f))
            (export "execute" (func $f))
            (export "finalize" (func $f))"#;
        check(&format!("(component {calls})"), None);
        let with = |name: &str| format!(r#"(component (import "{name}" (instance)) {calls})"#);
        check(&with("wasi:cli/stdout@0.2.3"), None);
        check(&with("task-host:guest/types@0.1.9"), None);
        check(&with("task-host:guest/types@0.2.0"), Some("version 0.2.0 of the guest interface"));
        check(&with("wasi:http/outgoing-handler@0.2.0"), Some("wasi:http/outgoing-handler@0.2.0"));
        check(&with("wasi:cli/stdout@0.3.0"), Some("wasi:cli/stdout@0.3.0"));
    }

    #[test]
    fn what_is_no_webassembly_says_so() {
        for (bytes, want) in [
            (&b""[..], "is empty"),
            (b"(component)", "is WebAssembly text"),
            (b"#!/bin/sh", "is a text file"),
            (b"\x7fELF\xff", "is not WebAssembly"),
            (b"\0asm\x01\0\0\0\xff", "is damaged WebAssembly"),
        ] {
            assert!(Contents::of(bytes).unwrap_err().starts_with(want), "{bytes:?}");
        }
    }
}
