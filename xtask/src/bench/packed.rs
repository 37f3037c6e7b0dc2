//! Compares the static program of the packages with a build that links the machine's C library.

use std::path::Path;

use super::series::Series;
use super::table::Table;
use super::work::{Cores, Task, Work};

/// Measures both programs in turns: microseconds of processor time per task, and tasks per second.
pub(super) fn measure(
    work: &mut Work,
    built: &Path,
    packed: &Path,
    rounds: usize,
    tasks: usize,
) -> anyhow::Result<(Table, Vec<Series>)> {
    let programs = [("for this machine", built), ("in the packages", packed)];
    let mut all = Vec::new();
    for (task, of) in [(Task::Nothing, "no-op"), (Task::Copy, "4 KiB in and out")] {
        for (name, _) in programs {
            all.push(Series::new(&format!("{of}, {name}"), "µs of a core per task"));
            all.push(Series::new(&format!("{of}, {name}"), "tasks per second"));
        }
        for round in 0..rounds {
            // Alternates which program goes first.
            for at in [round % 2, 1 - round % 2] {
                work.use_program(programs[at].1);
                // Compiles the component, if this program cannot use the other's compiled code.
                work.host_runs(Task::Nothing, 1, &[], Cores::All)?;
                work.fill(task, tasks)?;
                let ran = work.run(tasks, &[], Cores::All)?;
                let done = ran.summary["done"].as_f64().unwrap_or(f64::NAN);
                let rate = ran.summary["tasks_per_second"].as_f64().unwrap_or(f64::NAN);
                let first = all.len() - 4 + 2 * at;
                all[first].push(ran.used.processor_seconds * 1e6 / done);
                all[first + 1].push(rate);
            }
        }
    }
    let mut table = Table::new(
        "The program in the packages, beside a build for this machine; µs of a core per task, and \
         tasks per second",
        &["", "for this machine", "in the packages", "ratio of speeds"],
    );
    for four in all.chunks(4) {
        let [cpu, rate, packed_cpu, packed_rate] = four else { continue };
        let ratio = |ratio: f64| format!("{ratio:.2}");
        let task = cpu.name.split(", ").next().unwrap_or_default();
        table.row([
            format!("{task}: µs"),
            cpu.shown(),
            packed_cpu.shown(),
            ratio(cpu.median() / packed_cpu.median()),
        ]);
        table.row([
            format!("{task}: per second"),
            rate.shown(),
            packed_rate.shown(),
            ratio(packed_rate.median() / rate.median()),
        ]);
    }
    Ok((table, all))
}
