//! Runs every input of the corpus, without the fuzzing engine.

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::path::Path;

use task_host_fuzz::Target;

/// The most bytes of the corpus. It is small, because every clone of the repository contains it.
const MOST: u64 = 2 << 20;

fn entries(directory: &Path) -> Vec<std::fs::DirEntry> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{directory:?}: {e}"));
    entries.map(Result::unwrap).collect()
}

#[test]
fn no_input_of_the_corpus_breaks_a_promise() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut broken = Vec::new();
    for target in Target::all() {
        for entry in entries(&corpus.join(target.name)) {
            let input = std::fs::read(entry.path()).unwrap();
            if catch_unwind(|| (target.check)(&input)).is_err() {
                broken.push(entry.path());
            }
        }
    }
    assert!(broken.is_empty(), "the messages are above: {broken:#?}");
}

#[test]
fn every_target_has_a_small_corpus_and_every_corpus_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let targets: BTreeSet<String> =
        Target::all().iter().map(|target| target.name.to_owned()).collect();
    let found: BTreeSet<String> =
        entries(&corpus).iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(found, targets);
    let mut bytes = 0;
    for target in targets {
        let inputs = entries(&corpus.join(&target));
        assert!(inputs.len() > 3, "{target} has hardly any inputs");
        bytes += inputs.iter().map(|input| input.metadata().unwrap().len()).sum::<u64>();
    }
    assert!(bytes < MOST, "{bytes} bytes");
}
