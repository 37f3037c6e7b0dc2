//! Failures of requests to a service: each gives the right kind of error, with a helpful text,
//! after a bounded number of requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use super::conformance::{ask, bytes, key, s3, s3_environment, server};
use super::server::{
    Answer, IMPATIENT, SHORT, Server, failed, fetch, object, open, open_within, say, service,
    try_open,
};
use crate::bucket::{Access, Bucket, BucketError, Content, cloud};
use crate::digest::Digest;
use crate::key::Prefix;

#[tokio::test]
async fn a_body_that_breaks_off_is_resumed_where_it_did() {
    let all = bytes(600_000);
    for cut in [0, 1, 5_000, 300_000, 599_999] {
        let served = all.clone();
        let server = Server::new(move |request| {
            let answer = object(request, "\"v1\"", &served);
            // The body of the first response breaks off.
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
        // Bytes before the reset may be lost with it, so the request may resume earlier, but not
        // later.
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
    // Not every server supports conditional requests.
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
    assert!(error.contains("the Crc32c checksum of the received bytes is"), "{error}");
}

#[tokio::test]
async fn what_a_service_says_is_told_with_what_to_do() {
    for (status, code, message, want) in [
        ("403 Forbidden", "AccessDenied", "Access Denied", "the credentials need s3:GetObject"),
        ("403 Forbidden", "InvalidAccessKeyId", "No such key id", "check AWS_PROFILE"),
        ("403 Forbidden", "RequestTimeTooSkewed", "Too large", "set it, for example with NTP"),
        ("404 Not Found", "NoSuchBucket", "No bucket", "there is no bucket `bucket`; check its"),
        (
            "400 Bad Request",
            "AuthorizationHeaderMalformed",
            "the region 'us-east-1' is wrong; expecting 'eu-west-3'",
            "--region eu-west-3",
        ),
        ("503 Slow Down", "SlowDown", "Reduce your rate", "limits the rate of requests: Reduce"),
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
    // Objects may still be readable.
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
        ("http://no-such-host.invalid", "the server name no-such-host.invalid can't be resolved"),
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
    assert!(error.starts_with("az://c: names a container but no account; set AZURE_"), "{error}");
    let environment = [("STORAGE_EMULATOR_HOST", "localhost:1")].into_iter().collect();
    let access = Access { requester_pays: true, ..Access::new(environment) };
    let error = cloud::open(service("gs://b"), &access, SHORT).await.unwrap_err().to_string();
    assert!(error.contains("set GOOGLE_CLOUD_PROJECT"), "{error}");
}

#[tokio::test]
async fn who_pays_and_who_is_nobody_is_told_to_the_service() {
    let server = Server::new(|request| Answer::Send(object(request, "\"v\"", b"x"))).await;
    let open = async |url: &str, environment: &[(&str, &str)], anonymous, requester_pays| {
        let environment = environment.iter().copied().collect();
        let access = Access { anonymous, requester_pays, ..Access::new(environment) };
        let bucket = cloud::open(service(url), &access, SHORT).await.unwrap();
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
    {
        let (target, content) = (key("out"), Content::from(vec![0; 64 << 20]));
        let mut put = subject.bucket.put(&target, &content, &target);
        // The put is dropped when its upload has begun.
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
            // The response arrives after the caller was dropped.
            std::thread::sleep(Duration::from_millis(100));
            let begun = "<InitiateMultipartUploadResult><UploadId>the-id</UploadId>\
                         </InitiateMultipartUploadResult>";
            Answer::Send(say("200 OK", &[], begun.as_bytes()))
        }
        _ => Answer::Send(say("204 No Content", &[], b"")),
    })
    .await;
    let bucket = server.s3().await;
    let (target, content) = (key("out"), Content::from(vec![0; 20 << 20]));
    let put = bucket.put(&target, &content, &target);
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
    // Keys that no task can name are not listed either.
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
    bucket.put(&key("k"), &"123456789".into(), &key("f")).await.unwrap();
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
        let listed: Vec<crate::bucket::Listed> = listed.await.unwrap();
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
            "`k` is archived (DEEP_ARCHIVE) and has to be restored first: restore it with \
             `aws s3api restore-object`",
        ),
        (
            "az://bucket",
            "409 Conflict",
            "BlobArchived",
            "",
            "`k` is archived and has to be restored first: rehydrate it with `az",
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
