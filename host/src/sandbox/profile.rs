//! A profile of a guest: its call stacks, sampled at regular times, in the format of V8's
//! `.cpuprofile`, which the profilers of browsers and editors open.
//!
//! wasmtime's `GuestProfiler` could replace half of this file. It needs another build configuration
//! of wasmtime and the compiler for all hosts, and does not demangle the names of Rust functions.
//!
//! Format: <https://chromedevtools.github.io/devtools-protocol/tot/Profiler/#type-Profile>.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;
use wasmtime::{AsContext, WasmBacktrace};

use super::stack;

/// Stands for the outer functions of a stack that is deeper than the captured part.
const CUT: &str = "(outer functions are left out)";
/// The most nodes in the tree of calls. Samples that need more are dropped.
const MOST_NODES: usize = 1 << 20;

/// Collects the stacks of one guest while it computes. A guest is not sampled during a call to the
/// host, such as a file read.
pub struct Profiler(Mutex<Recording>);

struct Recording {
    start: Instant,
    /// The time of the last sample, in microseconds after the start.
    last: u64,
    /// The tree of calls, from its root.
    nodes: Vec<Node>,
    /// The places of nodes, by the place of the caller's node and the function's name.
    known: HashMap<(usize, String), usize>,
    samples: Vec<usize>,
    time_deltas: Vec<u64>,
}

/// A function, called through one chain of callers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    id: usize,
    call_frame: CallFrame,
    hit_count: u64,
    children: Vec<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallFrame {
    function_name: String,
    script_id: &'static str,
    url: &'static str,
    line_number: i32,
    column_number: i32,
}

impl Node {
    fn new(id: usize, name: &str) -> Self {
        let call_frame = CallFrame {
            function_name: name.to_owned(),
            script_id: "0",
            url: "",
            line_number: -1,
            column_number: -1,
        };
        Self { id, call_frame, hit_count: 0, children: Vec::new() }
    }
}

impl Recording {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The place of a function's node below its caller's. None if there are too many nodes.
    fn below(&mut self, caller: usize, name: String) -> Option<usize> {
        if let Some(known) = self.known.get(&(caller, name.clone())) {
            return Some(*known);
        }
        let place = self.nodes.len();
        if place >= MOST_NODES {
            return None;
        }
        // Ids begin at 1.
        self.nodes.push(Node::new(place + 1, &name));
        self.nodes[caller].children.push(place + 1);
        self.known.insert((caller, name), place);
        Some(place)
    }

    /// Records a stack. The outermost function comes first.
    fn add(&mut self, names: impl Iterator<Item = String>) {
        let mut place = 0;
        for name in names {
            match self.below(place, name) {
                Some(below) => place = below,
                None => return,
            }
        }
        let now = self.now();
        self.nodes[place].hit_count += 1;
        self.samples.push(place + 1);
        self.time_deltas.push(now - self.last);
        self.last = now;
    }
}

impl Profiler {
    /// An empty profile that starts now.
    #[expect(clippy::new_without_default, reason = "it begins to measure time")]
    pub fn new() -> Self {
        Self(Mutex::new(Recording {
            start: Instant::now(),
            last: 0,
            nodes: vec![Node::new(1, "(root)")],
            known: HashMap::new(),
            samples: Vec::new(),
            time_deltas: Vec::new(),
        }))
    }

    /// Records the guest's current stack.
    pub(super) fn sample(&self, store: impl AsContext) {
        let stack = WasmBacktrace::capture(store);
        let frames = stack.frames();
        let callers = (frames.len() == stack::MOST_FRAMES).then(|| CUT.to_owned());
        self.0.lock().add(callers.into_iter().chain(frames.iter().rev().map(stack::function)));
    }

    /// Writes the profile. Returns the number of samples.
    ///
    /// # Errors
    /// When the profile can't be written.
    pub fn write(&self, into: impl io::Write) -> io::Result<usize> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Profile<'a> {
            nodes: &'a [Node],
            start_time: u64,
            end_time: u64,
            samples: &'a [usize],
            time_deltas: &'a [u64],
        }
        let recording = self.0.lock();
        let Recording { nodes, samples, time_deltas, .. } = &*recording;
        let end_time = recording.now();
        let profile = Profile { nodes, start_time: 0, end_time, samples, time_deltas };
        serde_json::to_writer(into, &profile)?;
        Ok(samples.len())
    }
}

impl fmt::Debug for Profiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profiler").field("samples", &self.0.lock().samples.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_has_a_node_for_each_way_to_it() {
        let profiler = Profiler::new();
        for stack in [&["a", "b"][..], &["a", "b"], &["a"], &["b"], &[]] {
            profiler.0.lock().add(stack.iter().map(|name| (*name).to_owned()));
        }
        let mut text = Vec::new();
        assert_eq!(profiler.write(&mut text).unwrap(), 5);
        let profile: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(profile["samples"], serde_json::json!([3, 3, 2, 4, 1]));
        let names = profile["nodes"].as_array().unwrap().iter();
        let names: Vec<_> =
            names.map(|n| n["callFrame"]["functionName"].as_str().unwrap()).collect();
        assert_eq!(names, ["(root)", "a", "b", "b"]);
        assert_eq!(profile["nodes"][0]["children"], serde_json::json!([2, 4]));
        assert_eq!(profile["nodes"][2]["hitCount"], 2);
        assert_eq!(profile["timeDeltas"].as_array().unwrap().len(), 5);
    }
}
