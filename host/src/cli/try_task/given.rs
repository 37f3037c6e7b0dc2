//! Reads the component and the inputs that the user names as files.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytesize::ByteSize;
use task_host::ahead::Ahead;
use task_host::bucket::DirBucket;
use task_host::key::{BucketKey, Prefix};
use task_host::message::MOST_INPUTS;
use task_host::prefetch::Prefetch;
use task_host::sandbox::{self, InputContent};
use tempfile::TempDir;

use super::super::component::read;
use super::super::exit_code::Advice;
use super::super::local_runner::LocalRunner;
use super::super::output;
use super::project;

/// The argument that names standard input.
pub(super) const STDIN: &str = "-";

/// A component's bytes, and its file for messages.
pub(super) struct Component {
    pub(super) file: PathBuf,
    pub(super) bytes: Vec<u8>,
}

impl Component {
    /// Reads a file or standard input. Builds a project if `named` is its directory.
    pub(super) fn read(named: &Path) -> anyhow::Result<Self> {
        let file = match named.is_dir() {
            true => project::build(named)?,
            false => named.to_owned(),
        };
        let bytes = if file == Path::new(STDIN) {
            let mut bytes = Vec::new();
            let read = io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|e| Advice::failed(format!("standard input can't be read: {e}")))?;
            bytes
        } else {
            read(&file)?
        };
        Ok(Self { file, bytes })
    }
}

/// An input: a file, and its key for the task.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) key: BucketKey,
    pub(super) file: PathBuf,
    /// The contents of a pipe, in an unnamed temporary file.
    read: Option<Arc<fs::File>>,
}

impl Input {
    /// The inputs that `[KEY=]PATH` names: a file, or all files in a directory.
    pub(super) fn parse(text: &str) -> anyhow::Result<Vec<Self>> {
        // The name of a file may contain `=`.
        let given = text.split_once('=').filter(|_| !Path::new(text).exists());
        let (key, path) = match given {
            Some((key, path)) => (Some(key), Path::new(path)),
            None => (None, Path::new(text)),
        };
        if path.is_dir() {
            return Self::of_dir(text, key, path);
        }
        let key = match key {
            Some(key) => BucketKey::new(key)
                .map_err(|e| Advice::usage(format!("input {text:?}: the key {key:?} {e}")))?,
            None => {
                let shown = text.strip_prefix("./").unwrap_or(text);
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(text);
                BucketKey::new(shown)
                    .or_else(|_| BucketKey::new(name))
                    .map_err(|e| Advice::usage(format!("input {text:?}: {name:?} {e}")))?
            }
        };
        Ok(vec![Self { key, file: path.into(), read: None }])
    }

    /// The files below a directory. A key is the path below the directory, after the given key as
    /// prefix.
    fn of_dir(text: &str, key: Option<&str>, dir: &Path) -> anyhow::Result<Vec<Self>> {
        let failed = |path: &Path, problem: &dyn std::fmt::Display| {
            Advice::failed(format!("input {text:?}: {}: {problem}", output::path(path)))
        };
        let mut found = Vec::new();
        let mut dirs = vec![(dir.to_owned(), key.unwrap_or_default().to_owned())];
        while let Some((dir, prefix)) = dirs.pop() {
            for entry in fs::read_dir(&dir).map_err(|e| failed(&dir, &e))? {
                let path = entry.map_err(|e| failed(&dir, &e))?.path();
                let name = path.file_name().and_then(|name| name.to_str());
                let name = name.ok_or_else(|| failed(&path, &"its name is not UTF-8 text"))?;
                let key = match &*prefix {
                    "" => name.to_owned(),
                    prefix => format!("{prefix}/{name}"),
                };
                let kind = fs::metadata(&path).map_err(|e| failed(&path, &e))?;
                if kind.is_dir() {
                    // A link to a parent directory would be followed without end.
                    if !path.is_symlink() {
                        dirs.push((path, key));
                    }
                    continue;
                }
                let key = BucketKey::new(&key).map_err(|e| failed(&path, &e))?;
                found.push(Self { key, file: path, read: None });
                if found.len() > MOST_INPUTS {
                    let problem = format!("it has more than {MOST_INPUTS} files");
                    return Err(failed(&dir, &problem).into());
                }
            }
        }
        if found.is_empty() {
            return Err(failed(dir, &"it has no files").into());
        }
        found.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(found)
    }

    /// Opens the file for the task.
    fn open(&self) -> io::Result<sandbox::Input> {
        let file = match &self.read {
            Some(read) => read.clone(),
            None => Arc::new(fs::File::open(&self.file)?),
        };
        let meta = file.metadata()?;
        if meta.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let content = InputContent::File { source: Arc::new(OpenInput(file)), size: meta.len() };
        Ok(sandbox::Input { path: self.key.clone(), content })
    }
}

