//! The project in C that `host new` creates.
//!
//! It contains the bindings that `wit-bindgen` generates, so that it needs only a C compiler.

/// Commands that build the project and run it once, in its directory.
pub(super) const STEPS: &[&str] =
    &["host try . --input sample/stars.csv --payload '{\"min_rows\": 1}'"];

/// Paths in the project, and contents with placeholders. In this repository `.gitignore` has
/// another name, because git would apply it.
const TEMPLATE: &[(&str, &str)] = &[
    (".gitignore", include_str!("../../../templates/c/gitignore.in")),
    ("Makefile", include_str!("../../../templates/c/Makefile")),
    ("README.md", include_str!("../../../templates/c/README.md")),
    ("bindings/task.c", include_str!("../../../templates/c/bindings/task.c")),
    ("bindings/task.h", include_str!("../../../templates/c/bindings/task.h")),
    ("sample/stars.csv", include_str!("../../../templates/python/sample/stars.csv")),
    ("src/summary.c", include_str!("../../../templates/c/src/summary.c")),
    ("src/task_host.h", include_str!("../../../templates/c/src/task_host.h")),
];

/// Paths in the project, and binary contents: the component's interface as an object file.
pub(super) const OBJECTS: &[(&str, &[u8])] = &[(
    "bindings/task_component_type.o",
    include_bytes!("../../../templates/c/bindings/task_component_type.o"),
)];

/// The files of a project called `name`: paths and contents.
pub(super) fn files(name: &str) -> Vec<(&'static str, String)> {
    let component = name.replace('-', "_");
    let fill = |text: &str| text.replace("{{name}}", name).replace("{{component}}", &component);
    TEMPLATE.iter().map(|(path, text)| (*path, fill(text))).collect()
}
