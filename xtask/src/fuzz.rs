//! `cargo xtask fuzz`: searches for inputs that break a promise of a parser, with libFuzzer.
//!
//! Each target starts with the corpus in the repository and with the inputs that earlier runs on
//! this machine found. Inputs that reach new code are added to the corpus in the repository, except
//! when the tests run the search.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::command::{run as run_command, styled};
use crate::project::Project;
use crate::setup;

/// How long the tests search with each target.
const BRIEF: Duration = Duration::from_secs(60);
/// The maximum size of an input in bytes.
const LONGEST: usize = 4096;
/// After this number of seconds, libFuzzer reports an input as too slow. An input normally takes
/// less than a thousandth of this time, so a busy machine causes no false reports.
const TIMEOUT: u64 = 120;
/// The maximum memory of a target in mebibytes.
const MEMORY: usize = 2048;
/// The number of hexadecimal digits in the file names that libFuzzer chooses.
const DIGITS: usize = 40;

#[derive(Args)]
pub(crate) struct Options {
    /// Targets [default: all]
    targets: Vec<String>,
    /// Time for each target, such as 90s, 10m or 1h
    #[arg(long = "for", value_name = "TIME", value_parser = time, default_value = "60s")]
    time: Duration,
    /// Targets that run at the same time [default: the number of processors]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Only run this input with one target
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

fn time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => 0,
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)) {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("is not a time; write for example 90s, 10m or 1h".to_owned()),
    }
}

/// The program with all targets, and the directories of one clone.
pub(crate) struct Fuzzer {
    program: PathBuf,
    /// The corpus in the repository.
    corpus: PathBuf,
    /// The inputs that runs on this machine found.
    kept: PathBuf,
}

pub(crate) fn run(project: &Project, options: &Options) -> anyhow::Result<()> {
    let fuzzer = Fuzzer::build(project)?;
    let all = fuzzer.targets()?;
    if let Some(unknown) = options.targets.iter().find(|name| !all.contains(*name)) {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        bail!("`{unknown}` is not a target; the targets are {}", all.join(", "));
    }
    let targets: Vec<String> = match options.targets.is_empty() {
        true => all.into_iter().collect(),
        false => options.targets.clone(),
    };
    if let Some(input) = &options.input {
        ensure!(targets.len() == 1, "--input needs one target");
        // The program starts in the user's current directory, so relative paths work.
        return run_command(fuzzer.command(&targets[0]).arg(input));
    }
    let searched = fuzzer.search(&targets, options.time, options.jobs);
    for target in &targets {
        fuzzer.keep(target)?;
    }
    println!("New inputs are in fuzz/corpus: review and commit them.");
    searched
}

impl Fuzzer {
    /// Searches for a minute with each target, and changes no file of the repository. Uses one
    /// processor at low priority.
    pub(crate) fn search_beside_tests(&self) -> anyhow::Result<()> {
        let targets: Vec<String> = self.targets()?.into_iter().collect();
        self.search(&targets, BRIEF, Some(1))
    }

    pub(crate) fn build(project: &Project) -> anyhow::Result<Self> {
        setup::cpp_compiler()?;
        // Builds the whole workspace, as for tests. Cargo then selects the same features of
        // dependencies, and compiles only the project's own crates again, for the other wrapper.
        run_command(
            project
                .cargo()
                .env("RUSTC_WORKSPACE_WRAPPER", project.root.join("fuzz/instrument"))
                .args(["build", "--workspace", "--bin", "fuzz"])
                .args(["--features", "task-host-fuzz/libfuzzer"]),
        )?;
        Ok(Self {
            program: project.target.join("debug/fuzz"),
            corpus: project.root.join("fuzz/corpus"),
            kept: project.target.join("fuzz"),
        })
    }

    /// The targets. Each has a directory in the corpus, which a test checks.
    fn targets(&self) -> anyhow::Result<BTreeSet<String>> {
        names(&self.corpus)
    }

    fn command(&self, target: &str) -> Command {
        // A low priority, so that other programs run first.
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(&self.program);
        command.env("FUZZ_TARGET", target).env("RUST_BACKTRACE", "0");
        command.args([
            format!("-max_len={LONGEST}"),
            format!("-timeout={TIMEOUT}"),
            format!("-rss_limit_mb={MEMORY}"),
        ]);
        command
    }

