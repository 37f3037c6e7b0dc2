//! The address of a bucket: a parsed URL. Parsing reads nothing but the variable `HOME`.
//!
//! ```text
//! PATH, file://PATH          a directory
//! s3://BUCKET[/PREFIX]       S3 or a compatible service
//! gs://BUCKET[/PREFIX]       Google Cloud Storage
//! az://CONTAINER[/PREFIX]    Azure Blob Storage; the account comes from the environment
//! https://HOST[/PATH]        a web server, read-only
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::BucketError;
use crate::environment::with_home;
use crate::key::Prefix;
use crate::scheme;

/// The address of a bucket. `FromStr` parses a URL or a path. `Display` is the URL, with `~`
/// expanded and without a slash at the end of a service's URL.
#[derive(Debug, Clone)]
pub struct Address {
    url: String,
    pub(super) location: Location,
}

/// Text that is not the address of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {problem}")]
pub struct AddressError {
    /// The text.
    pub url: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl From<AddressError> for BucketError {
    fn from(AddressError { url, problem }: AddressError) -> Self {
        Self::Invalid { bucket: url, problem }
    }
}

/// Where the objects are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    Dir(PathBuf),
    Service(ServiceAddress),
}

/// A bucket of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceAddress {
    pub(super) service: Service,
    /// The name of the bucket or container, or the URL of a web server.
    pub(super) name: String,
    /// The prefix of all keys in it.
    pub(super) prefix: Prefix,
}

/// The service that stores the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    S3,
    Google,
    Azure,
    Http,
}

impl Address {
    /// The directory, if the bucket is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.location {
            Location::Dir(path) => Some(path),
            Location::Service(_) => None,
        }
    }

    /// True for a web server, which can neither store nor list objects.
    pub fn is_read_only(&self) -> bool {
        matches!(&self.location, Location::Service(at) if at.service == Service::Http)
    }

    /// True when both are in one bucket of a service and one's keys are also keys of the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (Location::Service(one), Location::Service(other)) = (&self.location, &other.location)
        else {
            return false;
        };
        let is_within = |inner: &Prefix, outer: &Prefix| {
            let rest = inner.as_str().strip_prefix(outer.as_str());
            outer.is_root() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let is_same = (one.service, &one.name) == (other.service, &other.name);
        is_same && (is_within(&one.prefix, &other.prefix) || is_within(&other.prefix, &one.prefix))
    }

    /// The address of a bucket of a service.
    fn of_service(at: ServiceAddress) -> Self {
        Self { url: at.url(), location: Location::Service(at) }
    }

    fn parse(url: &str) -> Result<Self, String> {
        const NO_DIRECTORY: &str = "contains no directory; use a path or file://PATH";
        let Some((scheme, rest)) = scheme::split(url) else {
            return match url {
                "" => Err(NO_DIRECTORY.to_owned()),
                path => Self::directory("", path),
            };
        };
        let (service, rest) = match (&*scheme, rest) {
            ("file", "") => return Err(NO_DIRECTORY.to_owned()),
            ("file", path) => return Self::directory("file://", path),
            ("http" | "https", rest) => {
                let server = rest.split('/').next().unwrap_or_default();
                if server.is_empty() {
                    return Err("names no server; use https://HOST/PATH".to_owned());
                }
                // Addresses are in logs, reports and receipts.
                if server.contains('@') {
                    return Err(
                        "has a login, which everyone who reads logs or reports would see; \
                                inputs are read over https:// without one"
                            .to_owned(),
                    );
                }
                if rest.contains(['?', '#']) {
                    return Err("has a query; keys of inputs follow https://HOST/PATH".to_owned());
                }
                let name = format!("{scheme}://{}", rest.trim_end_matches('/'));
                let prefix = Prefix::root();
                return Ok(Self::of_service(ServiceAddress {
                    service: Service::Http,
                    name,
                    prefix,
                }));
            }
            ("s3", rest) => (Service::S3, rest),
            ("gs", rest) => (Service::Google, rest),
            ("az", rest) => (Service::Azure, rest),
            _ => {
                return Err(format!(
                    "`{scheme}://` is not supported; use a directory (a path or file://PATH), \
                     s3://BUCKET, gs://BUCKET, az://CONTAINER, or for inputs https://HOST/PATH"
                ));
            }
        };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(is_allowed) {
            let scheme = service.scheme();
            return Err(format!(
                "{name:?} is not the name of a bucket; use {scheme}://BUCKET/PREFIX"
            ));
        }
        let prefix = match prefix.trim_end_matches('/') {
            "" => Prefix::root(),
            prefix => {
                Prefix::new(prefix).map_err(|error| format!("the prefix {prefix:?} {error}"))?
            }
        };
        Ok(Self::of_service(ServiceAddress { service, name: name.to_owned(), prefix }))
    }

    fn directory(scheme: &str, path: &str) -> Result<Self, String> {
        scheme::check_path(path)?;
        let path = with_home(path)?;
        Ok(Self { url: format!("{scheme}{path}"), location: Location::Dir(path.into()) })
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(url: &str) -> Result<Self, AddressError> {
        Self::parse(url).map_err(|problem| AddressError { url: url.to_owned(), problem })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// `file://PATH` and `PATH` are equal.
impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.location == other.location
    }
}

