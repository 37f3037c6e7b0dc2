//! `~` at the beginning of a path, which a shell expands only at the beginning of a word.

use crate::environment::Environment;

/// Replaces `~` at the beginning of a path with the user's home directory, as python-task-queue
/// does.
///
/// # Errors
/// Says what is wrong and what to write instead. `~USER` is not supported.
pub fn with_home(path: &str) -> Result<String, String> {
    let environment = Environment::of_process();
    Ok(below_home(path, environment.get("HOME"))?.unwrap_or_else(|| path.to_owned()))
}

/// None for a path without a `~`.
fn below_home(path: &str, home: Option<&str>) -> Result<Option<String>, String> {
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
    match home {
        Some(home) if home.starts_with('/') => {
            Ok(Some(format!("{}{rest}", home.trim_end_matches('/'))))
        }
        _ => {
            Err("`~` needs the variable HOME to name a directory; write the whole path".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home_directory_and_nothing_else() {
        let home = |path: &str| below_home(path, Some("/home/ana/"));
        assert_eq!(home("~/q").unwrap().unwrap(), "/home/ana/q");
        assert_eq!(home("~").unwrap().unwrap(), "/home/ana");
        assert_eq!(home("./~/q"), Ok(None));
        assert_eq!(home("a~/q"), Ok(None));
        for other in ["~bob/q", "~bob", "~-errors"] {
            let error = home(other).unwrap_err();
            assert!(error.contains(&format!("./{other}")), "{error}");
        }
        for none in [None, Some(""), Some("home")] {
            assert!(below_home("~/q", none).unwrap_err().contains("HOME"));
        }
    }
}
