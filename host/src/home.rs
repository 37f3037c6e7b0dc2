//! `~` at the beginning of a path.

use std::ffi::OsStr;

/// The path with the home directory in the place of `~` at its beginning, as the Python client
/// has it: a shell does that only for a word of its own.
///
/// # Errors
/// What is wrong with `~` here: only the own home directory is known.
pub fn with_home(path: &str) -> Result<String, String> {
    let home = std::env::var_os("HOME");
    Ok(below_home(path, home.as_deref())?.unwrap_or_else(|| path.to_owned()))
}

/// None for a path without a `~`.
fn below_home(path: &str, home: Option<&OsStr>) -> Result<Option<String>, String> {
    let Some(rest) = path.strip_prefix('~') else {
        return Ok(None);
    };
    if !rest.is_empty() && !rest.starts_with('/') {
        let name = path.split('/').next().unwrap_or(path);
        return Err(format!(
            "the home directory of another user, `{name}`, is not looked up; write its path, or \
             ./{path} for a directory of that name"
        ));
    }
    match home.map(OsStr::to_str) {
        Some(Some(home)) if home.starts_with('/') => {
            Ok(Some(format!("{}{rest}", home.trim_end_matches('/'))))
        }
        _ => Err("`~` needs the variable HOME to be the path of a directory; write the whole path"
            .to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
