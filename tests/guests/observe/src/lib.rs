//! A guest that writes what a Rust program can observe besides its task to `observed/ID.txt`, one
//! `NAME: VALUE` per line.

use std::collections::HashSet;
use std::fmt::{Display, Write as _};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use task_host_sdk::{Context, Guest, Ignored, Outcome, Result, Task};

#[derive(Default)]
struct Observe;

/// The lines of the report.
#[derive(Default)]
struct Report(String);

impl Report {
    fn add(&mut self, name: &str, value: impl Display) {
        // Writing to memory can't fail.
        let _ = writeln!(self.0, "{name}: {value}");
    }
}

fn since_1970(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

impl Guest for Observe {
    type Payload = Ignored;

    fn execute(&mut self, task: &Task) -> Result<Outcome> {
        let (mut report, start) = (Report::default(), Instant::now());
        report.add("time", since_1970(SystemTime::now()));
        report.add("random", RandomState::new().hash_one(1));
        let words: HashSet<String> = (0..40).map(|n| format!("word {n}")).collect();
        report.add("hash order", words.into_iter().collect::<Vec<_>>().join(","));

        sleep(Duration::from_millis(5));
        report.add("slept", start.elapsed().as_nanos());
        while start.elapsed() < Duration::from_millis(8) {}
        report.add("waited", start.elapsed().as_nanos());

        let mut inputs = Vec::new();
        for input in task.inputs() {
            let meta = fs::metadata(input.path()).context("an input")?;
            inputs.push(since_1970(meta.modified().context("a time")?).to_string());
        }
        report.add("times of inputs", inputs.join(","));
        let mut made = Vec::new();
        for name in ["b", "a", "c"] {
            let path = task.outputs_dir().join(name);
            fs::write(&path, vec![b'x'; 200]).context("an output")?;
            let meta = fs::metadata(&path).context("an output")?;
            made.push(since_1970(meta.modified().context("a time")?).to_string());
        }
        report.add("times of outputs", made.join(","));
        let mut names = Vec::new();
        for entry in fs::read_dir(task.outputs_dir()).context("the outputs")? {
            names.push(entry.context("an entry")?.file_name().to_string_lossy().into_owned());
        }
        report.add("listing", names.join(","));
        for name in ["b", "a", "c"] {
            fs::remove_file(task.outputs_dir().join(name)).context("an output")?;
        }

        let (zero, other_zero, one) = (black_box(0.0_f64), black_box(0.0_f64), black_box(1.0_f64));
        let marked = black_box(f64::from_bits(0xfff8_0000_0000_1234));
        let nans = [zero / other_zero, (-one).sqrt(), f64::INFINITY * zero, marked + one];
        let bits = nans.map(|nan| format!("{:016x}", nan.to_bits()));
        report.add("not a number", bits.join(","));
        let small = black_box(0.0_f32) / black_box(0.0_f32);
        report.add("small not a number", format!("{:08x}", small.to_bits()));
        report.add("address", format!("{:p}", Box::into_raw(Box::new(1_u64))));
        task.write(&format!("observed/{}.txt", task.id()), report.0)?;
        Ok(task.done())
    }
}

task_host_sdk::export!(Observe);