/// Reads inputs whose size is unknown before they are read: pipes such as `<(command)`, and files
/// of the kernel. They are copied to temporary files, because a task may read an input at any
/// offset and more than once. `component` is the file of the component: if that is standard input,
/// it is read already.
pub(super) fn read_pipes(inputs: &mut [Input], component: Option<&Path>) -> anyhow::Result<()> {
    let mut read: HashSet<(u64, u64)> = HashSet::new();
    if component == Some(Path::new(STDIN)) {
        let stdin = io::stdin().as_fd().try_clone_to_owned().map(fs::File::from);
        let meta = stdin.and_then(|stdin| stdin.metadata());
        read.extend(meta.map(|meta| (meta.dev(), meta.ino())));
    }
    for input in inputs {
        let shown = output::path(&input.file);
        let failed =
            |problem: &dyn fmt::Display| Advice::failed(format!("input {shown}: {problem}"));
        // A missing file is reported later.
        let Ok(meta) = fs::metadata(&input.file) else { continue };
        let kind = meta.file_type();
        let is_pipe = kind.is_fifo() || kind.is_socket();
        let is_null = || fs::metadata("/dev/null").is_ok_and(|null| null.rdev() == meta.rdev());
        if kind.is_block_device() || (kind.is_char_device() && !is_null()) {
            return Err(failed(&"is a device; an input has to be a file or a pipe").into());
        }
        if !is_pipe && meta.len() > 0 {
            continue;
        }
        if is_pipe && !read.insert((meta.dev(), meta.ino())) {
            let problem =
                "is read already: a pipe can be the component or one input, and only once";
            return Err(failed(&problem).into());
        }
        let spool = || -> io::Result<Option<fs::File>> {
            let mut from = fs::File::open(&input.file)?;
            let mut into = tempfile::tempfile()?;
            let size = io::copy(&mut from, &mut into)?;
            Ok((is_pipe || size > 0).then_some(into))
        };
        input.read = spool().map_err(|e| failed(&e))?.map(Arc::new);
    }
    Ok(())
}

/// Opens the files for the task.
pub(super) fn open_all(inputs: &[Input]) -> anyhow::Result<Vec<sandbox::Input>> {
    let mut order: Vec<&Input> = inputs.iter().collect();
    order.sort_by(|one, other| one.key.cmp(&other.key));
    let below =
        |one: &str, other: &str| one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
    let mut dirs: Vec<&str> = Vec::new();
    let mut last: Option<&Input> = None;
    for input in order {
        let key = input.key.as_str();
        let failed = |problem: String| {
            Advice::failed(format!("input {}: {problem}", output::path(&input.file)))
        };
        if last.is_some_and(|last| last.key == input.key) {
            return Err(failed(format!("another input has the key {key} too")).into());
        }
        // Other keys may sort between a key and the keys below it: `a`, `a-b`, `a/c`.
        dirs.retain(|dir| key.starts_with(dir));
        if let Some(dir) = dirs.iter().find(|dir| below(key, dir)) {
            let problem = format!(
                "another input has the key {dir}; a name can be a file or a directory, not both"
            );
            return Err(failed(problem).into());
        }
        dirs.push(key);
        last = Some(input);
    }
    let open = |input: &Input| {
        let opened = input.open();
        opened
            .map_err(|e| Advice::failed(format!("input {}: {e}", output::path(&input.file))).into())
    };
    inputs.iter().map(open).collect()
}

/// A bucket of the given files, for a task that names its inputs itself. The files are below its
/// base directory and below the bucket's root. They exist as long as the returned directory.
pub(super) fn as_bucket(
    inputs: &[Input],
    base: &Prefix,
    bench: &LocalRunner,
) -> anyhow::Result<(TempDir, Prefetch)> {
    let dir = tempfile::tempdir().context("can't create a temporary directory")?;
    let link = |input: &Input, key: &BucketKey| -> io::Result<()> {
        let link = dir.path().join(key.as_path());
        fs::create_dir_all(link.parent().unwrap_or(dir.path()))?;
        match &input.read {
            // Copy from the start, because the file may have been read before.
            Some(read) => {
                let mut read: &fs::File = read;
                read.rewind()?;
                io::copy(&mut read, &mut fs::File::create_new(link)?).map(drop)
            }
            None => std::os::unix::fs::symlink(input.file.canonicalize()?, link),
        }
    };
    for input in inputs {
        for key in [base.join(&input.key), input.key.clone()] {
            let linked = link(input, &key);
            linked
                .map_err(|e| Advice::failed(format!("input {}: {e}", output::path(&input.file))))?;
        }
    }
    let prefetch = Prefetch {
        bucket: Arc::new(DirBucket::open(dir.path())?),
        cache: bench.cache.clone(),
        freshness: Duration::ZERO,
        ahead: Ahead::new(ByteSize::gib(1)),
    };
    Ok((dir, prefetch))
}

