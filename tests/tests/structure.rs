//! The structure of the host's code: imports go only to lower layers, and there are no import
//! cycles between files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::{self, Visit};

/// The modules of the host in layers, from top to bottom. A module imports only from the layers
/// below its own.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["overview"],
    &["fit", "fleet", "metrics", "transfer", "worker"],
    &["task"],
    &["services"],
    &["config"],
    &["verdict"],
    &["failure", "heartbeat", "receipt", "telemetry"],
    &["needs"],
    &["activity", "prefetch", "report", "catalog", "publish"],
    &["lease", "cache", "sandbox"],
    &["queue", "bucket"],
    &["spill"],
    &["notice", "protection"],
    &["ahead", "hold", "identity", "message", "outage", "ownership", "process_dir", "stats"],
    &["aws", "cause", "confinement", "json", "key", "machine", "roots", "turns", "words"],
    &[
        "ask",
        "blocking",
        "bytes",
        "digest",
        "dirs",
        "environment",
        "fault",
        "pace",
        "plain",
        "scheme",
        "shell",
        "shortage",
    ],
    &["system"],
];

/// A file as a module path: `["queue", "file", "lease"]`.
type Module = Vec<String>;

/// Which files import which.
struct Imports(BTreeMap<Module, BTreeSet<Module>>);

impl Imports {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("host/src");
        let files: BTreeMap<Module, String> = task_host_tests::files(&root)
            .into_iter()
            .filter(|file| file.ends_with(".rs"))
            .map(|file| {
                let module = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
                (module, std::fs::read_to_string(root.join(&file)).unwrap())
            })
            .collect();
        assert!(files.len() > 100, "hardly any files: {:?}", files.keys());
        let names: BTreeSet<Module> = files.keys().cloned().collect();
        let parse = |(module, text): (&Module, &String)| {
            let file = syn::parse_file(text).unwrap_or_else(|e| panic!("{module:?}: {e}"));
            (module.clone(), file)
        };
        let files: Vec<(Module, syn::File)> = files.iter().map(parse).collect();
        let tests: Vec<Module> = files.iter().flat_map(test_modules).collect();
        let is_test = |module: &Module| tests.iter().any(|test| module.starts_with(test));
        let production = files.iter().filter(|(module, _)| !is_test(module));
        let imports = production.map(|(module, file)| {
            let mut found = Found { files: &names, here: module.clone(), imports: BTreeSet::new() };
            found.visit_file(file);
            found.imports.remove(module);
            (module.clone(), found.imports)
        });
        Self(imports.filter(|(module, _)| module[0] != "lib").collect())
    }
}

/// The child modules of a file that exist only for tests.
fn test_modules((module, file): &(Module, syn::File)) -> Vec<Module> {
    let parent = if module[0] == "lib" || module[0] == "main" { &[] } else { module.as_slice() };
    let children = file.items.iter().filter_map(|item| match item {
        syn::Item::Mod(child) if is_test(&child.attrs) => Some(child.ident.to_string()),
        _ => None,
    });
    children.map(|child| [parent, &[child]].concat()).collect()
}

/// Collects the files that a file refers to by paths, outside of its tests.
struct Found<'a> {
    files: &'a BTreeSet<Module>,
    /// The module of the visited code, which may be nested in a file.
    here: Module,
    imports: BTreeSet<Module>,
}

impl Found<'_> {
    /// Adds the file that contains the item of a path, if the file belongs to the host.
    fn add(&mut self, path: &[String]) {
        let mut path = path;
        let mut base: Module = match path.first().map(String::as_str) {
            Some("crate" | "task_host") => Vec::new(),
            Some("self") => self.here.clone(),
            Some("super") => {
                let mut base = self.here.clone();
                base.pop();
                while path.get(1).is_some_and(|next| next == "super") {
                    base.pop();
                    path = &path[1..];
                }
                base
            }
            // The path begins with a child module.
            Some(_) => {
                let mut child = self.here.clone();
                child.push(path[0].clone());
                if !self.files.contains(&child) {
                    return;
                }
                self.here.clone()
            }
            None => return,
        };
        let begins_here = !matches!(path[0].as_str(), "crate" | "task_host" | "self" | "super");
        base.extend(path[usize::from(!begins_here)..].iter().cloned());
        while !base.is_empty() {
            if self.files.contains(&base) {
                self.imports.insert(base);
                return;
            }
            base.pop();
        }
    }

    fn add_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: String| [before, &[name]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(path.ident.to_string()), &path.tree),
            syn::UseTree::Name(name) => self.add(&with(name.ident.to_string())),
            syn::UseTree::Rename(name) => self.add(&with(name.ident.to_string())),
            syn::UseTree::Glob(_) => self.add(before),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_tree(before, tree));
            }
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || matches!(&attribute.meta, syn::Meta::List(list)
                if list.path.is_ident("cfg") && tokens(list).any(|token| token == "test"))
    })
}

