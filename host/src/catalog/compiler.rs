//! Starts a process for each compilation and interprets how the process ended.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytesize::ByteSize;
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::child::{CODE, DAMAGED, NO_MEMORY, READY, REFUSED, Request};
use super::{MAX_WORDS, bounded};
use crate::digest::Digest;
use crate::fault::{self, Step};
use crate::machine::Machine;
use crate::sandbox::Mode;
use crate::shortage;

/// The most compilations at the same time.
const AT_ONCE: usize = 2;
/// The limit for compiled code is the memory limit divided by this number.
const CODE_PART: u64 = 16;
/// The limit of wall-clock time is this many times the limit of processor time, because tasks have
/// priority.
const WAITS: u32 = 4;
/// The file with a process's score. When memory runs out, the kernel kills the process with the
/// highest score.
const OOM_SCORE_FILE: &str = "/proc/self/oom_score_adj";
/// The score of a compiling process.
const OOM_SCORE: &str = "500";
/// The shortest component: only a header.
const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// The limits of one compilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Memory of the compiling process. Compiled code may use a sixteenth of this size.
    pub memory: ByteSize,
    /// Processor time of the compiling process, rounded up to whole seconds. Wall-clock time may be
    /// four times as long.
    pub time: Duration,
}

impl CompileLimits {
    /// The largest size of compiled code.
    pub(super) fn code(&self) -> ByteSize {
        ByteSize(self.memory.as_u64() / CODE_PART)
    }

    fn seconds(&self) -> u64 {
        self.time.as_secs().saturating_add(u64::from(self.time.subsec_nanos() > 0)).max(1)
    }

    fn wall_clock(&self) -> Duration {
        Duration::from_secs(self.seconds()).saturating_mul(WAITS)
    }
}

/// A limit that a compilation exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Exceeded {
    Memory,
    Time,
    Code,
}

/// The record of why a component can't be compiled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failed {
    /// The reason as text.
    pub(super) reason: String,
    /// The limit that was exceeded, if any.
    pub(super) exceeded: Option<Exceeded>,
    /// The memory limit in bytes.
    memory: u64,
    /// The limit on processor time in seconds.
    seconds: u64,
    /// True if the compiler or the host was killed. The component may not be the cause.
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
                "compiling it takes more than {memory} of memory; raise the limit with \
                 `--compile-memory`"
            ),
            Exceeded::Time => format!(
                "compiling it takes more than {} of processor time, or four times that in \
                 wall-clock time; raise the limit with `--compile-timeout`",
                humantime::format_duration(Duration::from_secs(limits.seconds()))
            ),
            Exceeded::Code => format!(
                "its compiled code is larger than {}, a sixteenth of the memory limit; raise the \
                 limit with `--compile-memory`",
                limits.code().display().iec()
            ),
        };
        Self::new(&reason, Some(exceeded), limits)
    }

    /// The record of a component whose compiler or host was killed this number of times.
    pub(super) fn by_deaths(deaths: u32, limits: CompileLimits) -> Self {
        let reason = format!(
            "compiling it was started {deaths} times and did not finish: each time the compiler \
             or the host was killed, perhaps by the kernel for lack of memory"
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

/// A failure of this host to compile or load a component.
#[derive(Debug, thiserror::Error)]
#[error("{doing} failed: {source}{}", cure(source))]
pub struct HostError {
    pub(super) doing: &'static str,
    pub(super) source: io::Error,
}

/// What to do if a host can't start a process, as the end of the error's text.
fn cure(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN) => {
            " (the limit on processes and threads is reached: raise `ulimit -u`, \
            TasksMax of the systemd unit, or pids.max of the container)"
                .to_owned()
        }
        Some(errno) if shortage::is_of_the_process(errno) => {
            format!(" ({})", shortage::cure(errno))
        }
        _ => String::new(),
    }
}

