//! Tests of buckets: guarantees of every kind of bucket, failures of services and of web servers,
//! and how a bucket is opened.

pub(crate) mod conformance;
pub(crate) mod encoded;
pub(crate) mod server;
mod service;
mod tried;
mod web;

use super::*;

fn nothing() -> Access {
    Access::new(Environment::default())
}

#[tokio::test]
async fn a_directory_is_opened_by_path_and_by_url_and_never_made() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    for url in [path, &format!("file://{path}")] {
        let bucket = open(&url.parse().unwrap(), &nothing()).await.unwrap();
        assert_eq!(bucket.to_string(), format!("file://{path}"));
    }
    let missing = root.path().join("missing");
    let error = open(&missing.to_str().unwrap().parse().unwrap(), &nothing()).await.unwrap_err();
    assert!(error.to_string().contains("there is no such directory"), "{error}");
    assert!(!missing.exists(), "opening creates nothing");
}

#[tokio::test]
async fn outputs_can_not_be_put_to_a_web_server() {
    let error =
        open_for_outputs(&"https://host/data".parse().unwrap(), &nothing()).await.unwrap_err();
    assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
    assert!(error.to_string().contains("--input-bucket"), "{error}");
}

#[tokio::test]
async fn outputs_are_not_compressed_into_a_directory() {
    let root = tempfile::tempdir().unwrap();
    let address = root.path().to_str().unwrap().parse().unwrap();
    let glob = globset::Glob::new("*.json").unwrap().compile_matcher();
    let access = Access { gzip_outputs: Some(glob), ..nothing() };
    let error = open_for_outputs(&address, &access).await.unwrap_err();
    assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
    assert!(error.to_string().contains("--gzip-outputs needs s3://"), "{error}");
    open(&address, &access).await.unwrap();
}

#[test]
fn a_directory_is_found_in_its_bucket_and_in_no_cloud() {
    let root = tempfile::tempdir().unwrap();
    let below = root.path().join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    let address = |url: &str| url.parse::<Address>().unwrap();
    let in_root = prefix_of(&below, &address(root.path().to_str().unwrap())).unwrap();
    assert_eq!(in_root, Some(Prefix::new("a/b").unwrap()));
    let in_below = prefix_of(root.path(), &address(below.to_str().unwrap())).unwrap();
    assert_eq!(in_below, None);
    assert_eq!(prefix_of(&below, &address("s3://bucket/a")).unwrap(), None);
}
