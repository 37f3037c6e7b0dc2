//! Mounts files and directories of the launcher's machine into workers, under the same paths.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::{EngineError, Spec};

/// The path as text.
///
/// # Errors
/// If the path is not UTF-8.
pub(super) fn text(path: &Path) -> Result<&str, EngineError> {
    path.to_str().ok_or_else(|| EngineError::Unfit {
        problem: format!("the path {} is not UTF-8 text", path.display()),
        cure: None,
    })
}

/// The paths that are not inside another one of the paths.
pub(super) fn roots(paths: &BTreeSet<PathBuf>) -> impl Iterator<Item = &Path> {
    let is_inside = |path: &&PathBuf| path.ancestors().skip(1).any(|above| paths.contains(above));
    paths.iter().filter(move |path| !is_inside(path)).map(PathBuf::as_path)
}

/// The value of `--mount` for a path: fields separated by commas, quoted if necessary.
pub(super) fn bind(path: &str) -> String {
    let field = |name: &str| {
        let field = format!("{name}={path}");
        let is_plain = !field.contains(['"', ',', '\n', '\r']);
        if is_plain { field } else { format!("\"{}\"", field.replace('"', "\"\"")) }
    };
    format!("type=bind,{},{}", field("source"), field("target"))
}

/// The first path that does not exist and that workers don't create.
pub(super) fn missing(spec: &Spec) -> Option<&Path> {
    let made: Vec<PathBuf> = made(spec).collect();
    spec.paths.iter().find(|path| !path.exists() && !made.contains(path)).map(PathBuf::as_path)
}

/// Creates the directories that a worker would create: a container can't mount a missing path.
///
/// # Errors
/// The reason why a directory can't be created.
pub(super) fn make(spec: &Spec) -> Result<(), String> {
    for path in made(spec) {
        std::fs::create_dir_all(&path)
            .map_err(|error| format!("{} can't be created: {error}", path.display()))?;
    }
    Ok(())
}

/// The directories that a worker creates: queues and its cache.
pub(super) fn made(spec: &Spec) -> impl Iterator<Item = PathBuf> {
    const NAMES: [&str; 4] =
        ["HOST_QUEUE", "HOST_ERROR_QUEUE", "HOST_DONE_QUEUE", "HOST_CACHE_DIR"];
    NAMES.into_iter().filter_map(|name| {
        let value = spec.environment.get(name)?;
        let path = spec.directory.join(value.strip_prefix("fq://").unwrap_or(value));
        spec.paths.contains(&path).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_inside_another_is_mounted_with_it() {
        let paths = ["/a", "/a/b", "/ab", "/c/d"].map(PathBuf::from).into();
        let roots: Vec<&Path> = roots(&paths).collect();
        assert_eq!(roots, ["/a", "/ab", "/c/d"].map(Path::new));
    }

    #[test]
    fn any_path_can_be_mounted() {
        assert_eq!(bind("/a b:c"), "type=bind,source=/a b:c,target=/a b:c");
        assert_eq!(bind("/a,\"b\""), "type=bind,\"source=/a,\"\"b\"\"\",\"target=/a,\"\"b\"\"\"");
    }
}
