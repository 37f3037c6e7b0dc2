//! Every command in the documentation is run.
//!
//! A block that is marked `console` holds commands after `$ `, continued after `> `; its other
//! lines are what they print, and are not compared. The blocks of a page are run in their
//! order in one shell, in an empty directory, and each command has to succeed. A block marked
//! `console,no-run` is not run; the line before it says why: `<!-- not run: REASON -->`.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use task_host_tests::{aws_variables, files, google_key, host, python, server, target};

/// Where a reader would have a clone, a network and time, the test has what is here already.
const STAND_INS: &[(&str, &str)] = &[
    // A clone: this one, with room for what is made in it.
    (
        "git",
        r#"
case "$1" in
clone)
    dir=${3:-$(basename "$2" .git)}
    mkdir "$dir"
    for entry in $("$GIT" -C "$ROOT" ls-tree --name-only HEAD); do
        ln -s "$ROOT/$entry" "$dir/$entry"
    done ;;
*) exec "$GIT" "$@" ;;
esac"#,
    ),
    // What was built for tests is taken for what would be built; guest projects are built.
    (
        "cargo",
        r#"
case "$1 ${2:-}" in
'xtask demo') shift 2; exec "$XTASK" demo --profile dev "$@" ;;
'xtask guests') mkdir -p target; ln -sfn "$GUESTS" target/guests ;;
'xtask '*) exec "$XTASK" "$2" --help ;;
'install --path') echo "installed: $(command -v host)" ;;
*)
    # The directory of this test's own build is not the reader's.
    unset CARGO_TARGET_DIR
    exec "$CARGO_PROGRAM" "$@" ;;
esac"#,
    ),
    ("pip", "exit 0"),
    // Google's command line, as far as pages use it, against the servers of the tests.
    (
        "gcloud",
        r#"
put() { curl -fsS -o /dev/null -X PUT -H 'Content-Type: application/json' "$@"; }
pubsub="http://$PUBSUB_EMULATOR_HOST/v1/projects/my-project"
case "$1 $2 $3" in
'storage buckets create') put "$TASK_HOST_TEST_GCS/${4#gs://}" ;;
'storage cp '*) put --data-binary "@$3" "$TASK_HOST_TEST_GCS/${4#gs://}" ;;
'pubsub topics create') put -d '{}' "$pubsub/topics/$4" ;;
'pubsub subscriptions create')
    put -d "{\"topic\": \"projects/my-project/topics/$6\", \"ackDeadlineSeconds\": 600}" \
        "$pubsub/subscriptions/$4" ;;
*) echo "gcloud $*: no page used that" >&2; exit 1 ;;
esac"#,
    ),
    // The first version of AWS's asks SQS at its own address unless it is told this way.
    ("aws", "exec \"$AWS\" --endpoint-url \"$AWS_ENDPOINT_URL\" \"$@\""),
    // Azure's, as far as pages use it.
    ("az", "exec python -c \"$AZ\" \"$@\""),
];

/// `az` as a program of Python, which can sign a request.
const AZ: &str = r#"
import base64, email.utils, hashlib, hmac, os, sys, urllib.error, urllib.parse, urllib.request
account, key = "devstoreaccount1", (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==")

def request(method, path, query="", body=None, headers={}):
    resource = "/" + account + "/" + path
    headers = dict(headers, **{"x-ms-version": "2021-08-06", "x-ms-date": email.utils.formatdate(usegmt=True)})
    if body is not None:
        headers["Content-Type"] = "application/octet-stream"
    ours = "".join(f"{k}:{v}\n" for k, v in sorted(headers.items()) if k.startswith("x-ms-"))
    asked = "".join(f"\n{k}:{v}" for k, v in sorted(urllib.parse.parse_qsl(query)))
    length, kind = str(len(body)) if body else "", headers.get("Content-Type", "")
    text = f"{method}\n\n\n{length}\n\n{kind}\n\n\n\n\n\n\n{ours}/{account}{resource}{asked}"
    mac = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {account}:" + base64.b64encode(mac).decode()
    url = os.environ["AZURITE_BLOB_STORAGE_URL"] + resource + ("?" + query if query else "")
    return urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method)).read()

command = sys.argv[1:4]
given = dict(zip(sys.argv[4::2], sys.argv[5::2]))
if command == ["storage", "container", "create"]:
    try:
        request("PUT", given["--name"], "restype=container")
    except urllib.error.HTTPError as error:
        # One that is there is no error for az.
        if error.code != 409: raise
