//! `cargo xtask test`: checks formatting, lints and documentation, and runs every test, as CI does.
//!
//! It runs the tests with plain `cargo test`, which needs no installation and has a familiar
//! output.

use std::collections::BTreeSet;
use std::env;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{bail, ensure};
use clap::Args;

use crate::build::{self, TestProgram};
use crate::command;
use crate::fuzz::Fuzzer;
use crate::project::Project;
use crate::servers::{Servers, Which};
use crate::{book, deny, languages, package, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// Only tests: no formatting, lints, licences, packages or documentation
    #[arg(long)]
    no_lint: bool,
    /// Only formatting, lints, licences, packages and documentation: no tests
    #[arg(long, conflicts_with_all = ["no_lint", "fast", "filter"])]
    lint: bool,
    /// Only formatting, and tests that need no guests, servers or installed tools
    #[arg(long)]
    fast: bool,
    /// Only tests whose names contain this, and what they need
    filter: Option<String>,
}

/// The needs of a test besides the programs that Cargo builds. All of them need guests in Rust, and
/// a Python with python-task-queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Needs {
    /// Nothing else.
    Guests,
    /// A browser and curl.
    Browser,
    /// Guests in other languages.
    Languages,
    /// The tools that pack the host and install the packages, and Docker.
    Packages,
    /// Servers for the cloud services.
    Servers,
    /// Servers for the cloud services, Docker and Slurm.
    Engines,
}

/// The tests that need Docker and Slurm in addition to servers.
const WITH_ENGINES: &[(&str, &str)] = &[("fleet", ""), ("soak", "fleets_on_")];

/// The tests that need servers, as test programs and beginnings of test names.
const WITH_SERVERS: &[(&str, &str)] = &[
    ("task_host", "bucket::tests::conformance::of_azure::"),
    ("task_host", "bucket::tests::conformance::of_google::"),
    ("task_host", "bucket::tests::conformance::of_s3::"),
    ("task_host", "bucket::tests::encoded::"),
    ("task_host", "bucket::tests::service::"),
    ("task_host", "bucket::tests::tried::"),
    ("task_host", "queue::pubsub::tests::"),
    ("task_host", "queue::sqs::tests::against_server::"),
    ("cli", "a_bucket_of_a_cloud_that_can_not_be_used_is_said_at_the_start"),
    ("cli", "credentials_of_aws_are_found_where_its_tools_find_them"),
    ("cloud", ""),
    ("demo", "the_demo_runs_on_sqs"),
    ("docs", "page::cloud_"),
    ("docs", "page::fleets"),
    ("docs", "page::readme"),
    ("fault_points", "aws::"),
    ("fault_points", "google::"),
];

/// The tests that need a browser or curl.
const WITH_BROWSER: &[(&str, &str)] = &[("docs", "page::status_page"), ("host", "page::")];

/// The tests that need guests in other languages.
const WITH_LANGUAGES: &[(&str, &str)] = &[
    ("docs", "page::languages"),
    ("host", "components::a_component_is_shown_with_the_language_"),
    ("host", "deterministic::a_program_in_c_"),
    ("host", "deterministic::a_program_in_javascript_"),
    ("host", "deterministic::a_program_in_python_"),
    ("host", "planned_projects::"),
    ("host", "programs::a_program_in_c_"),
    ("host", "programs::a_program_in_javascript_"),
    ("host", "programs::a_program_in_python_"),
    ("host", "python_guest::"),
    ("host", "projects::a_project_in_"),
    ("host", "wasi_programs::a_program_in_c_"),
];

/// The tests that need the tools that pack the host and install the packages, and Docker.
const WITH_PACKAGES: &[(&str, &str)] = &[("packages", "")];

/// The tests that need guests and nothing else.
const WITH_GUESTS: &[(&str, &str)] = &[
    ("crash", ""),
    ("demo", ""),
    ("docs", "page::"),
    ("docs", "printed::"),
    ("fault_points", ""),
    ("host", ""),
    ("soak", ""),
];

/// The test programs that mostly wait: for leases to expire, for a container, for a job. They run
/// in parallel with the others.
const THAT_WAIT: [&str; 3] = ["fault_points", "fleet", "soak"];

/// The test program that also needs a host with fault points.
const WITH_FAULT_POINTS: &str = "fault_points";

