//! Runs every command in the documentation.
//!
//! In a block marked `console`, commands follow `$ ` and continue after `> `; other lines are output,
//! which is not compared. The blocks of a page run in order in one shell, in an empty directory, and
//! each command must succeed. A block marked `console,no-run` does not run; the line before it says
//! why: `<!-- not run: REASON -->`.
//!
//! `tests/stand-ins` contains replacements for programs that need a clone, a network or much time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use task_host_tests::{aws_variables, files, google_key, host, python, server, target};

macro_rules! pages {
    ($($test:ident => $page:literal,)*) => {
        const PAGES: &[&str] = &[$($page),*];

        mod page {
            $(#[test]
            fn $test() {
                super::check($page);
            })*
        }
    };
}

// Pages run in parallel. The pages of the clouds and the README need servers; `xtask/src/test.rs` lists
// their tests.
pages! {
    changelog => "CHANGELOG.md",
    contributing => "CONTRIBUTING.md",
    readme => "README.md",
    security_policy => "SECURITY.md",
    architecture => "docs/architecture.md",
    benchmarks => "docs/benchmarks.md",
    cloud_aws => "docs/cloud/aws.md",
    cloud_azure => "docs/cloud/azure.md",
    cloud_google => "docs/cloud/google.md",
    coming_from => "docs/coming-from.md",
    fleets => "docs/fleets.md",
    glossary => "docs/glossary.md",
    install => "docs/install.md",
    languages => "docs/languages.md",
    interface_versions => "docs/interface-versions.md",
    metrics => "docs/metrics.md",
    operating => "docs/operating.md",
    questions => "docs/questions.md",
    reference_bucket => "docs/reference/bucket.md",
    reference_command_line => "docs/reference/command-line.md",
    reference_determinism => "docs/reference/determinism.md",
    reference_confinement => "docs/reference/confinement.md",
    reference_files => "docs/reference/files.md",
    reference_messages => "docs/reference/messages.md",
    reference_queue => "docs/reference/queue.md",
    reference_queue_directory => "docs/reference/queue-directory.md",
    reference_queue_pubsub => "docs/reference/queue-pubsub.md",
    reference_queue_sqs => "docs/reference/queue-sqs.md",
    reference_receipts => "docs/reference/receipts.md",
    reference_trust => "docs/reference/trust.md",
    releasing => "docs/releasing.md",
    security => "docs/security.md",
    status_page => "docs/status-page.md",
    summary => "docs/SUMMARY.md",
    watching => "docs/watching.md",
    writing_a_task => "docs/writing-a-task.md",
}

#[derive(Debug, PartialEq, Eq)]
struct Typed {
    line: usize,
    command: String,
}

/// The commands of a page, in order.
fn commands(page: &str) -> Result<Vec<Typed>, String> {
    let mut typed: Vec<Typed> = Vec::new();
    let mut block = None;
    let mut before = "";
    for (number, line) in page.lines().enumerate() {
        let line = line.trim_start();
        match (block, line.strip_prefix("```")) {
            (None, Some(mark)) => {
                if mark == "console,no-run" {
                    let reason = before.strip_prefix("<!-- not run: ");
                    if reason.is_none_or(|reason| reason.trim_end_matches("-->").trim().is_empty())
                    {
                        return Err(format!("line {}: does not say why it is not run", number + 1));
                    }
                } else if mark.starts_with("console") && mark != "console" {
                    return Err(format!("line {}: unknown mark `{mark}`", number + 1));
                }
                block = Some(mark);
            }
            (Some(_), Some("")) => block = None,
            (Some("console"), _) => {
                if let Some(command) = line.strip_prefix("$ ") {
                    typed.push(Typed { line: number + 1, command: command.to_owned() });
                } else if let (Some(more), Some(last)) = (line.strip_prefix("> "), typed.last_mut())
                {
                    last.command.push('\n');
                    last.command.push_str(more);
                }
            }
            _ => {}
        }
        if !line.is_empty() {
            before = line;
        }
    }
    match block {
        Some(mark) => Err(format!("a block ```{mark} does not end")),
        None => Ok(typed),
    }
}

