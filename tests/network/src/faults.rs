//! A network that fails on request: a proxy between a host and a server.
//!
//! The proxy understands HTTP/1 well enough to let single requests fail, to break an answer at a
//! byte of its body, and to record requests. It treats everything else as bytes, including HTTP/2
//! and therefore Pub/Sub. Faults for all requests apply to these bytes, too.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

mod pass;
#[cfg(test)]
mod tests;

/// How often the proxy checks for a change of its fault.
const LOOK: Duration = Duration::from_millis(5);

/// A fault of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The port refuses connections, and existing connections end. Only for all requests.
    Refused,
    /// The connection is reset after this many bytes of an answer.
    Reset(usize),
    /// The connection ends normally after this many bytes of an answer's body. Without HTTP/1,
    /// after this many bytes from the server.
    Cut(usize),
    /// Every answer is late by this time. Without HTTP/1, every piece of data from the server is.
    Slow(Duration),
    /// The proxy gives this answer itself, without asking the server. Only for HTTP/1.
    Answer {
        /// The status, such as 403 or 503.
        status: u16,
        /// The body.
        body: String,
    },
}

/// A proxy. Dropping this stops it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// The state that the proxy's threads share.
#[derive(Debug)]
struct Shared {
    upstream: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Active>,
    /// The recorded requests, in the format of [`Proxy::requests`].
    requests: Vec<String>,
    /// Both ends of all connections, by number.
    open: HashMap<u64, TcpStream>,
    connections: u64,
    has_ended: bool,
}

#[derive(Debug, Clone)]
struct Active {
    fault: Fault,
    /// The fault applies to requests that contain this text.
    of: String,
    /// How many more requests the fault applies to.
    times: usize,
}

impl Proxy {
    /// A proxy to the server at an address or an `http://` URL. At first, it has no fault.
    pub fn to(server: &str) -> Self {
        let upstream = server.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { upstream, state: Mutex::default() });
        let serving = shared.clone();
        thread::spawn(move || serve(&serving, listener, address));
        Self { address, shared }
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// `http://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, all requests get this fault.
    pub fn fail(&self, fault: Fault) {
        self.fail_some(fault, "", usize::MAX);
    }

    /// From now on, the next `times` requests that contain `of` get this fault.
    /// [`requests`](Self::requests) describes the format of a request.
    pub fn fail_some(&self, fault: Fault, of: &str, times: usize) {
        let is_refused = fault == Fault::Refused;
        self.state().fault = Some(Active { fault, of: of.to_owned(), times });
        if is_refused {
            self.shared.end_all();
            // Waits until the listening thread has noticed.
            while TcpStream::connect(self.address).is_ok() {
                thread::sleep(LOOK);
            }
        }
    }

    /// Ends the fault.
    pub fn mend(&self) {
        self.state().fault = None;
        while TcpStream::connect(self.address).is_err() {
            thread::sleep(LOOK);
        }
    }

    /// The HTTP/1 requests so far, including failed ones, such as `GET /bucket/key`. The operation
    /// follows for services that name it in a header: `POST / AmazonSQS.ReceiveMessage`.
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state().has_ended = true;
        self.shared.end_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_all(&self) {
        for (_, stream) in self.state().open.drain() {
            // The connection may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Records a stream, so that `end_all` can end it, until it is forgotten.
    fn note(&self, stream: &TcpStream) -> io::Result<u64> {
        let mut state = self.state();
        state.connections += 1;
        let number = state.connections;
        state.open.insert(number, stream.try_clone()?);
        Ok(number)
    }

    fn forget(&self, number: u64) {
        self.state().open.remove(&number);
    }

    /// Records a request, and returns its fault, if any.
    fn request(&self, what: &str) -> Option<Fault> {
        let mut state = self.state();
        state.requests.push(what.to_owned());
        let active = state.fault.as_mut()?;
        if active.times == 0 || !what.contains(&active.of) {
            return None;
        }
        active.times -= 1;
        Some(active.fault.clone())
    }

    /// The current fault, if it applies to all requests.
    fn fault(&self) -> Option<Fault> {
        let state = self.state();
        let active = state.fault.as_ref().filter(|active| active.of.is_empty())?;
        Some(active.fault.clone())
    }
}

/// Accepts connections, and closes the port while connections are to be refused.
fn serve(shared: &Arc<Shared>, listener: TcpListener, address: SocketAddr) {
    listener.set_nonblocking(true).expect("a listener that does not wait");
    let mut listening = Some(listener);
    loop {
        if shared.state().has_ended {
            return;
        }
        if shared.fault() == Some(Fault::Refused) {
            listening = None;
        } else if listening.is_none() {
            // Another program may have the port for a moment.
            listening = TcpListener::bind(address).ok();
            if let Some(listener) = &listening {
                listener.set_nonblocking(true).expect("a listener that does not wait");
            }
        }
        match listening.as_ref().map(TcpListener::accept) {
            Some(Ok((client, _))) => {
                let shared = shared.clone();
                thread::spawn(move || {
                    // Broken connections are expected.
                    let _ = client.set_nonblocking(false);
                    let _ = pass::connection(&shared, client);
                });
            }
            _ => thread::sleep(LOOK),
        }
    }
}
