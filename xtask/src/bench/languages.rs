//! Measures tasks in each language of `host new`, from a new project to a queue of tasks.
//!
//! The commands are those of `docs/languages.md`. The time of the first output includes downloads,
//! unless the tools of the language have their packages already.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::series::Series;
use super::table::Table;
use super::work::{Cores, Ran, Work, sync};

/// The project of one language.
struct Language {
    name: &'static str,
    sample: &'static str,
    payload: &'static str,
    /// Where the build leaves the component.
    component: &'static str,
    /// The source file that a user edits, and the start of a comment in its language.
    source: (&'static str, &'static str),
}

const LANGUAGES: [Language; 4] = [
    Language {
        name: "rust",
        sample: "tyger.txt",
        payload: r#"{"top": 5}"#,
        component: "target/wasm32-wasip2/release/first.wasm",
        source: ("src/lib.rs", "//"),
    },
    Language {
        name: "python",
        sample: "stars.csv",
        payload: r#"{"min_rows": 1}"#,
        component: "build/first.wasm",
        source: ("app.py", "#"),
    },
    Language {
        name: "js",
        sample: "stars.csv",
        payload: r#"{"min_rows": 1}"#,
        component: "build/first.wasm",
        source: ("summary.js", "//"),
    },
    Language {
        name: "c",
        sample: "stars.csv",
        payload: r#"{"min_rows": 1}"#,
        component: "build/first.wasm",
        source: ("src/summary.c", "//"),
    },
];

/// Returns a table for people, and all series. Works with `tasks` tasks of each language.
pub(super) fn measure(
    work: &Work,
    host: &Path,
    rounds: usize,
    tasks: usize,
) -> anyhow::Result<(Table, Vec<Series>)> {
    let mut table = Table::new(
        "Tasks by language: seconds until there is a first output, milliseconds of a task, and MiB",
        &[
            "",
            "from `host new` to an output, s",
            "after an edit, s",
            "component, MB",
            "compile, s",
            "load, ms",
            "a task, ms",
            "host's memory, MiB",
        ],
    );
    let mut all = Vec::new();
    for language in &LANGUAGES {
        let one = Measured { work, host, language };
        let series = |what: &str, unit| Series::new(&format!("{what}, {}", language.name), unit);
        let mut first = series("first output", "seconds");
        let mut edited = series("output after an edit", "seconds");
        let mut compile = series("compile", "seconds");
        let mut load = series("load", "milliseconds");
        let mut task = series("a task", "milliseconds");
        let mut memory = series("memory of the host", "MiB");
        let mut size = 0;
        for _ in 0..rounds {
            first.push(one.new_project()?);
            edited.push(one.edit()?);
            size = fs::metadata(one.dir().join(language.component))?.len();
            let resolve = |ran: &Ran| number(&ran.summary["steps"], "resolve");
            // The first run compiles the component, and the second loads the compiled code. Many
            // tasks follow.
            one.push()?;
            let (cold, warm) = (resolve(&one.run(1)?)?, resolve(&one.run(1)?)?);
            compile.push(cold - warm);
            load.push(warm * 1e3);
            let ran = one.run(tasks)?;
            let (made, run) = (&ran.summary["steps"], &ran.summary["done"]);
            let in_sandbox = number(made, "instantiate")? + number(made, "run")?;
            task.push(in_sandbox / run.as_f64().context("`done`")? * 1e3);
            memory.push(ran.used.peak_bytes as f64 / f64::from(1 << 20));
        }
        table.row([
            language.name.to_owned(),
            first.shown(),
            edited.shown(),
            format!("{:.1}", size as f64 / 1e6),
            compile.shown(),
            load.shown(),
            task.shown(),
            memory.shown(),
        ]);
        all.extend([first, edited, compile, load, task, memory]);
    }
    Ok((table, all))
}

/// The project of one language, in the directory of the measurements.
struct Measured<'a> {
    work: &'a Work,
    host: &'a Path,
    language: &'a Language,
}

impl Measured<'_> {
    fn dir(&self) -> PathBuf {
        self.work.dir().join("first")
    }

    fn host(&self, args: &[&str]) -> anyhow::Result<()> {
        let mut command = self.work.command(self.host, Cores::All);
        // The name that Debian gives to the compiler that tests use.
        let output = command.env("CC", "clang-14").args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "host {}: {}: {said}", args.join(" "), output.status);
        Ok(())
    }

    /// Builds the project and runs its component. Returns the seconds since `start`.
    fn until_output(&self, start: Instant) -> anyhow::Result<f64> {
        let Language { sample, payload, .. } = self.language;
        let input = format!("first/sample/{sample}");
        self.host(&["try", "first", "--input", &input, "--payload", payload, "--out", "out"])?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn new_project(&self) -> anyhow::Result<f64> {
        if self.dir().exists() {
            fs::remove_dir_all(self.dir())?;
        }
        let start = Instant::now();
        self.host(&["new", "first", "--lang", self.language.name])?;
        self.until_output(start)
    }

    fn edit(&self) -> anyhow::Result<f64> {
        let (source, comment) = self.language.source;
        let mut source = fs::OpenOptions::new().append(true).open(self.dir().join(source))?;
        writeln!(source, "{comment} edited")?;
        self.until_output(Instant::now())
    }

    /// Publishes the component, and removes its compiled code.
    fn push(&self) -> anyhow::Result<()> {
        let component = format!("first/{}", self.language.component);
        self.host(&["component", "push", &component, "--name", "first", "--bucket", "./bucket"])?;
        fs::remove_dir_all(self.work.dir().join("cache/compiled")).context("compiled code")
    }

    /// Runs `tasks` tasks from a queue.
    fn run(&self, tasks: usize) -> anyhow::Result<Ran> {
        let Language { sample, payload, .. } = self.language;
        self.work.clear()?;
        let inputs = self.work.dir().join("bucket/data/0_input");
        fs::create_dir_all(&inputs)?;
        fs::copy(self.dir().join("sample").join(sample), inputs.join(sample))?;
        let payload: Value = serde_json::from_str(payload)?;
        self.work.write_lines(tasks, |id| {
            let key = format!("0_input/{sample}");
            json!({
                "basic_info": {"id": id, "name": "first", "base_directory": "data", "inputs": [key]},
                "payload_info": payload,
            })
        })?;
        self.work.submit()?;
        sync()?;
        let ran = self.work.run(tasks, &["--parallel", "1"], Cores::All)?;
        ensure!(number(&ran.summary, "done")? >= 1.0, "{}: {}", self.language.name, ran.summary);
        Ok(ran)
    }
}

fn number(of: &Value, name: &str) -> anyhow::Result<f64> {
    of[name].as_f64().with_context(|| format!("`{name}` of the summary"))
}
