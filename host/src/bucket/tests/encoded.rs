//! Objects that are stored with a `Content-Encoding`.

use std::sync::Arc;

use super::conformance::{Subject, azure, bytes, get, google, key, s3, s3_environment};
use super::server::{Answer, Request, Server, fetch, object, open, open_with, say};
use crate::bucket::encoding::gzip;
use crate::bucket::{Access, Bucket, BucketError, Content, StoredEncoding};
use crate::digest::Digest;

/// The same bucket of a service, opened with another access.
async fn again(subject: &Subject, change: impl FnOnce(&mut Access)) -> Arc<dyn Bucket> {
    let mut access = subject.access.clone().unwrap();
    change(&mut access);
    open_with(&subject.bucket.to_string(), &access).await.unwrap()
}

/// Serves an object that is stored as gzip.
pub(crate) fn packed(
    request: &Request,
    tag: &str,
    stored: &[u8],
    headers: &[(&str, &str)],
) -> Vec<u8> {
    let answer = object(request, tag, stored);
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let mut head = answer[..end].to_vec();
    for (name, value) in [("content-encoding", "gzip")].iter().chain(headers) {
        head.extend_from_slice(format!("\r\n{name}: {value}").as_bytes());
    }
    [&head, &answer[end..]].concat()
}

#[tokio::test]
async fn an_object_that_is_stored_by_gzip_is_decoded_and_resumed_where_it_broke_off() {
    let all: Vec<u8> = (0..200_000_u32).flat_map(|i| (i / 7).pow(2).to_le_bytes()).collect();
    let stored = gzip(&all).unwrap();
    assert!(stored.len() > 50_000);
    for cut in [0, 10, 50_000] {
        let served = stored.clone();
        let server = Server::new(move |request| {
            let answer = packed(request, "\"v1\"", &served, &[]);
            let head = answer.len() - served.len().min(answer.len());
            match request.number {
                0 => Answer::Reset(answer[..head + cut].to_vec()),
                _ => Answer::Send(answer),
            }
        })
        .await;
        let got = fetch(&*server.s3().await, "k").await.unwrap();
        assert_eq!(got, (Digest::of(&all), 800_000), "cut at {cut}");
        assert_eq!(server.seen().len(), 2, "cut at {cut}");
    }
}

#[tokio::test]
async fn google_is_asked_for_what_it_stores_and_its_checksum_is_of_that() {
    // As in a response with `Warning: 214 UploadServer gunzipped`: no tag and no length.
    let content = b"a chunk of a volume".repeat(100);
    let stored = gzip(&content).unwrap();
    let mut sum = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    sum.update(&stored);
    let crc32c = base64::Engine::encode(
        &base64::prelude::BASE64_STANDARD,
        &sum.finalize().to_be_bytes()[4..],
    );
    let server = Server::new(move |request| {
        if request.headers.get("accept-encoding").map(String::as_str) != Some("gzip") {
            let plain = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
            return Answer::Send(plain.as_bytes().to_vec());
        }
        let hash = format!("crc32c={crc32c}");
        let mut stored = stored.clone();
        if request.path.ends_with("bad") {
            let at = stored.len() / 2;
            stored[at] ^= 1;
        }
        let headers = [("x-goog-hash", &*hash), ("x-goog-stored-content-encoding", "gzip")];
        Answer::Send(packed(request, "\"v1\"", &stored, &headers))
    })
    .await;
    let environment: [(&str, &str); 1] = [("STORAGE_EMULATOR_HOST", &server.url)];
    let bucket = open("gs://bucket", &environment).await;
    let content = b"a chunk of a volume".repeat(100);
    assert_eq!(fetch(&*bucket, "1_1_1").await.unwrap(), (Digest::of(&content), 1900));
    let error = fetch(&*bucket, "bad").await.unwrap_err();
    assert!(error.contains("the Crc32c checksum of the received bytes is"), "{error}");
    assert!(error.contains("reading `bad` failed"), "may be tried again: {error}");
}

#[tokio::test]
async fn what_can_not_be_decoded_is_no_fault_of_the_service_and_says_what_to_do() {
    let server = Server::new(|request| {
        let (encoding, body) = match &*request.path {
            "/bucket/br" => ("br", b"whatever".to_vec()),
            "/bucket/plain" => ("gzip", b"this is not gzip".to_vec()),
            "/bucket/cut" => ("gzip", gzip(&[7; 1000]).unwrap()[..20].to_vec()),
            _ => ("gzip", gzip(&vec![0; 2 << 20]).unwrap()),
        };
        Answer::Send(say("200 OK", &[("etag", "\"v\""), ("content-encoding", encoding)], &body))
    })
    .await;
    let access = Access::new(s3_environment(&server.url).into_iter().collect());
    let access = Access { largest_decoded: 1 << 20, ..access };
    let bucket = open_with("s3://bucket", &access).await.unwrap();
    for (name, want) in [
        ("br", "`br` has `Content-Encoding: br`, which is not supported"),
        ("plain", "`plain` has `Content-Encoding: gzip` but is not gzip"),
        ("cut", "`cut` has `Content-Encoding: gzip` but is not gzip"),
        ("bomb", "decodes to more than 1.0 MiB"),
    ] {
        let into = tempfile::tempfile().unwrap();
        let error = bucket.get(&key(name), into).await.unwrap_err();
        assert!(matches!(error, BucketError::Invalid { .. }), "{name}: {error}");
        let error = error.to_string();
        assert!(error.contains(want) && error.contains("--stored-encoding keep"), "{error}");
    }
}

#[tokio::test]
async fn outputs_are_compressed_where_that_is_asked_for_and_come_back_as_they_were() {
    let glob = globset::Glob::new("*.json").unwrap().compile_matcher();
    // The second compresses to more than one part.
    let (small, large) = (b"{}".repeat(1000), bytes(20 << 20));
    for (name, subject) in
        [("s3", s3().await), ("google", google().await), ("azure", azure().await)]
    {
        let compressing = again(&subject, |access| access.gzip_outputs = Some(glob.clone())).await;
        let keeping = again(&subject, |access| access.stored_encoding = StoredEncoding::Keep).await;
        for content in [&small, &large] {
            for file in ["a.json", "a.bin"] {
                let put = Content::from(content.clone());
                compressing.put(&key("out"), &put, &key(file)).await.unwrap();
                let (version, got) = get(&*subject.bucket, "out").await.unwrap();
                assert!(got == *content, "{name}: {} bytes came of {file}", got.len());
                assert_eq!(version.size, content.len() as u64, "{name}: {file}");
                assert_eq!(version, subject.bucket.head(&key("out")).await.unwrap(), "{name}");
                let (_, stored) = get(&*keeping, "out").await.unwrap();
                let is_packed = stored.starts_with(&[0x1f, 0x8b]) && stored != *content;
                assert_eq!(is_packed, file == "a.json", "{name}: {file}");
            }
        }
    }
}