impl Needs {
    /// The needs of a test. None if the test needs only programs that Cargo builds.
    fn of(program: &TestProgram, test: &str) -> Option<Self> {
        let among = |tests: &[(&str, &str)]| {
            tests.iter().any(|(name, begin)| *name == program.name && test.starts_with(begin))
        };
        // The unit tests of the program `host` have the same name as the tests that run it from
        // outside.
        if program.is_bin() {
            None
        } else if among(WITH_ENGINES) {
            Some(Self::Engines)
        } else if among(WITH_SERVERS) {
            Some(Self::Servers)
        } else if among(WITH_BROWSER) {
            Some(Self::Browser)
        } else if among(WITH_LANGUAGES) {
            Some(Self::Languages)
        } else if among(WITH_PACKAGES) {
            Some(Self::Packages)
        } else if among(WITH_GUESTS) {
            Some(Self::Guests)
        } else {
            None
        }
    }
}

/// Builds and installs everything that the tests need, and starts the servers.
fn prepare(project: &Project, needs: &BTreeSet<Needs>) -> anyhow::Result<Option<Servers>> {
    if needs.is_empty() {
        return Ok(None);
    }
    setup::wasm_target(project)?;
    setup::python(project)?;
    setup::fuse()?;
    setup::strace()?;
    build::guests(project)?;
    build::programs(project)?;
    if needs.contains(&Needs::Browser) {
        setup::browser(project)?;
    }
    if needs.contains(&Needs::Packages) {
        setup::packages(project)?;
    }
    if needs.contains(&Needs::Languages) {
        languages::guests(project)?;
    }
    let has_clouds = needs.contains(&Needs::Servers) || needs.contains(&Needs::Engines);
    let has_engines = needs.contains(&Needs::Packages) || needs.contains(&Needs::Engines);
    let which = match (has_clouds, has_engines) {
        (true, true) => Which::All,
        (true, false) => Which::Clouds,
        (false, true) => Which::Engines,
        (false, false) => return Ok(None),
    };
    setup::machine_tools()?;
    setup::fleet_tools(project)?;
    setup::helm(project)?;
    Servers::start(project, which).map(Some)
}

pub(crate) fn run(project: &Project, options: &Options) -> anyhow::Result<()> {
    let start = Instant::now();
    let ran = if options.lint {
        lint(project)?;
        LINTS.to_owned()
    } else if options.fast || options.filter.is_some() {
        some(project, options)?
    } else {
        if !options.no_lint {
            lint(project)?;
        }
        all(project)?;
        let lints = if options.no_lint { String::new() } else { format!("{LINTS}; ") };
        format!(
            "{lints}unit tests, documentation tests, the real host end to end, against servers of \
             SQS, S3, GCS, Azure Blob Storage and Pub/Sub, on Docker and Slurm, and a minute of each fuzz target"
        )
    };
    println!("All passed: {ran} ({} s).", start.elapsed().as_secs());
    Ok(())
}

/// Runs every test.
fn all(project: &Project) -> anyhow::Result<()> {
    let programs = build::tests(project)?;
    build::host_with_fault_points(project)?;
    for (name, begin) in listed() {
        let mut found = false;
        for program in programs.iter().filter(|program| program.name == *name) {
            found |= program.tests(None)?.iter().any(|test| test.starts_with(begin));
        }
        ensure!(found, "xtask/src/test.rs lists `{name} {begin}`, but no test has this name");
    }
    let needs = [Needs::Browser, Needs::Languages, Needs::Packages, Needs::Engines];
    let servers = prepare(project, &needs.into())?;
    let fuzzer = Fuzzer::build(project)?;
    let (waiting, working): (Vec<_>, Vec<_>) =
        programs.iter().partition(|program| THAT_WAIT.contains(&&*program.name));
    let tests = |programs: &[&TestProgram]| {
        let targets: BTreeSet<_> = programs.iter().map(|program| program.target()).collect();
        let mut tests = project.cargo();
        // Continues after a failure, so that one run reports everything.
        tests.args(["test", "--workspace", "--no-fail-fast"]).args(targets.into_iter().flatten());
        tests.envs(servers.iter().flat_map(Servers::variables));
        tests
    };
    let (mut waiting, mut working) = (tests(&waiting), tests(&working));
    let processors = thread::available_parallelism().map_or(1, usize::from);
    run_at_a_time(&mut working, PER_PROCESSOR * processors);
    let mut documentation = project.cargo();
    documentation.args(["test", "--workspace", "--doc"]);
    let (tested, waited, searched) = thread::scope(|scope| {
        let wait = scope.spawn(|| command::run_quietly(&mut waiting));
        let search = scope.spawn(|| fuzzer.search_beside_tests());
        let tested = [command::run(&mut working), command::run(&mut documentation)];
        (tested, joined(wait), joined(search))
    });
    if let Ok((output, _)) = &waited {
        println!("{output}");
    }
    let [tests, documentation] = tested;
    tests.and(documentation).and(waited.and_then(|(_, ended)| ended)).and(searched)
}