fn tokens(list: &syn::MetaList) -> impl Iterator<Item = String> {
    let text = list.tokens.to_string();
    let words = text.split(|c: char| !c.is_alphanumeric()).map(str::to_owned);
    words.collect::<Vec<_>>().into_iter()
}

impl<'ast> Visit<'ast> for Found<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.add_tree(&[], &item.tree);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) && item.content.is_some() {
            self.here.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.here.pop();
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !is_test(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if names.len() > 1 {
            self.add(&names);
        }
        visit::visit_path(self, path);
    }
}

#[test]
fn imports_point_down_the_layers() {
    let imports = Imports::read();
    let layer = |module: &Module| {
        LAYERS.iter().position(|layer| layer.contains(&module[0].as_str())).unwrap_or(usize::MAX)
    };
    let tops: BTreeSet<&String> = imports.0.keys().map(|module| &module[0]).collect();
    let known = LAYERS.concat();
    let unknown: Vec<_> = tops.iter().filter(|name| !known.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "give these modules a place in LAYERS: {unknown:?}");
    let gone: Vec<_> = known.iter().filter(|name| !tops.iter().any(|t| t == *name)).collect();
    assert!(gone.is_empty(), "LAYERS names modules that don't exist: {gone:?}");
    let upwards: Vec<String> = imports
        .0
        .iter()
        .flat_map(|(from, to)| to.iter().map(move |to| (from, to)))
        .filter(|(from, to)| from[0] != to[0] && layer(from) >= layer(to))
        .map(|(from, to)| format!("{} imports {}", from.join("/"), to.join("/")))
        .collect();
    assert!(upwards.is_empty(), "imports that point upwards: {upwards:#?}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let Imports(mut imports) = Imports::read();
    // Imports between a module and the files below it do not count.
    for (from, to) in &mut imports {
        to.retain(|to| !to.starts_with(from) && !from.starts_with(to));
    }
    // A file that imports nothing, or that nothing imports, is not part of a cycle.
    loop {
        let before = imports.len();
        let importers: BTreeSet<Module> = imports.keys().cloned().collect();
        imports.values_mut().for_each(|to| to.retain(|to| importers.contains(to)));
        let imported: BTreeSet<Module> = imports.values().flatten().cloned().collect();
        imports.retain(|from, to| !to.is_empty() && imported.contains(from));
        if imports.len() == before {
            break;
        }
    }
    let circles: Vec<String> = imports
        .iter()
        .map(|(from, to)| {
            let to: Vec<String> = to.iter().map(|to| to.join("/")).collect();
            format!("{} imports {}", from.join("/"), to.join(", "))
        })
        .collect();
    assert!(circles.is_empty(), "files that import each other in circles: {circles:#?}");
}

/// The production code of a file, without its tests and comments.
fn code(file: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("host/src").join(file)).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The production files of the host that contain one of these words.
fn files_with(words: &[&str]) -> Vec<String> {
    let files = Imports::read().0.into_keys().map(|module| format!("{}.rs", module.join("/")));
    let has_one = |file: &String| {
        let code = code(file);
        words.iter().any(|word| code.contains(word))
    };
    files.filter(has_one).collect()
}

#[test]
fn only_one_file_decides() {
    let verdicts = ["Verdict::Reject", "Verdict::Retry", "Verdict::Return"];
    // Other files only match on verdicts.
    let makes_one =
        |line: &str| verdicts.iter().any(|verdict| line.contains(verdict)) && !is_pattern(line);
    let makers: Vec<String> = files_with(&verdicts)
        .into_iter()
        .filter(|file| code(file).lines().any(makes_one))
        .collect();
    assert_eq!(makers, ["verdict.rs"]);
}

/// Whether a line is an arm of a `match`.
fn is_pattern(line: &str) -> bool {
    line.contains("=>") && line.find("Verdict::") < line.find("=>")
}

#[test]
fn only_one_file_of_the_library_reads_the_environment() {
    let calls = ["env::var", "env::vars", "env::var_os", "env::home_dir", "env::temp_dir"];
    let readers = files_with(&calls);
    let is_allowed =
        |file: &String| file == "environment.rs" || file == "main.rs" || file.starts_with("cli/");
    let others: Vec<&String> = readers.iter().filter(|file| !is_allowed(file)).collect();
    assert!(readers.contains(&"environment.rs".to_owned()) && others.is_empty(), "{others:?}");
}

/// The text of a file of the repository.
fn text(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The rows of all tables in a part of a page, without the table heads.
fn rows(page: &str) -> Vec<&str> {
    let lines: Vec<&str> = page.lines().collect();
    let is_row = |at: &usize| {
        let is_head = lines.get(at + 1).is_some_and(|next| next.starts_with("|---"));
        lines[*at].starts_with("| ") && !is_head
    };
    (0..lines.len()).filter(is_row).map(|at| lines[at]).collect()
}

/// The tests that a text links to as [`name`](file). Checks that they exist.
fn linked_tests(text: &str) -> Vec<&str> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs");
    let links = text.split("[`").skip(1).filter_map(|rest| rest.split_once("`]("));
    let mut tests = Vec::new();
    for (name, rest) in links {
        let file = rest.split_once(')').expect("the end of the link").0;
        // Other links lead to pages, or to files by their names.
        if !file.ends_with(".rs") || name.contains('/') {
            continue;
        }
        let file = docs.join(file);
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file:?}: {e}"));
        // The name is a file of tests, a test function, or a test that a macro generates from a
        // list.
        let is_there = file.ends_with(name)
            || [format!("fn {name}("), format!("=> {name},")]
                .iter()
                .any(|test| text.contains(test));
        assert!(is_there, "{name} is not in {file:?}");
        tests.push(name);
    }
    tests
}

