//! Attacks on resources that the host holds for a guest: handles, open files, directory listings.

use misbehave::{Action, Call};
use serde_json::{Value, json};
use task_host_tests::components;
use task_host_tests::{Place, Running, Watched, eventually};

use super::calls::raw;
use super::trial::Case;

attacks! {
    /// Holds a million streams.
    Streams => handles_on_streams,
    /// Holds a million timers, and waits for all of them.
    Timers => handles_on_timers,
    /// Holds handles of a resource type of its own.
    Own => handles_of_its_own,
    /// Holds half as many handles as the limit.
    Below => handles_below_the_limit,
    /// Opens a file more often than the limit, and continues after errors.
    OpenFiles => open_files_by_a_guest_that_takes_no_for_an_answer,
    /// Opens a file more often than the limit, and rejects its task.
    OpenFilesOrReject => open_files_by_a_guest_that_gives_up,
    /// Opens more files than the limit one after the other, and closes each.
    OpenFilesInTurn => open_files_one_after_the_other,
    /// Reads a large directory through many streams.
    DirectoryStreams => directory_streams,
}

pub(super) fn case(attack: Attack) -> Case {
    let limit = ["the guest ran into the limit of 10000 handles"];
    match attack {
        Attack::Streams => Case::rejected(raw(Call::Handles { count: 1_000_000 }), &limit),
        Attack::Timers => Case::rejected(raw(Call::Timers { count: 1_000_000 }), &limit),
        Attack::Own => {
            let resource = r#"(core module $d (func (export "dtor") (param i32)))
                (core instance $d (instantiate $d))
                (alias core export $d "dtor" (core func $dtor))
                (type $thing (resource (rep i32) (dtor (core func $dtor))))
                (core func $new (canon resource.new $thing))
                (core instance $things (export "new" (func $new)))"#;
            let import = r#"(import "things" "new" (func $new (param i32) (result i32)))"#;
            let component = components::composed_of(
                resource,
                import,
                r#"(with "things" (instance $things))"#,
                "(loop $more (drop (call $new (i32.const 1))) (br $more)) (i32.const 1040)",
            );
            Case::rejected(component, &["handles", "100000 with its own"])
        }
        Attack::Below => Case::done(raw(Call::Handles { count: 5_000 })).reports("made", 5_000),
        Attack::OpenFiles => Case::done(raw(Call::OpenFiles { count: 100_000 }))
            .reports("made", 1000)
            .reports("error", "quota"),
        Attack::OpenFilesOrReject => {
            let says = ["limit of 1000 files and directories", "`--max-open-files` raises it"];
            Case::rejected(raw(Call::OpenFilesOrReject { count: 100_000 }), &says)
        }
        Attack::OpenFilesInTurn => {
            Case::done(raw(Call::OpenFilesInTurn { count: 3_000 })).reports("made", 3_000)
        }
        Attack::DirectoryStreams => {
            Case::done(raw(Call::DirectoryStreams { count: 100_000, files: 3_000 }))
                .reports("made", 1000)
                .reports("error", "quota")
        }
    }
}

#[test]
pub(super) fn a_neighbour_of_a_guest_that_opens_all_it_can_finds_files_to_open() {
    let place = Place::with(&["misbehave", "NO_OP"]);
    let args = ["run", "--fq", "./queue", "--parallel", "2", "--prefetch", "2", "--grace", "0s"];
    let args = [&args[..], &Watched::FLAGS].concat();
    let command = place.command_by(&["prlimit", "--nofile=256:256"], &args);
    let host = Watched::new(Running::start(command, &place.path().join("logs")));
    let process = format!("/proc/{}/fd", host.host().pid().as_raw_nonzero());
    let open = || std::fs::read_dir(&process).expect("a process").count();
    // The first task opens files that stay open.
    place.submit(&[task_host_tests::no_op(20, &[])]);
    eventually("an empty queue", || (place.counts().0 == 0).then_some(()));
    let before = open();
    place.submit_misbehaviour(hog());
    let tasks = place.innocent(20);
    place.submit(&tasks);
    for id in 0..20 {
        let output = format!("data/0_output/{id}.dat");
        eventually("an innocent task", || place.object(&output));
    }
    // The output exists before the message is deleted.
    eventually("a queue with the guest alone", || (place.counts().0 == 1).then_some(()));
    assert_eq!(place.errors(), [Value::Null; 0]);
    // A file that a guest opens many times takes one descriptor of the process.
    assert!(open() <= before + 16, "{} more", open() - before);
    let said = host.host().stderr();
    assert!(!said.contains("Too many open files") && !said.contains("os error 24"), "{said}");
    assert_eq!(host.lines("ERROR"), [""; 0]);
}

/// Opens as many files as it can, and never ends.
fn hog() -> Value {
    let action: Action = raw(Call::OpenFilesAndWait { count: 100_000 });
    json!(action)
}
