//! The URL of a bucket, taken apart. Pure, but that `~` is the home directory.
//!
//! ```text
//! PATH, file://PATH          a directory
//! s3://BUCKET[/PREFIX]       S3, or what speaks its protocol
//! gs://BUCKET[/PREFIX]       Google Cloud Storage
//! az://CONTAINER[/PREFIX]    Azure Blob Storage, the account from the environment
//! https://HOST[/PATH]        a web server, to read from
//! ```

use std::path::PathBuf;

use super::BucketError;
use crate::home::with_home;
use crate::key::Prefix;

/// Where a bucket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A directory.
    Dir(PathBuf),
    /// Somewhere else.
    Cloud(Place),
}

/// A bucket of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) service: Service,
    /// The name of the bucket or container; the URL of a web server.
    pub(super) name: String,
    /// Where in it our keys begin.
    pub(super) prefix: Prefix,
}

/// Who keeps the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    S3,
    Google,
    Azure,
    Http,
}

impl Address {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// [`BucketError::Invalid`] for what is no bucket's URL, with what would be one.
    pub(super) fn parse(url: &str) -> Result<Self, BucketError> {
        let invalid = |problem: String| BucketError::invalid(&url, problem);
        let no_directory = || invalid("names no directory; use a path, or file://PATH".into());
        let (service, rest) = match url.split_once("://") {
            None if url.is_empty() => return Err(no_directory()),
            None => return directory(url).map_err(invalid),
            Some(("file", "")) => return Err(no_directory()),
            Some(("file", path)) => return directory(path).map_err(invalid),
            Some(("http" | "https", rest)) => {
                if rest.split('/').next().is_none_or(str::is_empty) {
                    return Err(invalid("names no server; use https://HOST/PATH".into()));
                }
                let name = url.trim_end_matches('/').to_owned();
                let place = Place { service: Service::Http, name, prefix: Prefix::root() };
                return Ok(Self::Cloud(place));
            }
            Some(("s3", rest)) => (Service::S3, rest),
            Some(("gs", rest)) => (Service::Google, rest),
            Some(("az", rest)) => (Service::Azure, rest),
            Some((scheme, _)) => {
                return Err(invalid(format!(
                    "`{scheme}://` is no kind of bucket; use a directory (a path, or \
                     file://PATH), s3://BUCKET, gs://BUCKET, az://CONTAINER, or https://HOST/PATH \
                     for inputs"
                )));
            }
        };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(named) {
            return Err(invalid(format!(
                "{name:?} can't be the name of a bucket; use {}://BUCKET/PREFIX",
                service.scheme()
            )));
        }
        let prefix = match prefix.trim_end_matches('/') {
            "" => Prefix::root(),
            prefix => Prefix::new(prefix)
                .map_err(|error| invalid(format!("the prefix {prefix:?} {error}")))?,
        };
        Ok(Self::Cloud(Place { service, name: name.to_owned(), prefix }))
    }

    /// Whether they are places in one bucket of a service, one of them within the other.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (Self::Cloud(one), Self::Cloud(other)) = (self, other) else { return false };
        let is_within = |inner: &Prefix, outer: &Prefix| {
            let rest = inner.as_str().strip_prefix(outer.as_str());
            outer.is_root() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let is_same = (one.service, &one.name) == (other.service, &other.name);
        is_same && (is_within(&one.prefix, &other.prefix) || is_within(&other.prefix, &one.prefix))
    }
}

fn directory(path: &str) -> Result<Address, String> {
    Ok(Address::Dir(with_home(path)?.into()))
}

impl Place {
    /// The URL it is called by.
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

    #[test]
    fn a_url_names_a_directory_or_a_place() {
        let dir = |url: &str, path: &str| {
            assert_eq!(Address::parse(url).unwrap(), Address::Dir(path.into()), "{url}");
        };
        dir("a/b", "a/b");
        dir("file:///a/b", "/a/b");
        let home = std::env::var("HOME").unwrap();
        for url in ["~/b", "file://~/b"] {
            dir(url, &format!("{}/b", home.trim_end_matches('/')));
        }
        let cloud = |url: &str, service, name: &str, prefix: &str, shown: &str| {
            let Address::Cloud(place) = Address::parse(url).unwrap() else { panic!("{url}") };
            assert_eq!((place.service, &*place.name), (service, name), "{url}");
            assert_eq!((place.prefix.as_str(), &*place.url()), (prefix, shown), "{url}");
        };
        cloud("s3://b-1.x", Service::S3, "b-1.x", "", "s3://b-1.x");
        cloud("s3://bucket/", Service::S3, "bucket", "", "s3://bucket");
        cloud("gs://b_b/p/q ä/", Service::Google, "b_b", "p/q ä", "gs://b_b/p/q ä");
        cloud("az://c/p", Service::Azure, "c", "p", "az://c/p");
        cloud("https://h:1/p/", Service::Http, "https://h:1/p", "", "https://h:1/p");
    }

    #[test]
    fn places_overlap_where_a_key_of_one_is_a_key_of_the_other() {
        let check = |one: &str, other: &str, want: bool| {
            let [one, other] = [one, other].map(|url| Address::parse(url).unwrap());
            assert_eq!((one.overlaps(&other), other.overlaps(&one)), (want, want), "{one:?}");
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
    fn what_is_no_bucket_says_what_would_be() {
        for (url, want) in [
            ("memory://", "memory://: `memory://` is no kind of bucket"),
            ("", ": names no directory"),
            ("file://", "file://: names no directory"),
            ("s3://", "s3://: \"\" can't be the name of a bucket; use s3://BUCKET/PREFIX"),
            ("s3:///key", "can't be the name of a bucket"),
            ("gs://a b", "gs://a b: \"a b\" can't be the name of a bucket"),
            ("az://c/../d", "az://c/../d: the prefix \"../d\" has a `..` segment"),
            ("https:///x", "https:///x: names no server"),
            ("~bob/x", "~bob/x: the home directory of another user"),
        ] {
            let error = Address::parse(url).unwrap_err();
            assert!(matches!(error, BucketError::Invalid { .. }), "{url}");
            assert!(error.to_string().contains(want), "{url}: {error}");
        }
    }
}
