//! Passes data through the proxy, and applies faults.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use super::{Fault, Shared};

/// The first bytes of an HTTP/2 connection.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0";
/// The maximum size of a piece that is passed at once.
const PIECE: usize = 16 * 1024;

/// Passes the data of a connection, until one side ends it.
pub(super) fn connection(shared: &Arc<Shared>, client: TcpStream) -> io::Result<()> {
    let ours = shared.note(&client)?;
    let result = with_server(shared, &client);
    // The connection is reset when its last descriptor is closed.
    shared.forget(ours);
    if !result.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset) {
        client.shutdown(Shutdown::Both)?;
    }
    Ok(())
}

fn with_server(shared: &Arc<Shared>, client: &TcpStream) -> io::Result<()> {
    let mut start = [0; HTTP_2.len()];
    let is_http_1 = loop {
        let length = client.peek(&mut start)?;
        if length == 0 {
            return Ok(());
        }
        if start[..length] != HTTP_2[..length] {
            break true;
        }
        if length == HTTP_2.len() {
            break false;
        }
    };
    let server = TcpStream::connect(&shared.upstream)?;
    let theirs = shared.note(&server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let result =
        if is_http_1 { messages(shared, client, &server) } else { bytes(shared, client, &server) };
    shared.forget(theirs);
    // The connection may have ended by itself.
    let _ = server.shutdown(Shutdown::Both);
    result
}

/// Passes requests and answers of HTTP/1, one after the other.
fn messages(shared: &Shared, client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let (mut from_client, mut from_server) = (BufReader::new(client), BufReader::new(server));
    while let Some(request) = Head::read(&mut from_client)? {
        let fault = shared.request(&request.shown());
        let mut to_server: &TcpStream = server;
        if let Some(Fault::Answer { status, body }) = &fault {
            request.pass_body(&mut from_client, &mut io::sink())?;
            let mut to_client: &TcpStream = client;
            let head = format!("HTTP/1.1 {status} Fault\r\nContent-Length: {}\r\n\r\n", body.len());
            to_client.write_all(head.as_bytes())?;
            if !request.text.starts_with("HEAD ") {
                to_client.write_all(body.as_bytes())?;
            }
            continue;
        }
        to_server.write_all(request.text.as_bytes())?;
        request.pass_body(&mut from_client, &mut to_server)?;

        let Some(answer) = Head::read(&mut from_server)? else { return Ok(()) };
        let mut out = Broken { stream: client, left: None, is_reset: false };
        match fault {
            Some(Fault::Slow(time)) => thread::sleep(time),
            Some(Fault::Reset(after)) => (out.left, out.is_reset) = (Some(after), true),
            Some(Fault::Cut(after)) => out.left = Some(answer.text.len() + after),
            _ => {}
        }
        out.write_all(answer.text.as_bytes())?;
        let status = answer.text.split(' ').nth(1).unwrap_or_default();
        if !request.text.starts_with("HEAD ") && status != "204" && status != "304" {
            answer.pass_body(&mut from_server, &mut out)?;
        }
        out.end_in_time()?;
    }
    Ok(())
}

/// Passes the bytes of another protocol, each direction by itself.
fn bytes(shared: &Arc<Shared>, client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let mut from_server = server;
    let mut piece = vec![0; PIECE];
    // The number of bytes that passed since the fault began.
    let mut passed = 0;
    loop {
        let length = from_server.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        let mut out = Broken { stream: client, left: None, is_reset: false };
        match shared.fault() {
            Some(Fault::Slow(time)) => thread::sleep(time),
            Some(Fault::Reset(after)) => {
                (out.left, out.is_reset) = (Some(after.saturating_sub(passed)), true);
                passed += length;
            }
            Some(Fault::Cut(after)) => {
                out.left = Some(after.saturating_sub(passed));
                passed += length;
            }
            _ => passed = 0,
        }
        out.write_all(&piece[..length])?;
    }
}

/// The stream to a client, which may break after some bytes.
struct Broken<'a> {
    stream: &'a TcpStream,
    /// The number of bytes that may still pass.
    left: Option<usize>,
    is_reset: bool,
}

impl Broken<'_> {
    /// Breaks the connection if no more bytes may pass.
    fn end_in_time(&self) -> io::Result<()> {
        if self.left != Some(0) {
            return Ok(());
        }
        if !self.is_reset {
            return Err(io::Error::other("cut as asked"));
        }
        // With a linger time of zero, closing the socket resets the connection. The shutdown makes
        // the thread that reads from the socket close its descriptor.
        SockRef::from(self.stream).set_linger(Some(Duration::ZERO))?;
        self.stream.shutdown(Shutdown::Read)?;
        Err(ErrorKind::ConnectionReset.into())
    }
}

impl Write for Broken<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.end_in_time()?;
        let length = self.left.map_or(data.len(), |left| left.min(data.len()));
        let written = self.stream.write(&data[..length])?;
        self.left = self.left.map(|left| left - written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The first line and the headers of a message.
struct Head {
    text: String,
}

impl Head {
    /// Reads the next head. Returns None at the end of the connection.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut text = String::new();
        loop {
            let before = text.len();
            if from.read_line(&mut text)? == 0 {
                return Ok(None);
            }
            if text.len() - before <= 2 && text.trim().is_empty() {
                text.clear();
            } else if text.ends_with("\r\n\r\n") {
                return Ok(Some(Self { text }));
            }
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The request in the format of `Proxy::requests`.
    fn shown(&self) -> String {
        let mut words = self.text.split(' ');
        let what = [words.next(), words.next(), self.header("x-amz-target")];
        what.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// Passes the body that follows this head.
    fn pass_body(&self, from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
        let is_chunked = self.header("transfer-encoding").is_some_and(|how| how == "chunked");
        if is_chunked {
            return pass_chunks(from, to);
        }
        let length = match self.header("content-length") {
            Some(length) => length.parse().map_err(io::Error::other)?,
            // Without a length, the body of an answer ends with the connection.
            None if self.text.starts_with("HTTP/") => u64::MAX,
            None => 0,
        };
        io::copy(&mut from.take(length), to).map(drop)
    }
}

fn pass_chunks(from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        to.write_all(line.as_bytes())?;
        let length = line.trim().split(';').next().unwrap_or_default();
        let length = u64::from_str_radix(length, 16).map_err(io::Error::other)?;
        io::copy(&mut from.take(length), to)?;
        // The line end after a chunk, or the trailers.
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            to.write_all(line.as_bytes())?;
            if length > 0 || line.trim().is_empty() {
                break;
            }
        }
        if length == 0 {
            return Ok(());
        }
    }
}
