//! Attacks on the files of a task: too many bytes, files or levels, links, odd names and paths.

use misbehave::{Action, Call, Writing};
use serde_json::json;
use task_host_tests::{Place, misbehaviour};

use super::calls::raw;
use super::trial::{Case, Trial};

attacks! {
    /// Writes more bytes than the limit.
    Bytes => bytes_of_output,
    /// Makes a file longer than the limit by setting its length.
    Length => bytes_of_output_by_a_length,
    /// Leaves a hole longer than the limit, and writes after it.
    Hole => bytes_of_output_by_a_hole,
    /// Writes many small files, and continues after errors.
    Pieces => bytes_of_output_of_many_files_by_a_guest_that_ignores_errors,
    /// Copies an input that is too large, and reports success.
    Ignored => bytes_of_output_by_a_guest_that_says_all_went_well,
    /// Creates more files than the limit.
    Files => files,
    /// Creates more directories than the limit.
    Directories => directories_count_as_files,
    /// Nests directories without end.
    Depth => directories_in_each_other,
    /// Nests directories, and fills the innermost with files.
    Tree => a_deep_tree,
    /// Creates a symbolic link to a file outside of its directories.
    LinkOut => a_symbolic_link_to_outside,
    /// Creates a symbolic link to one of its own files.
    LinkInside => a_symbolic_link_to_an_output,
    /// Creates a hard link to one of its own files.
    HardLink => a_hard_link,
    /// Gives outputs names that confuse terminals, shells and other systems.
    OddNames => outputs_of_odd_names,
    /// Creates two outputs whose names differ only in case.
    Twins => outputs_that_differ_only_in_case,
    /// Sets the times of its outputs in all ways.
    Times => times_of_outputs,
    /// Passes paths that are too long to all calls.
    LongPaths => paths_that_are_too_long,
    /// Opens files with all combinations of flags.
    Flags => files_are_opened_as_the_standard_has_it,
    /// Reads, writes and resizes at offsets near the maximum.
    FarOffsets => offsets_at_the_end_of_all_numbers,
}

pub(super) fn case(attack: Attack) -> Case {
    let small = ["--max-output", "1MiB"];
    let bytes = ["the guest ran into its output limit of 1.0 MiB"];
    match attack {
        Attack::Bytes => Case::rejected(write(1, Writing::Plain), &bytes).with(&small),
        Attack::Length => Case::rejected(write(1, Writing::SetLen), &bytes).with(&small),
        Attack::Hole => Case::rejected(write(1, Writing::Seek), &bytes).with(&small),
        Attack::Pieces => Case::rejected(write(50, Writing::Plain), &bytes).with(&small),
        Attack::Ignored => Case::rejected(Action::Copy { ignore_errors: true }, &bytes)
            .with(&small)
            .input("0_input/a.dat", vec![1; 2 << 20])
            .reports("phase", "execute"),
        Attack::Files => {
            let says = ["the guest ran into its limit of 100 output files"];
            Case::rejected(Action::ManyFiles { count: 200 }, &says)
                .with(&["--max-output-files", "100"])
        }
        Attack::Directories => {
            let says = ["the guest ran into its limit of 50 output files"];
            Case::rejected(Action::Mkdirs { depth: 60 }, &says).with(&["--max-output-files", "50"])
        }
        Attack::Depth => Case::rejected(Action::Mkdirs { depth: 10_000 }, &[DEPTH]),
        Attack::Tree => {
            Case::rejected(Action::Tree { depth: 500, dirs: 3_000, files: 3_000 }, &[DEPTH])
        }
        Attack::LinkOut => no_link("../../../../etc/passwd", "way-out"),
        Attack::LinkInside => no_link("good.txt", "alias"),
        Attack::HardLink => {
            let action =
                Action::Hardlink { target: "one.txt".to_owned(), name: "two.txt".to_owned() };
            Case::rejected(action, &["hard link: Operation not permitted"])
        }
        Attack::OddNames => Case::done(Action::OddNames { names: None }).also(only_plain_names),
        Attack::Twins => {
            let names = ["Result.txt", "result.txt"].map(str::to_owned).to_vec();
            let says = ["output /outputs/result.txt: differs only in case from the output \
                         /outputs/Result.txt"];
            Case::rejected(Action::OddNames { names: Some(names) }, &says)
        }
        Attack::Times => Case::done(Action::SetTimes).also(|_, report| {
            let tried = report["tried"].as_array().expect("what was tried");
            assert!(tried.len() == 6 && tried.iter().all(|t| t["ok"] == true), "{report:#}");
        }),
        Attack::LongPaths => Case::done(long_paths(4096, "./")).also(|trial, report| {
            let mut reports = vec![report.clone()];
            for (bytes, piece) in [(15 << 20, "./"), (15 << 20, "d/../"), (15 << 20, "x")] {
                reports.push(trial.does(&[], long_paths(bytes, piece)));
            }
            for report in reports {
                let calls = report.as_object().unwrap();
                assert!(calls.len() > 10 && calls.values().all(|code| code == "name-too-long"));
            }
        }),
        Attack::Flags => {
            Case::done(raw(Call::Open)).input("0_input/a.txt", "an input\n").also(|_, report| {
                for (what, code) in FLAGS {
                    assert_eq!(report[what], *code, "{what}: {report:#}");
                }
            })
        }
        Attack::FarOffsets => {
            let says = ["the guest ran into its output limit of 4.0 GiB"];
            Case::rejected(raw(Call::FarOffsets), &says)
        }
    }
}