impl Eq for Address {}

impl ServiceAddress {
    /// The URL without a slash at its end.
    pub(super) fn url(&self) -> String {
        match (self.service, self.prefix.is_root()) {
            (Service::Http, _) => self.name.clone(),
            (service, true) => format!("{}://{}", service.scheme(), self.name),
            (service, false) => format!("{}://{}/{}", service.scheme(), self.name, self.prefix),
        }
    }
}

impl Service {
    pub(super) fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
            Self::Http => "https",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Address {
        url.parse().unwrap()
    }

    #[test]
    fn a_url_names_a_directory_or_a_bucket_of_a_service() {
        let dir = |url: &str, path: &str, shown: &str| {
            let address = address(url);
            assert_eq!((address.path(), &*address.to_string()), (Some(Path::new(path)), shown));
        };
        dir("a/b", "a/b", "a/b");
        dir("file:///a/b", "/a/b", "file:///a/b");
        let home = std::env::var("HOME").unwrap();
        let home = format!("{}/b", home.trim_end_matches('/'));
        dir("~/b", &home, &home);
        dir("file://~/b", &home, &format!("file://{home}"));
        assert_eq!(address("a"), address("file://a"));
        dir("./s3:b", "./s3:b", "./s3:b");
        dir("FILE://a", "a", "file://a");
        let service = |url: &str, service, name: &str, prefix: &str, shown: &str| {
            let address = address(url);
            assert_eq!(address.to_string(), shown, "{url}");
            let Location::Service(at) = address.location else { panic!("{url}") };
            assert_eq!((at.service, &*at.name, at.prefix.as_str()), (service, name, prefix));
        };
        service("s3://b-1.x", Service::S3, "b-1.x", "", "s3://b-1.x");
        service("s3://bucket/", Service::S3, "bucket", "", "s3://bucket");
        service("gs://b_b/p/q ä/", Service::Google, "b_b", "p/q ä", "gs://b_b/p/q ä");
        service("az://c/p", Service::Azure, "c", "p", "az://c/p");
        service("S3://Bucket/P", Service::S3, "Bucket", "P", "s3://Bucket/P");
        service("HTTPS://h/P", Service::Http, "https://h/P", "", "https://h/P");
        service("https://h:1/p/", Service::Http, "https://h:1/p", "", "https://h:1/p");
        for url in
            ["https://user:secret@h/p", "https://h/p?sig=secret", "https://h?x", "https://h/#"]
        {
            let problem = url.parse::<Address>().unwrap_err().to_string();
            assert!(problem.contains("has a "), "{problem}");
        }
        assert!(address("https://h/p").is_read_only() && !address("s3://b").is_read_only());
    }

    #[test]
    fn addresses_overlap_where_a_key_of_one_is_a_key_of_the_other() {
        let check = |one: &str, other: &str, want: bool| {
            let [one, other] = [one, other].map(address);
            assert_eq!((one.overlaps(&other), other.overlaps(&one)), (want, want), "{one}");
        };
        check("s3://b/messages", "s3://b", true);
        check("s3://b/messages", "s3://b/messages/", true);
        check("s3://b/messages", "s3://b/messages/x", true);
        check("s3://b/messages", "s3://b/messages2", false);
        check("s3://b/messages", "s3://b/data", false);
        check("s3://b/messages", "s3://c", false);
        check("s3://b/messages", "gs://b", false);
        check("s3://b/messages", "b/messages", false);
    }

    #[test]
    fn text_that_is_not_an_address_is_refused_with_what_would_be_one() {
        for (url, want) in [
            ("memory://", "memory://: `memory://` is not supported; use a directory"),
            ("", ": contains no directory"),
            ("file://", "file://: contains no directory"),
            ("s3://", "s3://: \"\" is not the name of a bucket; use s3://BUCKET/PREFIX"),
            ("s3:///key", "is not the name of a bucket"),
            ("gs://a b", "gs://a b: \"a b\" is not the name of a bucket"),
            ("az://c/../d", "az://c/../d: the prefix \"../d\" has a `..` segment"),
            ("https:///x", "https:///x: names no server"),
            ("s3:/x", "s3:/x: looks like a mistyped URL; write s3://BUCKET/PREFIX, or ./s3:/x for"),
            ("gs:x", "write gs://BUCKET/PREFIX"),
            ("~bob/x", "~bob/x: the home directory of another user"),
        ] {
            let error = url.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains(want), "{url}: {error}");
            assert_eq!(BucketError::from(error.clone()).to_string(), error.to_string());
        }
    }
}
