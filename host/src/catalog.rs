//! From a task name to a compiled component, ready to instantiate.
//!
//! A component is found by name, known by the digest of its bytes, and compiled once per
//! digest: concurrent tasks wait for one compilation, later runs of the host load the
//! compiled code from the cache directory. A new upload has a new digest and is picked up at
//! the next look; tasks under way keep the component they began with.
//!
//! Compiled code is native code. It is loaded only from a directory that nobody else can
//! write to, and never from a bucket.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache as Memory;
use wasmtime::component::Component;

use crate::bucket::{Bucket, BucketError};
use crate::cache::{Blob, Cache, CacheError};
use crate::digest::Digest;
use crate::key::{BucketKey, Prefix, TaskName};
use crate::sandbox::{Guest, Sandbox};

/// How long a name is taken to mean the digest it meant when it was last looked up.
const FRESH: Duration = Duration::from_secs(1);
/// Components kept ready in memory.
const READY: u64 = 256;

/// A component that can be run.
#[derive(Clone)]
pub struct Ready {
    /// Its bytes' SHA-256.
    pub digest: Digest,
    /// What the sandbox runs.
    pub guest: Guest,
}

/// Why there is no component to run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// Nothing has that name.
    #[error(
        "there is no component for tasks named `{name}`: {place} does not exist; \
         `host component push FILE.wasm --name {name}` puts one there"
    )]
    NotFound {
        /// The task's name.
        name: TaskName,
        /// Where it was looked for.
        place: String,
    },
    /// What has that name can't be run.
    #[error("the component {place} can't be run: {problem}")]
    NotAGuest {
        /// Where it is.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It could not be fetched or kept.
    #[error("the component {place} could not be read: {problem}")]
    Unavailable {
        /// Where it is.
        place: String,
        /// What failed.
        problem: String,
    },
}

/// Where components come from, and those that are ready.
pub struct Catalog {
    bucket: Arc<dyn Bucket>,
    prefix: Prefix,
    cache: Cache,
    sandbox: Arc<Sandbox>,
    compiled: Option<PathBuf>,
    names: Memory<TaskName, Blob>,
    ready: Memory<Digest, Guest>,
}