/// Sets how many tests run at the same time, unless the user has set it.
fn run_at_a_time(tests: &mut Command, threads: usize) {
    const VARIABLE: &str = "RUST_TEST_THREADS";
    if env::var_os(VARIABLE).is_none() {
        tests.env(VARIABLE, threads.to_string());
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Runs the selected tests, and returns a description of their number.
fn some(project: &Project, options: &Options) -> anyhow::Result<String> {
    if options.fast {
        command::run(project.cargo().args(["fmt", "--all", "--check"]))?;
    }
    let mut needs = BTreeSet::new();
    let mut count = 0;
    let mut targets = BTreeSet::new();
    let mut skipped = BTreeSet::new();
    let mut has_fault_points = false;
    for program in build::tests(project)? {
        for test in program.tests(options.filter.as_deref())? {
            let needed = Needs::of(&program, &test);
            if options.fast && needed.is_some() {
                skipped.insert(test);
                continue;
            }
            needs.extend(needed);
            has_fault_points |= program.name == WITH_FAULT_POINTS;
            count += 1;
            targets.insert(program.target());
        }
    }
    if count == 0 {
        let filter = options.filter.as_deref().unwrap_or_default();
        bail!(
            "no test's name contains `{filter}`{}; run documentation tests with `cargo test \
             --workspace --doc {filter}`",
            if skipped.is_empty() { "" } else { " and needs nothing" }
        );
    }
    if has_fault_points {
        build::host_with_fault_points(project)?;
    }
    let servers = prepare(project, &needs)?;
    let mut tests = project.cargo();
    tests.args(["test", "--workspace", "--no-fail-fast"]).args(targets.into_iter().flatten());
    tests.args(&options.filter).arg("--");
    if options.fast {
        run_at_a_time(&mut tests, THREADS);
        let listed = listed().map(|(_, begin)| *begin);
        // A test program is not among the targets if all its tests have needs.
        for begin in listed.filter(|begin| skipped.iter().any(|test| test.starts_with(begin))) {
            if !begin.is_empty() {
                tests.args(["--skip", begin]);
            }
        }
    }
    tests.envs(servers.iter().flat_map(Servers::variables));
    command::run(&mut tests)?;
    Ok(format!("{count} tests"))
}

/// All tests that have needs, as test programs and beginnings of test names.
fn listed() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    let servers = WITH_ENGINES.iter().chain(WITH_SERVERS).chain(WITH_PACKAGES);
    servers.chain(WITH_BROWSER).chain(WITH_LANGUAGES).chain(WITH_GUESTS)
}

/// How many quick tests run at a time. They mostly wait for leases to expire.
const THREADS: usize = 8;

/// How many tests of a full run each processor runs at a time. Many of them wait for half of their
/// time.
const PER_PROCESSOR: usize = 2;

const LINTS: &str = "formatting, lints, licences, packages and documentation";

fn lint(project: &Project) -> anyhow::Result<()> {
    command::run(project.cargo().args(["fmt", "--all", "--check"]))?;
    deny::check(project)?;
    const DENY: [&str; 3] = ["--", "-D", "warnings"];
    command::run(project.cargo().args(["clippy", "--workspace", "--all-targets"]).args(DENY))?;
    let mut clippy = project.cargo();
    clippy.args(["clippy", "--workspace", "--lib", "--bins", "--test", "style"]);
    command::run(clippy.args(build::FAULT_POINTS).args(DENY))?;
    package::check(project)?;
    command::run(
        project
            .cargo()
            .env("RUSTDOCFLAGS", "-D warnings")
            .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
            .args(build::FAULT_POINTS),
    )?;
    book::build(project)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `--fast`, a test that needs a server and is not listed would fail.
    #[test]
    fn every_file_that_asks_for_a_server_is_listed() {
        let source = Project::find().unwrap().root.join("host/src");
        let servers =
            ["AWS", "AZURE", "GCS", "PUBSUB"].map(|name| format!("TASK_HOST_TEST_{name}"));
        let mut asking = Vec::new();
        let mut directories = vec![source.clone()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                if servers.iter().any(|server| text.contains(server)) {
                    let module = path.strip_prefix(&source).unwrap().with_extension("");
                    asking.push(format!("{}::", module.display()).replace('/', "::"));
                }
            }
        }
        assert!(asking.len() > 3, "hardly any: {asking:?}");
        for module in asking {
            let is_listed = |(_, begin): &&(&str, &str)| {
                !begin.is_empty() && (begin.starts_with(&module) || module.starts_with(begin))
            };
            assert!(WITH_SERVERS.iter().any(|entry| is_listed(&entry)), "{module}");
        }
    }
}
