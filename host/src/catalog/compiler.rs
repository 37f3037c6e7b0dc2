//! Has components compiled by processes of their own, and says how that ended.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytesize::ByteSize;
use rustix::io::Errno;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::child::{CODE, DAMAGED, NO_MEMORY, READY, REFUSED, Request};
use super::{MOST_WORDS, bounded};
use crate::digest::Digest;
use crate::shortage;

/// Components that are compiled at the same time.
const AT_ONCE: usize = 2;
/// Compiled code may take this part of the memory that it was compiled in.
const CODE_PART: u64 = 16;
/// By the clock, compiling may take this many times its processor time: tasks go first.
const WAITS: u32 = 4;
/// What every component begins with, and nothing more.
const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// What compiling one component may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Memory of the process that compiles. Its compiled code may have a sixteenth of that.
    pub memory: ByteSize,
    /// Processor time of that process, in whole seconds. By the clock it may take four times as long.
    pub time: Duration,
}

impl CompileLimits {
    /// The size that compiled code may have.
    pub(super) fn code(&self) -> ByteSize {
        ByteSize(self.memory.as_u64() / CODE_PART)
    }

    fn seconds(&self) -> u64 {
        self.time.as_secs().saturating_add(u64::from(self.time.subsec_nanos() > 0)).max(1)
    }

    fn by_the_clock(&self) -> Duration {
        Duration::from_secs(self.seconds()).saturating_mul(WAITS)
    }
}

/// A limit that compiling ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Exceeded {
    Memory,
    Time,
    Code,
}

/// Why a component can't be compiled, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failed {
    /// In words.
    pub(super) reason: String,
    /// The limit that was too low, if it was one.
    pub(super) exceeded: Option<Exceeded>,
    /// Bytes of memory that it could use.
    memory: u64,
    /// Seconds of processor time that it could use.
    seconds: u64,
    /// True when the compiler, or the host, was killed meanwhile: that may have been for another
    /// reason.
    pub(super) by_death: bool,
}

impl Failed {
    fn new(reason: &str, exceeded: Option<Exceeded>, limits: CompileLimits) -> Self {
        let (memory, seconds) = (limits.memory.as_u64(), limits.seconds());
        Self { reason: bounded(reason), exceeded, memory, seconds, by_death: false }
    }

    fn over(exceeded: Exceeded, limits: CompileLimits) -> Self {
        let memory = limits.memory.display().iec();
        let reason = match exceeded {
            Exceeded::Memory => format!(
                "compiling it takes more than the {memory} of memory that it may use; \
                 `--compile-memory` raises that limit"
            ),
            Exceeded::Time => format!(
                "compiling it takes more than the {} of processor time that it may use, or four \
                 times that by the clock; `--compile-timeout` raises that limit",
                humantime::format_duration(Duration::from_secs(limits.seconds()))
            ),
            Exceeded::Code => format!(
                "its compiled code has more than {}, a sixteenth of what compiling may use; \
                 `--compile-memory` raises that limit",
                limits.code().display().iec()
            ),
        };
        Self::new(&reason, Some(exceeded), limits)
    }

    /// What is said of a component whose compilation was cut short by a death so often.
    pub(super) fn by_deaths(deaths: u32, limits: CompileLimits) -> Self {
        let reason = format!(
            "compiling it was begun {deaths} times and did not end: each time the process that \
             compiles it, or the host, was killed, perhaps by the kernel for want of memory"
        );
        Self { by_death: true, ..Self::new(&reason, None, limits) }
    }

    /// Whether compiling with these limits would end the same way.
    pub(super) fn holds_for(&self, limits: CompileLimits) -> bool {
        match self.exceeded {
            None => true,
            Some(Exceeded::Time) => limits.seconds() <= self.seconds,
            Some(Exceeded::Memory | Exceeded::Code) => limits.memory.as_u64() <= self.memory,
        }
    }
}

/// What this host could not do for a component.
#[derive(Debug, thiserror::Error)]
#[error("{doing} failed: {source}{}", cure(source))]
pub struct HostError {
    pub(super) doing: &'static str,
    pub(super) source: io::Error,
}

/// What helps a host that can't start a process.
fn cure(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN) => " (this user or container may have no more processes and threads: \
            raise `ulimit -u`, TasksMax in a systemd unit, or pids.max of a container)"
            .to_owned(),
        Some(errno) if shortage::is_of_the_process(errno) => {
            format!(" ({})", shortage::cure(errno))
        }
        _ => String::new(),
    }
}

