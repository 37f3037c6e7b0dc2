//! The place of components: a prefix of the bucket, or a directory.
//!
//! `NAME.wasm` is the component that hosts run. Each pushed version is kept beside it, as
//! `NAME@SHA256.wasm`. `NAME.wasm` is a whole component and not a pointer to a version: hosts of
//! every release can run it, and other programs can put a component there.

use std::cmp::Reverse;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt;
use task_host::bucket::{self, Bucket, BucketError, Content, Listed};
use task_host::config::DataSettings;
use task_host::digest::Digest;
use task_host::key::{BucketKey, Prefix, TaskName, lowercase};

use super::super::exit_code::Advice;
use super::super::output;
use super::super::settings::Settings;

/// The resolution of modification times, in a directory and in a bucket of a service. Services
/// store whole seconds.
const DIRECTORY_TICK: Duration = Duration::from_millis(20);
const SERVICE_TICK: Duration = Duration::from_millis(1100);

/// The bucket and the prefix, or the directory, with components.
pub(super) struct ComponentStore {
    pub(super) bucket: Arc<dyn Bucket>,
    pub(super) prefix: Prefix,
}

impl ComponentStore {
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let data: DataSettings = settings.get()?;
        Ok(match data.components {
            Some(dir) => Self { bucket: bucket::open_dir(&dir)?, prefix: Prefix::root() },
            None => Self {
                bucket: bucket::open(&data.bucket, &settings.bucket_access()?).await?,
                prefix: data.component_prefix,
            },
        })
    }

    /// Opens the store. Creates its directory if there is none, because the first push comes before
    /// the first run.
    pub(super) async fn make(settings: &Settings) -> anyhow::Result<Self> {
        let data: DataSettings = settings.get()?;
        let dir = data.components.or_else(|| data.bucket.path().map(Path::to_owned));
        if let Some(dir) = dir.filter(|dir| !dir.exists()) {
            std::fs::create_dir_all(&dir).map_err(|e| {
                Advice::failed(format!("{} can't be created: {e}", output::path(&dir)))
            })?;
            output::note(format_args!("created {}", output::path(&dir)));
        }
        Self::open(settings).await
    }

    pub(super) fn key(&self, name: &TaskName) -> BucketKey {
        self.prefix.join(&name.file())
    }

    /// Calls `each` with the name and the size in bytes of every component, but not for its
    /// versions.
    pub(super) async fn each(&self, mut each: impl FnMut(&str, u64)) -> Result<(), BucketError> {
        let look = |name: &str, object: &Listed| {
            if version_of(name).is_none() {
                each(name, object.size);
            }
        };
        self.each_object(look).await
    }

    /// The pushed versions of a component, the latest first. Among versions with the same time, the
    /// `current` version comes first.
    pub(super) async fn versions(
        &self,
        name: &TaskName,
        current: Option<Digest>,
    ) -> Result<Vec<Version>, BucketError> {
        let mut found = Vec::new();
        let look = |object_name: &str, object: &Listed| {
            if let Some((of, digest)) = version_of(object_name)
                && of == name.as_str()
            {
                let (size, pushed) = (object.size, object.modified);
                found.push(Version { digest, size, pushed });
            }
        };
        self.each_object(look).await?;
        found.sort_by_key(|one| Reverse((one.pushed, Some(one.digest) == current)));
        Ok(found)
    }

    /// Calls `each` with the name of every component and every version.
    async fn each_object(&self, mut each: impl FnMut(&str, &Listed)) -> Result<(), BucketError> {
        let mut listing = self.bucket.list(&self.prefix);
        while let Some(object) = listing.try_next().await? {
            if let Some(name) = name_of(&object.key, &self.prefix) {
                each(name, &object);
            }
        }
        Ok(())
    }

    /// Refuses a name that differs only in case from the name of another component.
    pub(super) async fn check_case(&self, name: &TaskName) -> anyhow::Result<()> {
        let wanted = lowercase(name.as_str());
        let mut other = None;
        let mut is_there = false;
        let looked = self.each(|found, _| {
            is_there |= found == name.as_str();
            if found != name.as_str() && lowercase(found) == wanted {
                other = Some(found.to_owned());
            }
        });
        if let Err(error) = looked.await {
            // A role may be allowed to write but not to list.
            tracing::warn!("can't check whether a component's name differs only in case: {error}");
            return Ok(());
        }
        let Some(other) = other.filter(|_| !is_there) else { return Ok(()) };
        let key = self.prefix.join(&BucketKey::new(&format!("{other}.wasm"))?);
        Err(Advice::failed(format!(
            "the name {name} differs only in case from the component {other}; a file system that \
             ignores case keeps only one of them"
        ))
        .hint(format!("give another name with --name, or remove {}/{key} first", self.bucket))
        .into())
    }

    /// The bytes of an object.
    pub(super) async fn download(&self, key: &BucketKey) -> Result<Vec<u8>, BucketError> {
        use std::io::{Read, Seek};
        let failed = |source: io::Error| BucketError::Unavailable {
            bucket: self.bucket.to_string(),
            doing: "reading",
            key: key.to_string(),
            source: source.into(),
        };
        let mut file = tempfile::tempfile().map_err(failed)?;
        self.bucket.get(key, file.try_clone().map_err(failed)?).await?;
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(failed)?;
        Ok(bytes)
    }

    /// Writes a component under its name. Keeps both this component and the one that it replaces as
    /// versions.
    pub(super) async fn put(
        &self,
        name: &TaskName,
        wasm: &[u8],
        signature: Option<&[u8]>,
    ) -> anyhow::Result<()> {
        // A role may be allowed to write but not to read.
        if let Err(error) = self.keep(name).await {
            output::tell(format_args!(
                "warning: the component before this one is not kept: {error}"
            ));
        }
        match version_name(name, Digest::of(wasm)) {
            Some(version) => self.write(&version, wasm, signature).await?,
            None => output::tell(format_args!(
                "warning: the name {name} is too long for its versions to be kept"
            )),
        }
        self.put_back(name, wasm, signature).await
    }

    /// Writes a version under the name of its component.
    pub(super) async fn put_back(
        &self,
        name: &TaskName,
        wasm: &[u8],
        signature: Option<&[u8]>,
    ) -> anyhow::Result<()> {
        self.write(name, wasm, signature).await?;
        // Without this, the file could be empty after a power failure, and hosts would reject its
        // tasks.
        Ok(self.bucket.sync().await?)
    }

    /// Keeps the component of that name as a version, unless that version exists. It is missing if
    /// an older `host` or another program wrote the component.
    pub(super) async fn keep(&self, name: &TaskName) -> anyhow::Result<()> {
        let Some(Pushed { digest, wasm, signature }) = self.current(name).await? else {
            return Ok(());
        };
        match version_name(name, digest) {
            Some(version) if !self.has(&version).await? => {
                self.write(&version, &wasm, signature.as_deref()).await?;
                // Gives the next version a later modification time, by the clock of the store.
                let tick = if self.bucket.is_local() { DIRECTORY_TICK } else { SERVICE_TICK };
                tokio::time::sleep(tick).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Writes the signature and then the component, so that hosts never see a new component without
    /// its signature. In between, they still run the old component, whose signature they have
    /// verified.
    async fn write(
        &self,
        name: &TaskName,
        wasm: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<(), BucketError> {
        if let Some(signature) = signature {
            let key = self.prefix.join(&name.signature_file());
            self.bucket.put(&key, &Content::from(signature.to_vec()), &key).await?;
        }
        let key = self.key(name);
        self.bucket.put(&key, &Content::from(wasm.to_vec()), &key).await.map(drop)
    }

    async fn has(&self, name: &TaskName) -> Result<bool, BucketError> {
        match self.bucket.head(&self.key(name)).await {
            Ok(_) => Ok(true),
            Err(BucketError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The component of that name with its signature.
    pub(super) async fn current(&self, name: &TaskName) -> Result<Option<Pushed>, BucketError> {
        match self.download(&self.key(name)).await {
            Ok(wasm) => {
                let (digest, signature) = (Digest::of(&wasm), self.signature(name).await?);
                Ok(Some(Pushed { digest, wasm, signature }))
            }
            Err(BucketError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The signature of the component of that name.
    pub(super) async fn signature(&self, name: &TaskName) -> Result<Option<Vec<u8>>, BucketError> {
        match self.download(&self.prefix.join(&name.signature_file())).await {
            Ok(signature) => Ok(Some(signature)),
            Err(BucketError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a component and its signature.
    pub(super) async fn remove(&self, name: &TaskName) -> Result<(), BucketError> {
        // The component goes first: hosts would wait for the signature of a component without one.
        self.bucket.remove_own(&self.key(name)).await?;
        self.bucket.remove_own(&self.prefix.join(&name.signature_file())).await
    }
}

/// A component with its signature.
#[derive(Debug)]
pub(super) struct Pushed {
    pub(super) digest: Digest,
    pub(super) wasm: Vec<u8>,
    pub(super) signature: Option<Vec<u8>>,
}

/// A pushed version of a component.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) digest: Digest,
    /// In bytes.
    pub(super) size: u64,
    /// When it was last pushed.
    pub(super) pushed: SystemTime,
}

/// The name under which a version of a component is kept. None if the name would be too long.
pub(super) fn version_name(name: &TaskName, digest: Digest) -> Option<TaskName> {
    let name = TaskName::new(&format!("{name}@{digest}")).ok()?;
    BucketKey::new(name.signature_file().as_str()).ok().map(|_| name)
}

/// The name of the component or the version at a key below the prefix of components.
fn name_of<'k>(key: &'k BucketKey, prefix: &Prefix) -> Option<&'k str> {
    let key = key.as_str();
    let below = if prefix.is_root() {
        Some(key)
    } else {
        key.strip_prefix(prefix.as_str()).and_then(|rest| rest.strip_prefix('/'))
    };
    below.and_then(|rest| rest.strip_suffix(".wasm"))
}

/// The name of the component at a key below the prefix of components. None for a version.
pub(crate) fn component_of<'k>(key: &'k BucketKey, prefix: &Prefix) -> Option<&'k str> {
    name_of(key, prefix).filter(|name| version_of(name).is_none())
}

/// The component and the digest in the name of a version.
fn version_of(name: &str) -> Option<(&str, Digest)> {
    let (name, digest) = name.rsplit_once('@')?;
    Some((name, digest.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_version_has_the_digest_at_its_end() {
        let digest = Digest::of(b"x");
        let name = |text: &str| version_name(&TaskName::new(text).unwrap(), digest);
        let version = name("a@b/c").unwrap();
        assert_eq!(version_of(version.as_str()), Some(("a@b/c", digest)));
        assert_eq!(version_of("a@b"), None);
        assert_eq!(version_of("a"), None);
        assert!(name(&"x".repeat(200)).is_none());
    }
}
