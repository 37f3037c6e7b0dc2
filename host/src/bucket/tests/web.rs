//! Web servers, which may send few headers and support few kinds of requests.

use super::conformance::{bytes, key};
use super::server::{Answer, Server, failed, fetch, object, open, open_with, say};
use crate::bucket::encoding::gzip;
use crate::bucket::{Access, BucketError, Opened, StoredEncoding};
use crate::digest::Digest;
use crate::environment::Environment;
use crate::key::Prefix;

/// A plain web server supports no ranges, may send no versions, and can't list objects.
#[tokio::test]
async fn inputs_come_from_a_web_server_too() {
    let all = bytes(300_000);
    for headers in
        [&[("etag", "W/\"weak\"")][..], &[], &[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]]
    {
        let served = all.clone();
        let headers: Vec<(&'static str, &'static str)> = headers.to_vec();
        let server = Server::new(move |request| {
            assert!(request.path.starts_with("/data/a%20b%23c/%C3%A4"), "{}", request.path);
            let answer = say("200 OK", &headers, &served);
            match request.number {
                0 => Answer::Reset(answer[..200_000].to_vec()),
                _ => Answer::Send(answer),
            }
        })
        .await;
        let bucket = open(&format!("{}/data/", server.url), &[]).await;
        let got = fetch(&*bucket, "a b#c/ä").await.unwrap();
        assert_eq!(got, (Digest::of(&all), 300_000));
    }
    let server = Server::new(|request| match request.path.as_str() {
        "/data" => failed("403 Forbidden", "No", "nothing to see"),
        _ => Answer::Send(say("404 Not Found", &[], b"")),
    })
    .await;
    let bucket = open(&format!("{}/data", server.url), &[]).await;
    bucket.check().await.unwrap();
    let error = fetch(&*bucket, "k").await.unwrap_err();
    assert_eq!(error, format!("{}/data: there is no object `k`", server.url));
    let error = bucket.put(&key("k"), &"x".into(), &key("f")).await.unwrap_err();
    assert!(error.to_string().contains("is read-only"), "{error}");
    let listed: Vec<_> = futures_util::StreamExt::collect(bucket.list(&Prefix::root())).await;
    assert!(matches!(&listed[..], [Err(BucketError::Invalid { .. })]), "{listed:?}");
}

/// A body whose end is only known from its last chunk.
fn chunked(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 {status}\r\n{headers}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body.chunks(70_000) {
        answer.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        answer.extend_from_slice(chunk);
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"0\r\n\r\n");
    answer
}

#[tokio::test]
async fn a_web_server_that_tells_no_length_is_read_to_the_end() {
    let all = bytes(300_000);
    for headers in ["etag: \"v1\"\r\n", ""] {
        let served = all.clone();
        let server = Server::new(move |request| {
            if request.headers.contains_key("range") {
                return Answer::Send(say("416 Range Not Satisfiable", &[], b""));
            }
            let body = if request.path == "/empty" { b"" } else { &served[..] };
            let answer = chunked("200 OK", headers, body);
            match (request.number, &*request.path) {
                // A body that breaks off is fetched again from the start.
                (0, _) => Answer::Reset(answer[..200_000].to_vec()),
                (_, "/cut") => Answer::Reset(answer[..100_000].to_vec()),
                _ => Answer::Send(answer),
            }
        })
        .await;
        let bucket = open(&server.url, &[]).await;
        assert_eq!(fetch(&*bucket, "k").await.unwrap(), (Digest::of(&all), 300_000));
        assert_eq!(fetch(&*bucket, "empty").await.unwrap(), (Digest::of(b""), 0));
        let error = fetch(&*bucket, "cut").await.unwrap_err();
        assert!(
            error.contains("it changed, or its connection broke, each time it was read"),
            "{error}"
        );
        let version = bucket.head(&key("k")).await.unwrap();
        let opened = bucket.open(&key("k"), None).await.unwrap();
        let Opened::Object(object) = opened else { panic!("nothing was known") };
        assert_eq!(&version == object.version(), !headers.is_empty(), "as far as it can be told");
    }
    // An old server ends a body by closing the connection.
    let served = all.clone();
    let server =
        Server::new(move |_| Answer::Close([b"HTTP/1.0 200 OK\r\n\r\n", &served[..]].concat()))
            .await;
    let got = fetch(&*open(&server.url, &[]).await, "k").await.unwrap();
    assert_eq!(got, (Digest::of(&all), 300_000));
}

#[tokio::test]
async fn a_web_server_may_compress_on_the_way() {
    let all: Vec<u8> = (0..50_000_u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
    let (served, packed) = (all.clone(), gzip(&all).unwrap());
    let server = Server::new(move |request| {
        Answer::Send(match request.headers["accept-encoding"].as_str() {
            "gzip" => chunked("200 OK", "etag: W/\"v\"\r\ncontent-encoding: gzip\r\n", &packed),
            _ => say("200 OK", &[("etag", "\"v\"")], &served),
        })
    })
    .await;
    for stored_encoding in [StoredEncoding::Decode, StoredEncoding::Keep] {
        let access = Access { stored_encoding, ..Access::new(Environment::default()) };
        let bucket = open_with(&server.url, &access).await.unwrap();
        let got = fetch(&*bucket, "k").await.unwrap();
        assert_eq!(got, (Digest::of(&all), 200_000), "{stored_encoding:?}");
    }
}

#[tokio::test]
async fn a_web_server_that_refuses_head_is_asked_by_get() {
    for status in
        ["405 Method Not Allowed", "403 Forbidden", "501 Not Implemented", "400 Bad Request"]
    {
        let server = Server::new(move |request| match &*request.method {
            "HEAD" => Answer::Send(format!("HTTP/1.1 {status}\r\n\r\n").into_bytes()),
            _ if request.path == "/missing" => Answer::Send(say("404 Not Found", &[], b"")),
            _ => Answer::Send(object(request, "\"v1\"", b"bytes")),
        })
        .await;
        let bucket = open(&server.url, &[]).await;
        bucket.check().await.unwrap();
        let version = bucket.head(&key("k")).await.unwrap();
        assert_eq!((version.size, version.tells_size()), (5, true), "{status}");
        let heads = || server.seen().iter().filter(|seen| seen.method == "HEAD").count();
        assert_eq!(heads(), 2, "{status}: each is tried once");
        let error = bucket.head(&key("missing")).await.unwrap_err();
        assert!(matches!(error, BucketError::NotFound { .. }), "{error}");
        assert_eq!(heads(), 2, "{status}: and then not again");
        let known = bucket.open(&key("k"), Some(&version)).await.unwrap();
        assert!(matches!(known, Opened::Unchanged), "{status}");
    }
}
