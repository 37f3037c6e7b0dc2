//! The parts of HTTP that tests need: sending one request, and a server that answers from a
//! function.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// A request to a server of this module.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The method, such as `GET`.
    pub method: String,
    /// The path, including the query after a `?`.
    pub path: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// The answer of a server.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status, such as 200 or 404.
    pub status: u16,
    /// Names in lower case, and values. The server adds the length of the body.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// An answer without additional headers.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }
}

impl Request {
    /// The value of a header. `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| &**value)
    }
}

/// Sends a request to `http://ADDRESS`, and returns the answer.
pub fn send(url: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)
        .unwrap_or_else(|error| panic!("{url} does not answer: {error}"));
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).expect("a request is sent");
    stream.write_all(body).expect("a request is sent");
    let mut reader = BufReader::new(stream);
    let (first, headers) = head_of(&mut reader).expect("an answer");
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let body = match method {
        "HEAD" => Vec::new(),
        _ => body_of(&mut reader, &headers, true).expect("a body"),
    };
    Answer { status, headers, body }
}

/// A server on a free port, which runs until the test ends.
pub fn serve(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || {
                // A client may close its connection at any time.
                let _ = converse(stream, &*answer);
            });
        }
    });
    address
}

/// A web server for the files below `dir`, with entity tags. Returns its URL.
pub fn serve_files(dir: PathBuf) -> String {
    let server = serve(move |request| {
        let file = dir.join(request.path.trim_start_matches('/'));
        let (Ok(bytes), Ok(meta)) = (fs::read(&file), fs::metadata(&file)) else {
            return Answer::new(404, "");
        };
        let tag = format!("\"{}-{}-{}\"", meta.ino(), meta.mtime_nsec(), bytes.len());
        let is_known = request.header("if-none-match") == Some(&*tag);
        let mut answer = Answer::new(if is_known { 304 } else { 200 }, bytes);
        if request.method == "HEAD" {
            answer.headers.push(("content-length".to_owned(), answer.body.len().to_string()));
        }
        if is_known || request.method == "HEAD" {
            answer.body.clear();
        }
        answer.headers.push(("etag".to_owned(), tag));
        answer
    });
    format!("http://{server}/")
}

fn converse(stream: TcpStream, answer: &dyn Fn(&Request) -> Answer) -> io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some((first, headers)) = head_of(&mut reader) {
        let mut words = first.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (method, path) = (word(), word());
        let body = body_of(&mut reader, &headers, false)?;
        let is_head = method == "HEAD";
        let Answer { status, headers, body } = answer(&Request { method, path, headers, body });
        let mut head = format!("HTTP/1.1 {status} Said\r\n");
        for (name, value) in &headers {
            // In the answer to a HEAD request, the function's own length is kept.
            let is_framing =
                ["content-length", "transfer-encoding", "connection"].contains(&&**name);
            if !is_framing || (is_head && name == "content-length") {
                head += &format!("{name}: {value}\r\n");
            }
        }
        // An answer without content has no length either.
        if !is_head && status != 204 && status != 304 {
            head += &format!("content-length: {}\r\n", body.len());
        }
        writer.write_all(format!("{head}\r\n").as_bytes())?;
        writer.write_all(&body)?;
    }
    Ok(())
}

type Head = (String, Vec<(String, String)>);

fn head_of(reader: &mut impl BufRead) -> Option<Head> {
    let mut first = String::new();
    if reader.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_lowercase(), value.trim().to_owned())),
            None => return Some((first.trim_end().to_owned(), headers)),
        }
    }
}

fn body_of(
    reader: &mut impl BufRead,
    headers: &[(String, String)],
    to_end: bool,
) -> io::Result<Vec<u8>> {
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| &**value);
    let mut body = Vec::new();
    if header("transfer-encoding").is_some_and(|how| how.contains("chunked")) {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            body.extend(&chunk[..size]);
            if size == 0 {
                return Ok(body);
            }
        }
    }
    match header("content-length").and_then(|length| length.parse().ok()) {
        Some(length) => {
            body.resize(length, 0);
            reader.read_exact(&mut body)?;
        }
        None if to_end => {
            reader.read_to_end(&mut body)?;
        }
        None => {}
    }
    Ok(body)
}
