//! Tests `try` and `component push` of components whose compilation takes very long.

use std::process::Stdio;

use rustix::process::Signal;

use super::guest::{End, component_with};
use super::{Place, signal};

/// A function that takes minutes to compile.
fn slow() -> Vec<u8> {
    let (loops, ends) = ("loop ".repeat(50_000), "i32.const 0 br_if 0 end ".repeat(50_000));
    component_with(End::Done, &format!("(func {loops} {ends})"))
}

#[test]
fn a_try_and_a_push_have_the_limits_of_a_run_and_its_quarantine() {
    let place = Place::new();
    place.write("slow.wasm", slow());
    let first = place.run("try slow.wasm --compile-timeout 1s");
    assert_eq!(first.code, Some(1), "{}", first.stderr);
    let limit = "slow.wasm can't be run: compiling it takes more than 1s of processor time";
    assert!(first.stderr.contains(limit), "{}", first.stderr);
    assert!(first.stderr.contains("raise the limit with `--compile-timeout`"), "{}", first.stderr);
    let push = "component push slow.wasm --bucket ./bucket --compile-timeout 1s";
    let second = place.run(push);
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(second.stderr.contains("this machine tried before"), "{}", second.stderr);
    assert!(!place.has("bucket"), "nothing was pushed");
    // The same with a variable.
    let mut command = place.host("component push slow.wasm --bucket ./bucket");
    let third = command.env("HOST_COMPILE_TIMEOUT", "2s").output().unwrap();
    let third = String::from_utf8_lossy(&third.stderr).into_owned();
    assert!(third.contains("more than 2s of processor time"), "{third}");
    let little = place.run("try slow.wasm --compile-memory 1MiB");
    assert_eq!(little.code, Some(2), "{}", little.stderr);
    assert!(little.stderr.contains("the minimum is 64MiB"), "{}", little.stderr);
}

/// The process id of a host's compiler, once it has started.
fn compiler(host: u32) -> i32 {
    loop {
        let children = std::fs::read_dir(format!("/proc/{host}/task")).unwrap().flatten();
        let children =
            children.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        if let Some(child) = children.collect::<String>().split_whitespace().next() {
            return child.parse().unwrap();
        }
        std::thread::yield_now();
    }
}

#[test]
fn ctrl_c_ends_a_try_that_compiles() {
    let place = Place::new();
    place.write("slow.wasm", slow());
    let mut child = place.host("try slow.wasm").stderr(Stdio::null()).spawn().unwrap();
    let compiler = compiler(child.id());
    signal(&child, Signal::INT);
    let status = child.wait().unwrap();
    assert!(!status.success(), "{status}");
    while let Ok(stat) = std::fs::read_to_string(format!("/proc/{compiler}/stat"))
        && !stat.contains(") Z ")
    {
        std::thread::yield_now();
    }
}
