//! A web server for tests, which sends exactly the bytes that a test gives it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::conformance::{key, s3_environment};
use crate::bucket::address::{Address, Location, ServiceAddress};
use crate::bucket::transport::Patience;
use crate::bucket::{Access, Bucket, BucketError, cloud};
use crate::digest::Digest;

/// A request: the words of its first line, and its headers by their names in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    /// The number of requests before this one.
    pub(crate) number: usize,
}

/// The reaction to a request.
pub(crate) enum Answer {
    /// These bytes are sent.
    Send(Vec<u8>),
    /// These bytes are sent, and then the connection is reset.
    Reset(Vec<u8>),
    /// These bytes are sent, and then nothing more.
    Stall(Vec<u8>),
    /// These bytes are sent, and then the connection ends.
    Close(Vec<u8>),
}

/// A web server that sends the given responses.
pub(crate) struct Server {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) async fn new(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (requests, answer) = (seen.clone(), Arc::new(answer));
        let count = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (answer, requests, count) = (answer.clone(), requests.clone(), count.clone());
                tokio::spawn(async move {
                    let _ = serve(connection, &*answer, &requests, &count).await;
                });
            }
        });
        Self { url, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) async fn s3(&self) -> Arc<dyn Bucket> {
        open("s3://bucket", &s3_environment(&self.url)).await
    }
}

async fn serve(
    connection: TcpStream,
    answer: &(dyn Fn(&Request) -> Answer + Send + Sync),
    requests: &Mutex<Vec<Request>>,
    count: &AtomicUsize,
) -> std::io::Result<()> {
    let mut connection = BufReader::new(connection);
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            connection.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
        connection.read_exact(&mut vec![0; length]).await?;
        let number = count.fetch_add(1, Ordering::SeqCst);
        let request = Request { method, path, headers, number };
        requests.lock().unwrap().push(request.clone());
        match answer(&request) {
            Answer::Send(bytes) => connection.write_all(&bytes).await?,
            Answer::Close(bytes) => return connection.write_all(&bytes).await,
            Answer::Stall(bytes) => {
                connection.write_all(&bytes).await?;
                std::future::pending::<()>().await;
            }
            Answer::Reset(bytes) => {
                connection.write_all(&bytes).await?;
                // The bytes should arrive before the reset does.
                tokio::time::sleep(Duration::from_millis(20)).await;
                rustix::net::sockopt::set_socket_linger(
                    connection.get_ref(),
                    Some(Duration::ZERO),
                )?;
                return Ok(());
            }
        }
    }
}

/// A response with a body.
pub(crate) fn say(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn failed(status: &str, code: &str, message: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    Answer::Send(say(status, &[], body.as_bytes()))
}

/// Serves one object as a store would, with ranges and conditions. An entity tag of `W/…`
/// never matches.
pub(crate) fn object(request: &Request, tag: &str, bytes: &[u8]) -> Vec<u8> {
    let header = |name: &str| request.headers.get(name).map(String::as_str);
    let headers = [("etag", tag), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")];
    if header("if-match").is_some_and(|wanted| wanted != tag || tag.starts_with("W/")) {
        return say("412 Precondition Failed", &[], b"");
    }
    if header("if-none-match") == Some(tag) {
        return format!("HTTP/1.1 304 Not Modified\r\netag: {tag}\r\n\r\n").into_bytes();
    }
    match header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
        Some((start, end)) => {
            let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
            let range = format!("bytes {start}-{end}/{}", bytes.len());
            let headers = [headers[0], headers[1], ("content-range", &range)];
            say("206 Partial Content", &headers, &bytes[start..=end])
        }
        None => say("200 OK", &headers, bytes),
    }
}

/// Retries at once, with long timeouts for a busy machine.
pub(super) const SHORT: Patience = Patience {
    retries: 3,
    retry_for: Duration::from_secs(60),
    longest_wait: Duration::from_millis(20),
    connect: Duration::from_secs(30),
    idle: Duration::from_secs(60),
};
/// For servers that stop sending.
pub(super) const IMPATIENT: Patience = Patience { idle: Duration::from_millis(300), ..SHORT };

pub(crate) async fn try_open(
    url: &str,
    environment: &[(&str, &str)],
) -> Result<Arc<dyn Bucket>, BucketError> {
    open_with(url, &Access::new(environment.iter().copied().collect())).await
}

pub(crate) async fn open_with(url: &str, access: &Access) -> Result<Arc<dyn Bucket>, BucketError> {
    open_within(url, access, SHORT).await
}

pub(super) async fn open_within(
    url: &str,
    access: &Access,
    patience: Patience,
) -> Result<Arc<dyn Bucket>, BucketError> {
    Ok(Arc::new(cloud::open(service(url), access, patience).await?))
}

pub(super) fn service(url: &str) -> ServiceAddress {
    match url.parse::<Address>().unwrap().location {
        Location::Service(address) => address,
        Location::Dir(_) => panic!("{url} is a directory"),
    }
}

pub(crate) async fn open(url: &str, environment: &[(&str, &str)]) -> Arc<dyn Bucket> {
    try_open(url, environment).await.unwrap()
}

/// Fetches an object: its digest and size, or the text of the error.
pub(crate) async fn fetch(bucket: &dyn Bucket, name: &str) -> Result<(Digest, u64), String> {
    let mut file = tempfile::tempfile().unwrap();
    let start = Instant::now();
    let got = bucket.get(&key(name), file.try_clone().unwrap()).await;
    assert!(start.elapsed() < Duration::from_secs(120), "it took {:?}", start.elapsed());
    let version = got.map_err(|error| error.to_string())?;
    std::io::Seek::rewind(&mut file).unwrap();
    let (digest, size) = Digest::of_reader(file).unwrap();
    assert_eq!(size, version.size);
    Ok((digest, size))
}