/// Why a compilation produced no code.
#[derive(Debug)]
pub(super) enum Uncompiled {
    /// A retry would fail in the same way.
    Failed(Failed),
    /// The process was killed, or the machine had too little memory. The text says which.
    Died(String),
    /// A signal told the process to stop. The text says which.
    Stopped(String),
    /// The bytes don't match the digest.
    Damaged,
    /// The component's bytes could not be read.
    Unread(io::Error),
    /// This host could not start the compilation.
    Host(HostError),
}

/// Starts compiling processes.
#[derive(Debug)]
pub struct Compiler {
    program: PathBuf,
    arguments: Vec<OsString>,
    variables: Vec<(&'static str, String)>,
    limits: CompileLimits,
    permits: Semaphore,
}

impl Compiler {
    /// A compiler whose processes run `program` with `arguments` under `limits`. The program must
    /// call [`compile_for_parent`](super::compile_for_parent).
    pub fn new(program: PathBuf, arguments: Vec<OsString>, limits: CompileLimits) -> Self {
        let threads = Machine::of_process().cores();
        // The compiling process has no access to files and can't read its container's processor
        // limit.
        let variables = vec![("RAYON_NUM_THREADS", threads.to_string())];
        Self { program, arguments, variables, limits, permits: Semaphore::new(AT_ONCE) }
    }

    /// The same compiler, with one more environment variable.
    #[cfg(test)]
    pub(super) fn with_variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    pub(super) fn limits(&self) -> CompileLimits {
        self.limits
    }

    /// Waits until another process may start.
    pub(super) async fn permit(&self) -> tokio::sync::SemaphorePermit<'_> {
        match self.permits.acquire().await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// Compiles an empty component, to check whether this host can compile.
    ///
    /// # Errors
    /// Why the host can't compile.
    pub async fn try_out(&self) -> Result<(), HostError> {
        let (digest, length) = (Digest::of(EMPTY_COMPONENT), EMPTY_COMPONENT.len() as u64);
        let problem = match self.compile(Mode::Ordinary, digest, length, EMPTY_COMPONENT).await {
            Ok(_) => return Ok(()),
            Err(Uncompiled::Host(error)) => return Err(error),
            Err(Uncompiled::Failed(failed)) => failed.reason,
            Err(Uncompiled::Died(how) | Uncompiled::Stopped(how)) => how,
            Err(Uncompiled::Damaged | Uncompiled::Unread(_)) => "the bytes changed".to_owned(),
        };
        Err(HostError { doing: "compiling an empty component", source: io::Error::other(problem) })
    }

    /// Compiles the component of that digest, which has `length` bytes, for sandboxes of that mode.
    /// Dropping the future kills the process.
    pub(super) async fn compile(
        &self,
        mode: Mode,
        digest: Digest,
        length: u64,
        wasm: impl AsyncRead + Unpin,
    ) -> Result<Vec<u8>, Uncompiled> {
        let starting =
            |source| Uncompiled::Host(HostError { doing: "starting the compiler", source });
        let limits = self.limits;
        let (mut child, socket) = self.start().map_err(starting)?;
        let memory = limits.memory.as_u64();
        let request = Request { memory, seconds: limits.seconds(), mode, digest, length };
        let mut stderr = child.stderr.take();
        let ended = tokio::time::timeout(limits.wall_clock(), async {
            tokio::join!(
                talk(socket, request, wasm, limits.code().as_u64()),
                last_words(&mut stderr),
                child.wait()
            )
        });
        let Ok((talk, words, status)) = ended.await else {
            // Waits for the end of the process, so that no more processes use memory than there are
            // permits. An error means that the process has already ended.
            let _ = child.kill().await;
            return Err(Uncompiled::Failed(Failed::over(Exceeded::Time, limits)));
        };
        let status = status.map_err(starting)?;
        match talk {
            Talk::Unread(error) => Err(Uncompiled::Unread(error)),
            Talk::TooLarge => Err(Uncompiled::Failed(Failed::over(Exceeded::Code, limits))),
            Talk::Answer(CODE, code) => {
                fault::point(Step::Compiled);
                Ok(code)
            }
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
        fault::shortage(Step::Compile)?;
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        let _first = KilledFirst::begin();
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C goes only to the host, which then ends this process.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        Ok((child, ours))
    }

    /// Interprets the end of a process that sent no answer.
    fn judge(&self, was_ready: bool, status: ExitStatus, words: &str) -> Uncompiled {
        let signal = status.signal().unwrap_or_default();
        let is = |other: Signal| signal == other.as_raw();
        if [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].into_iter().any(is) {
            return Uncompiled::Stopped(format!("its compiler ended: {status}"));
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
                "its compiler was killed, perhaps by the kernel for lack of memory".to_owned(),
            );
        }
        let reason = match words {
            "" => format!("the compiler crashed: {status}"),
            words => format!("the compiler crashed: {status}: {words}"),
        };
        Uncompiled::Failed(Failed::new(&reason, None, self.limits))
    }

