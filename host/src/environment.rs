//! Environment variables, and the files with credentials that are found through them.
//!
//! Only this file reads the variables of the process. All other code gets an [`Environment`], and
//! tests construct their own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

/// Variables and their values. A clone shares the data.
#[derive(Clone, Default)]
pub struct Environment(Arc<BTreeMap<String, String>>);

impl Environment {
    /// The variables of this process, without those that are not UTF-8.
    pub fn of_process() -> Self {
        variables("").filter_map(|(name, value)| Some((name, value.into_string().ok()?))).collect()
    }

    /// The value of a variable. An empty variable counts as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value of the first of these variables that is set.
    pub fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// True if the variable is `true`, `1` or `yes`.
    pub fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| ["true", "1", "yes"].contains(&&*v.to_ascii_lowercase()))
    }

    /// The variables whose names start with `prefix`.
    pub fn starting(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.iter().filter(move |(name, _)| name.starts_with(prefix));
        all.map(|(name, value)| (&**name, &**value)).filter(|(_, value)| !value.is_empty())
    }

    /// A file in the user's home directory.
    pub fn home(&self, file: &str) -> Option<PathBuf> {
        Some(PathBuf::from(self.get("HOME")?).join(file))
    }

    /// The credentials file of CloudVolume and python-task-queue with this name, if it exists.
    pub fn cloudvolume_secret(&self, name: &str) -> Option<PathBuf> {
        self.home(&format!(".cloudvolume/secrets/{name}")).filter(|path| path.is_file())
    }

    /// The AWS key in `~/.cloudvolume/secrets/aws-secret.json`.
    ///
    /// # Errors
    /// The file exists but does not hold an AWS key. The error says what is wrong.
    pub fn cloudvolume_aws(&self) -> Result<Option<AwsSecret>, String> {
        let Some(path) = self.cloudvolume_secret("aws-secret.json") else { return Ok(None) };
        let wrong = |error: String| format!("{}: {error}", path.display());
        let text = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
        serde_json::from_slice(&text).map(Some).map_err(|error| wrong(error.to_string()))
    }

    /// The user of this host, for reports: `$USER`, or the user id.
    pub fn user_name(&self) -> String {
        self.get("USER")
            .map_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()), str::to_owned)
    }

    /// A message if neither of the AWS files contains the profile that `AWS_PROFILE` names.
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

/// Whether the text of an AWS file has a section for the profile.
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

/// The variables of this process whose names start with `prefix`.
pub fn variables(prefix: &str) -> impl Iterator<Item = (String, OsString)> {
    let all = std::env::vars_os();
    let named = all.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    named.filter(move |(name, _)| name.starts_with(prefix))
}

/// The default cache directory. The first of these that exists or is set: `task-host` in
/// `$XDG_CACHE_HOME` or in `~/.cache`; `$CACHE_DIRECTORY`, which systemd sets for a service;
/// `.cache/task-host` in the home directory of the user's account; `/var/cache/task-host` for root;
/// and a directory for this user in the system's temporary directory.
pub fn default_cache_dir() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let known_home = std::env::home_dir().filter(|home| {
        std::fs::metadata(home).is_ok_and(|meta| meta.is_dir() && meta.uid() == user)
    });
    let temporary = std::env::temp_dir();
    cache_dir_of(|name| std::env::var_os(name), known_home, user, &temporary)
}

/// The directory of the user's settings: `task-host` in `$XDG_CONFIG_HOME` or in `~/.config`.
pub fn config_dir() -> Option<PathBuf> {
    config_dir_of(|name| std::env::var_os(name))
}

fn config_dir_of(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let configured = absolute("XDG_CONFIG_HOME");
    let dir = configured.or_else(|| absolute("HOME").map(|home| home.join(".config")));
    dir.map(|dir| dir.join("task-host"))
}

