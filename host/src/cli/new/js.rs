//! The project in JavaScript that `host new` creates.

use super::super::wit;

/// Commands that build the project and run it once, in its directory.
pub(super) const STEPS: &[&str] =
    &["host try . --input sample/stars.csv --payload '{\"min_rows\": 1}'"];

/// Paths in the project, and contents with placeholders. In this repository some files have other
/// names, because tools would apply them.
const TEMPLATE: &[(&str, &str)] = &[
    (".gitignore", include_str!("../../../templates/js/gitignore.in")),
    ("README.md", include_str!("../../../templates/js/README.md")),
    ("app.js", include_str!("../../../templates/js/app.js")),
    ("package.json", include_str!("../../../templates/js/package.json.in")),
    ("sample/stars.csv", include_str!("../../../templates/python/sample/stars.csv")),
    ("summary.js", include_str!("../../../templates/js/summary.js")),
    ("summary.test.js", include_str!("../../../templates/js/summary.test.js")),
    ("task-host.js", include_str!("../../../templates/js/task-host.js")),
    ("wit/world.wit", include_str!("../../../templates/js/wit/world.wit")),
    ("wit/deps/task-host.wit", wit::TASK),
];

/// The files of a project called `name`: paths and contents.
pub(super) fn files(name: &str) -> Vec<(&'static str, String)> {
    let component = name.replace('-', "_");
    // npm does not accept capital letters.
    let package = name.to_ascii_lowercase();
    let fill = |text: &str| {
        text.replace("{{name}}", name)
            .replace("{{component}}", &component)
            .replace("{{package}}", &package)
    };
    let own = TEMPLATE.iter().map(|(path, text)| (*path, fill(text)));
    own.chain(wit::WASI.iter().map(|(path, text)| (*path, (*text).to_owned()))).collect()
}