    /// Interprets a lack of memory. The limit was reached, unless the machine has less memory than
    /// the limit.
    fn without_memory(&self) -> Uncompiled {
        let most = usize::try_from(self.limits.memory.as_u64()).unwrap_or(usize::MAX);
        let mut memory = Vec::<u8>::new();
        let got = memory.try_reserve_exact(most);
        // Keeps the compiler from removing the allocation.
        std::hint::black_box(&memory);
        match got {
            Ok(()) => Uncompiled::Failed(Failed::over(Exceeded::Memory, self.limits)),
            Err(_) => Uncompiled::Died(format!(
                "this machine has too little memory to compile it: less than the limit of {}",
                self.limits.memory.display().iec()
            )),
        }
    }
}

/// While this value exists, new processes inherit a score with which the kernel kills them before
/// their host when memory runs out.
///
/// A host that has confined itself can set its own score, but neither it nor a process that it has
/// started can set the score of that process.
struct KilledFirst {
    before: Option<Vec<u8>>,
    _alone: MutexGuard<'static, ()>,
}

impl KilledFirst {
    fn begin() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock();
        let before = std::fs::read(OOM_SCORE_FILE).ok();
        let set = before.is_some() && std::fs::write(OOM_SCORE_FILE, OOM_SCORE).is_ok();
        Self { before: before.filter(|_| set), _alone: alone }
    }
}

impl Drop for KilledFirst {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = std::fs::write(OOM_SCORE_FILE, before);
        }
    }
}

/// The result of a conversation with a compiling process.
enum Talk {
    Answer(u8, Vec<u8>),
    /// The process ended without an answer.
    Silence {
        was_ready: bool,
    },
    /// The answer is larger than the limit.
    TooLarge,
    /// The component could not be read.
    Unread(io::Error),
}

/// Sends the request and the component, and receives the answer. Closes the socket, which ends the
/// process.
async fn talk(
    mut socket: UnixStream,
    request: Request,
    wasm: impl AsyncRead + Unpin,
    max_code: u64,
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
    // The process then knows that no more bytes follow.
    let _ = socket.shutdown().await;
    let mut head = [0; 9];
    if socket.read_exact(&mut head).await.is_err() {
        return Talk::Silence { was_ready: true };
    }
    let [kind, length @ ..] = head;
    let length = u64::from_le_bytes(length);
    if length > max_code.max(MAX_WORDS as u64 * 2) {
        return Talk::TooLarge;
    }
    let mut answer = Vec::new();
    match socket.take(length).read_to_end(&mut answer).await {
        Ok(read) if read as u64 == length => Talk::Answer(kind, answer),
        _ => Talk::Silence { was_ready: true },
    }
}

/// Sends up to `length` bytes. Returns the error if the bytes can't be read. If they can't be
/// written, the process has ended, which the caller notices.
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

/// The standard error of a process, in one line of bounded length.
async fn last_words(stderr: &mut Option<tokio::process::ChildStderr>) -> String {
    let Some(stderr) = stderr else { return String::new() };
    let mut words = Vec::new();
    // Reads the rest too, so that the process never blocks on a write.
    let mut first = (&mut *stderr).take(MAX_WORDS as u64);
    let _ = first.read_to_end(&mut words).await;
    let _ = tokio::io::copy(stderr, &mut tokio::io::sink()).await;
    bounded(String::from_utf8_lossy(&words).trim())
}
