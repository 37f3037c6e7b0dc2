//! The credentials of python-task-queue: what its users have in their home directories.

use std::path::PathBuf;

use aws_sdk_sqs::config::Credentials;
use serde::Deserialize;

/// Below the home directory.
const FILE: &str = ".cloudvolume/secrets/aws-secret.json";

/// What the file says.
pub(super) struct PythonSecret {
    pub(super) credentials: Credentials,
    pub(super) region: Option<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "AWS_ACCESS_KEY_ID")]
    key: String,
    #[serde(rename = "AWS_SECRET_ACCESS_KEY")]
    secret: String,
    #[serde(rename = "AWS_SESSION_TOKEN")]
    token: Option<String>,
    #[serde(rename = "AWS_DEFAULT_REGION", alias = "AWS_REGION")]
    region: Option<String>,
}

impl PythonSecret {
    /// Those of the user, if there is such a file; or why it can't be used, which matters only
    /// to who needs it.
    pub(super) fn find() -> Option<Result<Self, String>> {
        let path = PathBuf::from(std::env::var_os("HOME")?).join(FILE);
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        match std::fs::read(&path) {
            Ok(text) => Some(Self::parse(&text).map_err(|error| wrong(&error))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(wrong(&error))),
        }
    }

    fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let File { key, secret, token, region } = serde_json::from_slice(text)?;
        let credentials = Credentials::new(key, secret, token, None, "aws-secret.json");
        Ok(Self { credentials, region })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_python_task_queue_is_understood() {
        let text = br#"{"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "more": 1}"#;
        let secret = PythonSecret::parse(text).unwrap();
        assert_eq!(secret.credentials.access_key_id(), "k");
        assert_eq!(secret.credentials.secret_access_key(), "s");
        assert_eq!(secret.region, None);
        assert!(PythonSecret::parse(b"{}").is_err());
    }
}
