//! The ideal schedule: each task starts on the first free slot, without any delay. The schedule
//! does not know which hosts will be killed. A task that was running on a killed host starts again
//! at once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::fleet::Wave;

/// How long these tasks take on these slots, some of which are lost to waves.
pub(super) fn time(lengths: &[Duration], slots: &[Option<Wave>]) -> Duration {
    let mut free: BinaryHeap<Reverse<(Duration, usize)>> =
        (0..slots.len()).map(|slot| Reverse((Duration::ZERO, slot))).collect();
    let mut next = 0;
    // Tasks whose host was killed: the time of the loss and the duration.
    let mut again: BinaryHeap<Reverse<(Duration, Duration)>> = BinaryHeap::new();
    let mut last = Duration::ZERO;
    while let Some(Reverse((now, slot))) = free.pop() {
        let died = again.peek().map(|Reverse((died, _))| *died);
        let (start, length) = match (died, lengths.get(next)) {
            (Some(died), task) if died <= now || task.is_none() => {
                let Some(Reverse((died, length))) = again.pop() else { break };
                (now.max(died), length)
            }
            (_, Some(length)) => {
                next += 1;
                (now, *length)
            }
            _ => break,
        };
        let end = start + length;
        match slots[slot] {
            // After a notice, a task that can't end in time does not start.
            Some(wave) if start >= wave.at && end > wave.death() => {
                again.push(Reverse((start, length)));
            }
            Some(wave) if end > wave.death() => again.push(Reverse((wave.death(), length))),
            _ => {
                last = last.max(end);
                free.push(Reverse((end, slot)));
            }
        }
    }
    last
}

#[test]
fn the_ideal_schedule_leaves_no_slot_free_and_runs_again_what_a_wave_takes() {
    let second = Duration::from_secs(1);
    let lengths = [second; 10];
    assert_eq!(time(&lengths, &[None; 4]), 3 * second);
    let halved = |at, notice| {
        let wave = Some(Wave { at, share: 0.5, notice });
        time(&lengths, &[wave, wave, None, None])
    };
    // Two slots are lost during their second tasks. After two seconds, four tasks are left for two
    // slots.
    assert_eq!(halved(second * 3 / 2, None), 4 * second);
    assert_eq!(halved(second * 5 / 2, None), 7 * second / 2);
    // No second task starts on these two slots.
    assert_eq!(halved(second / 2, Some(second)), 4 * second);
}
