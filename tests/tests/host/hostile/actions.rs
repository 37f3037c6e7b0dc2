//! Attacks through the actions of the guest `misbehave`. An action without an attack does not
//! compile.

use std::mem::{Discriminant, discriminant};

use misbehave::{Action, Call};

use super::trial::Case;
use super::{calls, ends, engine, files, handles, memory, names, plans, reach, texts, time};

/// The result for an action that has a test of its own.
fn alone(_test: fn()) -> Option<Case> {
    None
}

/// The attack that uses an action. None for a harmless action, which other tests use.
fn tested(action: &Action) -> Option<Case> {
    Some(match action {
        Action::All { .. }
        | Action::FailUntil { .. }
        | Action::Say { .. }
        | Action::Output { .. }
        | Action::ReadFile { .. }
        | Action::Mark { .. } => return None,
        Action::Loop => time::case(time::Attack::Loop),
        Action::Sleep { .. } => time::case(time::Attack::Sleep),
        Action::Panic { .. } => texts::case(texts::Attack::OddPanic),
        Action::Abort => ends::case(ends::Attack::Abort),
        Action::Exit { .. } => ends::case(ends::Attack::Exit),
        Action::Retry { .. } => ends::case(ends::Attack::Retry),
        Action::Reject { .. } => return alone(names::what_a_guest_says_forges_no_line_of_a_log),
        Action::Unsuccessful => ends::case(ends::Attack::Unsuccessful),
        Action::FailIn { .. } => ends::case(ends::Attack::Finalize),
        Action::MissingOutput => ends::case(ends::Attack::Missing),
        Action::BigResult { .. } => texts::case(texts::Attack::Output),
        Action::Alloc { .. } => memory::case(memory::Attack::Allocate),
        Action::Stack => memory::case(memory::Attack::Stack),
        Action::Write { .. } => files::case(files::Attack::Bytes),
        Action::ManyFiles { .. } => files::case(files::Attack::Files),
        Action::Mkdirs { .. } => files::case(files::Attack::Directories),
        Action::Tree { .. } => files::case(files::Attack::Tree),
        Action::Log { .. } => texts::case(texts::Attack::Log),
        Action::Raw { call } => return tested_call(call),
        Action::Symlink { .. } => files::case(files::Attack::LinkOut),
        Action::Hardlink { .. } => files::case(files::Attack::HardLink),
        Action::OddNames { .. } => files::case(files::Attack::OddNames),
        Action::WriteInput => reach::case(reach::Attack::Inputs),
        Action::Escape => reach::case(reach::Attack::Escape),
        Action::Env => reach::case(reach::Attack::Environment),
        Action::Net { .. } => reach::case(reach::Attack::Network),
        Action::SetTimes => files::case(files::Attack::Times),
        Action::Stdin => reach::case(reach::Attack::Stdin),
        Action::Leave => return alone(reach::nothing_of_one_task_is_there_for_the_next),
        Action::Copy { .. } => files::case(files::Attack::Ignored),
    })
}

fn tested_call(call: &Call) -> Option<Case> {
    Some(match call {
        Call::DirectoryStreams { .. } => handles::case(handles::Attack::DirectoryStreams),
        Call::OpenFiles { .. } => handles::case(handles::Attack::OpenFiles),
        Call::OpenFilesOrReject { .. } => handles::case(handles::Attack::OpenFilesOrReject),
        Call::OpenFilesAndWait { .. } => {
            return alone(
                handles::a_neighbour_of_a_guest_that_opens_all_it_can_finds_files_to_open,
            );
        }
        Call::OpenFilesInTurn { .. } => handles::case(handles::Attack::OpenFilesInTurn),
        Call::Handles { .. } => handles::case(handles::Attack::Streams),
        Call::Timers { .. } => handles::case(handles::Attack::Timers),
        Call::Random { .. } => calls::case(calls::Attack::Random),
        Call::InsecureRandom { .. } => calls::case(calls::Attack::InsecureRandom),
        Call::WriteAtOnce { .. } => calls::case(calls::Attack::Write),
        Call::ReadAtOnce { .. } => calls::case(calls::Attack::Read),
        Call::WriteZeros { .. } => calls::case(calls::Attack::WriteZeros),
        Call::EmptyWrites { .. } => calls::case(calls::Attack::EmptyWrites),
        Call::Splice { .. } => calls::case(calls::Attack::Splice),
        Call::Skip { .. } => calls::case(calls::Attack::Skip),
        Call::PollNothing => calls::case(calls::Attack::PollNothing),
        Call::DropParent => calls::case(calls::Attack::DropParent),
        Call::FarOffsets => files::case(files::Attack::FarOffsets),
        Call::LongPaths { .. } => calls::case(calls::Attack::Path),
        Call::Open => files::case(files::Attack::Flags),
        Call::Stat => reach::case(reach::Attack::Stat),
        Call::ErrorWords => {
            return alone(reach::an_error_of_a_stream_tells_nothing_of_the_host);
        }
        Call::Sockets { .. } => reach::case(reach::Attack::Sockets),
    })
}

type Kind = (Discriminant<Action>, Option<Discriminant<Call>>);

/// The kinds of the actions that this action consists of.
fn kinds(action: &Action) -> Vec<Kind> {
    match action {
        Action::All { steps } => steps.iter().flat_map(kinds).collect(),
        Action::Raw { call } => vec![(discriminant(action), Some(discriminant(call)))],
        other => vec![(discriminant(other), None)],
    }
}

/// All attacks.
fn all() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(calls::Attack::ALL.iter().map(|&attack| calls::case(attack)));
    all.extend(ends::Attack::ALL.iter().map(|&attack| ends::case(attack)));
    all.extend(engine::Attack::ALL.iter().map(|&attack| engine::case(attack)));
    all.extend(files::Attack::ALL.iter().map(|&attack| files::case(attack)));
    all.extend(handles::Attack::ALL.iter().map(|&attack| handles::case(attack)));
    all.extend(memory::Attack::ALL.iter().map(|&attack| memory::case(attack)));
    all.extend(plans::Attack::ALL.iter().map(|&attack| plans::case(attack)));
    all.extend(reach::Attack::ALL.iter().map(|&attack| reach::case(attack)));
    all.extend(texts::Attack::ALL.iter().map(|&attack| texts::case(attack)));
    all.extend(time::Attack::ALL.iter().map(|&attack| time::case(attack)));
    all
}

#[test]
fn the_attack_that_is_listed_for_an_action_has_this_action() {
    fn check(action: &Action) {
        if let Some(case) = tested(action) {
            let of_case = case.action().map(kinds).unwrap_or_default();
            assert!(kinds(action).iter().any(|kind| of_case.contains(kind)), "{action:?}");
        }
    }
    let cases = all();
    assert!(cases.len() > 70, "{}", cases.len());
    for action in cases.iter().filter_map(Case::action) {
        match action {
            Action::All { steps } => steps.iter().for_each(check),
            other => check(other),
        }
    }
}
