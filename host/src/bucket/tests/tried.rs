//! Trial reads and puts: they end soon and leave nothing in the bucket.

use super::conformance::{ask, azure, get, google, key, s3, s3_environment, server};
use super::server::{Answer, Server, failed, object, open, say};
use crate::bucket::BucketError;

#[tokio::test]
async fn trying_a_put_makes_the_requests_of_one_and_waits_until_nothing_is_left() {
    let begun = "<InitiateMultipartUploadResult><UploadId>the-id</UploadId>\
                 </InitiateMultipartUploadResult>";
    for (status, want) in [
        ("200 OK", None),
        ("500 Oops", Some("We broke")),
        ("403 Forbidden", Some("the credentials need s3:PutObject")),
    ] {
        let server = Server::new(move |request| match &*request.method {
            "POST" => Answer::Send(say("200 OK", &[], begun.as_bytes())),
            "DELETE" => Answer::Send(say("204 No Content", &[], b"")),
            _ if status == "200 OK" => Answer::Send(say(status, &[("etag", "\"part\"")], b"")),
            _ if status == "500 Oops" => failed(status, "InternalError", "We broke"),
            _ => failed(status, "AccessDenied", "Access Denied"),
        })
        .await;
        let bucket = server.s3().await;
        let tried = bucket.try_put(&key("out")).await;
        let seen = server.seen();
        match (tried, want) {
            (Ok(()), None) => {}
            (Err(error @ BucketError::Unavailable { .. }), Some(want)) => {
                assert!(error.to_string().contains(want), "{error}");
            }
            (tried, _) => panic!("{status}: {tried:?}"),
        }
        let methods: Vec<_> = seen.iter().map(|request| &*request.method).collect();
        assert_eq!((methods[0], methods[methods.len() - 1]), ("POST", "DELETE"), "{methods:?}");
        assert!(methods.len() <= 5, "soon given up: {methods:?}");
        let puts = seen.iter().filter(|request| request.method == "PUT");
        assert!(puts.clone().count() > 0);
        for put in puts {
            assert!(put.path.starts_with("/bucket/out?"), "{}", put.path);
        }
    }
}

#[tokio::test]
async fn trying_a_get_soon_gives_up_and_says_what_a_get_would() {
    let server = Server::new(|request| match &*request.path {
        "/bucket/there" => Answer::Send(object(request, "\"v\"", b"bytes")),
        "/bucket/missing" => failed("404 Not Found", "NoSuchKey", "no"),
        _ => failed("503 Slow Down", "SlowDown", "Reduce your rate"),
    })
    .await;
    let bucket = server.s3().await;
    bucket.try_get(&key("there")).await.unwrap();
    let error = bucket.try_get(&key("missing")).await.unwrap_err();
    assert!(matches!(error, BucketError::NotFound { .. }), "{error}");
    let before = server.seen().len();
    let error = bucket.try_get(&key("k")).await.unwrap_err();
    assert!(matches!(error, BucketError::Unavailable { .. }), "{error}");
    assert!(server.seen().len() - before <= 3, "{:?}", server.seen());
}

#[tokio::test]
async fn a_bucket_that_is_tried_is_as_it_was() {
    for (name, subject) in
        [("s3", s3().await), ("google", google().await), ("azure", azure().await)]
    {
        let bucket = &subject.bucket;
        bucket.try_put(&key("new")).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(subject.list("").await, [], "{name}");
        subject.put("old", b"content").await;
        bucket.try_put(&key("old")).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(get(&**bucket, "old").await.unwrap().1, b"content", "{name}");
        assert_eq!(subject.list("").await, [("old".to_owned(), 7)], "{name}");
        bucket.try_get(&key("old")).await.unwrap();
        let error = bucket.try_get(&key("new")).await.unwrap_err();
        assert!(matches!(error, BucketError::NotFound { .. }), "{name}: {error}");
    }
    let subject = s3().await;
    let endpoint = server("TASK_HOST_TEST_AWS");
    let text = subject.bucket.to_string();
    let name = text.trim_start_matches("s3://").split('/').next().unwrap();
    subject.bucket.try_put(&key("new")).await.unwrap();
    let uploads = ask(&endpoint, "GET", &format!("/{name}?uploads"), "").await;
    assert!(!uploads.contains("<UploadId>"), "an upload is left: {uploads}");
}

#[tokio::test]
async fn a_bucket_that_can_not_be_put_to_is_found_by_trying() {
    // Each service denies the access in the same way.
    for url in ["s3://bucket", "gs://bucket", "az://bucket"] {
        let server =
            Server::new(|_| failed("403 Forbidden", "AccessDenied", "Access Denied")).await;
        let mut environment = s3_environment(&server.url).to_vec();
        environment.push(("STORAGE_EMULATOR_HOST", &server.url));
        environment.push(("AZURITE_BLOB_STORAGE_URL", &server.url));
        let bucket = open(url, &environment).await;
        let error = bucket.try_put(&key("k")).await.unwrap_err();
        assert!(matches!(error, BucketError::Unavailable { .. }), "{url}: {error}");
        assert!(error.to_string().contains("access denied"), "{url}: {error}");
    }
}

#[tokio::test]
async fn who_may_put_objects_and_not_begin_uploads_is_found_to_be_able_to_put() {
    for (url, condition) in [
        ("gs://bucket", ("x-goog-if-generation-match", "1")),
        ("az://bucket", ("if-match", "\"0x0\"")),
    ] {
        for is_well in [true, false] {
            let server = Server::new(move |request| {
                let header = request.headers.get(condition.0).map(String::as_str);
                match &*request.method {
                    "PUT" if !is_well => failed("500 Oops", "InternalError", "We broke"),
                    "PUT" if header == Some(condition.1) => {
                        failed("412 Precondition Failed", "ConditionNotMet", "no")
                    }
                    _ => failed("403 Forbidden", "AccessDenied", "Access Denied"),
                }
            })
            .await;
            let environment = [
                ("STORAGE_EMULATOR_HOST", &*server.url),
                ("AZURITE_BLOB_STORAGE_URL", &*server.url),
            ];
            let tried = open(url, &environment).await.try_put(&key("k")).await;
            assert_eq!(tried.is_ok(), is_well, "{url}: {tried:?}");
            let puts = server.seen().iter().filter(|seen| seen.method == "PUT").count();
            assert!((1..=3).contains(&puts), "{url}: {puts} puts");
        }
    }
}
