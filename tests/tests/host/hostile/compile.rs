//! Components that take very long, or too much memory, to compile. They fail their own tasks, and
//! do not affect other tasks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use task_host_tests::{Finished, Place, Running, Watched, eventually};

/// Encodes an unsigned number as LEB128.
fn leb(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n > 127 {
        bytes.push((n & 127) as u8 | 128);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn section(id: u8, contents: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(contents.len()), contents].concat()
}

/// A component with one core module, which has one function without parameters that returns a
/// number.
fn component(code: &[u8]) -> Vec<u8> {
    let body = [b"\0", code, b"\x0b"].concat();
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, b"\x01\x60\0\x01\x7f"),
        section(3, b"\x01\0"),
        section(10, &[b"\x01", &leb(body.len())[..], &body].concat()),
    ]
    .concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module)].concat()
}

/// A component that needs more memory to compile for a larger `depth`: some 70 MiB for 10,000, and
/// more than 6 GiB for 100,000.
fn nested_ifs(depth: usize) -> Vec<u8> {
    component(
        &[
            b"\x41\x01".to_vec(),
            b"\x04\x7f\x41\x01".repeat(depth),
            b"\x05\x41\x00\x0b".repeat(depth),
        ]
        .concat(),
    )
}

/// A component that takes minutes to compile.
fn slow() -> Vec<u8> {
    const DEPTH: usize = 100_000;
    component(
        &[b"\x03\x40".repeat(DEPTH), b"\x41\x00\x0d\x00\x0b".repeat(DEPTH), b"\x41\x00".to_vec()]
            .concat(),
    )
}

/// A place with `NO_OP` and with this component as `bomb`.
fn place_with(bomb: Vec<u8>) -> Place {
    let place = Place::with(&["NO_OP"]);
    place.put("components/bomb.wasm", bomb);
    place
}

fn bomb(id: usize) -> Value {
    json!({"basic_info": {"id": id, "name": "bomb", "base_directory": "bombs"}})
}

/// The processes that compile components for this host.
fn compilers(host: Pid) -> Vec<Pid> {
    let host = host.as_raw_nonzero().get();
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_of_host = |pid: &i32| {
        let path = Path::new("/proc").join(pid.to_string());
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        // The fields after the name in parentheses are the state and the parent.
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let is_alive = fields.next().is_some_and(|state| state != "Z");
        let is_child = fields.next().is_some_and(|parent| parent.parse() == Ok(host));
        let command = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        is_alive && is_child && command.contains("compile-component")
    };
    pids.filter(is_of_host).filter_map(Pid::from_raw).collect()
}

/// Waits for a compiling process that has set its limits.
fn compiler(host: &Running) -> Pid {
    eventually("a process that compiles", || {
        let pid = *compilers(host.pid()).first()?;
        let limits = fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_nonzero())).ok()?;
        let data = limits.lines().find(|line| line.starts_with("Max data size"))?;
        (!data.contains("unlimited")).then_some(pid)
    })
}