fn cache_dir_of(
    variable: impl Fn(&str) -> Option<OsString>,
    known_home: Option<PathBuf>,
    user: u32,
    temporary: &Path,
) -> PathBuf {
    const NAME: &str = "task-host";
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let below_home = |home: PathBuf| home.join(".cache").join(NAME);
    // systemd may set several directories, separated by colons.
    let of_service = || {
        let all = variable("CACHE_DIRECTORY")?.into_string().ok()?;
        all.split(':').next().map(PathBuf::from).filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .map(|caches| caches.join(NAME))
        .or_else(|| absolute("HOME").map(below_home))
        .or_else(of_service)
        .or_else(|| known_home.filter(|home| home.is_absolute()).map(below_home))
        .or_else(|| (user == 0).then(|| Path::new("/var/cache").join(NAME)))
        .unwrap_or_else(|| temporary.join(format!("{NAME}-{user}")))
}

/// Replaces `~` at the beginning of a path with the user's home directory, as python-task-queue
/// does.
///
/// # Errors
/// Describes the problem and what to write instead. `~USER` is not supported.
pub fn with_home(path: &str) -> Result<String, String> {
    let home = std::env::var_os("HOME");
    Ok(below_home(path, home.as_deref())?.unwrap_or_else(|| path.to_owned()))
}

/// The path with `~` replaced, or `None` if it does not start with `~`.
fn below_home(path: &str, home: Option<&OsStr>) -> Result<Option<String>, String> {
    let Some(rest) = path.strip_prefix('~') else {
        return Ok(None);
    };
    if !rest.is_empty() && !rest.starts_with('/') {
        let name = path.split('/').next().unwrap_or(path);
        return Err(format!(
            "the home directory of another user, `{name}`, is not supported; write the whole \
             path, or ./{path} for a directory of that name"
        ));
    }
    match home.map(OsStr::to_str) {
        Some(Some(home)) if home.starts_with('/') => {
            Ok(Some(format!("{}{rest}", home.trim_end_matches('/'))))
        }
        _ => {
            Err("`~` needs the variable HOME to name a directory; write the whole path".to_owned())
        }
    }
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

/// An AWS access key.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct AwsSecret {
    /// The key's id.
    #[serde(rename = "AWS_ACCESS_KEY_ID")]
    pub key_id: String,
    /// The secret key.
    #[serde(rename = "AWS_SECRET_ACCESS_KEY")]
    pub secret_key: String,
    /// The session token of a temporary key.
    #[serde(rename = "AWS_SESSION_TOKEN", default)]
    pub token: Option<String>,
    /// The region to use with the key.
    #[serde(rename = "AWS_DEFAULT_REGION", alias = "AWS_REGION", default)]
    pub region: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_user_are_where_other_programs_have_theirs() {
        let dir = |xdg: Option<&str>, home: Option<&str>| {
            let variable = |name: &str| match name {
                "XDG_CONFIG_HOME" => xdg.map(OsString::from),
                _ => home.map(OsString::from),
            };
            config_dir_of(variable).map(|dir| dir.display().to_string())
        };
        assert_eq!(dir(Some("/x"), Some("/h")).as_deref(), Some("/x/task-host"));
        assert_eq!(dir(Some("x"), Some("/h")).as_deref(), Some("/h/.config/task-host"));
        assert_eq!(dir(None, None), None);
    }

    #[test]
    fn a_tilde_is_the_home_directory_and_nothing_else() {
        let home = |path: &str| below_home(path, Some(OsStr::new("/home/ana/")));
        assert_eq!(home("~/q").unwrap().unwrap(), "/home/ana/q");
        assert_eq!(home("~").unwrap().unwrap(), "/home/ana");
        assert_eq!(home("./~/q"), Ok(None));
        assert_eq!(home("a~/q"), Ok(None));
        for other in ["~bob/q", "~bob", "~-errors"] {
            let error = home(other).unwrap_err();
            assert!(error.contains(&format!("./{other}")), "{error}");
        }
        for none in [None, Some(OsStr::new("")), Some(OsStr::new("home"))] {
            assert!(below_home("~/q", none).unwrap_err().contains("HOME"));
        }
    }

    #[test]
    fn the_cache_is_where_only_this_user_is() {
        let check = |variables: &[(&str, &str)], home: Option<&str>, user, want: &str| {
            let variable = |name: &str| {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(OsString::from(value))
            };
            let dir = cache_dir_of(variable, home.map(PathBuf::from), user, Path::new("/tmp"));
            assert_eq!(dir, Path::new(want), "{variables:?} {home:?} {user}");
        };
        let (xdg, home) = (("XDG_CACHE_HOME", "/c"), ("HOME", "/home/ana"));
        let service = ("CACHE_DIRECTORY", "/var/cache/tasks:/var/cache/more");
        check(&[xdg, home, service], Some("/home/ana"), 7, "/c/task-host");
        check(&[home, service], Some("/home/ana"), 7, "/home/ana/.cache/task-host");
        check(&[("XDG_CACHE_HOME", "c"), home], None, 7, "/home/ana/.cache/task-host");
        check(&[service], Some("/home/ana"), 7, "/var/cache/tasks");
        check(&[("HOME", ""), service], Some(""), 7, "/var/cache/tasks");
        check(&[], Some("/home/ana"), 7, "/home/ana/.cache/task-host");
        check(&[], Some("/root"), 0, "/root/.cache/task-host");
        check(&[], None, 0, "/var/cache/task-host");
        // The name contains the user id, so another user's directory is not taken for this user's.
        check(&[], None, 7, "/tmp/task-host-7");
        check(&[("HOME", "")], Some(""), 7, "/tmp/task-host-7");
    }

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