/// Why there is no compiled code.
#[derive(Debug)]
pub(super) enum Uncompiled {
    /// Another try would end the same way.
    Failed(Failed),
    /// The process was killed, or the machine had no memory for it. How, in words.
    Died(String),
    /// Somebody told the process to stop. How, in words.
    Stopped(String),
    /// The bytes are not those of the digest.
    Damaged,
    /// The component's bytes could not be read.
    Unread(io::Error),
    /// This host could not begin it.
    Host(HostError),
}

/// Starts processes that compile.
#[derive(Debug)]
pub struct Compiler {
    program: PathBuf,
    arguments: Vec<OsString>,
    variables: Vec<(&'static str, String)>,
    limits: CompileLimits,
    turns: Semaphore,
}

impl Compiler {
    /// One whose processes run `program` with `arguments`, which has to call
    /// [`compile_for_parent`](super::compile_for_parent), and may use what `limits` allow.
    pub fn new(program: PathBuf, arguments: Vec<OsString>, limits: CompileLimits) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        // The process can't see by itself how many processors its container has.
        let variables = vec![("RAYON_NUM_THREADS", threads.to_string())];
        Self { program, arguments, variables, limits, turns: Semaphore::new(AT_ONCE) }
    }

    /// One whose processes get this variable as well.
    #[cfg(test)]
    pub(super) fn with_variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    pub(super) fn limits(&self) -> CompileLimits {
        self.limits
    }

    /// Waits until one more process may be started.
    pub(super) async fn turn(&self) -> tokio::sync::SemaphorePermit<'_> {
        match self.turns.acquire().await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// Starts a process that has next to nothing to do.
    ///
    /// # Errors
    /// What keeps this host from compiling anything.
    pub async fn try_out(&self) -> Result<(), HostError> {
        let (digest, length) = (Digest::of(EMPTY_COMPONENT), EMPTY_COMPONENT.len() as u64);
        let problem = match self.compile(digest, length, EMPTY_COMPONENT).await {
            Ok(_) => return Ok(()),
            Err(Uncompiled::Host(error)) => return Err(error),
            Err(Uncompiled::Failed(failed)) => failed.reason,
            Err(Uncompiled::Died(how) | Uncompiled::Stopped(how)) => how,
            Err(Uncompiled::Damaged | Uncompiled::Unread(_)) => "the bytes changed".to_owned(),
        };
        Err(HostError { doing: "compiling an empty component", source: io::Error::other(problem) })
    }

    /// The compiled code of the component of that digest and length in bytes. Dropping the future
    /// kills the process.
    pub(super) async fn compile(
        &self,
        digest: Digest,
        length: u64,
        wasm: impl AsyncRead + Unpin,
    ) -> Result<Vec<u8>, Uncompiled> {
        let starting =
            |source| Uncompiled::Host(HostError { doing: "starting the compiler", source });
        let limits = self.limits;
        let (mut child, socket) = self.start().map_err(starting)?;
        let memory = limits.memory.as_u64();
        let request = Request { memory, seconds: limits.seconds(), digest, length };
        let mut stderr = child.stderr.take();
        let ended = tokio::time::timeout(limits.by_the_clock(), async {
            tokio::join!(
                talk(socket, request, wasm, limits.code().as_u64()),
                last_words(&mut stderr),
                child.wait()
            )
        });
        let Ok((talk, words, status)) = ended.await else {
            // Who can't be killed has ended already; the others are gone before the next begins.
            let _ = child.kill().await;
            return Err(Uncompiled::Failed(Failed::over(Exceeded::Time, limits)));
        };
        let status = status.map_err(starting)?;
        match talk {
            Talk::Unread(error) => Err(Uncompiled::Unread(error)),
            Talk::TooLarge => Err(Uncompiled::Failed(Failed::over(Exceeded::Code, limits))),
            Talk::Answer(CODE, code) => Ok(code),
            Talk::Answer(DAMAGED, _) => Err(Uncompiled::Damaged),
            Talk::Answer(NO_MEMORY, _) => Err(self.without_memory()),
            Talk::Answer(REFUSED, words) => {
                let reason = String::from_utf8_lossy(&words);
                Err(Uncompiled::Failed(Failed::new(&reason, None, limits)))
            }
            Talk::Answer(..) | Talk::Silence { .. } => {
                let was_ready = !matches!(talk, Talk::Silence { was_ready: false });
                Err(self.judge(was_ready, status, &words))
            }
        }
    }