fn is_gone(pid: Pid) {
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    eventually("the end of a process", || {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

/// The peak memory of a process in MiB.
fn peak(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    let status = status.expect("the state of a process");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") >> 10
}

/// The number of failed compilations of the component.
fn compilations(log: &str) -> usize {
    log.lines().filter(|line| line.contains("component bomb (")).count()
}

#[track_caller]
fn says(report: &Value, words: &str) {
    let exception = report["exception"].as_str().unwrap_or_default();
    assert!(exception.contains(words), "{words:?} is not in {exception:?}");
}

/// The files with this extension beside the compiled code.
fn kept(place: &Place, extension: &str) -> BTreeSet<String> {
    let files = task_host_tests::files(&place.cache().join("compiled"));
    files.into_iter().filter(|name| name.ends_with(extension)).collect()
}

#[test]
fn a_component_that_takes_too_much_memory_costs_its_tasks_and_no_one_else() {
    let place = place_with(nested_ifs(100_000));
    let limit = ["--compile-memory", "512MiB"];
    let host = place.watch(&[limit, ["--max-attempts", "2"], ["--retry-after", "10ms"]].concat());
    let before = peak(host.host().pid());
    let tasks = place.innocent(5);
    place.submit(&[bomb(100), bomb(101)]);
    place.submit(&tasks);
    eventually("two reports", || (place.errors().len() == 2).then_some(()));
    eventually("an empty queue", || (place.counts() == (0, 0)).then_some(()));
    for report in place.errors() {
        says(&report, "can't be run: compiling it takes more than 512.0 MiB of memory");
        says(&report, "raise the limit with `--compile-memory`");
        assert_eq!(report["attempt"], 2, "{report:#}");
    }
    for id in 0..tasks.len() {
        assert!(place.object(&format!("data/0_output/{id}.dat")).is_some(), "{id}");
    }
    let after = peak(host.host().pid());
    assert!(after < before + 300, "{before} MiB, and then {after} MiB");
    // Four attempts need only one compilation.
    let log = host.host().stderr();
    assert_eq!(compilations(&log), 1, "{log}");
    assert_eq!(kept(&place, ".failed").len(), 1);
    assert_eq!(kept(&place, ".trying").len(), 0);
    let summary = host.stop();
    assert_eq!((&summary["done"], &summary["failed"]), (&json!(5), &json!(2)), "{summary:#}");

    // The next host does not compile the component either, unless it has a higher limit.
    place.submit(&[bomb(102)]);
    let next = place.run_until_empty(&[limit, ["--max-attempts", "1"]].concat()).code(3);
    assert_eq!(compilations(&next.stderr), 0, "{}", next.stderr);
    assert_eq!(place.errors().len(), 3);
    place.submit(&[bomb(103)]);
    let more = ["--compile-memory", "600MiB", "--max-attempts", "1"];
    let next = place.run_until_empty(&more).code(3);
    assert_eq!(compilations(&next.stderr), 1, "{}", next.stderr);
    assert!(next.stderr.contains("600.0 MiB"), "{}", next.stderr);
}

#[test]
fn higher_limits_make_a_component_of_one_that_was_too_large() {
    let place = place_with(nested_ifs(10_000));
    let run = |id, limit| {
        place.submit(&[bomb(id)]);
        let args = ["--compile-memory", limit, "--max-attempts", "1"];
        place.run_until_empty(&args).code(3).stderr
    };
    let said = run(1, "64MiB");
    assert!(said.contains("more than 64.0 MiB of memory"), "{said}");
    assert!(run(2, "64MiB").contains("this machine tried before"));
    // The component has no exports, which the host notices after compilation.
    let said = run(3, "1GiB");
    assert!(said.contains("component bomb compiled in") && said.contains("no export"), "{said}");
    assert_eq!(kept(&place, ".failed").len(), 0);
}

#[test]
fn a_component_that_takes_too_much_time_is_given_up_and_may_be_let_off() {
    let place = place_with(slow());
    let args = ["--compile-timeout", "1s", "--max-attempts", "1"];
    let run = |id| {
        place.submit(&[bomb(id)]);
        place.run_until_empty(&args).code(3).stderr
    };
    assert_eq!(compilations(&run(1)), 1);
    let report = place.the_error();
    says(&report, "can't be run: compiling it takes more than 1s of processor time");
    says(&report, "raise the limit with `--compile-timeout`");
    assert_eq!(compilations(&run(2)), 0);

    let listed = place.host(&["cache", "quarantine", "--json"]).good();
    let listed: Value = serde_json::from_str(&listed.stdout).expect("a list");
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed:#}");
    let reason = listed[0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("1s of processor time"), "{reason}");
    let cleared = place.host(&["cache", "quarantine", "--clear"]).good();
    assert!(cleared.stderr.contains("1 component may be compiled again"), "{}", cleared.stderr);
    assert_eq!(compilations(&run(3)), 1);
    let refused = |line: &[&str]| place.host(line).code(1).stderr;
    // The error tells an invalid component from one that is too large.
    place.put("components/bomb.wasm", b"\0asm\x0d\0\x01\0\x01\x05wrong");
    place.submit(&[bomb(4)]);
    place.run_until_empty(&args).code(3);
    assert!(place.errors().iter().any(|report| {
        let exception = report["exception"].as_str().unwrap_or_default();
        exception.contains("can't be run") && !exception.contains("--compile-timeout")
    }));
    assert!(refused(&["compile-component"]).contains("this command is for `host` itself"));
}

#[test]
fn a_host_that_compiles_stops_when_it_is_told_to_and_leaves_no_process() {
    let place = place_with(slow());
    place.submit(&[bomb(1)]);
    let first = place.start(&["--max-tasks", "1"]);
    let pid = compiler(&first);
    // The environment of the compiling process contains no credentials.
    let environment = fs::read_to_string(format!("/proc/{}/environ", pid.as_raw_nonzero()));
    let environment = environment.expect("the environment of a process");
    let names: Vec<_> = environment.split('\0').filter_map(|one| one.split('=').next()).collect();
    assert_eq!(names, ["RAYON_NUM_THREADS", ""]);
    // A second host leases the second message, and waits until the first host has compiled the
    // component.
    let second = place.start(&[]);
    place.submit(&[bomb(2)]);
    eventually("two messages that are held", || (place.counts() == (2, 2)).then_some(()));
    for host in [second, first] {
        host.signal(Signal::TERM);
        // The host runs no task, so it does not wait for its grace period.
        host.wait().good();
    }
    is_gone(pid);
    assert_eq!(place.counts(), (2, 0));
    assert!(place.errors().is_empty());
    // A stopped compilation is not recorded as a failure.
    assert_eq!(kept(&place, ".failed").len() + kept(&place, ".trying").len(), 0);
}

#[test]
fn a_host_that_is_killed_leaves_no_process_and_its_death_is_counted() {
    let place = place_with(slow());
    place.submit(&[bomb(1)]);
    for _ in 0..2 {
        let host = place.start(&[]);
        let pid = compiler(&host);
        host.signal(Signal::KILL);
        host.wait();
        is_gone(pid);
        place.host(&["queue", "release", "--fq", "./queue", "--yes"]).good();
    }
    let run = place.run_until_empty(&["--max-attempts", "1"]).code(3);
    says(&place.the_error(), "compiling it was started 2 times and did not finish");
    assert_eq!(compilations(&run.stderr), 1, "{}", run.stderr);
}

#[test]
fn a_compiler_that_is_killed_is_tried_once_more() {
    let place = place_with(slow());
    place.submit(&[bomb(1)]);
    let host = place.start(&["--max-attempts", "1"]);
    let mut killed = BTreeSet::new();
    for _ in 0..2 {
        let pid = eventually("a process that was not killed", || {
            Some(compiler(&host)).filter(|pid| !killed.contains(&pid.as_raw_nonzero()))
        });
        kill_process(pid, Signal::KILL).expect("a process of ours");
        killed.insert(pid.as_raw_nonzero());
    }
    eventually("a report", || (!place.errors().is_empty()).then_some(()));
    says(&place.the_error(), "compiling it was started 2 times and did not finish");
    says(&place.the_error(), "for lack of memory");
    assert_eq!(place.the_error()["attempt"], 1);
    host.signal(Signal::TERM);
    host.wait().good();
}

#[test]
fn tasks_that_wait_for_a_component_make_room_for_others() {
    let place = place_with(slow());
    place.submit(&(100..108).map(bomb).collect::<Vec<_>>());
    // The host has one slot, and the task whose component is being compiled must not occupy it.
    let host = place.start(&["--parallel", "1", "--prefetch", "0"]);
    let pid = compiler(&host);
    place.submit(&place.innocent(20));
    eventually("all others", || {
        let is_done = |id| place.object(&format!("data/0_output/{id}.dat")).is_some();
        ((0..20).all(is_done) && place.counts().0 == 8).then_some(())
    });
    // A single process was compiling the component all this time.
    assert_eq!(compilers(host.pid()), [pid]);
    assert!(place.errors().is_empty());
    host.signal(Signal::TERM);
    host.wait().good();
    assert_eq!(place.counts().0, 8);
}

/// A file system for programs. Dropping this unmounts it.
struct Programs(PathBuf);

impl Programs {
    fn mount(&self, options: &str) {
        Finished::run(
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(&self.0),
        )
        .good();
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        // Unmounts lazily, because a killed host may still be using the file system.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_host_that_can_not_start_processes_waits_until_it_can() {
    let place = Place::new();
    // Copies the file instead of pushing the component, so that no compiled code exists for the
    // hosts.
    let no_op = fs::read(task_host_tests::guest("NO_OP")).expect("a guest");
    place.put("components/NO_OP.wasm", no_op);
    let programs = Programs(place.path().join("programs"));
    fs::create_dir(&programs.0).expect("a directory");
    programs.mount("mode=755");
    let program = programs.0.join("host");
    fs::copy(task_host_tests::host(), &program).expect("a program");
    let usual = place.command(&[]);
    let mut command = Command::new(&program);
    command.args(["run", "--fq", "./queue", "--max-attempts", "1"]).args(Watched::FLAGS);
    command.current_dir(place.path()).env_clear();
    command.envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let host = Watched::new(Running::start(command, &place.path().join("logs")));
    programs.mount("remount,noexec");
    place.submit(&place.innocent(3));
    host.is_out("starting the compiler failed: Permission denied");
    programs.mount("remount,exec");
    place.innocent_are_done(3);
    host.did_without_harm(3);
}

#[test]
fn a_machine_on_which_nothing_can_be_compiled_is_found_before_a_run() {
    let place = Place::with(&["NO_OP"]);
    let host = place.command(&[]);
    let script = "mount -t tmpfs none /proc && exec \"$0\" doctor --fq ./queue";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(host.get_program());
    command.current_dir(place.path()).env_clear();
    command.envs(host.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = Finished::run(&mut command).code(1).stdout;
    let problem = "problem  compiler: components can't be compiled: starting the compiler failed";
    assert!(said.contains(problem), "{said}");
    let said = place.host(&["doctor", "--fq", "./queue"]).good().stdout;
    assert!(said.contains("ok       compiler: works"), "{said}");
}