/// The part of a page between two headings.
fn part<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let (_, part) = page.split_once(&format!("\n## {from}\n")).expect("the first heading");
    part.split_once(&format!("\n## {to}\n")).expect("the heading after it").0
}

/// Checks that each row of the tables has a test. Returns the number of rows.
#[track_caller]
fn each_row_has_a_test(part: &str) -> usize {
    let rows = rows(part);
    for row in &rows {
        assert!(!linked_tests(row).is_empty(), "no test: {row}");
    }
    rows.len()
}

#[test]
fn every_invariant_of_the_architecture_has_its_tests() {
    let page = text("docs/architecture.md");
    assert!(each_row_has_a_test(part(&page, "Invariants", "What a fault leaves")) > 10);
}

#[test]
fn every_promise_of_the_security_page_has_its_tests() {
    let page = text("docs/security.md");
    let promises = part(&page, "What a task can see and do", "What is not protected");
    assert!(each_row_has_a_test(promises) > 60);
    linked_tests(&page);
}

#[test]
fn every_attack_of_the_tests_belongs_to_a_promise() {
    let page = text("docs/security.md");
    let linked = linked_tests(&page);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/hostile");
    let mut attacks = 0;
    for file in task_host_tests::files(&dir) {
        let text = std::fs::read_to_string(dir.join(&file)).unwrap();
        let Some((_, list)) = text.split_once("\nattacks! {\n") else { continue };
        let list = list.split_once("\n}\n").expect("the end of the list").0;
        let names =
            list.lines().filter_map(|line| line.trim().strip_suffix(',')?.split_once(" => "));
        for (_, name) in names {
            attacks += 1;
            assert!(linked.contains(&name), "docs/security.md does not link to {name} of {file}");
        }
    }
    assert!(attacks > 70, "{attacks}");
}

#[test]
fn the_advisories_were_checked_for_the_version_of_wasmtime_that_is_used() {
    let lock = text("Cargo.lock");
    let (_, package) = lock.split_once("\nname = \"wasmtime\"\n").expect("wasmtime");
    let version = package.split('"').nth(1).expect("a version");
    let checked = format!("\nwasmtime {version} was checked on 20");
    assert!(
        text("docs/security.md").contains(&checked),
        "docs/security.md does not say that wasmtime {version} was checked: look up the advisories \
         of wasmtime, and change its section \"wasmtime\""
    );
}

#[test]
fn the_engine_is_built_without_the_parts_that_the_security_page_excludes() {
    let manifest = text("host/Cargo.toml");
    let is_engine =
        |line: &&str| line.starts_with("wasmtime = ") || line.starts_with("wasmtime-wasi = ");
    let engine: Vec<&str> = manifest.lines().filter(is_engine).collect();
    assert_eq!(engine.len(), 2);
    for line in engine {
        assert!(line.contains("default-features = false"), "{line}");
        for part in ["winch", "gc", "threads", "component-model-async", "p3", "coredump", "debug"] {
            assert!(!line.contains(&format!("\"{part}")), "{part}: {line}");
        }
    }
    assert!(!manifest.contains("wasmtime-wasi-http"), "wasi:http");
    assert!(text("host/src/sandbox.rs").contains(".wasm_gc(false)"), "garbage collection is on");
}
