//! The guarantees of every bucket, as tests that are run with each kind of bucket: a directory, a
//! store in memory, and S3, Google Cloud Storage and Azure on servers that speak their protocols.

use std::io::{Read, Seek, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::memory::InMemory;
use object_store::{ClientOptions, ListResult, ObjectStore};

use crate::blocking::SMALL;
use crate::bucket::address::{Service, ServiceAddress};
use crate::bucket::object::{ObjectBucket, Stores};
use crate::bucket::store_clock::StoreClock;
use crate::bucket::transport::Patience;
use crate::bucket::{
    Access, Bucket, BucketError, Content, DirBucket, Listed, Opened, Version, cloud,
};
use crate::digest::Digest;
use crate::environment::Environment;
use crate::key::{BucketKey, Prefix};
use crate::spill::SpillDir;

/// An empty bucket.
pub(super) struct Subject {
    pub(super) bucket: Arc<dyn Bucket>,
    /// The access to the bucket, if it is a service's.
    pub(super) access: Option<Access>,
    root: tempfile::TempDir,
}

impl Subject {
    fn new(make: impl FnOnce(&std::path::Path) -> Arc<dyn Bucket>) -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { bucket: make(root.path()), access: None, root }
    }

    pub(super) async fn put(&self, name: &str, bytes: &[u8]) {
        let content = Content::from(bytes.to_vec());
        self.bucket.put(&key(name), &content, &key("file")).await.unwrap();
    }

    pub(super) async fn list(&self, prefix: &str) -> Vec<(String, u64)> {
        let prefix = if prefix.is_empty() { Prefix::root() } else { Prefix::new(prefix).unwrap() };
        let all: Vec<_> = self.bucket.list(&prefix).try_collect().await.unwrap();
        let mut all: Vec<_> = all.into_iter().map(|l| (l.key.to_string(), l.size)).collect();
        all.sort();
        all
    }
}

pub(super) fn key(text: &str) -> BucketKey {
    BucketKey::new(text).unwrap()
}

/// An object's version and bytes.
pub(super) async fn get(
    bucket: &dyn Bucket,
    name: &str,
) -> Result<(Version, Vec<u8>), BucketError> {
    let mut file = tempfile::tempfile().unwrap();
    let version = bucket.get(&key(name), file.try_clone().unwrap()).await?;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    Ok((version, bytes))
}