/// An open file of the user.
struct OpenInput(Arc<fs::File>);

impl sandbox::Source for OpenInput {
    fn opened(&self) -> Option<Arc<fs::File>> {
        Some(self.0.clone())
    }

    fn open(&self) -> io::Result<Arc<fs::File>> {
        Ok(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_an_input_is_its_key_if_it_can_be() {
        let check = |text: &str, key: &str, file: &str| {
            let inputs = Input::parse(text).unwrap();
            let found: Vec<_> =
                inputs.iter().map(|i| (i.key.as_str(), i.file.to_str().unwrap())).collect();
            assert_eq!(found, [(key, file)], "{text}");
        };
        check("0_input/a.png", "0_input/a.png", "0_input/a.png");
        check("./a.png", "a.png", "./a.png");
        check("/data/a.png", "a.png", "/data/a.png");
        check("../a.png", "a.png", "../a.png");
        check("0_input/a.png=/data/x", "0_input/a.png", "/data/x");
        assert!(Input::parse("../k=/data/x").is_err());
    }

    #[test]
    fn a_directory_stands_for_the_files_below_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.txt", "0_input/a.png", "0_input/deep/c"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("again")).unwrap();
        let keys = |text: &str| -> Vec<String> {
            Input::parse(text).unwrap().into_iter().map(|input| input.key.to_string()).collect()
        };
        let path = dir.path().to_str().unwrap();
        assert_eq!(keys(path), ["0_input/a.png", "0_input/deep/c", "b.txt"]);
        assert_eq!(keys(&format!("x={path}/0_input")), ["x/a.png", "x/deep/c"]);
        fs::create_dir(dir.path().join("none")).unwrap();
        assert!(Input::parse(&format!("{path}/none")).is_err());
    }

    #[test]
    fn a_pipe_is_read_whole_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        // More than a pipe holds.
        let text: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let input = |path: &Path| {
            let key = BucketKey::new("k").unwrap();
            Input { key, file: path.to_owned(), read: None }
        };
        let writer = {
            let (pipe, text) = (pipe.clone(), text.clone());
            std::thread::spawn(move || fs::write(pipe, text).unwrap())
        };
        let mut inputs = [input(&pipe), input(&pipe)];
        let again = read_pipes(&mut inputs, None).unwrap_err();
        assert!(again.to_string().contains("is read already"), "{again}");
        writer.join().unwrap();

        let [input, _] = inputs;
        let opened = input.open().unwrap();
        let InputContent::File { source, size } = opened.content else { panic!("no file") };
        assert_eq!(size, text.len() as u64);
        let mut file: &fs::File = &source.open().unwrap();
        file.rewind().unwrap();
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert!(read == text);
    }

    #[test]
    fn a_file_without_a_size_is_read_and_a_device_is_refused() {
        let input = |path: &str| {
            let key = BucketKey::new("k").unwrap();
            [Input { key, file: path.into(), read: None }]
        };
        let size = |path: &str| {
            let mut inputs = input(path);
            read_pipes(&mut inputs, None).unwrap();
            match inputs[0].open().unwrap().content {
                InputContent::File { size, .. } => size,
                _ => panic!("no file"),
            }
        };
        assert_eq!(size("/dev/null"), 0);
        if cfg!(target_os = "linux") {
            assert!(size("/proc/self/status") > 0);
        }
        let refused = read_pipes(&mut input("/dev/zero"), None).unwrap_err();
        assert!(refused.to_string().contains("is a device"), "{refused}");
    }

    #[test]
    fn two_inputs_can_not_have_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let check = |keys: &[&str], is_right: bool| {
            let input = |key: &&str| Input {
                key: BucketKey::new(key).unwrap(),
                file: file.clone(),
                read: None,
            };
            let inputs: Vec<Input> = keys.iter().map(input).collect();
            assert_eq!(open_all(&inputs).is_ok(), is_right, "{keys:?}");
        };
        check(&["a", "b"], true);
        check(&["a", "a-b", "ab/c"], true);
        check(&["a", "b", "a"], false);
        check(&["a", "a-b", "a/c"], false);
        check(&["a/c", "a"], false);
    }
}
