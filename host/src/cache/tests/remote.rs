//! The cache in front of a service's bucket.

use super::*;
use crate::bucket::tests::conformance::s3_environment;
use crate::bucket::tests::encoded::packed;
use crate::bucket::tests::server::{Answer, Server, object, open_with};
use crate::bucket::{Access, StoredEncoding};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn an_unchanged_input_costs_one_small_request_and_a_fresh_one_none() {
    let all = vec![7; 200_000];
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
async fn what_is_decoded_is_cached_by_what_it_is_stored_as() {
    let stored = gzip(b"content");
    let size = stored.len() as u64;
    let raw = Digest::of(&stored);
    let server =
        Server::new(move |request| Answer::Send(packed(request, "\"v1\"", &stored, &[]))).await;
    let access = Access::new(s3_environment(&server.url).into_iter().collect());
    let decoding = open_with("s3://bucket", &access).await.unwrap();
    let keeping = Access { stored_encoding: StoredEncoding::Keep, ..access };
    let keeping = open_with("s3://bucket", &keeping).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    // Each fetch is by a new host.
    let fetch = async |bucket: &dyn Bucket| {
        let dir = root.path().to_owned();
        let cache = Cache::open(CacheOptions { dir, max_bytes: 1 << 30 }).unwrap();
        let ahead = crate::ahead::Ahead::new(bytesize::ByteSize::mib(1));
        let k = key("k");
        let fetched = cache.fetch_ahead(bucket, &k, Duration::ZERO, &ahead).await;
        let (blob, _permit) = fetched.unwrap();
        let version = cache.version(bucket, &key("k"), Duration::ZERO).await.unwrap();
        let by_version = cache.fetch_version(bucket, &key("k"), version).await.unwrap();
        assert!(by_version.hit, "what a HEAD tells is the same version");
        assert_eq!(by_version.digest, blob.digest);
        (blob.digest, blob.size, blob.hit)
    };
    let content = Digest::of(b"content");
    assert_eq!(fetch(&*decoding).await, (content, 7, false));
    assert_eq!(fetch(&*decoding).await, (content, 7, true));
    assert_eq!(fetch(&*keeping).await, (raw, size, false), "other bytes under the same tag");
    assert_eq!(fetch(&*keeping).await, (raw, size, true));
    assert_eq!(fetch(&*decoding).await.0, content);
}

#[tokio::test]
async fn a_download_that_always_breaks_off_leaves_nothing() {
    let server = Server::new(|request| {
        let answer = object(request, "\"v1\"", &[7; 100_000]);
        Answer::Reset(answer[..50_000].to_vec())
    })
    .await;
    let f = fixture();
    let cache = f.cache(LARGE);
    let error = cache.fetch(&*server.s3().await, &key("k"), NOW).await.unwrap_err();
    assert!(error.to_string().starts_with("s3://bucket: reading `k` failed: "), "{error}");
    assert_eq!((f.tmp_files(), f.blob_files().len()), (0, 0));
}