impl Catalog {
    /// Components `PREFIX/NAME.wasm` of `bucket`, compiled code in `compiled`.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        prefix: Prefix,
        cache: Cache,
        sandbox: Arc<Sandbox>,
        compiled: &Path,
    ) -> Self {
        let compiled = match private_dir(compiled) {
            Ok(()) => Some(compiled.to_owned()),
            Err(error) => {
                tracing::warn!(
                    "compiled components are not kept, each start compiles them again: {error}"
                );
                None
            }
        };
        Self {
            bucket,
            prefix,
            cache,
            sandbox,
            compiled,
            names: Memory::builder().max_capacity(READY * 16).time_to_live(FRESH).build(),
            ready: Memory::new(READY),
        }
    }

    /// The component of that name, now.
    ///
    /// # Errors
    /// When there is none, or none that can be run; both may be put right by a push.
    pub async fn resolve(&self, name: &TaskName) -> Result<Ready, CatalogError> {
        let blob = self
            .names
            .try_get_with_by_ref(name, self.look_up(name))
            .await
            .map_err(|e: Arc<CatalogError>| (*e).clone())?;
        let guest = self
            .ready
            .try_get_with(blob.digest, self.make_ready(name, &blob))
            .await
            .map_err(|e: Arc<CatalogError>| (*e).clone())?;
        Ok(Ready { digest: blob.digest, guest })
    }

    async fn look_up(&self, name: &TaskName) -> Result<Blob, CatalogError> {
        let key = self.prefix.join(&name.file());
        match self.cache.fetch(&*self.bucket, &key).await {
            Ok(blob) => Ok(blob),
            Err(CacheError::Bucket(error)) if matches!(*error, BucketError::NotFound { .. }) => {
                Err(CatalogError::NotFound { name: name.clone(), place: self.place(&key) })
            }
            Err(error) => Err(self.unavailable(&key, &error)),
        }
    }

    async fn make_ready(&self, name: &TaskName, blob: &Blob) -> Result<Guest, CatalogError> {
        let digest = blob.digest;
        let key = self.prefix.join(&name.file());
        let sandbox = self.sandbox.clone();
        let not_a_guest =
            |problem: String| CatalogError::NotAGuest { place: self.place(&key), problem };
        let kept = self.kept_as(digest);
        let component = match kept.as_deref().and_then(|path| load(&sandbox, path)) {
            Some(component) => component,
            None => {
                let mut file = self.cache.read(blob).map_err(|e| self.unavailable(&key, &e))?;
                let compiling = sandbox.clone();
                let start = std::time::Instant::now();
                let compiled = tokio::task::spawn_blocking(move || {
                    let mut wasm = Vec::new();
                    file.read_to_end(&mut wasm).map_err(|e| e.to_string())?;
                    let component = compiling.compile(&wasm).map_err(|e| e.0)?;
                    if let Some(path) = kept
                        && let Err(error) = keep(&component, &path)
                    {
                        tracing::warn!("{}: compiled code not kept: {error}", path.display());
                    }
                    Ok(component)
                })
                .await;
                let component = match compiled {
                    Ok(compiled) => compiled.map_err(not_a_guest)?,
                    Err(error) => return Err(not_a_guest(format!("compiling it failed: {error}"))),
                };
                let seconds = start.elapsed().as_secs_f64();
                // Of no single task, though one waits for it.
                tracing::info!(parent: None, "component {name} compiled in {seconds:.1} s");
                tracing::debug!(parent: None, %name, %digest, "compiled");
                component
            }
        };
        sandbox.link(&component).map_err(|e| not_a_guest(e.0))
    }

    /// The file for the compiled code of a component: its name tells the digest, and the
    /// folder what engine and settings it was compiled for.
    fn kept_as(&self, digest: Digest) -> Option<PathBuf> {
        use std::hash::{Hash, Hasher};
        let mut hasher = std::hash::DefaultHasher::new();
        self.sandbox.engine().precompile_compatibility_hash().hash(&mut hasher);
        let folder = format!("{:016x}", hasher.finish());
        Some(self.compiled.as_ref()?.join(folder).join(format!("{digest}.cwasm")))
    }

    fn place(&self, key: &BucketKey) -> String {
        format!("{}/{key}", self.bucket)
    }

    fn unavailable(&self, key: &BucketKey, error: &CacheError) -> CatalogError {
        CatalogError::Unavailable { place: self.place(key), problem: error.to_string() }
    }
}

/// Makes a directory that only we can write to, or checks that it is one.
fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = fs::metadata(dir)?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if ours && meta.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "{} belongs to somebody else or is writable by others; \
             native code is loaded only from a directory of our own (`chmod 700` it)",
            dir.display()
        )))
    }
}

/// Loads compiled code that an earlier run kept. None means that it has to be compiled.
fn load(sandbox: &Sandbox, path: &Path) -> Option<Component> {
    if !path.exists() {
        return None;
    }
    // SAFETY: the file is in a directory that `private_dir` found to be ours alone, and `keep`
    // is the only one to write there, whole files only. The engine checks that its version
    // and settings are the same.
    match unsafe { Component::deserialize_file(sandbox.engine(), path) } {
        Ok(component) => Some(component),
        Err(error) => {
            tracing::warn!("{}: not usable, compiling again: {error:#}", path.display());
            None
        }
    }
}

fn keep(component: &Component, path: &Path) -> io::Result<()> {
    let bytes = component.serialize().map_err(|e| io::Error::other(format!("{e:#}")))?;
    let folder = path.parent().unwrap_or(path);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let temporary = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // It may never have been made.
        let _ = fs::remove_file(&temporary);
    }
    written
}
