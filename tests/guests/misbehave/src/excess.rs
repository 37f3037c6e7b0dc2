//! Actions that use too much time, memory, stack, bytes, files or log.

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::json;
use task_host_sdk::{Context, Result, Task};

use crate::{Action, Stream, Writing};

const MIB: usize = 1 << 20;

/// Loops forever. `black_box` keeps the compiler from removing the loop.
pub(crate) fn spin() {
    let mut n = 0_u64;
    while n < u64::MAX {
        n = black_box(n.wrapping_add(1) % 1_000_000);
    }
}

/// Allocates memory until Rust aborts.
pub(crate) fn allocate(mib: Option<usize>) {
    let mut held = Vec::new();
    while mib.is_none_or(|mib| held.len() < mib) {
        held.push(black_box(vec![1_u8; MIB]));
    }
    black_box(held);
}

/// Allocates memory until an allocation fails. Returns how many MiB it got.
pub(crate) fn allocate_gently(mib: Option<usize>) -> usize {
    let mut held: Vec<Vec<u8>> = Vec::with_capacity(8192);
    while mib.is_none_or(|mib| held.len() < mib) && held.len() < held.capacity() {
        let mut more = Vec::new();
        if more.try_reserve_exact(MIB).is_err() {
            break;
        }
        more.resize(MIB, 1);
        held.push(black_box(more));
    }
    held.len()
}

/// Each level uses its stack frame after the inner call, so that the compiler cannot turn the
/// recursion into a loop.
pub(crate) fn recurse(depth: u64) -> u64 {
    let here = black_box([depth; 16]);
    if depth == 0 {
        return 0;
    }
    recurse(depth - 1) + here[depth as usize % 16]
}

pub(crate) fn write(
    task: &Task<Action>,
    bytes: u64,
    files: u64,
    how: Writing,
    ignore_errors: bool,
) -> Result<()> {
    fs::create_dir_all(task.outputs_dir().join("written"))?;
    let (mut failed, mut first) = (0, None);
    for n in 0..files {
        // The first files have one byte more, so that the sum of all sizes is `bytes`.
        let size = bytes / files + u64::from(n < bytes % files);
        let key = format!("written/{n}.dat");
        match write_one(&task.outputs_dir().join(&key), size, how) {
            Err(error) if ignore_errors => {
                failed += 1;
                first.get_or_insert(error.to_string());
            }
            result => result.with_context(|| format!("output {key}"))?,
        }
    }
    if ignore_errors {
        task.write("report.json", json!({"failed": failed, "error": first}).to_string())?;
    }
    Ok(())
}

fn write_one(path: &Path, size: u64, how: Writing) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    match how {
        Writing::Plain | Writing::Bytewise => {
            let piece = if matches!(how, Writing::Plain) { 64 * 1024 } else { 1 };
            let zeros = vec![0; piece];
            let mut left = size;
            while left > 0 {
                let piece = left.min(zeros.len() as u64);
                file.write_all(&zeros[..piece as usize])?;
                left -= piece;
            }
        }
        Writing::SetLen => file.set_len(size)?,
        Writing::Seek => {
            file.seek(SeekFrom::Start(size.saturating_sub(1)))?;
            file.write_all(b"x")?;
        }
    }
    Ok(())
}

pub(crate) fn many_files(task: &Task<Action>, count: u64) -> Result<()> {
    let directory = task.outputs_dir().join("many");
    fs::create_dir_all(&directory)?;
    for n in 0..count {
        File::create(directory.join(n.to_string())).with_context(|| format!("output many/{n}"))?;
    }
    Ok(())
}

/// Creates one level at a time, so that the error names the level.
pub(crate) fn mkdirs(task: &Task<Action>, depth: u32) -> Result<()> {
    let mut path = task.outputs_dir().to_owned();
    for level in 1..=depth {
        path.push("d");
        fs::create_dir(&path).with_context(|| format!("directory at depth {level}"))?;
    }
    fs::write(path.join("d.txt"), "deep").context("output d.txt in the last directory")
}

/// Returns the paths of the files that it created.
pub(crate) fn tree(task: &Task<Action>, depth: u32, dirs: u64, files: u64) -> Result<Vec<String>> {
    let mut path = String::new();
    for level in 1..=depth {
        path.push_str("t/");
        let made = fs::create_dir(task.outputs_dir().join(&path));
        made.with_context(|| format!("directory at depth {level}"))?;
    }
    let last = task.outputs_dir().join(&path);
    for n in 0..dirs {
        fs::create_dir(last.join(format!("d{n}"))).with_context(|| format!("directory {n}"))?;
    }
    let mut listed = Vec::new();
    for n in 0..files {
        File::create(last.join(n.to_string())).with_context(|| format!("output {n}"))?;
        listed.push(format!("{path}{n}"));
    }
    Ok(listed)
}

pub(crate) fn log(bytes: u64, to: Stream) -> Result<()> {
    let mut stream: Box<dyn Write> = match to {
        Stream::Stderr => Box::new(io::stderr()),
        Stream::Stdout => Box::new(io::stdout()),
    };
    let line = format!("{}\n", "0123456789".repeat(8));
    let mut left = usize::try_from(bytes).context("bytes")?;
    while left > 0 {
        let piece = left.min(line.len());
        stream.write_all(&line.as_bytes()[..piece]).context("log")?;
        left -= piece;
    }
    stream.flush().context("log")
}
