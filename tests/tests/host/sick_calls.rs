//! A bucket on a file system that hangs, such as a network file system without its server. The host
//! still answers probes and signals, and keeps its leases.

use std::fs;

use rustix::process::Signal;
use task_host_tests::{FaultyDisk, Place, Watched, eventually, files, within};

/// More tasks than threads that a call can hang in.
const TASKS: usize = 6;

/// A host that holds tasks whose inputs hang.
fn hung() -> (Place, FaultyDisk, Watched) {
    let place = Place::new();
    let disk = FaultyDisk::mount(place.path().join("bucket"));
    place.push("NO_OP");
    let tasks = place.innocent(TASKS);
    let host = place.watch(&["--lease", "4s"]);
    host.in_one_moment(|| {
        place.submit(&tasks);
        disk.fail("hang", "all");
    });
    host.is_out("do not return");
    (place, disk, host)
}

/// The times at which the leases end, in seconds since 1970.
fn leases(place: &Place) -> Vec<u64> {
    let names = files(&place.path().join("queue/queue"));
    let due = names.iter().filter_map(|name| name.split("--").next()?.parse().ok());
    due.filter(|due| *due > 0).collect()
}

#[test]
fn leases_are_renewed_while_inputs_hang_and_work_goes_on_after() {
    let (place, disk, host) = hung();
    let before = leases(&place);
    assert!(!before.is_empty(), "nothing is leased");
    let last = before.iter().max().expect("a lease") + 8;
    // After three lease durations, no lease has expired.
    eventually("leases that are renewed", || {
        let now = leases(&place);
        // A message has no name for a moment while it is renamed.
        assert!(now.len() + 1 >= before.len(), "leases were lost: {before:?}, {now:?}");
        now.iter().all(|due| *due >= last).then_some(())
    });
    assert_eq!(host.ready().0, 503);
    disk.mend();
    place.innocent_are_done(TASKS);
    let summary = host.did_without_harm(TASKS);
    assert_eq!(summary["lost"], 0, "{summary:#}");
}

#[test]
fn the_third_signal_ends_a_host_whose_calls_hang() {
    let (place, disk, watched) = hung();
    let mut host = watched.into_host();
    for words in ["stopping: ", "stopping now: "] {
        host.signal_again(Signal::TERM);
        eventually(words, || host.stderr().contains(words).then_some(()));
    }
    host.signal_again(Signal::TERM);
    // A thread in a system call exists until the file system answers. The process counts as ended
    // before that.
    let stat = format!("/proc/{}/stat", host.pid().as_raw_nonzero());
    eventually("a host that has exited", || {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
        (state.is_empty() || state.starts_with(['Z', 'X'])).then_some(())
    });
    assert!(place.path().join("queue").exists());
    disk.mend();
    within(std::time::Duration::from_secs(60), "the end of its threads", || {
        host.has_ended().then_some(())
    });
    host.wait().code(143);
    // The host's tasks become available again.
    place.run_until_empty(&["--max-attempts", "1"]).good();
    place.innocent_are_done(TASKS);
}
