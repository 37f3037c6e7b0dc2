//! The process that compiles one component: the host's own program, started only for this purpose.
//!
//! A hostile component can make the compiler use any amount of memory and time. A separate process
//! has limits and can be killed at any time.
//!
//! Standard input is a socket to the host. The host sends a [`Request`]. This process limits itself
//! and answers [`READY`]. If the process ends before that, the machine is the cause; if it ends
//! later, the component is. The host then sends the component. The answer is a kind (one byte), a
//! length (eight bytes, little-endian), and this number of bytes. This process ends when the host
//! closes the socket or dies.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, getrlimit, nice, setrlimit};
use wasmtime::Engine;

use super::adapter::component_of;
use super::{bounded, host_cause};
use crate::confinement;
use crate::digest::Digest;
use crate::sandbox::{self, Mode};

/// Sent when the limits are in force.
pub(super) const READY: u8 = b'r';

/// The kind of an answer with compiled code.
pub(super) const CODE: u8 = b'c';
/// The kind of an answer with an error: the component is not valid.
pub(super) const REFUSED: u8 = b'x';
/// The kind of an answer that says that the bytes don't match the digest.
pub(super) const DAMAGED: u8 = b'd';
/// The kind of an answer that says that there was not enough memory.
pub(super) const NO_MEMORY: u8 = b'm';

/// Tasks have priority over compilations.
const NICENESS: i32 = 2;
/// A core module with one function that does nothing.
const NOTHING: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x0a\x04\x01\x02\0\x0b";

/// The host's request: the limits, and the component that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// The limit of memory in bytes.
    pub(super) memory: u64,
    /// The limit of processor time in seconds.
    pub(super) seconds: u64,
    /// The mode of the sandbox that will run the code.
    pub(super) mode: Mode,
    /// The component's digest.
    pub(super) digest: Digest,
    /// The component's length in bytes.
    pub(super) length: u64,
}

impl Request {
    pub(super) const BYTES: usize = 57;

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.memory.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seconds.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.digest.0);
        bytes[56] = u8::from(self.mode == Mode::Deterministic);
        bytes
    }

    fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let mut digest = [0; 32];
        digest.copy_from_slice(&bytes[24..56]);
        let mode = if bytes[56] == 0 { Mode::Ordinary } else { Mode::Deterministic };
        let [memory, seconds, length] = [0, 8, 16].map(number);
        Self { memory, seconds, mode, length, digest: Digest(digest) }
    }
}

/// Compiles one component for the host that started this process.
///
/// # Errors
/// When standard input is not a socket to a host, or when this process can't get the resources that
/// it needs to start.
pub fn compile_for_parent() -> io::Result<()> {
    let mut parent = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut request = [0; Request::BYTES];
    parent.read_exact(&mut request)?;
    let request = Request::decode(&request);

    // Confines this thread first, because threads that start later inherit the rules.
    reduce_rights();
    end_with(parent.try_clone()?)?;
    let engine = warm_engine(request.mode)?;
    limit(Resource::Core, 0, 0)?;
    limit(Resource::Cpu, request.seconds, request.seconds.saturating_add(5))?;
    limit(Resource::Data, request.memory, request.memory)?;
    parent.write_all(&[READY])?;

    let (kind, bytes) = answer(&engine, &request, &mut parent)?;
    parent.write_all(&[kind])?;
    parent.write_all(&(bytes.len() as u64).to_le_bytes())?;
    parent.write_all(&bytes)
}

fn answer(
    engine: &Engine,
    request: &Request,
    parent: &mut UnixStream,
) -> io::Result<(u8, Vec<u8>)> {
    let mut wasm = Vec::new();
    let length = usize::try_from(request.length).unwrap_or(usize::MAX);
    if wasm.try_reserve_exact(length).is_err() {
        return Ok((NO_MEMORY, Vec::new()));
    }
    parent.take(request.length).read_to_end(&mut wasm)?;
    if Digest::of(&wasm) != request.digest {
        return Ok((DAMAGED, Vec::new()));
    }
    let component = match component_of(&wasm) {
        Ok(component) => component,
        Err(problem) => return Ok((REFUSED, bounded(&problem).into_bytes())),
    };
    Ok(match engine.precompile_component(&component) {
        Ok(code) => (CODE, code),
        Err(error) if is_of_memory(&error) => (NO_MEMORY, Vec::new()),
        Err(error) => (REFUSED, bounded(&format!("{error:#}")).into_bytes()),
    })
}

fn is_of_memory(error: &wasmtime::Error) -> bool {
    host_cause(error).is_some_and(|error| error.kind() == io::ErrorKind::OutOfMemory)
}

/// Lowers the priority of this process and drops its access to files and networks. A kernel that
/// can't do this is not an error, because the limits do not depend on it.
fn reduce_rights() {
    let _ = nice(NICENESS);
    confinement::give_up_files();
}

/// Ends this process when the host closes the socket or dies.
fn end_with(parent: UnixStream) -> io::Result<()> {
    std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
        // Without flags, `poll` reports only that the other end is closed.
        let mut gone = [PollFd::new(&parent, PollFlags::empty())];
        while poll(&mut gone, None).is_err() {}
        std::process::exit(1);
    })?;
    Ok(())
}

/// An engine whose compiler threads have started.
fn warm_engine(mode: Mode) -> io::Result<Engine> {
    let warm = || -> wasmtime::Result<Engine> {
        let engine = sandbox::compiling_engine(mode)?;
        engine.precompile_module(NOTHING)?;
        Ok(engine)
    };
    // The compiler panics if its threads can't be started.
    match catch_unwind(AssertUnwindSafe(warm)) {
        Ok(engine) => engine.map_err(|error| io::Error::other(format!("{error:#}"))),
        Err(_) => Err(io::Error::other("the compiler's threads could not be started")),
    }
}

/// Lowers a resource limit of this process.
fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let allowed = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let (current, maximum) = (Some(soft.min(allowed)), Some(hard.min(allowed)));
    Ok(setrlimit(resource, Rlimit { current, maximum })?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::COMPILES;
    use super::*;

    /// The catalog's tests run this test as the compiling process.
    #[test]
    fn this_program_compiles_where_that_is_asked_for() {
        if std::env::var_os(COMPILES).is_some() {
            let ended = compile_for_parent();
            std::process::exit(i32::from(ended.is_err()));
        }
    }

    #[test]
    fn a_request_arrives_as_it_was_sent() {
        let digest = Digest::of(b"a");
        for mode in [Mode::Ordinary, Mode::Deterministic] {
            let request = Request { memory: 1 << 40, seconds: 3, mode, digest, length: u64::MAX };
            assert_eq!(Request::decode(&request.encode()), request);
        }
    }
}
