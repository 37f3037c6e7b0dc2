//! A network that fails on request: a proxy between a host and a server.
//!
//! Of HTTP/1 it understands enough to let single requests fail, to break an answer at a byte
//! of its body, and to say what was asked for. Of anything else, HTTP/2 and so Pub/Sub among
//! it, it knows only bytes: faults for all requests apply to these.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

mod pass;
#[cfg(test)]
mod tests;

/// How often the proxy looks whether it is to do something else.
const LOOK: Duration = Duration::from_millis(5);

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens, and the connections there are end. Not for single requests.
    Refused,
    /// The connection is reset when so many bytes of an answer have passed.
    Reset(usize),
    /// The connection ends, as if all was said, when so many bytes of the body of an answer
    /// have passed; of what is not HTTP/1, so many bytes of all.
    Cut(usize),
    /// Every answer comes so much later; of what is not HTTP/1, every piece of one.
    Slow(Duration),
    /// The server is not asked, and this is answered. Of HTTP/1 only.
    Answer {
        /// 403, 503.
        status: u16,
        /// What is in it.
        body: String,
    },
}

/// A proxy. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What the proxy's threads share.
#[derive(Debug)]
struct Shared {
    upstream: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Active>,
    /// What was asked for, as in [`Proxy::requests`].
    requests: Vec<String>,
    /// Both ends of all connections, by their number.
    open: HashMap<u64, TcpStream>,
    connections: u64,
    has_ended: bool,
}

#[derive(Debug, Clone)]
struct Active {
    fault: Fault,
    /// What is in the requests that it is for.
    of: String,
    /// How many more of them it is for.
    times: usize,
}

impl Proxy {
    /// A proxy to the server at an address, or at an `http://` URL, that lets all pass.
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

    /// From now on, all goes wrong in this way.
    pub fn fail(&self, fault: Fault) {
        self.fail_some(fault, "", usize::MAX);
    }

    /// From now on, the next so many `times` that a request has `of` in it, it goes wrong in
    /// this way. See [`requests`](Self::requests) for what a request looks like.
    pub fn fail_some(&self, fault: Fault, of: &str, times: usize) {
        let is_refused = fault == Fault::Refused;
        self.state().fault = Some(Active { fault, of: of.to_owned(), times });
        if is_refused {
            self.shared.end_all();
            // The thread that listens has to see it.
            while TcpStream::connect(self.address).is_ok() {
                thread::sleep(LOOK);
            }
        }
    }

    /// From now on, all passes.
    pub fn mend(&self) {
        self.state().fault = None;
        while TcpStream::connect(self.address).is_err() {
            thread::sleep(LOOK);
        }
    }

    /// The HTTP/1 requests that came, those that failed included, as `GET /bucket/key`; and
    /// for services that are asked so, with what was asked for behind it:
    /// `POST / AmazonSQS.ReceiveMessage`.
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
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Notes a stream, to end it when that is asked for; until it is forgotten.
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

    /// Notes a request, and says what is to go wrong with it.
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

    /// What goes wrong with all.
    fn fault(&self) -> Option<Fault> {
        let state = self.state();
        let active = state.fault.as_ref().filter(|active| active.of.is_empty())?;
        Some(active.fault.clone())
    }
}

/// Takes connections, and none while they are to be refused.
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
            // Somebody else may have the port for a moment.
            listening = TcpListener::bind(address).ok();
            if let Some(listener) = &listening {
                listener.set_nonblocking(true).expect("a listener that does not wait");
            }
        }
        match listening.as_ref().map(TcpListener::accept) {
            Some(Ok((client, _))) => {
                let shared = shared.clone();
                thread::spawn(move || {
                    // A connection that breaks is what this is for.
                    let _ = client.set_nonblocking(false);
                    let _ = pass::connection(&shared, client);
                });
            }
            _ => thread::sleep(LOOK),
        }
    }
}