const DEPTH: &str = "the guest ran into the limit of 64 levels of directories";

/// The expected result of opening a file or directory with each combination of flags.
const FLAGS: &[(&str, &str)] = &[
    ("dir none", "ok"),
    ("dir create", "is-directory"),
    ("dir create directory", "invalid"),
    ("dir create exclusive", "exist"),
    ("dir directory", "ok"),
    ("dir directory exclusive", "invalid"),
    ("dir directory truncate", "invalid"),
    ("dir truncate", "is-directory"),
    ("file create", "ok"),
    ("file create directory", "invalid"),
    ("file create exclusive", "exist"),
    ("file directory", "not-directory"),
    ("file truncate", "ok"),
    ("new none", "no-entry"),
    ("new create", "ok"),
    ("new create directory", "invalid"),
    ("new create exclusive", "ok"),
    ("new directory", "no-entry"),
    ("input none", "ok"),
    ("input create", "not-permitted"),
    ("input create directory", "invalid"),
    ("input create exclusive", "not-permitted"),
    ("input truncate", "not-permitted"),
    ("new-input none", "no-entry"),
    ("new-input create", "not-permitted"),
    ("set-size", "invalid"),
    ("write", "bad-descriptor"),
    ("set-size of a writable", "ok"),
    ("set-size of an input", "not-permitted"),
    ("set-size of a directory", "bad-descriptor"),
];

/// Writes 1.5 MB in `files` files.
fn write(files: u64, how: Writing) -> Action {
    Action::Write { bytes: 1_500_000, files, how, ignore_errors: files > 1 }
}

fn no_link(target: &str, name: &str) -> Case {
    let good = Action::Output { key: "good.txt".to_owned(), text: "good".to_owned() };
    let link = Action::Symlink { target: target.to_owned(), name: name.to_owned() };
    let steps = vec![good, link];
    Case::rejected(Action::All { steps }, &["symlink: Operation not permitted"])
}

fn long_paths(bytes: usize, piece: &str) -> Action {
    raw(Call::LongPaths { bytes, piece: piece.to_owned() })
}

/// Checks that no created name has an invisible character, and that each created output is in the
/// bucket.
fn only_plain_names(trial: &mut Trial, report: &serde_json::Value) {
    let names = |what: &str| report[what].clone();
    let written: Vec<String> = serde_json::from_value(names("written")).unwrap();
    let keys = trial.place.keys();
    for name in &written {
        let is_plain = |c: char| !c.is_control() && !"\u{202e}\u{feff}\u{200b}".contains(c);
        assert!(name.chars().all(is_plain), "{name:?} was made");
        assert!(keys.contains(&format!("tests/{name}")), "{name:?} is not in {keys:#?}");
    }
    let refused = names("failed");
    for name in ["line\nbreak", "bell\u{7}", "\u{202e}gpj.exe", "zero\u{200b}width"] {
        assert!(refused[name].is_string(), "{name:?}: {report:#}");
    }
    // Removes names with a leading dot, which a later check would take for files that a host left
    // behind.
    for name in written.iter().filter(|name| name.starts_with('.')) {
        std::fs::remove_file(trial.place.path().join("bucket/tests").join(name)).unwrap();
    }
}

#[test]
fn an_output_without_end_by_single_bytes_is_stopped() {
    let place = Place::with(&["misbehave"]);
    let action =
        Action::Write { bytes: 1 << 40, files: 1, how: Writing::Bytewise, ignore_errors: false };
    place.submit(&[misbehaviour(1, &[], json!(action))]);
    place.run_until_empty(&["--max-output", "64KiB"]).code(3);
    let report = place.the_error();
    assert!(report["exception"].as_str().unwrap().contains("its output limit of 64.0 KiB"));
    assert_eq!(report["attempt"], 1);
}