    fn start(&self) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A Ctrl-C is for the host, which ends its processes.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        Ok((child, ours))
    }

    /// What the end of a process means that gave no answer.
    fn judge(&self, was_ready: bool, status: ExitStatus, words: &str) -> Uncompiled {
        let signal = status.signal().unwrap_or_default();
        let is = |other: Signal| signal == other.as_raw();
        if [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].into_iter().any(is) {
            return Uncompiled::Stopped(format!("the process that compiles it ended: {status}"));
        }
        if !was_ready {
            let source = match words {
                "" => io::Error::other(status.to_string()),
                words => io::Error::other(format!("{status}: {words}")),
            };
            return Uncompiled::Host(HostError { doing: "starting the compiler", source });
        }
        if is(Signal::XCPU) {
            return Uncompiled::Failed(Failed::over(Exceeded::Time, self.limits));
        }
        if is(Signal::ABORT) && words.contains("memory allocation of") {
            return self.without_memory();
        }
        if is(Signal::KILL) {
            return Uncompiled::Died(
                "the process that compiles it was killed, perhaps by the kernel for want of memory"
                    .to_owned(),
            );
        }
        let reason = match words {
            "" => format!("the compiler broke off: {status}"),
            words => format!("the compiler broke off: {status}: {words}"),
        };
        Uncompiled::Failed(Failed::new(&reason, None, self.limits))
    }

    /// What it means that a process got no more memory: that it had all that it may have, unless
    /// the machine does not have that much.
    fn without_memory(&self) -> Uncompiled {
        let most = usize::try_from(self.limits.memory.as_u64()).unwrap_or(usize::MAX);
        let mut memory = Vec::<u8>::new();
        let got = memory.try_reserve_exact(most);
        // Or it would not be asked for.
        std::hint::black_box(&memory);
        match got {
            Ok(()) => Uncompiled::Failed(Failed::over(Exceeded::Memory, self.limits)),
            Err(_) => Uncompiled::Died(format!(
                "this machine has too little memory to compile it: it has less than the {} that \
                 compiling may use",
                self.limits.memory.display().iec()
            )),
        }
    }
}

/// What came of talking to a process.
enum Talk {
    Answer(u8, Vec<u8>),
    /// It ended first.
    Silence {
        was_ready: bool,
    },
    /// Its answer is longer than it may be.
    TooLarge,
    /// There was nothing to send.
    Unread(io::Error),
}

/// Sends the request and the component, and takes the answer. Closes the socket, which ends a
/// process that still runs.
async fn talk(
    mut socket: UnixStream,
    request: Request,
    wasm: impl AsyncRead + Unpin,
    most_code: u64,
) -> Talk {
    let mut ready = [0];
    let greeted = match socket.write_all(&request.encode()).await {
        Ok(()) => socket.read_exact(&mut ready).await.map(drop),
        Err(error) => Err(error),
    };
    if greeted.is_err() || ready != [READY] {
        return Talk::Silence { was_ready: false };
    }
    if let Some(error) = send(&mut socket, request.length, wasm).await {
        return Talk::Unread(error);
    }
    // What is missing is seen to be missing.
    let _ = socket.shutdown().await;
    let mut head = [0; 9];
    if socket.read_exact(&mut head).await.is_err() {
        return Talk::Silence { was_ready: true };
    }
    let [kind, length @ ..] = head;
    let length = u64::from_le_bytes(length);
    if length > most_code.max(MOST_WORDS as u64 * 2) {
        return Talk::TooLarge;
    }
    let mut answer = Vec::new();
    match socket.take(length).read_to_end(&mut answer).await {
        Ok(read) if read as u64 == length => Talk::Answer(kind, answer),
        _ => Talk::Silence { was_ready: true },
    }
}

/// Sends up to `length` bytes. Returns what reading them failed with. A process that does not take
/// them has ended, which is seen elsewhere.
async fn send(
    socket: &mut UnixStream,
    length: u64,
    wasm: impl AsyncRead + Unpin,
) -> Option<io::Error> {
    let mut wasm = wasm.take(length);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match wasm.read(&mut buffer).await {
            Ok(0) => return None,
            Ok(read) => {
                if socket.write_all(&buffer[..read]).await.is_err() {
                    return None;
                }
            }
            Err(error) => return Some(error),
        }
    }
}

/// What a process said on its standard error, cut, in one line.
async fn last_words(stderr: &mut Option<tokio::process::ChildStderr>) -> String {
    let Some(stderr) = stderr else { return String::new() };
    let mut words = Vec::new();
    // A process that says more must not wait for anybody to listen.
    let mut first = (&mut *stderr).take(MOST_WORDS as u64);
    let _ = first.read_to_end(&mut words).await;
    let _ = tokio::io::copy(stderr, &mut tokio::io::sink()).await;
    bounded(String::from_utf8_lossy(&words).trim())
}
