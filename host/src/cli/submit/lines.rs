//! Tasks from lines of files or of standard input, in constant memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Seek};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use task_host::queue;
use tokio::sync::mpsc;

use super::super::exit::Advice;
use super::super::telemetry::Screen;
use super::{Outcome, Sender};

/// The longest line that is taken: no queue has larger messages.
const LONGEST: u64 = 64 << 20;
/// Lines that are read ahead of being sent.
const AHEAD: usize = 512;

/// Sends the lines of `files`, or of standard input.
pub(super) async fn send(
    files: Vec<PathBuf>,
    all_or_nothing: bool,
    screen: &Screen,
    queue: &str,
    access: &queue::Access,
    dry_run: bool,
) -> anyhow::Result<Outcome> {
    let mut inputs = Input::all(files)?;
    if all_or_nothing {
        let tell = screen.clone();
        let first_pass = tokio::task::spawn_blocking(move || {
            Input::keep(&mut inputs)?;
            let bad = read(&mut inputs, &mut |line| tell_bad(&tell, line))?;
            anyhow::Ok((inputs, bad))
        });
        let bad;
        (inputs, bad) = first_pass.await??;
        if bad > 0 {
            screen.tell("nothing is sent, because of --all-or-nothing");
            return Ok(Outcome { queue: queue.to_owned(), sent: 0, refused: bad, dry_run });
        }
    }
    let mut sender = Sender::open(screen, queue, access, dry_run).await?;
    let (good, mut tasks) = mpsc::channel(AHEAD);
    let tell = screen.clone();
    let reading = tokio::task::spawn_blocking(move || {
        read(&mut inputs, &mut |line| match line {
            // The receiver is gone when sending has failed.
            Line::Good(body, place) => good.blocking_send((body, place)).is_ok(),
            bad => tell_bad(&tell, bad),
        })
    });
    while let Some((body, place)) = tasks.recv().await {
        sender.push(body, place).await?;
    }
    // What came before a file that could not be read to its end is sent all the same.
    let refused = reading.await?;
    let outcome = sender.finish(*refused.as_ref().unwrap_or(&0)).await?;
    match refused {
        Ok(_) => Ok(outcome),
        Err(error) => {
            outcome.tell(screen, dry_run);
            Err(error)
        }
    }
}

fn tell_bad(screen: &Screen, line: Line) -> bool {
    if let Line::Bad(problem) = line {
        screen.tell(problem);
    }
    true
}

/// Where lines come from.
enum Input {
    Stdin,
    Path(PathBuf),
    /// What standard input held, on disk and without a name: gone when it is closed.
    Kept(File),
}

impl Input {
    fn all(files: Vec<PathBuf>) -> anyhow::Result<Vec<Self>> {
        let mut inputs = Vec::new();
        for path in files {
            if path.as_os_str() == "-" {
                inputs.push(Self::Stdin);
            } else {
                // Better now than after the files before it have been sent.
                File::open(&path).map_err(|e| unreadable(&path, &e))?;
                inputs.push(Self::Path(path));
            }
        }
        if inputs.is_empty() {
            if io::stdin().is_terminal() {
                return Err(Advice::usage("no tasks are given, and standard input is a terminal")
                    .hint("name a file with one task a line, pipe lines in, or describe a task with --name")
                    .into());
            }
            inputs.push(Self::Stdin);
        }
        Ok(inputs)
    }

    /// Makes it possible to read them twice.
    fn keep(inputs: &mut [Self]) -> anyhow::Result<()> {
        for input in inputs.iter_mut().filter(|input| matches!(input, Self::Stdin)) {
            let mut file =
                tempfile::tempfile().map_err(|e| unreadable(Path::new("standard input"), &e))?;
            io::copy(&mut io::stdin().lock(), &mut file)
                .map_err(|e| unreadable(Path::new("standard input"), &e))?;
            *input = Self::Kept(file);
        }
        Ok(())
    }

