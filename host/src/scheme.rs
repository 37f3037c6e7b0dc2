//! Schemes of URLs, and a check for paths that are probably mistyped URLs.

/// The schemes of queues and buckets, and one example of each.
const SCHEMES: [(&str, &str); 10] = [
    ("fq", "fq://DIR"),
    ("sqs", "sqs://NAME"),
    ("arn", "arn:aws:sqs:REGION:ACCOUNT:NAME"),
    ("pubsub", "pubsub://projects/PROJECT/topics/TOPIC/subscriptions/SUBSCRIPTION"),
    ("s3", "s3://BUCKET/PREFIX"),
    ("gs", "gs://BUCKET/PREFIX"),
    ("az", "az://CONTAINER/PREFIX"),
    ("file", "file://PATH"),
    ("http", "http://HOST/PATH"),
    ("https", "https://HOST/PATH"),
];

/// The scheme of a URL in lower case, and the text after `://`. None for a path.
pub(crate) fn split(url: &str) -> Option<(String, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    Some((scheme.to_ascii_lowercase(), rest))
}

/// Rejects a path that begins with a scheme and a colon, such as `sqs:/name` or `s3:bucket`. It is
/// almost certainly a mistake; a directory with this name can be written as `./s3:bucket`.
///
/// # Errors
/// Says what to write instead.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    let Some((scheme, rest)) = path.split_once(':') else { return Ok(()) };
    let form = SCHEMES.iter().find(|(known, _)| scheme.eq_ignore_ascii_case(known));
    match form {
        None => Ok(()),
        Some(_) if rest.starts_with("//") => {
            Err(format!("is a URL where a directory is wanted; write ./{path} for a directory"))
        }
        Some((_, form)) => Err(format!(
            "looks like a mistyped URL; write {form}, or ./{path} for a directory of that name"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_begins_like_a_url_is_refused() {
        for path in ["sqs:/x", "sqs:x", "S3:/x", "gs:x", "fq:./q", "https:/h/p", "pubsub:", "arn:"]
        {
            let problem = check_path(path).unwrap_err();
            let (scheme, _) = path.split_once(':').unwrap();
            let form = format!("; write {}:", scheme.to_lowercase());
            assert!(problem.contains(&form) && problem.contains(&format!("./{path}")), "{problem}");
        }
        assert!(check_path("s3://b").unwrap_err().starts_with("is a URL where a directory"));
        for path in ["queue", "./sqs:x", "/a/s3:b", "a:b", "12:30", "sqs", "", "x/sqs:y", "~/sqs:x"]
        {
            assert_eq!(check_path(path), Ok(()), "{path}");
        }
    }
}
