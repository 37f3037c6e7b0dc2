//! What goes wrong on the way to a bucket: each time the right kind of error with words that
//! help, nothing half in the cache, and an end.
//!
//! The server is this file's own: it says what a test tells it to, byte for byte.

mod encoded;
mod tried;
mod web;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::address::Address;
use super::conformance::{ask, bytes, key, s3, s3_environment, server};
use super::transport::Patience;
use super::{Access, Bucket, BucketError, cloud};
use crate::cache::{Cache, CacheOptions};
use crate::digest::Digest;
use crate::key::Prefix;

/// A request: its first line's words, and its headers by their names in lower case.
#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    /// How many requests came before.
    number: usize,
}

/// What is done with a request.
enum Answer {
    /// These bytes are sent.
    Send(Vec<u8>),
    /// These bytes are sent, and then the connection is reset.
    Reset(Vec<u8>),
    /// These bytes are sent, and then nothing more.
    Stall(Vec<u8>),
    /// These bytes are sent, and then the connection ends.
    Close(Vec<u8>),
}

/// A web server that says what it is told to.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    async fn new(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
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

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    async fn s3(&self) -> Arc<dyn Bucket> {
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
                // What was sent is to arrive before the reset does.
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

/// An answer with a body.
fn say(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn failed(status: &str, code: &str, message: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    Answer::Send(say(status, &[], body.as_bytes()))
}

/// Serves one object as a store would, with ranges and conditions. An entity tag of `W/…`
/// never matches.
fn object(request: &Request, tag: &str, bytes: &[u8]) -> Vec<u8> {
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

/// Tries again at once, and is patient with a busy machine.
const SHORT: Patience = Patience {
    retries: 3,
    retry_for: Duration::from_secs(60),
    longest_wait: Duration::from_millis(20),
    connect: Duration::from_secs(30),
    idle: Duration::from_secs(60),
};
/// For servers that stop to speak.
const IMPATIENT: Patience = Patience { idle: Duration::from_millis(300), ..SHORT };

async fn try_open(url: &str, environment: &[(&str, &str)]) -> Result<Arc<dyn Bucket>, BucketError> {
    open_with(url, &Access::new(environment.iter().copied().collect())).await
}

async fn open_with(url: &str, access: &Access) -> Result<Arc<dyn Bucket>, BucketError> {
    open_within(url, access, SHORT).await
}

async fn open_within(
    url: &str,
    access: &Access,
    patience: Patience,
) -> Result<Arc<dyn Bucket>, BucketError> {
    let Address::Cloud(place) = Address::parse(url)? else { panic!("{url} is a directory") };
    Ok(Arc::new(cloud::open(place, access, patience).await?))
}

async fn open(url: &str, environment: &[(&str, &str)]) -> Arc<dyn Bucket> {
    try_open(url, environment).await.unwrap()
}

/// Fetches through a cache, and looks that a failure left nothing in it.
async fn fetch(bucket: &dyn Bucket, name: &str) -> Result<(Digest, u64), String> {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().to_owned();
    let cache = Cache::open(CacheOptions { dir: dir.clone(), max_bytes: 1 << 30 }).unwrap();
    let start = Instant::now();
    let fetched = cache.fetch(bucket, &key(name), Duration::ZERO).await;
    assert!(start.elapsed() < Duration::from_secs(120), "it took {:?}", start.elapsed());
    match fetched {
        Ok(blob) => Ok((blob.digest, blob.size)),
        Err(error) => {
            assert_eq!(std::fs::read_dir(dir.join("blobs")).unwrap().count(), 0);
            for process in std::fs::read_dir(dir.join("tmp")).unwrap().flatten() {
                let left = std::fs::read_dir(process.path()).into_iter().flatten().flatten();
                let left: Vec<_> = left.filter(|file| file.file_name() != ".lock").collect();
                assert!(left.is_empty(), "{left:?}");
            }
            Err(error.to_string())
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_resumed_where_it_did() {
    let all = bytes(600_000);
    for cut in [0, 1, 5_000, 300_000, 599_999] {
        let served = all.clone();
        let server = Server::new(move |request| {
            let answer = object(request, "\"v1\"", &served);
            // The body of the first answer is cut, and that of the second at the same byte.
            let head = answer.len() - served.len().min(answer.len());
            match request.number {
                0 => Answer::Reset(answer[..head + cut].to_vec()),
                _ => Answer::Send(answer),
            }
        })
        .await;
        let bucket = server.s3().await;
        let got = fetch(&*bucket, "k").await.unwrap();
        assert_eq!(got, (Digest::of(&all), 600_000), "cut at {cut}");
        let seen = server.seen();
        assert_eq!(seen.len(), 2, "cut at {cut}");
        // What came before the reset may have been lost with it: never asked for too late.
        if let Some(range) = seen[1].headers.get("range") {
            let start: usize =
                range.trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap();
            assert!(start <= cut, "cut at {cut}, resumed at {start}");
        }
    }
}

#[tokio::test]
async fn a_body_that_always_breaks_off_is_an_error_that_ends() {
    let all = bytes(100_000);
    let server = Server::new(move |request| {
        let answer = object(request, "\"v1\"", &all);
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        Answer::Reset(answer[..end].to_vec())
    })
    .await;
    let error = fetch(&*server.s3().await, "k").await.unwrap_err();
    assert!(error.starts_with("s3://bucket: reading `k` failed: "), "{error}");
    assert!(server.seen().len() < 40, "{} requests", server.seen().len());
}

async fn impatient(server: &Server) -> Arc<dyn Bucket> {
    let access = Access::new(s3_environment(&server.url).into_iter().collect());
    open_within("s3://bucket", &access, IMPATIENT).await.unwrap()
}

#[tokio::test]
async fn a_body_that_stalls_is_resumed_and_a_server_that_never_speaks_is_an_error() {
    let all = bytes(100_000);
    let served = all.clone();
    let server = Server::new(move |request| {
        let answer = object(request, "\"v1\"", &served);
        match request.number {
            0 => Answer::Stall(answer[..50_000].to_vec()),
            _ => Answer::Send(answer),
        }
    })
    .await;
    let got = fetch(&*impatient(&server).await, "k").await.unwrap();
    assert_eq!(got.0, Digest::of(&all));

    let server = Server::new(|_| Answer::Stall(Vec::new())).await;
    let error = fetch(&*impatient(&server).await, "k").await.unwrap_err();
    let host = server.url.trim_start_matches("http://");
    let want = format!("the server {host} does not answer: no answer within 0.3 s");
    assert!(error.contains(&want), "{error}");
    let error = impatient(&server).await.check().await.unwrap_err();
    assert!(error.to_string().contains(&want), "{error}");
}

#[tokio::test]
async fn an_object_that_changes_while_it_comes_is_one_version_or_the_other() {
    // Not every server knows conditions.
    for knows_conditions in [true, false] {
        let (old, new) = (bytes(600_000), vec![7; 600_000]);
        let want = Digest::of(&new);
        let server = Server::new(move |request| {
            if request.number == 0 {
                let answer = object(request, "\"v1\"", &old);
                return Answer::Reset(answer[..300_000].to_vec());
            }
            let mut request = request.clone();
            if !knows_conditions {
                request.headers.remove("if-match");
            }
            Answer::Send(object(&request, "\"v2\"", &new))
        })
        .await;
        let got = fetch(&*server.s3().await, "k").await.unwrap();
        assert_eq!(got, (want, 600_000), "conditions: {knows_conditions}");
    }
}

#[tokio::test]
async fn an_unchanged_input_costs_one_small_request_and_a_fresh_one_none() {
    let all = bytes(200_000);
    let server = Server::new(move |request| Answer::Send(object(request, "\"v1\"", &all))).await;
    let bucket = server.s3().await;
    let root = tempfile::tempdir().unwrap();
    let options = CacheOptions { dir: root.path().to_owned(), max_bytes: 1 << 30 };
    let cache = Cache::open(options).unwrap();
    let fetch = |freshness| {
        let (cache, bucket) = (cache.clone(), bucket.clone());
        async move { cache.fetch(&*bucket, &key("k"), freshness).await.unwrap() }
    };
    assert!(!fetch(Duration::ZERO).await.hit);
    let seen = server.seen();
    assert_eq!(seen.len(), 1, "no look before the bytes: {seen:?}");
    assert_eq!((&*seen[0].method, &*seen[0].path), ("GET", "/bucket/k"));
    assert!(fetch(Duration::ZERO).await.hit);
    assert_eq!(server.seen().len(), 2);
    assert_eq!(server.seen()[1].headers["if-none-match"], "\"v1\"");
    assert!(fetch(Duration::from_secs(3600)).await.hit);
    assert_eq!(server.seen().len(), 2, "fresh");
}

#[tokio::test]
async fn a_large_object_comes_by_ranges_of_one_version() {
    let all = bytes((33 << 20) + 1);
    let served = all.clone();
    let server = Server::new(move |request| {
        let answer = object(request, "\"v1\"", &served);
        match request.number {
            // One of the ranges breaks off as well.
            2 => Answer::Reset(answer[..1_000_000].to_vec()),
            _ => Answer::Send(answer),
        }
    })
    .await;
    let got = fetch(&*server.s3().await, "k").await.unwrap();
    assert_eq!(got.0, Digest::of(&all));
    let seen = server.seen();
    assert_eq!(seen.len(), 6, "the first part, four more, and one again");
    assert!(
        seen[1..].iter().all(|r| r.headers["if-match"] == "\"v1\"" || r.number > 1),
        "{seen:?}"
    );
}

#[tokio::test]
async fn bytes_that_are_not_what_the_store_has_are_refused() {
    let server = Server::new(|request| {
        assert_eq!(request.headers.get("x-amz-checksum-mode").map(|v| &**v), Some("ENABLED"));
        // The checksum of `123456789`.
        let sum = ("x-amz-checksum-crc32c", "4waSgw==");
        let body: &[u8] = if request.path.contains("good") { b"123456789" } else { b"123456780" };
        Answer::Send(say("200 OK", &[("etag", "\"v\""), sum], body))
    })
    .await;
    let bucket = server.s3().await;
    fetch(&*bucket, "good").await.unwrap();
    let error = fetch(&*bucket, "bad").await.unwrap_err();
    assert!(error.contains("the Crc32c checksum of what came is"), "{error}");
}

#[tokio::test]
async fn what_a_service_says_is_told_with_what_to_do() {
    for (status, code, message, want) in [
        ("403 Forbidden", "AccessDenied", "Access Denied", "the credentials need s3:GetObject"),
        ("403 Forbidden", "InvalidAccessKeyId", "No such key id", "check AWS_PROFILE"),
        ("403 Forbidden", "RequestTimeTooSkewed", "Too large", "set it (for example by NTP)"),
        ("404 Not Found", "NoSuchBucket", "No bucket", "there is no bucket `bucket`; check its"),
        (
            "400 Bad Request",
            "AuthorizationHeaderMalformed",
            "the region 'us-east-1' is wrong; expecting 'eu-west-3'",
            "--region eu-west-3",
        ),
        ("503 Slow Down", "SlowDown", "Reduce your rate", "has too much to do and refuses: Reduce"),
        ("500 Oops", "InternalError", "We broke", "We broke (InternalError)"),
    ] {
        let server = Server::new(move |_| failed(status, code, message)).await;
        let error = fetch(&*server.s3().await, "a/k").await.unwrap_err();
        assert!(error.starts_with("s3://bucket: reading `a/k` failed: "), "{error}");
        assert!(error.contains(want), "{code}: {error}");
        assert!(!error.contains('<'), "no XML for people: {error}");
    }
}

#[tokio::test]
async fn a_service_that_has_too_much_to_do_is_asked_again() {
    for status in ["429 Too Many Requests", "503 Slow Down", "500 Oops"] {
        let server = Server::new(move |request| match request.number {
            0 | 1 => failed(status, "SlowDown", "later"),
            _ => Answer::Send(object(request, "\"v1\"", b"bytes")),
        })
        .await;
        fetch(&*server.s3().await, "k").await.unwrap();
        assert_eq!(server.seen().len(), 3, "{status}");
    }
}

#[tokio::test]
async fn a_bucket_is_checked_before_work_begins() {
    let check = async |status: &'static str, code: &'static str| {
        let server = Server::new(move |_| failed(status, code, "message")).await;
        let checked = server.s3().await.check().await;
        assert!(server.seen().len() <= 3, "the look is short");
        assert!(server.seen()[0].path.contains("max-keys=1"), "{:?}", server.seen()[0]);
        checked
    };
    let error = check("404 Not Found", "NoSuchBucket").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "s3://bucket: there is no bucket `bucket`; check its name, or create it"
    );
    assert!(matches!(error, BucketError::Invalid { .. }));
    // Objects may be open to us all the same.
    check("403 Forbidden", "AccessDenied").await.unwrap();
    let error = check("403 Forbidden", "SignatureDoesNotMatch").await.unwrap_err();
    assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
    let error = check("503 Slow Down", "SlowDown").await.unwrap_err();
    assert!(matches!(error, BucketError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let address = refused.trim_start_matches("http://");
    for (url, want) in [
        (&*refused, &*format!("no connection to the server {address}: ")),
        ("http://no-such-host.invalid", "the name of the server no-such-host.invalid is not known"),
    ] {
        let buckets = [
            open(url, &[]).await,
            open("s3://bucket", &s3_environment(url)).await,
            open("gs://bucket", &[("STORAGE_EMULATOR_HOST", url)]).await,
            open("az://bucket", &[("AZURITE_BLOB_STORAGE_URL", url)]).await,
        ];
        for bucket in buckets {
            let error = bucket.check().await.unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
            let error = fetch(&*bucket, "k").await.unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}

#[tokio::test]
async fn what_is_missing_to_reach_a_bucket_is_said_at_once() {
    let error = try_open("az://c", &[]).await.unwrap_err().to_string();
    assert!(error.starts_with("az://c: names a container, and no account: set AZURE_"), "{error}");
    let Address::Cloud(place) = Address::parse("gs://b").unwrap() else { panic!() };
    let environment = [("STORAGE_EMULATOR_HOST", "localhost:1")].into_iter().collect();
    let access = Access { requester_pays: true, ..Access::new(environment) };
    let error = cloud::open(place, &access, SHORT).await.unwrap_err().to_string();
    assert!(error.contains("set GOOGLE_CLOUD_PROJECT"), "{error}");
}

#[tokio::test]
async fn who_pays_and_who_is_nobody_is_told_to_the_service() {
    let server = Server::new(|request| Answer::Send(object(request, "\"v\"", b"x"))).await;
    let open = async |url: &str, environment: &[(&str, &str)], anonymous, requester_pays| {
        let Address::Cloud(place) = Address::parse(url).unwrap() else { panic!() };
        let environment = environment.iter().copied().collect();
        let access = Access { anonymous, requester_pays, ..Access::new(environment) };
        let bucket = cloud::open(place, &access, SHORT).await.unwrap();
        bucket.head(&key("k")).await.unwrap();
        server.seen().pop().unwrap().headers
    };
    let s3 = s3_environment(&server.url);
    let google = [("STORAGE_EMULATOR_HOST", &*server.url), ("GOOGLE_CLOUD_PROJECT", "my-project")];
    let headers = open("s3://b", &s3, false, true).await;
    assert_eq!(headers["x-amz-request-payer"], "requester");
    assert!(headers.contains_key("authorization"));
    let headers = open("s3://b", &s3, true, false).await;
    assert!(!headers.contains_key("authorization") && !headers.contains_key("x-amz-request-payer"));
    let headers = open("gs://b", &google, false, true).await;
    assert_eq!(headers["x-goog-user-project"], "my-project");
    assert!(!open("gs://b", &google, true, false).await.contains_key("authorization"));
}

#[tokio::test]
async fn nothing_is_left_of_an_upload_that_is_given_up() {
    let subject = s3().await;
    let endpoint = server("TASK_HOST_TEST_AWS");
    let text = subject.bucket.to_string();
    let name = text.trim_start_matches("s3://").split('/').next().unwrap();
    let uploads = async || ask(&endpoint, "GET", &format!("/{name}?uploads"), "").await;
    let file = subject.outputs.create("large").unwrap();
    file.set_len(64 << 20).unwrap();
    {
        let (target, source) = (key("out"), key("large"));
        let mut put = subject.bucket.put(&target, &subject.outputs, &source);
        // Dropped when there is an upload to give up.
        let start = Instant::now();
        while !uploads().await.contains("<UploadId>") {
            assert!(start.elapsed() < Duration::from_secs(30), "no upload began");
            let _ = tokio::time::timeout(Duration::from_millis(20), &mut put).await;
        }
    }
    subject.bucket.close().await;
    let left = uploads().await;
    assert!(!left.contains("<UploadId>"), "the upload stays: {left}");
    let error = subject.bucket.head(&key("out")).await.unwrap_err();
    assert!(matches!(error, BucketError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn an_upload_that_is_given_up_while_it_begins_is_aborted_too() {
    let server = Server::new(|request| match request.method.as_str() {
        "POST" => {
            // Its answer comes when nobody waits for it any more.
            std::thread::sleep(Duration::from_millis(100));
            let begun = "<InitiateMultipartUploadResult><UploadId>the-id</UploadId>\
                         </InitiateMultipartUploadResult>";
            Answer::Send(say("200 OK", &[], begun.as_bytes()))
        }
        _ => Answer::Send(say("204 No Content", &[], b"")),
    })
    .await;
    let bucket = server.s3().await;
    let root = tempfile::tempdir().unwrap();
    std::fs::File::create(root.path().join("f")).unwrap().set_len(20 << 20).unwrap();
    let dir = cap_std::fs::Dir::from_std_file(std::fs::File::open(root.path()).unwrap());
    let (target, source) = (key("out"), key("f"));
    let put = bucket.put(&target, &dir, &source);
    assert!(tokio::time::timeout(Duration::from_millis(50), put).await.is_err());
    bucket.close().await;
    let last = server.seen().pop().unwrap();
    assert_eq!((&*last.method, &*last.path), ("DELETE", "/bucket/out?uploadId=the-id"));
}

#[tokio::test]
async fn a_folder_that_a_console_made_is_no_object() {
    let subject = s3().await;
    let endpoint = server("TASK_HOST_TEST_AWS");
    let text = subject.bucket.to_string();
    let name = text.trim_start_matches("s3://").split('/').next().unwrap();
    // And neither are keys that no task can name.
    for folder in ["", "d/", "d/e/", "d/f_%24folder%24", "d//x", "d/%5Cx", "d/../x"] {
        let path = format!("/{name}/some/prefix%20%C3%A4/{folder}");
        let made = ask(&endpoint, "PUT", &path, "").await;
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    }
    subject.put("d/e/1", b"one").await;
    subject.put("d/empty", b"").await;
    assert_eq!(subject.list("").await, [("d/e/1".to_owned(), 3), ("d/empty".to_owned(), 0)]);
}

#[tokio::test]
async fn what_is_uploaded_to_s3_has_a_checksum_that_the_service_verifies() {
    let server = Server::new(|_| Answer::Send(say("200 OK", &[("etag", "\"v\"")], b""))).await;
    let bucket = server.s3().await;
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("f"), "123456789").unwrap();
    let dir = cap_std::fs::Dir::from_std_file(std::fs::File::open(root.path()).unwrap());
    bucket.put(&key("k"), &dir, &key("f")).await.unwrap();
    let put = server.seen().pop().unwrap();
    assert_eq!(put.method, "PUT");
    assert_eq!(
        put.headers["x-amz-checksum-sha256"],
        "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="
    );
}

#[tokio::test]
async fn one_key_that_can_not_be_used_does_not_end_a_listing() {
    let contents: String = ["d//x", "d/", "d/1", "d/..", "d/2"]
        .iter()
        .map(|key| {
            format!(
                "<Contents><Key>{key}</Key><Size>{}</Size><ETag>e</ETag>\
                 <LastModified>2020-01-01T00:00:00Z</LastModified></Contents>",
                if key.ends_with('/') { 0 } else { 1 }
            )
        })
        .collect();
    let server = Server::new(move |_| {
        let xml = format!("<ListBucketResult>{contents}</ListBucketResult>");
        Answer::Send(say("200 OK", &[], xml.as_bytes()))
    })
    .await;
    for bucket in
        [server.s3().await, open("gs://bucket", &[("STORAGE_EMULATOR_HOST", &server.url)]).await]
    {
        bucket.check().await.unwrap();
        let listed = futures_util::TryStreamExt::try_collect(bucket.list(&Prefix::root()));
        let listed: Vec<super::Listed> = listed.await.unwrap();
        let keys: Vec<_> = listed.iter().map(|listed| listed.key.as_str()).collect();
        assert_eq!(keys, ["d/1", "d/2"], "{bucket}");
    }
}

#[tokio::test]
async fn an_archived_object_fails_as_what_it_is_with_its_cure() {
    for (url, status, code, more, want) in [
        (
            "s3://bucket",
            "403 Forbidden",
            "InvalidObjectState",
            "<StorageClass>DEEP_ARCHIVE</StorageClass>",
            "`k` is archived (DEEP_ARCHIVE) and can't be read before it is restored: restore it \
             with `aws s3api restore-object`",
        ),
        (
            "az://bucket",
            "409 Conflict",
            "BlobArchived",
            "",
            "`k` is archived and can't be read before it is restored: rehydrate it with `az",
        ),
    ] {
        let server = Server::new(move |_| {
            let body = format!("<Error><Code>{code}</Code><Message>no</Message>{more}</Error>");
            Answer::Send(say(status, &[], body.as_bytes()))
        })
        .await;
        let mut environment = s3_environment(&server.url).to_vec();
        environment.push(("AZURITE_BLOB_STORAGE_URL", &server.url));
        let bucket = open(url, &environment).await;
        let error = bucket.open(&key("k"), None).await.unwrap_err();
        assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(want), "{error}");
    }
}
