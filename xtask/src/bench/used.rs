//! Resources that a program used from its start to its end, as counted by the kernel.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Context;

/// The resources that a process used with all its threads.
pub(super) struct Used {
    /// Seconds from the start of the program to its end.
    pub(super) seconds: f64,
    /// Processor time in seconds, in user space and in the kernel.
    pub(super) processor_seconds: f64,
    /// The peak of its resident memory.
    pub(super) peak_bytes: u64,
    /// The size of the pages that the process changed in files on a disk: `write_bytes` of
    /// `/proc/PID/io`. The kernel counts whole pages, and counts neither files in memory nor the
    /// file system's metadata.
    pub(super) written_bytes: u64,
}

impl Used {
    /// Waits until a process that was just started has ended, but does not collect its exit code.
    pub(super) fn until_end_of(child: &Child) -> anyhow::Result<Self> {
        let start = Instant::now();
        let file = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", child.id()));
        let mut peak_bytes = 0;
        // The files remain until the exit code is collected.
        let stat = loop {
            // A process that has ended has no memory, so the last value before its end counts.
            peak_bytes = peak_of(&file("status")?).unwrap_or(peak_bytes);
            let stat = file("stat")?;
            let fields = fields_of(&stat);
            if fields.first() == Some(&"Z") {
                break stat;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let seconds = start.elapsed().as_secs_f64();
        let processor_seconds = processor_of(&fields_of(&stat)).context("its processor time")?;
        let written_bytes = written_of(&file("io")?).context("the bytes that it wrote")?;
        Ok(Self { seconds, processor_seconds, peak_bytes, written_bytes })
    }
}

fn peak_of(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(kib.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

fn written_of(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse().ok()
}

/// The fields of `/proc/PID/stat`, starting at the third, the state.
fn fields_of(stat: &str) -> Vec<&str> {
    // The second field, the program's name in parentheses, may contain any character.
    stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect()
}

/// The sum of fields 14 and 15 of `/proc/PID/stat`, which are in hundredths of a second.
fn processor_of(fields: &[&str]) -> Option<f64> {
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some((ticks(14)? + ticks(15)?) / 100.0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_program_is_awaited_and_its_work_is_counted() {
        let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exit 3";
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let used = Used::until_end_of(&child).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert!(used.processor_seconds > 0.0 && used.seconds > 0.0);
        assert!(used.peak_bytes > 100_000, "{}", used.peak_bytes);
    }
}
