//! Times, inode numbers and sizes.

use std::collections::BTreeSet;

use super::super::types::NewTimestamp;
use super::*;

#[test]
fn states_tell_of_the_task_and_of_nothing_else() {
    let g = guest();
    let started = g.tree.shared.clock.started();
    let told = |at: &tree::Node| {
        let stat = at.stat();
        assert_eq!(stat.link_count, 1);
        let times = [
            stat.data_access_timestamp,
            stat.data_modification_timestamp,
            stat.status_change_timestamp,
        ];
        (stat.size, times.map(|at| at.map(|at| (at.seconds, at.nanoseconds)).unwrap()))
    };
    let start = (started.seconds, started.nanoseconds);
    assert_eq!(told(&g.tree.inputs.look("in/a").unwrap()), (8, [start; 3]));
    assert_eq!(told(&g.tree.inputs.look("in").unwrap()), (0, [start; 3]));

    let file = g.create("f");
    let node = g.outputs().look("f").unwrap();
    let made = told(&node).1;
    let mut last = made[0];
    for n in 0..100 {
        file.write(b"x", None).unwrap();
        let (size, [accessed, modified, changed]) = told(&node);
        assert_eq!((size, accessed, changed), (n + 1, made[0], modified));
        assert!(modified >= last, "time goes on");
        last = modified;
    }
    let old = types::Datetime { seconds: 1_000_000_000, nanoseconds: 5 };
    let set = |accessed, modified| code(tree::set_times(&node, accessed, modified));
    assert_eq!(set(NewTimestamp::NoChange, NewTimestamp::Timestamp(old)), "ok");
    let (_, [accessed, modified, changed]) = told(&node);
    assert_eq!((accessed, modified), (made[0], (1_000_000_000, 5)));
    assert!(changed >= last);
    assert_eq!(set(NewTimestamp::Timestamp(old), NewTimestamp::Now), "ok");
    assert!(told(&node).1[1] >= last && told(&node).1[0] == (1_000_000_000, 5));
    let bad = types::Datetime { seconds: 0, nanoseconds: 1_000_000_000 };
    assert_eq!(set(NewTimestamp::Timestamp(bad), NewTimestamp::NoChange), "invalid");
    // A new entry changes the time of its directory.
    let top = told(&g.outputs().look(".").unwrap()).1[1];
    g.outputs().make_dir("dir").unwrap();
    assert!(told(&g.outputs().look(".").unwrap()).1[1] >= top);
}

#[test]
fn a_file_keeps_its_number_and_no_other_has_it() {
    let number = |g: &Guest, path: &str| {
        let number = tree::hash(&g.outputs().look(path).unwrap(), &g.tree.shared);
        (number.lower, number.upper)
    };
    let (g, other) = (guest(), guest());
    g.write("a", "");
    other.write("a", "");
    g.write("b", "");
    let (a, b) = (number(&g, "a"), number(&g, "b"));
    g.write("a", "more");
    g.outputs().rename("a", g.outputs(), "c").unwrap();
    assert_eq!(number(&g, "c"), a);
    g.write("a", "");
    let all = [a, b, number(&g, "a"), number(&g, "."), number(&other, "a")];
    assert_eq!(BTreeSet::from(all).len(), all.len());
    let open = |path| g.outputs().open(path, OpenFlags::empty(), READ).unwrap();
    assert!(open("b").is_same(&open("./b")) && !open("a").is_same(&open("b")));
}

#[test]
fn the_files_of_a_deterministic_task_have_the_same_states_in_whatever_order_its_inputs_come() {
    let text = br#"{"basic_info": {"name": "N", "base_directory": "d"}}"#;
    let task = crate::message::decode(text).unwrap();
    let states = |inputs: [&str; 3]| {
        let world = World::of(&task);
        let inputs = inputs.map(|path| input(path, b"x")).into();
        let g = guest_in(inputs, &LIMITS, Some(&world));
        g.create("f");
        let state = |node: tree::Node| {
            let at = node.stat().data_modification_timestamp.unwrap();
            let hash = tree::hash(&node, &g.tree.shared);
            (hash.lower, hash.upper, at.seconds, at.nanoseconds)
        };
        let inputs = ["a", "b/c", "d"].map(|path| state(g.tree.inputs.look(path).unwrap()));
        (inputs, state(g.outputs().look("f").unwrap()))
    };
    let (inputs, output) = states(["a", "b/c", "d"]);
    assert_eq!(states(["d", "a", "b/c"]), (inputs, output));
    assert!(inputs.iter().all(|state| (state.2, state.3) == (946_684_800, 0)), "{inputs:?}");
    assert!((output.2, output.3) > (946_684_800, 0), "{output:?}");
}