    fn name(&self) -> &Path {
        match self {
            Self::Stdin | Self::Kept(_) => Path::new("standard input"),
            Self::Path(path) => path,
        }
    }

    fn open(&mut self) -> io::Result<Box<dyn BufRead + '_>> {
        Ok(match self {
            Self::Stdin => Box::new(io::stdin().lock()),
            Self::Path(path) => Box::new(BufReader::new(File::open(path)?)),
            Self::Kept(file) => {
                file.rewind()?;
                Box::new(BufReader::new(file))
            }
        })
    }
}

fn unreadable(name: &Path, error: &io::Error) -> Advice {
    Advice::failed(format!("{} can't be read: {error}", name.display()))
}

/// A line that is not blank.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// A task, and where it stands.
    Good(Bytes, String),
    /// What to say about it, with where it stands.
    Bad(String),
}

/// Reads all lines until `each` says false. Returns how many were bad.
fn read(inputs: &mut [Input], each: &mut dyn FnMut(Line) -> bool) -> anyhow::Result<u64> {
    let mut bad = 0;
    for input in inputs {
        let name = input.name().to_owned();
        let mut reader = input.open().map_err(|e| unreadable(&name, &e))?;
        let shown = name.display().to_string();
        let mut number = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            number += 1;
            let place = format!("{shown}, line {number}");
            let got = (&mut reader)
                .take(LONGEST)
                .read_until(b'\n', &mut line)
                .map_err(|e| Advice::failed(format!("{place}: {e}")))?;
            if got == 0 {
                break;
            }
            let checked = if got as u64 == LONGEST && line.last() != Some(&b'\n') {
                reader.skip_until(b'\n').map_err(|e| Advice::failed(format!("{place}: {e}")))?;
                Some(Line::Bad(format!("{place}: is longer than {} MiB", LONGEST >> 20)))
            } else {
                check(&line, place)
            };
            bad += u64::from(matches!(checked, Some(Line::Bad(_))));
            if let Some(line) = checked
                && !each(line)
            {
                return Ok(bad);
            }
        }
    }
    Ok(bad)
}

/// None for a blank line. What is sent is the line without its end, byte for byte.
fn check(line: &[u8], place: String) -> Option<Line> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let trimmed = line.trim_ascii();
    if trimmed.is_empty() {
        return None;
    }
    Some(match task_host::message::decode(line) {
        Ok(_) => Line::Good(Bytes::copy_from_slice(line), place),
        // The usual slip: a task, or an array of them, printed over several lines.
        Err(_) if matches!(trimmed, b"{" | b"[") => Line::Bad(format!(
            "{place}: a task has to be on one line (`jq -c .` puts it there, `jq -c '.[]'` an array's)"
        )),
        Err(error) => Line::Bad(format!("{place}: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_line_is_sent_byte_for_byte() {
        let task = br#" { "basic_info": {"name": "A", "base_directory": "d"}, "x" : 1.50 } "#;
        for end in ["", "\n", "\r\n"] {
            let line = [task, end.as_bytes()].concat();
            let want = Line::Good(Bytes::from_static(task), "p".to_owned());
            assert_eq!(check(&line, "p".to_owned()), Some(want));
        }
    }

    #[test]
    fn blank_lines_are_no_tasks_and_no_errors() {
        assert_eq!(check(b" \t\r\n", "p".to_owned()), None);
    }

    #[test]
    fn a_bad_line_says_where_and_why() {
        let check = |line: &str, want: &str| match check(line.as_bytes(), "t, line 3".to_owned()) {
            Some(Line::Bad(problem)) => assert!(problem.starts_with(want), "{problem}"),
            other => panic!("{other:?}"),
        };
        check("{}", "t, line 3: message: has neither");
        check("{", "t, line 3: a task has to be on one line");
        check("nonsense", "t, line 3: message: is not JSON");
    }
}
