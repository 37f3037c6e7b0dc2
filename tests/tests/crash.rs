//! Ten thousand tasks, and hosts that are killed at random times. No task is lost, no output is
//! partial, and no temporary file remains.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use task_host_tests::Place;

/// A random number generator that gives the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        // Marsaglia's xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn input(id: usize) -> Vec<u8> {
    // A quarter of the inputs share their contents, so that the cache is used.
    let content = if id.is_multiple_of(4) { id % 100 } else { id };
    format!("{content}\n").repeat(1 + content % 500).into_bytes()
}

#[test]
fn kill_minus_nine_at_any_moment_loses_nothing_and_leaves_nothing_behind() {
    let tasks = number("TASK_HOST_CRASH_TASKS").unwrap_or(10_000) as usize;
    let seed = number("TASK_HOST_CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()) | 1);
    println!("{tasks} tasks; TASK_HOST_CRASH_SEED={seed} TASK_HOST_CRASH_TASKS={tasks}");
    let mut dice = Dice(seed);

    let place = Place::with(&["NO_OP"]);
    let mut expected = place.keys();
    let messages: Vec<_> = (0..tasks)
        .map(|id| {
            let key = format!("0_input/{}/{id}.dat", id / 1000);
            place.put(&format!("data/{key}"), input(id));
            expected.insert(format!("data/{key}"));
            expected.insert(format!("data/0_output/{id}.dat"));
            json!({"basic_info": {"id": id, "name": "NO_OP", "base_directory": "data", "inputs": [key]}})
        })
        .collect();
    place.submit(&messages);

    // The tasks of a killed host wait until its leases expire, so leases are short.
    let args = ["-x", "--lease", "3s", "--retry-after", "10ms", "--max-attempts", "50"];
    let start = Instant::now();
    let mut kills = 0;
    loop {
        let mut host = place.start(&args);
        // From before the host has opened its queue, to when it is running tasks.
        let life = Duration::from_millis(20 + dice.below(1_500));
        let born = Instant::now();
        while born.elapsed() < life && !host.has_ended() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if host.has_ended() {
            // The host emptied the queue before its time to be killed.
            host.wait().good();
            break;
        }
        host.signal(Signal::KILL);
        drop(host);
        kills += 1;
        assert!(
            start.elapsed() < Duration::from_secs(900),
            "after {kills} kills there still are {} tasks",
            place.counts().0
        );
    }
    place.run(&args).good();
    println!("{kills} kills in {:.0} s", start.elapsed().as_secs_f64());
    assert!(tasks < 5_000 || kills >= 3, "there were only {kills} kills: more tasks are needed");

    assert_eq!(place.counts(), (0, 0));
    assert!(place.errors().is_empty(), "{:#?}", place.errors());
    for id in 0..tasks {
        let output = place.object(&format!("data/0_output/{id}.dat"));
        assert!(output.is_some_and(|output| output == input(id)), "output {id} is missing or half");
    }
    assert_eq!(place.left_behind(), Vec::<String>::new());
    let keys = place.keys();
    let more: Vec<_> = keys.difference(&expected).collect();
    assert!(more.is_empty(), "objects that nobody made: {more:?}");
}
