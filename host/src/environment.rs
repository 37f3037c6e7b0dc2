//! The variables of an environment, as a value that is handed on.
//!
//! [`crate::config`] reads those of the process; tests make their own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

/// Variables and their values. A clone shares them.
#[derive(Clone, Default)]
pub struct Environment(Arc<BTreeMap<String, String>>);

impl Environment {
    /// The value of a variable. One that is set to nothing counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value of the first of these variables that has one.
    pub fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// True for a variable that is `true`, `1` or `yes`.
    pub fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| ["true", "1", "yes"].contains(&&*v.to_ascii_lowercase()))
    }

    /// All variables whose names begin so.
    pub fn starting(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.iter().filter(move |(name, _)| name.starts_with(prefix));
        all.map(|(name, value)| (&**name, &**value)).filter(|(_, value)| !value.is_empty())
    }

    /// A file below the user's home.
    pub fn home(&self, file: &str) -> Option<PathBuf> {
        Some(PathBuf::from(self.get("HOME")?).join(file))
    }

    /// The file with credentials that users of CloudVolume and python-task-queue have, if it
    /// is there.
    pub fn cloudvolume_secret(&self, name: &str) -> Option<PathBuf> {
        self.home(&format!(".cloudvolume/secrets/{name}")).filter(|path| path.is_file())
    }

    /// The key of AWS that is in `~/.cloudvolume/secrets/aws-secret.json`.
    ///
    /// # Errors
    /// When there is such a file and it is no such key: what is wrong with it.
    pub fn cloudvolume_aws(&self) -> Result<Option<AwsSecret>, String> {
        let Some(path) = self.cloudvolume_secret("aws-secret.json") else { return Ok(None) };
        let wrong = |error: String| format!("{}: {error}", path.display());
        let text = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
        serde_json::from_slice(&text).map(Some).map_err(|error| wrong(error.to_string()))
    }

    /// That the profile that `AWS_PROFILE` asks for is in neither of AWS's files, if it is so.
    pub fn missing_aws_profile(&self) -> Option<String> {
        let profile = self.get("AWS_PROFILE")?;
        let file = |variable: &str, default: &str| {
            let named = self.get(variable).map(PathBuf::from);
            named.or_else(|| self.home(default))
        };
        let files = [
            file("AWS_CONFIG_FILE", ".aws/config"),
            file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        ];
        let is_there = files.iter().flatten().any(|file| {
            std::fs::read_to_string(file).is_ok_and(|text| has_profile(&text, profile))
        });
        if is_there {
            return None;
        }
        let shown = |file: &Option<PathBuf>| match file {
            Some(file) => file.display().to_string(),
            None => "~/.aws".to_owned(),
        };
        let [config, credentials] = files.each_ref().map(shown);
        Some(format!(
            "AWS_PROFILE is `{profile}`, and there is no such profile in {config} or {credentials}"
        ))
    }
}

/// True when one of AWS's files has a section for the profile.
fn has_profile(text: &str, profile: &str) -> bool {
    text.lines().any(|line| {
        let section = line.trim().strip_prefix('[').and_then(|rest| rest.split(']').next());
        section.is_some_and(|section| {
            let section = section.trim();
            let name = section.strip_prefix("profile ").unwrap_or(section);
            name.trim().trim_matches('"') == profile
        })
    })
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(all: I) -> Self {
        Self(Arc::new(all.into_iter().map(|(n, v)| (n.into(), v.into())).collect()))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets.
        write!(f, "Environment({} variables)", self.0.len())
    }
}

/// A key of AWS.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct AwsSecret {
    /// Its id.
    #[serde(rename = "AWS_ACCESS_KEY_ID")]
    pub key_id: String,
    /// The key.
    #[serde(rename = "AWS_SECRET_ACCESS_KEY")]
    pub secret_key: String,
    /// The token that goes with a key for a time.
    #[serde(rename = "AWS_SESSION_TOKEN", default)]
    pub token: Option<String>,
    /// The region that goes with it.
    #[serde(rename = "AWS_DEFAULT_REGION", alias = "AWS_REGION", default)]
    pub region: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_is_not_there_is_named_with_the_files() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().to_str().unwrap();
        let missing = |profile: &str| -> Option<String> {
            let variables = [("HOME", dir), ("AWS_PROFILE", profile)];
            variables.into_iter().collect::<Environment>().missing_aws_profile()
        };
        let want = format!(
            "AWS_PROFILE is `nope`, and there is no such profile in {dir}/.aws/config or \
             {dir}/.aws/credentials"
        );
        assert_eq!(missing("nope").unwrap(), want);
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), "[profile a]\nregion = x\n").unwrap();
        std::fs::write(home.path().join(".aws/credentials"), "[b]\n # [c]\n").unwrap();
        assert_eq!((missing("a"), missing("b"), missing("")), (None, None, None));
        assert_eq!(missing("nope").unwrap(), want);
        assert!(missing("c").is_some());
    }

    #[test]
    fn values_are_not_shown() {
        let environment: Environment = [("AWS_SECRET_ACCESS_KEY", "hidden")].into_iter().collect();
        assert!(!format!("{environment:?}").contains("hidden"));
    }

    #[test]
    fn a_key_of_cloudvolume_is_read_and_a_broken_one_is_named() {
        let home = tempfile::tempdir().unwrap();
        let environment: Environment =
            [("HOME", home.path().to_str().unwrap())].into_iter().collect();
        assert!(environment.cloudvolume_aws().unwrap().is_none());
        let folder = home.path().join(".cloudvolume/secrets");
        std::fs::create_dir_all(&folder).unwrap();
        let text = r#"{"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "other": 1}"#;
        std::fs::write(folder.join("aws-secret.json"), text).unwrap();
        let secret = environment.cloudvolume_aws().unwrap().unwrap();
        assert_eq!((&*secret.key_id, &*secret.secret_key), ("id", "key"));
        assert_eq!((secret.token, secret.region), (None, None));
        std::fs::write(folder.join("aws-secret.json"), "{}").unwrap();
        let error = environment.cloudvolume_aws().err().unwrap();
        assert!(error.contains("aws-secret.json: missing field `AWS_ACCESS_KEY_ID`"), "{error}");
    }
}
