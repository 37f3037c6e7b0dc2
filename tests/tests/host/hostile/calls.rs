//! Attacks on single calls of the host: large arguments and results, and calls that make no sense.

use misbehave::{Action, Call};
use task_host_tests::components;

use super::trial::Case;

attacks! {
    /// Asks for more random bytes than there is memory for.
    Random => random_bytes_without_end,
    /// Asks for slightly more random bytes than the limit.
    RandomMany => random_bytes_above_the_limit,
    /// The same with the interface for insecure random numbers.
    InsecureRandom => insecure_random_bytes_above_the_limit,
    /// Writes too much in one call.
    Write => a_write_above_the_limit,
    /// Passes a path of 100 MiB.
    Path => a_path_above_the_limit,
    /// Lists outputs whose names have too many bytes together.
    Listing => a_list_of_outputs_above_the_limit,
    /// Lists more outputs than the limit.
    ListingMany => a_list_of_too_many_outputs,
    /// Lists as many outputs as allowed. The list is larger than the limit of other calls.
    ListingAll => a_list_of_as_many_outputs_as_there_may_be,
    /// Asks for as many random bytes as allowed.
    RandomBelow => random_bytes_below_the_limit,
    /// Writes as many bytes in one call as allowed.
    WriteBelow => a_write_below_the_limit,
    /// Reads 1 GiB in one call.
    Read => a_read_without_end,
    /// Writes a terabyte of zeros without passing any bytes.
    WriteZeros => zeros_without_end,
    /// Writes nothing, a million times.
    EmptyWrites => writes_of_nothing,
    /// Moves bytes from one stream to another in one call.
    Splice => a_splice_without_end,
    /// Skips bytes of a stream in one call.
    Skip => a_skip_without_end,
    /// Polls an empty list.
    PollNothing => a_wait_for_nothing,
    /// Drops a stream while a timer waits for it.
    DropParent => a_stream_that_is_dropped_while_a_timer_waits_for_it,
}

pub(super) fn case(attack: Attack) -> Case {
    let above = ["the guest ran into the limit of 16.0 MiB that may be handed over"];
    let case = match attack {
        Attack::Random => Case::rejected(raw(Call::Random { bytes: 1 << 62 }), &above),
        Attack::RandomMany => Case::rejected(raw(Call::Random { bytes: 64 << 20 }), &above),
        Attack::InsecureRandom => {
            Case::rejected(raw(Call::InsecureRandom { bytes: 64 << 20 }), &above)
        }
        Attack::Write => Case::rejected(raw(Call::WriteAtOnce { bytes: 100 << 20 }), &above),
        Attack::Path => {
            let call = Call::LongPaths { bytes: 100 << 20, piece: "./".to_owned() };
            Case::rejected(raw(call), &above)
        }
        Attack::Listing => Case::rejected(components::listing(200_000, 1000), &above),
        Attack::ListingMany => {
            Case::rejected(components::listing(100_000, 100), &["limit of 10000 output files"])
        }
        Attack::ListingAll => {
            let says = ["the guest listed the output \"xxx", "has no such file"];
            Case::rejected(components::listing(150_000, 100), &says)
                .with(&["--max-output-files", "1000000"])
        }
        Attack::RandomBelow => {
            Case::done(raw(Call::Random { bytes: 8 << 20 })).reports("bytes", 8 << 20)
        }
        Attack::WriteBelow => {
            Case::done(raw(Call::WriteAtOnce { bytes: 8 << 20 })).reports("written", 8 << 20)
        }
        Attack::Read => Case::done(raw(Call::ReadAtOnce { bytes: 1 << 30 })).reports("read", 65536),
        Attack::WriteZeros => {
            let says = ["cannot write more zeroes than"];
            Case::given_up(raw(Call::WriteZeros { bytes: 1 << 40 }), &says)
        }
        Attack::EmptyWrites => {
            Case::done(raw(Call::EmptyWrites { count: 1_000_000 })).reports("written", 1_000_000)
        }
        Attack::Splice => Case::done(raw(Call::Splice { bytes: u64::MAX })).reports("moved", 65536),
        Attack::Skip => Case::done(raw(Call::Skip { bytes: u64::MAX })).reports("skipped", 65536),
        Attack::PollNothing => Case::given_up(raw(Call::PollNothing), &["empty poll list"]),
        Attack::DropParent => Case::given_up(raw(Call::DropParent), &["child"]),
    };
    case.with(&["--memory", "256MiB"])
}

/// A call of the host's interfaces themselves.
pub(super) fn raw(call: Call) -> Action {
    Action::Raw { call }
}