#[test]
fn commands_are_found_in_console_blocks_only() {
    let page = "\
# Title
```console
$ host new my-task
made it
$ host submit \\
>   --fq ./queue
```
```sh
$ no
```
<!-- not run: needs an account -->

```console,no-run
$ aws s3 ls
```
";
    let typed = |line, command: &str| Typed { line, command: command.to_owned() };
    assert_eq!(
        commands(page).unwrap(),
        [typed(3, "host new my-task"), typed(5, "host submit \\\n  --fq ./queue")]
    );
    assert!(commands("```console,no-run\n$ x\n```").is_err());
    assert!(commands("```console\n$ x\n").is_err());
    assert!(commands("```console,later\n$ x\n```").is_err());
}

/// A shell program that runs a page and prints each command.
fn script(name: &str, typed: &[Typed]) -> String {
    // Background jobs end with the page.
    let mut script =
        "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n".to_owned();
    for Typed { line, command } in typed {
        let shown = command.replace('\'', r"'\''");
        let _ = writeln!(script, "printf '%s\\n' '{name}:{line}: $ {shown}' >&2\n{command}");
    }
    script
}

/// The path of a program.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not on the PATH"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(page: &str) -> Vec<Typed> {
    let text = std::fs::read_to_string(root().join(page))
        .unwrap_or_else(|error| panic!("{page}: {error}"));
    commands(&text).unwrap_or_else(|problem| panic!("{page}: {problem}"))
}

#[test]
fn every_page_has_a_test() {
    let pages_of = |dir: &str| {
        let names = files(&root().join(dir)).into_iter().filter(|name| name.ends_with(".md"));
        names.map(|name| format!("{dir}{name}")).collect::<Vec<_>>()
    };
    let mut pages: Vec<String> = pages_of("docs/");
    let top = std::fs::read_dir(root()).unwrap();
    let top = top.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    pages.extend(top.filter(|name| name.ends_with(".md")));
    let pages: BTreeSet<&str> = pages.iter().map(String::as_str).collect();
    let tested: BTreeSet<&str> = PAGES.iter().copied().collect();
    let untested: Vec<_> = pages.difference(&tested).collect();
    assert!(untested.is_empty(), "add these to `pages!` in this file: {untested:?}");
    let gone: Vec<_> = tested.difference(&pages).collect();
    assert!(gone.is_empty(), "remove these from `pages!` in this file: {gone:?}");
}

/// Pages run in parallel against the same servers.
#[test]
fn no_two_pages_use_the_same_bucket_or_queue_of_a_service() {
    let mut users: BTreeMap<String, &str> = BTreeMap::new();
    for page in PAGES {
        for name in read(page).iter().flat_map(|typed| services(&typed.command)) {
            let first = *users.entry(name.clone()).or_insert(page);
            assert_eq!(first, *page, "{name} is used by both");
        }
    }
    assert!(users.len() > 5, "hardly any page uses a service: {users:?}");
}

/// The cloud buckets and queues in a command.
fn services(command: &str) -> Vec<String> {
    let named = |(scheme, server): (&'static str, &'static str)| {
        command.match_indices(scheme).map(move |(at, _)| {
            let rest = &command[at + scheme.len()..];
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '-');
            format!("{server} {}", &rest[..end.unwrap_or(rest.len())])
        })
    };
    // The test server for Google Cloud Storage keeps its objects in the server for S3.
    let servers =
        [("s3://", "bucket"), ("gs://", "bucket"), ("az://", "container"), ("sqs://", "queue")];
    servers.into_iter().flat_map(named).collect()
}

/// Commands that the program prints in hints and pages.
mod printed {
    use super::*;