elif command == ["storage", "blob", "upload"]:
    path = given["--container-name"] + "/" + given["--name"]
    request("PUT", path, body=open(given["--file"], "rb").read(), headers={"x-ms-blob-type": "BlockBlob"})
elif command == ["storage", "blob", "download"]:
    open(given["--file"], "wb").write(request("GET", given["--container-name"] + "/" + given["--name"]))
else:
    sys.exit(f"az {sys.argv[1:]}: no page used that")
"#;

#[derive(Debug, PartialEq, Eq)]
struct Typed {
    line: usize,
    command: String,
}

/// The commands of a page in their order.
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
                        return Err(format!("line {}: says not why it is not run", number + 1));
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
        Some(mark) => Err(format!("a block ```{mark} has no end")),
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

/// One shell program for a page, which says what it is at.
fn script(name: &str, typed: &[Typed]) -> String {
    // What was started in the background ends with the page.
    let mut script =
        "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n".to_owned();
    for Typed { line, command } in typed {
        let shown = command.replace('\'', r"'\''");
        let _ = writeln!(script, "printf '%s\\n' '{name}:{line}: $ {shown}' >&2\n{command}");
    }
    script
}

fn stand_ins(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    for (name, text) in STAND_INS {
        let path = dir.join(name);
        let text = text.trim_start();
        std::fs::write(&path, format!("#!/bin/bash\nset -eu\n{text}\n")).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// The program that a name stands for, on the path of this test.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not on the PATH"))
}

#[test]
fn every_command_of_every_page_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut pages = vec![root.join("README.md")];
    let docs = files(&root.join("docs")).into_iter().filter(|name| name.ends_with(".md"));
    pages.extend(docs.map(|name| root.join("docs").join(name)));

    let mut failures = Vec::new();
    for page in pages {
        let name = page.strip_prefix(root).unwrap().display().to_string();
        let text = std::fs::read_to_string(&page)
            .unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        match commands(&text) {
            Ok(typed) => failures.extend(run(root, &name, &typed)),
            Err(problem) => failures.push(format!("{name}: {problem}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Runs a page, and tells how it failed.
fn run(root: &Path, name: &str, typed: &[Typed]) -> Option<String> {
    if typed.is_empty() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (work, home, bin) =
        (dir.path().join("work"), dir.path().join("home"), dir.path().join("bin"));
    for made in [&work, &home] {
        std::fs::create_dir(made).unwrap();
    }
    stand_ins(&bin);
    std::os::unix::fs::symlink(host(), bin.join("host")).unwrap();

    let python = python("python");
    let mut path = vec![bin, python.parent().unwrap().to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let (git, cargo) = (program("git"), program("cargo"));
    let keep = |variable: &str, below: &str| {
        // Toolchains and downloads are the user's, whose home is not the page's.
        std::env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(below)))
    };
    let mut bash = Command::new("bash");
    bash.args(["-c", &script(name, typed)]).current_dir(&work);
    bash.env("HOME", &home).env_remove("XDG_CACHE_HOME");
    bash.env("PATH", std::env::join_paths(path).unwrap());
    bash.env("ROOT", root).env("GIT", git).env("CARGO_PROGRAM", cargo);
    bash.env("XTASK", target().join("debug/xtask"));
    // By its path: the directory it is in has another Python.
    bash.env("AWS", target().join("aws/bin/aws"));
    bash.env("GUESTS", target().join("guests"));
    for (variable, below) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
        if let Some(path) = keep(variable, below) {
            bash.env(variable, path);
        }
    }
    // Services of clouds are those that the tests have.
    bash.envs(aws_variables(&server("TASK_HOST_TEST_AWS"))).env("AWS_DEFAULT_REGION", "us-east-1");
    bash.env("PUBSUB_EMULATOR_HOST", server("TASK_HOST_TEST_PUBSUB"));
    bash.env("AZURITE_BLOB_STORAGE_URL", server("TASK_HOST_TEST_AZURE")).env("AZ", AZ);
    bash.env("GOOGLE_APPLICATION_CREDENTIALS", google_key(&home));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("HOST_") {
            bash.env_remove(variable);
        }
    }
    let output = bash.stdin(std::process::Stdio::null()).output().expect("bash");
    println!("{name}: {} commands", typed.len());
    if output.status.success() {
        return None;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = said.lines().rev().take(30).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Some(format!("{name}: {}\n  {}", output.status, tail.join("\n  ")))
}
