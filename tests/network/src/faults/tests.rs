//! Tests what a client sees of each fault.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::time::Instant;

use super::*;

const BODY: &str = "0123456789";

/// A server that answers all requests of a connection with the same body, and echoes everything
/// that is not HTTP/1.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                while answer(&mut reader, &stream).is_some() {}
            });
        }
    });
    address
}

fn answer(reader: &mut BufReader<&TcpStream>, mut stream: &TcpStream) -> Option<()> {
    let mut head = String::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().ok()?;
        }
        head += &line;
        if line.trim().is_empty() {
            break;
        }
    }
    if head.starts_with("PRI ") {
        return std::io::copy(reader, &mut stream).ok().map(drop);
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink()).ok()?;
    let answer = if head.contains("/chunked") {
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"
            .to_owned()
    } else {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len())
    };
    stream.write_all(answer.as_bytes()).ok()
}

/// A client with one connection.
struct Client(TcpStream);

impl Client {
    fn of(proxy: &Proxy) -> Client {
        Client(TcpStream::connect(proxy.address()).unwrap())
    }

    /// The answer, until it is complete or the connection ends; and the error that ended the
    /// connection, if any.
    fn ask(&mut self, request: &str) -> (String, Option<ErrorKind>) {
        self.0.write_all(request.as_bytes()).unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        loop {
            match self.0.read(&mut byte) {
                Ok(0) => return (String::from_utf8(text).unwrap(), None),
                Ok(_) => text.push(byte[0]),
                Err(error) => return (String::from_utf8(text).unwrap(), Some(error.kind())),
            }
            if text.ends_with(BODY.as_bytes()) || text.ends_with(b"\r\n0\r\n\r\n") {
                return (String::from_utf8(text).unwrap(), None);
            }
        }
    }

    fn get(&mut self, path: &str) -> (String, Option<ErrorKind>) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }
}

#[test]
fn what_is_not_broken_passes() {
    let proxy = Proxy::to(&format!("http://{}/", server()));
    let mut client = Client::of(&proxy);
    assert!(client.get("/a").0.ends_with(BODY));
    assert!(client.get("/chunked").0.ends_with("\r\n6\r\n456789\r\n0\r\n\r\n"));
    let put = "PUT /b HTTP/1.1\r\nX-Amz-Target: AmazonSQS.SendMessage\r\nContent-Length: 4\r\n\r\n";
    assert!(client.ask(&format!("{put}GET ")).0.ends_with(BODY));
    assert!(client.get("/c").0.ends_with(BODY));
    let requests = ["GET /a", "GET /chunked", "PUT /b AmazonSQS.SendMessage", "GET /c"];
    assert_eq!(proxy.requests(), requests);
    // Data that is not HTTP/1 passes in both directions.
    let mut client = Client::of(&proxy);
    let (text, _) = client.ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n0123456789");
    assert_eq!(text, "SM\r\n\r\n0123456789");
    assert_eq!(proxy.requests().len(), 4);
}

#[test]
fn nobody_listens_until_it_is_mended() {
    let proxy = Proxy::to(&server());
    let mut client = Client::of(&proxy);
    assert!(client.get("/a").0.ends_with(BODY));
    proxy.fail(Fault::Refused);
    // Existing connections end, too.
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
    let refused = TcpStream::connect(proxy.address()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    proxy.mend();
    assert!(Client::of(&proxy).get("/b").0.ends_with(BODY));
}

#[test]
fn an_answer_is_broken_at_its_byte() {
    let proxy = Proxy::to(&server());
    proxy.fail(Fault::Reset(20));
    let (text, end) = Client::of(&proxy).get("/a");
    assert_eq!((text.len(), end), (20, Some(ErrorKind::ConnectionReset)), "{text}");
    proxy.fail(Fault::Reset(0));
    let (text, end) = Client::of(&proxy).get("/a");
    assert_eq!((&*text, end), ("", Some(ErrorKind::ConnectionReset)));
    proxy.fail(Fault::Cut(4));
    let (text, end) = Client::of(&proxy).get("/a");
    assert!(text.ends_with("\r\n\r\n0123") && end.is_none(), "{text:?} {end:?}");
    // If the cut is at the end of the body, nothing is missing.
    proxy.fail(Fault::Cut(BODY.len()));
    let mut client = Client::of(&proxy);
    assert!(client.get("/a").0.ends_with(BODY));
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
    proxy.mend();
    assert!(Client::of(&proxy).get("/a").0.ends_with(BODY));
}

#[test]
fn what_is_not_understood_is_broken_at_its_byte() {
    let proxy = Proxy::to(&server());
    let open = || {
        let mut client = Client::of(&proxy);
        assert_eq!(client.ask(&format!("PRI * HTTP/2.0\r\n\r\n{BODY}")).0, BODY);
        client
    };
    let mut client = open();
    proxy.fail(Fault::Reset(3));
    assert_eq!(client.ask(BODY), ("012".to_owned(), Some(ErrorKind::ConnectionReset)));
    proxy.mend();
    let mut client = open();
    proxy.fail(Fault::Cut(3));
    assert_eq!(client.ask(BODY), ("012".to_owned(), None));
}

#[test]
fn only_the_requests_that_are_meant_fail_and_so_often() {
    let proxy = Proxy::to(&server());
    let fault = Fault::Answer { status: 503, body: format!("slow down {BODY}") };
    proxy.fail_some(fault, "GET /a", 2);
    let mut client = Client::of(&proxy);
    let mut codes = Vec::new();
    for path in ["/b", "/a", "/a/b", "/a", "/b"] {
        let (text, end) = client.get(path);
        assert!(text.ends_with(BODY) && end.is_none(), "{text}");
        codes.push(text.split(' ').nth(1).unwrap().to_owned());
    }
    assert_eq!(codes, ["200", "503", "503", "200", "200"]);
    assert_eq!(proxy.requests().len(), 5);
}

#[test]
fn a_slow_answer_comes_later() {
    let proxy = Proxy::to(&server());
    let time = Duration::from_millis(150);
    proxy.fail(Fault::Slow(time));
    let start = Instant::now();
    assert!(Client::of(&proxy).get("/a").0.ends_with(BODY));
    assert!(start.elapsed() >= time);
}

#[test]
fn nothing_is_left_of_a_proxy_that_is_dropped() {
    let proxy = Proxy::to(&server());
    let address = proxy.address();
    let mut client = Client::of(&proxy);
    assert!(client.get("/a").0.ends_with(BODY));
    drop(proxy);
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
    crate::wait::eventually("a refused connection", || TcpStream::connect(&address).err());
}