    /// Searches with several targets at a time. Prints the findings of each.
    fn search(
        &self,
        targets: &[String],
        time: Duration,
        jobs: Option<usize>,
    ) -> anyhow::Result<()> {
        let processors = || thread::available_parallelism().map_or(1, usize::from);
        let jobs = jobs.unwrap_or_else(processors).clamp(1, targets.len().max(1));
        let seconds = time.as_secs() * (targets.len().div_ceil(jobs) as u64);
        println!("{} targets, {jobs} at a time: {} minutes", targets.len(), seconds.div_ceil(60));
        let next = AtomicUsize::new(0);
        let work = || {
            let mut failed = Vec::new();
            while let Some(target) = targets.get(next.fetch_add(1, Relaxed)) {
                if let Err(error) = self.search_one(target, time) {
                    println!("{} {error:#}", styled("1", target));
                    failed.push(target.as_str());
                }
            }
            failed
        };
        let failed: Vec<&str> = thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
            let joined = workers.into_iter().map(|worker| worker.join());
            joined.flat_map(|failed| failed.unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        ensure!(failed.is_empty(), "these targets failed: {}", failed.join(", "));
        Ok(())
    }

    fn search_one(&self, target: &str, time: Duration) -> anyhow::Result<()> {
        let (found, log) = (self.found(target), self.kept.join(format!("{target}.log")));
        fs::create_dir_all(&found)?;
        let broken = self.kept.join(format!("broken/{target}-"));
        fs::create_dir_all(self.kept.join("broken"))?;
        let output = File::create(&log)?;
        let start = Instant::now();
        let status = self
            .command(target)
            .arg(format!("-max_total_time={}", time.as_secs()))
            .arg(format!("-dict={}", self.corpus.with_file_name("words.dict").display()))
            .arg(format!("-artifact_prefix={}", broken.display()))
            .args([&found, &self.corpus.join(target)])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .status()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        if status.success() {
            let runs = text.lines().rev().find_map(|line| line.strip_prefix("Done "));
            let runs = runs.and_then(|rest| rest.split(' ').next()).unwrap_or("?");
            println!("{target}: {runs} inputs in {} s", start.elapsed().as_secs());
            return Ok(());
        }
        let after = |mark: &str| text.lines().find_map(|line| Some(line.split_once(mark)?.1));
        let panic = text.lines().skip_while(|line| !line.contains("panicked at")).take(4);
        let why = panic.collect::<Vec<_>>().join("\n");
        let summary = after("SUMMARY: libFuzzer: ").unwrap_or("it ended early");
        match after("Test unit written to ") {
            Some(input) => bail!(
                "broke a promise ({summary}):\n{why}\nRepeat it with `cargo xtask fuzz {target} \
                 --input {input}`. Copy the file to fuzz/corpus/{target}, under a name that says \
                 what is wrong, and `cargo test` fails until it is fixed."
            ),
            None => bail!("{summary} ({status}); its output is in {}", log.display()),
        }
    }

    fn found(&self, target: &str) -> PathBuf {
        self.kept.join("found").join(target)
    }

    /// Adds inputs that reach new code to the corpus in the repository, and removes inputs that no
    /// longer do. Keeps files that people named.
    fn keep(&self, target: &str) -> anyhow::Result<()> {
        let corpus = self.corpus.join(target);
        let smallest = self.kept.join("smallest").join(target);
        if smallest.exists() {
            fs::remove_dir_all(&smallest)?;
        }
        fs::create_dir_all(&smallest)?;
        for name in names(&corpus)?.into_iter().filter(|name| !is_digest(name)) {
            fs::copy(corpus.join(&name), smallest.join(&name))?;
        }
        let log = File::create(self.kept.join(format!("{target}.merge.log")))?;
        let status = self
            .command(target)
            // Keeps one input for each place in the code, not for each number of times it is
            // reached: a tenth of the files.
            .args(["-merge=1", "-use_counters=0"])
            .args([&smallest, &corpus, &self.found(target)])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        ensure!(status.success(), "merging the inputs of {target} failed: {status}");
        let (old, new) = (names(&corpus)?, names(&smallest)?);
        for name in old.difference(&new) {
            fs::remove_file(corpus.join(name))?;
        }
        for name in new.difference(&old) {
            fs::copy(smallest.join(name), corpus.join(name))?;
        }
        Ok(())
    }
}

/// Whether libFuzzer chose this file name.
fn is_digest(name: &str) -> bool {
    name.len() == DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The names in a directory.
fn names(directory: &Path) -> anyhow::Result<BTreeSet<String>> {
    let shown = || format!("cannot read {}", directory.display());
    let entries = fs::read_dir(directory).with_context(shown)?;
    entries
        .map(|entry| {
            let name = entry.with_context(shown)?.file_name();
            name.into_string().map_err(|name| anyhow::anyhow!("{name:?} is not a name"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("1h"), Ok(Duration::from_secs(3600)));
        for text in ["", "5", "h", "0s", "1d", "-1s", "99999999999999999999s", "99999999999999999h"]
        {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_that_people_named_are_told_apart() {
        assert!(is_digest("1323958f22c6dff6d12e82c74cc3f298b828b472"));
        assert!(!is_digest("a-field-twice") && !is_digest("0"));
    }
}