    #[test]
    fn what_a_new_project_says_works() {
        let mut typed = vec![Typed { line: 1, command: "host new word-count".to_owned() }];
        let dir = tempfile::tempdir().unwrap();
        let mut new = Command::new(host());
        let output = new.args(["new", "word-count"]).current_dir(dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let printed = said.lines().enumerate().filter_map(|(n, line)| {
            Some(Typed { line: n + 1, command: line.strip_prefix("  ")?.to_owned() })
        });
        typed.extend(printed);
        assert!(typed.len() > 2, "no commands in {said}");
        typed.push(Typed { line: 0, command: "test -s out/1_words/tyger.tsv".to_owned() });
        run("host new", &typed);
    }

    #[test]
    fn the_page_runs_the_commands_in_the_readme_of_a_project_in_python() {
        let dir = tempfile::tempdir().unwrap();
        let mut new = Command::new(host());
        new.args(["new", "star-summary", "--lang", "python"]).current_dir(dir.path());
        assert!(new.output().unwrap().status.success());
        let readme = std::fs::read_to_string(dir.path().join("star-summary/README.md")).unwrap();
        let page = read("docs/languages.md");
        let typed = commands(&readme).unwrap();
        assert!(typed.len() > 5, "hardly any commands: {typed:?}");
        for Typed { command, .. } in typed {
            assert!(page.iter().any(|typed| typed.command == command), "not run: {command}");
        }
    }
}

/// Checks the commands of a page.
fn check(page: &str) {
    let typed = read(page);
    if !typed.is_empty() {
        run(page, &typed);
    }
}

/// Runs commands in one shell, in an empty directory.
fn run(page: &str, typed: &[Typed]) {
    let uses_services = typed.iter().any(|typed| !services(&typed.command).is_empty());
    let dir = tempfile::tempdir().unwrap();
    let (work, home, bin) =
        (dir.path().join("work"), dir.path().join("home"), dir.path().join("bin"));
    for made in [&work, &home, &bin] {
        std::fs::create_dir(made).unwrap();
    }
    std::os::unix::fs::symlink(host(), bin.join("host")).unwrap();

    let python = python("python");
    let stand_ins = root().join("tests/stand-ins");
    let mut path = vec![bin, stand_ins, python.parent().unwrap().to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let (git, cargo) = (program("git"), program("cargo"));
    let keep = |variable: &str, below: &str| {
        // The page has its own home directory, but uses the user's toolchains and downloads.
        std::env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(below)))
    };
    let mut bash = Command::new("bash");
    bash.args(["-c", &script(page, typed)]).current_dir(&work);
    bash.env("HOME", &home).env_remove("XDG_CACHE_HOME");
    bash.env("PATH", std::env::join_paths(path).unwrap());
    bash.env("ROOT", root()).env("GIT", git).env("CARGO_PROGRAM", cargo);
    bash.env("XTASK", target().join("debug/xtask"));
    // The module that the wheel contains in addition to the program.
    bash.env("PYTHONPATH", root().join("producer-python"));
    // Passed as a path, because its directory contains another Python.
    bash.env("AWS", target().join("aws/bin/aws"));
    bash.env("GUESTS", target().join("guests"));
    bash.env("FLEET", target().join("fleet"));
    // pip takes the packages of new projects from this directory.
    bash.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", target().join("python-wheels"));
    bash.env("STAND_IN_CLUSTER", dir.path().join("cluster"));
    for (variable, below) in
        [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup"), ("npm_config_cache", ".npm")]
    {
        if let Some(path) = keep(variable, below) {
            bash.env(variable, path);
        }
    }
    if uses_services {
        bash.envs(aws_variables(&server("TASK_HOST_TEST_AWS")));
        bash.env("AWS_DEFAULT_REGION", "us-east-1");
        bash.env("PUBSUB_EMULATOR_HOST", server("TASK_HOST_TEST_PUBSUB"));
        bash.env("AZURITE_BLOB_STORAGE_URL", server("TASK_HOST_TEST_AZURE"));
        bash.env("GOOGLE_APPLICATION_CREDENTIALS", google_key(&home));
    }
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("HOST_") {
            bash.env_remove(variable);
        }
    }
    // Otherwise, the host would send requests to a cloud's metadata service.
    bash.env("HOST_NOTICE", "none");
    let output = bash.stdin(std::process::Stdio::null()).output().expect("bash");
    let said = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = said.lines().rev().take(30).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    assert!(output.status.success(), "{page}: {}\n  {}", output.status, tail.join("\n  "));
}
