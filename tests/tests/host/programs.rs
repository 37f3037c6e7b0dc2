//! Programs that check whether files behave as their language expects, as guests of the real host.
//! Each program writes the names of the failed checks. `docs/reference/files.md` describes what
//! each language sees.

use task_host_tests::Place;

/// Runs a program with outputs in memory and on the disk.
#[track_caller]
fn run(component: &str, at_least: usize) {
    let place = Place::with(&[component]);
    let large: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let inputs =
        [("in/hello.txt", &b"hello, world\n"[..]), ("in/empty.dat", b""), ("in/large.bin", &large)];
    for (key, bytes) in inputs {
        place.put(&format!("tests/{key}"), bytes);
    }
    for settings in [&[][..], &["--output-file-memory", "100B"]] {
        let keys = inputs.map(|(key, _)| key);
        place.submit(&[serde_json::json!({"basic_info": {
            "id": 1, "name": component, "base_directory": "tests", "inputs": keys,
        }})]);
        place.run_until_empty(&[settings, &["--max-attempts", "1"]].concat()).good();
        let report = place.object("tests/report.txt").expect("a report");
        let report = String::from_utf8(report).expect("a report in UTF-8");
        let (count, failed) = report.trim_end().split_once('\n').unwrap_or((&report, ""));
        assert!(failed.is_empty(), "{component} {settings:?}: these failed:\n{failed}");
        let count: usize = count.trim().parse().expect("the number of expectations");
        assert!(count >= at_least, "only {count} expectations");
        std::fs::remove_file(place.path().join("bucket/tests/report.txt")).unwrap();
    }
}

#[test]
fn a_program_in_rust_finds_files_as_it_expects() {
    run("rust_files", 85);
}

#[test]
fn a_program_in_c_finds_files_as_it_expects() {
    run("c_files", 160);
}

#[test]
fn a_program_in_python_finds_files_as_it_expects() {
    run("python_files", 400);
}

#[test]
fn a_program_in_javascript_finds_files_as_it_expects() {
    run("javascript_files", 90);
}
