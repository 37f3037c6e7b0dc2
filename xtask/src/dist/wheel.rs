//! The wheel: `pip install task-host` installs the command `host` and a module that sends tasks.

use std::path::PathBuf;
use std::process::Command;

use super::licences;
use super::release::{LICENCES, Program, Release};
use crate::setup;

/// Writes `task_host-VERSION-py3-none-PLATFORMS.whl`.
///
/// maturin would build the program itself, but PyPA's tool can pack an existing program.
pub(crate) fn pack(release: &Release<'_>, program: &Program) -> anyhow::Result<PathBuf> {
    let name = format!("task_host-{}", release.version);
    let stage = release.stage("wheel")?;
    stage.copy(&program.file, &format!("{name}/{name}.data/scripts/host"), 0o755)?;
    let module = release.project.root.join("producer-python/task_host");
    for file in ["__init__.py", "py.typed"] {
        stage.copy(&module.join(file), &format!("{name}/task_host/{file}"), 0o644)?;
    }
    let info = format!("{name}/{name}.dist-info");
    let tags = program.target.wheel();
    let tags: Vec<String> = tags.iter().map(|tag| format!("Tag: {tag}\n")).collect();
    let wheel = format!(
        "Wheel-Version: 1.0\nGenerator: task-host {}\nRoot-Is-Purelib: false\n{}",
        release.version,
        tags.concat()
    );
    stage.write(&format!("{info}/WHEEL"), &wheel, 0o644)?;
    stage.write(&format!("{info}/METADATA"), &metadata(release), 0o644)?;
    release.licences(&stage, &format!("{info}/licenses"), program)?;

    let python = setup::packing_tools(release.project)?.join("bin/python");
    let platforms = program.target.wheel().map(|tag| tag.replace("py3-none-", "")).join(".");
    let mut pack = Command::new(python);
    pack.args(["-m", "wheel", "pack", "--dest-dir"]).arg(release.dir).arg(stage.dir().join(&name));
    release.made(&format!("{name}-py3-none-{platforms}.whl"), &mut pack)
}

/// The metadata that PyPI shows about the package.
fn metadata(release: &Release<'_>) -> String {
    let Release { version, summary, licence, repository, .. } = release;
    let files = LICENCES.iter().chain([&licences::FILE]);
    let files: Vec<String> = files.map(|name| format!("License-File: {name}\n")).collect();
    let files = files.concat();
    format!(
        "\
Metadata-Version: 2.4
Name: task-host
Version: {version}
Summary: {summary}
License-Expression: {licence}
{files}Requires-Python: >=3.6.1
Keywords: tasks,queue,wasm,sandbox,s3
Classifier: Environment :: Console
Classifier: Operating System :: POSIX :: Linux
Classifier: Programming Language :: Rust
Classifier: Topic :: System :: Distributed Computing
Classifier: Typing :: Typed
Project-URL: Repository, {repository}
Project-URL: Documentation, {repository}#documentation
Project-URL: Changes, {repository}/blob/main/CHANGELOG.md
Description-Content-Type: text/markdown

{summary}.

This package installs the program `host`, which is linked statically and needs no Python:

```console
$ pip install task-host
$ host --help
```

It also has a module that sends tasks to the queue, as many as there are:

```python
from task_host import Task, submit

tasks = (Task(\"blur\", \"datasets/cells\", [f\"0_input/{{n}}.png\"]) for n in range(1_000_000))
print(submit(tasks, queue=\"sqs://blur\"))
```

The guides and the reference are in [the repository]({repository}#documentation).
"
    )
}