/// Bytes without a repeated pattern.
pub(super) fn bytes(size: usize) -> Vec<u8> {
    (0..size as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// The value of a variable that holds the address of a server.
pub(super) fn server(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: this test is run by `cargo xtask test`"))
}

fn directory() -> Subject {
    Subject::new(|root| Arc::new(DirBucket::create(&root.join("bucket")).unwrap()))
}

/// A store as a bucket below a prefix.
pub(crate) fn in_memory(store: Arc<dyn ObjectStore>) -> ObjectBucket {
    #[derive(Debug)]
    struct Everything;
    #[async_trait::async_trait]
    impl PaginatedListStore for Everything {
        async fn list_paginated(
            &self,
            _: Option<&str>,
            _: PaginatedListOptions,
        ) -> object_store::Result<PaginatedListResult> {
            let result = ListResult {
                common_prefixes: Vec::new(),
                objects: Vec::new(),
                extensions: Default::default(),
            };
            Ok(PaginatedListResult { result, page_token: None })
        }
    }
    let prefix = Prefix::new("some/prefix").unwrap();
    let place = ServiceAddress { service: Service::S3, name: "memory".into(), prefix };
    let stores = Stores {
        reads: store.clone(),
        writes: Some(store.clone()),
        quick_reads: store.clone(),
        quick_writes: Some(store),
        quick_list: Some(Arc::new(Everything)),
    };
    let access = Access::new(Environment::default());
    ObjectBucket::new(place, stores, Patience::default(), StoreClock::default(), &access)
}

fn memory() -> Subject {
    Subject::new(|_| Arc::new(in_memory(Arc::new(InMemory::new()))))
}

fn new_name() -> String {
    format!("t-{}", uuid::Uuid::new_v4())
}

async fn cloud(service: Service, name: String, environment: &[(&str, &str)]) -> Subject {
    let place = ServiceAddress { service, name, prefix: Prefix::new("some/prefix ä").unwrap() };
    let access = Access::new(environment.iter().copied().collect::<Environment>());
    let bucket = cloud::open(place, &access, Patience::default()).await.unwrap();
    let subject = Subject::new(|_| Arc::new(bucket));
    Subject { access: Some(access), ..subject }
}

pub(crate) fn s3_environment(endpoint: &str) -> [(&str, &str); 4] {
    [
        ("AWS_ENDPOINT_URL_S3", endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ]
}

/// Sends an unsigned request to a server, on a new connection.
pub(super) async fn ask(base: &str, method: &str, path: &str, headers: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let host = base.trim_start_matches("http://").trim_end_matches('/');
    let mut connection = tokio::net::TcpStream::connect(host).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\
         {headers}\r\n"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

pub(super) async fn s3() -> Subject {
    let (endpoint, name) = (server("TASK_HOST_TEST_AWS"), new_name());
    let made = ask(&endpoint, "PUT", &format!("/{name}"), "").await;
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    cloud(Service::S3, name, &s3_environment(&endpoint)).await
}

pub(super) async fn google() -> Subject {
    let (endpoint, name) = (server("TASK_HOST_TEST_GCS"), new_name());
    let made = ask(&endpoint, "PUT", &format!("/{name}"), "").await;
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let account = serde_json::json!({
        "gcs_base_url": endpoint, "disable_oauth": true, "client_email": "", "private_key": "",
        "private_key_id": "",
    });
    std::fs::write(file.path(), account.to_string()).unwrap();
    let variable = ("GOOGLE_APPLICATION_CREDENTIALS", file.path().to_str().unwrap());
    let subject = cloud(Service::Google, name, &[variable]).await;
    // The file will be gone when the bucket is opened again.
    let key = [("GOOGLE_SERVICE_ACCOUNT_KEY", account.to_string())];
    Subject { access: Some(Access::new(key.into_iter().collect())), ..subject }
}

/// Sends a signed request, because Azure accepts no other kind for this.
async fn make_container(endpoint: &str, name: &str) {
    let (account, key) = cloud::AZURE_EMULATOR;
    let credential = AzureCredential::AccessKey(AzureAccessKey::try_new(key).unwrap());
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.method_mut() = "PUT".parse().unwrap();
    let url = format!("{endpoint}/{account}/{name}?restype=container");
    *request.uri_mut() = url.parse().unwrap();
    AzureAuthorizer::new(&credential, account).try_authorize(&mut request).unwrap();
    let options = ClientOptions::new().with_allow_http(true);
    let client = ReqwestConnector::default().connect(&options).unwrap();
    let answer = client.execute(request).await.unwrap();
    assert_eq!(answer.status().as_u16(), 201, "{answer:?}");
}

pub(super) async fn azure() -> Subject {
    let (endpoint, name) = (server("TASK_HOST_TEST_AZURE"), new_name());
    make_container(&endpoint, &name).await;
    cloud(Service::Azure, name, &[("AZURITE_BLOB_STORAGE_URL", &endpoint)]).await
}

macro_rules! suite {
    ($($kind:ident: $make:expr;)*) => {
        $(mod $kind {
            use super::*;
            suite!(@ $make =>
                what_is_put_is_got_and_listed_at_any_size
                any_key_comes_back_as_it_was_put
                what_is_not_there_is_not_found
                a_changed_object_has_another_version
                an_object_that_is_known_is_not_fetched_again
                what_is_put_twice_is_the_last_and_never_a_mix
                a_file_of_the_host_is_put_as_it_is
                a_bucket_that_is_there_passes_its_check
                trying_says_what_can_be_done_and_leaves_nothing
                what_can_be_put_is_accepted
                what_was_put_can_be_made_durable
                an_object_is_added_once_and_replaced_only_by_who_saw_it
                a_digest_and_a_tag_are_those_of_what_was_put
                an_object_of_the_hosts_own_is_replaced_dated_and_removed
            );
        })*
    };
    (@ $make:expr => $($promise:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            super::$promise($make).await;
        })*
    };
}

suite! {
    of_a_directory: directory();
    of_memory: memory();
    of_s3: s3().await;
    of_google: google().await;
    of_azure: azure().await;
}

async fn an_object_is_added_once_and_replaced_only_by_who_saw_it(subject: Subject) {
    let (bucket, name) = (&*subject.bucket, key("some/new/name"));
    let text = Bytes::from_static;
    let error = bucket.read(&name, 10).await.unwrap_err();
    assert!(matches!(error, BucketError::NotFound { .. }), "{error}");
    assert!(bucket.put_if(&name, text(b"first"), None).await.unwrap());
    assert!(!bucket.put_if(&name, text(b"second"), None).await.unwrap());
    let (got, seen) = bucket.read(&name, 10).await.unwrap();
    assert_eq!(got, "first");
    assert!(bucket.put_if(&name, text(b"third"), Some(&seen)).await.unwrap());
    assert!(!bucket.put_if(&name, text(b"fourth"), Some(&seen)).await.unwrap());
    assert_eq!(bucket.read(&name, 10).await.unwrap().0, "third");
    let error = bucket.read(&name, 4).await.unwrap_err();
    assert!(matches!(error, BucketError::Invalid { .. }), "{error}");
    assert!(!bucket.put_if(&key("not/there"), text(b"fifth"), Some(&seen)).await.unwrap());
    assert_eq!(subject.list("").await, [("some/new/name".to_owned(), 5)]);
    // Of many concurrent puts, one succeeds.
    let puts = (0..8).map(|n| {
        let (bucket, name) = (subject.bucket.clone(), key("raced"));
        tokio::spawn(async move { bucket.put_if(&name, format!("{n}").into(), None).await })
    });
    let puts: Vec<_> = futures_util::future::join_all(puts).await;
    let first = puts.iter().filter(|put| matches!(put, Ok(Ok(true)))).count();
    assert_eq!(first, 1, "{puts:?}");
}

async fn an_object_of_the_hosts_own_is_replaced_dated_and_removed(subject: Subject) {
    let (bucket, name) = (&*subject.bucket, key("_hosts/some/host.json"));
    bucket.remove_own(&name).await.unwrap();
    for text in ["first", "second, longer"] {
        bucket.put_own(&name, Bytes::from_static(text.as_bytes())).await.unwrap();
        assert_eq!(bucket.read(&name, 100).await.unwrap().0, text);
    }
    let listed: Vec<Listed> =
        bucket.list(&Prefix::new("_hosts").unwrap()).try_collect().await.unwrap();
    assert_eq!(listed.len(), 1);
    // The clocks of these stores are this machine's.
    let apart = |time: SystemTime| match time.duration_since(SystemTime::now()) {
        Ok(later) => later,
        Err(earlier) => earlier.duration(),
    };
    for time in [listed[0].modified, bucket.now()] {
        assert!(apart(time) < Duration::from_secs(600), "{time:?}");
    }
    bucket.remove_own(&name).await.unwrap();
    assert_eq!(subject.list("").await, []);
}

async fn a_digest_and_a_tag_are_those_of_what_was_put(subject: Subject) {
    for size in [0, 100, 2 * SMALL as usize, 17 << 20] {
        let (name, bytes) = (key(&format!("base/{size}")), bytes(size));
        let digest = Digest::of(&bytes);
        let content = Content::from(bytes);
        let tag = subject.bucket.put(&name, &content, &key("file")).await.unwrap();
        assert_eq!(subject.bucket.head(&name).await.unwrap().stored_tag(), tag, "{size}");
        assert_eq!(subject.bucket.digest(&name).await.unwrap(), (digest, size as u64));
    }
    let error = subject.bucket.digest(&key("not/there")).await.unwrap_err();
    assert!(matches!(error, BucketError::NotFound { .. }), "{error}");
}

async fn what_is_put_is_got_and_listed_at_any_size(subject: Subject) {
    let sizes = [
        ("empty", 0),
        ("small", 100),
        ("mid", 2 * SMALL as usize),
        ("parts", 17 << 20),
        // Large enough to be fetched in parts.
        ("ranges", (33 << 20) + 12_345),
    ];
    let mut want = Vec::new();
    for (name, size) in sizes {
        let (name, bytes) = (format!("base/{name}"), bytes(size));
        subject.put(&name, &bytes).await;
        let (version, got) = get(&*subject.bucket, &name).await.unwrap();
        assert!(got == bytes, "{name}: {} bytes came of {size}", got.len());
        assert_eq!(version, subject.bucket.head(&key(&name)).await.unwrap(), "{name}");
        want.push((name, size as u64));
    }
    want.sort();
    assert_eq!(subject.list("base").await, want);
    assert_eq!(subject.list("").await, want);
    assert_eq!(subject.list("bas").await, []);
    assert_eq!(subject.list("base/no").await, []);
}

async fn any_key_comes_back_as_it_was_put(subject: Subject) {
    let names = [
        "plain",
        "ä/ö ü",
        "a b",
        "50%",
        "%41",
        "a+b",
        "c#d",
        "e?f=g&h",
        "i;j",
        "k=l",
        "日本/語",
        "~'()*!@$,",
        "[x]",
        "m:n",
        "\"q\"",
        "<t>",
        "deep/er/and/deeper/still",
    ];
    for (i, name) in names.iter().enumerate() {
        subject.put(&format!("d/{name}"), &[i as u8]).await;
    }
    for (i, name) in names.iter().enumerate() {
        let (_, got) = get(&*subject.bucket, &format!("d/{name}")).await.unwrap();
        assert_eq!(got, [i as u8], "{name}");
    }
    let mut want: Vec<_> = names.iter().map(|name| (format!("d/{name}"), 1)).collect();
    want.sort();
    assert_eq!(subject.list("d").await, want);
    assert_eq!(subject.list("d/ä").await, [("d/ä/ö ü".to_owned(), 1)]);
}

async fn what_is_not_there_is_not_found(subject: Subject) {
    for name in ["nothing", "no/thing", "a b#c"] {
        let want = format!("{}: there is no object `{name}`", subject.bucket);
        let head = subject.bucket.head(&key(name)).await.unwrap_err();
        let get = get(&*subject.bucket, name).await.unwrap_err();
        for error in [head, get] {
            assert!(matches!(error, BucketError::NotFound { .. }), "{error}");
            assert_eq!(error.to_string(), want);
        }
    }
}

async fn a_changed_object_has_another_version(subject: Subject) {
    let mut versions = Vec::new();
    for content in ["one", "two", "three"] {
        subject.put("k", content.as_bytes()).await;
        let (version, got) = get(&*subject.bucket, "k").await.unwrap();
        assert_eq!(got, content.as_bytes());
        versions.push(version);
    }
    assert!(versions[0] != versions[1] && versions[1] != versions[2], "{versions:?}");
}

async fn an_object_that_is_known_is_not_fetched_again(subject: Subject) {
    subject.put("k", b"one").await;
    let known = subject.bucket.head(&key("k")).await.unwrap();
    let opened = subject.bucket.open(&key("k"), Some(&known)).await.unwrap();
    assert!(matches!(opened, Opened::Unchanged), "{opened:?}");
    subject.put("k", b"three").await;
    let opened = subject.bucket.open(&key("k"), Some(&known)).await.unwrap();
    let Opened::Object(object) = opened else { panic!("the change is not seen") };
    assert_eq!(object.version().size, 5);
}

async fn what_is_put_twice_is_the_last_and_never_a_mix(subject: Subject) {
    let (old, new) = (vec![1; 40 << 20], vec![2; 40 << 20]);
    subject.put("k", &old).await;
    let opened = subject.bucket.open(&key("k"), None).await.unwrap();
    let Opened::Object(object) = opened else { panic!("nothing was known") };
    let before = object.version().clone();
    // Replaced between the headers and the parts.
    subject.put("k", &new).await;
    let mut file = tempfile::tempfile().unwrap();
    let version = object.write_to(file.try_clone().unwrap()).await.unwrap();
    let mut got = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut got).unwrap();
    let want = if version == before { &old } else { &new };
    assert!(got == *want, "the bytes of that version and no others");
}

async fn a_file_of_the_host_is_put_as_it_is(subject: Subject) {
    let spill = SpillDir::new(&subject.root.path().join("spill")).unwrap();
    for size in [0, 100, 2 * SMALL as usize, 17 << 20] {
        let (file, open) = spill.create().unwrap();
        let bytes = bytes(size);
        (&open).write_all(&bytes).unwrap();
        let content = Content::File { file: Arc::new(file), size: size as u64 };
        subject.bucket.put(&key("k"), &content, &key("k")).await.unwrap();
        drop(content);
        let (_, got) = get(&*subject.bucket, "k").await.unwrap();
        assert!(got == bytes, "{} bytes came of {size}", got.len());
    }
    assert_eq!(std::fs::read_dir(spill.path()).unwrap().count(), 1, "only its lock is left");
}

async fn a_bucket_that_is_there_passes_its_check(subject: Subject) {
    subject.bucket.check().await.unwrap();
}

async fn trying_says_what_can_be_done_and_leaves_nothing(subject: Subject) {
    for name in ["new", "deep/er/new"] {
        subject.bucket.try_put(&key(name)).await.unwrap();
        let error = subject.bucket.try_get(&key(name)).await.unwrap_err();
        assert!(matches!(error, BucketError::NotFound { .. }), "{error}");
    }
    assert_eq!(subject.list("").await, []);
    subject.put("deep/k", b"old").await;
    subject.bucket.try_get(&key("deep/k")).await.unwrap();
    subject.bucket.try_put(&key("deep/k")).await.unwrap();
    let (_, got) = get(&*subject.bucket, "deep/k").await.unwrap();
    assert_eq!(got, b"old", "trying replaces nothing");
    assert_eq!(subject.list("").await, [("deep/k".to_owned(), 3)]);
}

async fn what_can_be_put_is_accepted(subject: Subject) {
    subject.put("there", b"old").await;
    for name in ["new", "deep/er/new", "there", "a b/ä"] {
        subject.bucket.accepts(&key(name)).await.unwrap();
    }
    assert_eq!(subject.list("").await, [("there".to_owned(), 3)]);
}

async fn what_was_put_can_be_made_durable(subject: Subject) {
    subject.bucket.sync().await.unwrap();
    subject.put("d/k", b"new").await;
    subject.bucket.sync().await.unwrap();
    let (_, got) = get(&*subject.bucket, "d/k").await.unwrap();
    assert_eq!(got, b"new");
}
