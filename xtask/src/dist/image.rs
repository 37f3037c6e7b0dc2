//! The container image: it contains only the program, certificates and licences.
//!
//! An image is a layer (an archive) and a few JSON files. This module writes these, which needs no
//! daemon, no root and no second machine, and gives the same bytes each time. buildah would leave
//! out the health check, because only Docker's variant of the format has a field for it.
//!
//! Formats: <https://github.com/opencontainers/image-spec>; `manifest.json` and `Healthcheck` from
//! <https://github.com/moby/docker-image-spec>.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use super::release::{Program, Release};
use super::stage::{Stage, gzip, sha256};
use crate::setup;

/// The user id in the image. It has no name and owns no files, so any other id works as well.
const USER: &str = "65532:65532";

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Writes `task-host-vVERSION-image.tar`: an archive of an OCI image directory for all processors.
/// `docker load` can read it as well.
pub(crate) fn pack(release: &Release<'_>, programs: &[Program]) -> anyhow::Result<PathBuf> {
    let layout = Layout(release.stage("image")?);
    let name = format!("ghcr.io/task-host/task-host:{}", release.version);
    let (mut manifests, mut loaded) = (Vec::new(), Vec::new());
    for program in programs {
        let processor = program.target.debian();
        let layer = layer(release, program, &layout)?;
        let config = config(release, processor, &layer);
        let config = layout.blob(CONFIG, &serde_json::to_vec(&config)?)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer.descriptor],
            "annotations": labels(release),
        });
        let mut manifest = layout.blob(MANIFEST, &serde_json::to_vec(&manifest)?)?;
        manifest["platform"] = json!({"os": "linux", "architecture": processor});
        manifests.push(manifest);
        // `docker load` reads this list, and supports only images for one processor.
        loaded.push(json!({
            "Config": path(&config)?,
            "RepoTags": [format!("{name}-{processor}")],
            "Layers": [path(&layer.descriptor)?],
        }));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": manifests,
        "annotations": labels(release),
    });
    let mut index = layout.blob(INDEX, &serde_json::to_vec(&index)?)?;
    index["annotations"] = json!({
        "org.opencontainers.image.ref.name": release.version,
        "io.containerd.image.name": name,
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [index]});
    let stage = &layout.0;
    stage.write("index.json", &index.to_string(), 0o644)?;
    stage.write("manifest.json", &Value::from(loaded).to_string(), 0o644)?;
    stage.write("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;

    let image = release.dir.join(format!("task-host-v{}-image.tar", release.version));
    stage.tar(&["oci-layout", "index.json", "manifest.json", "blobs"], &image)?;
    Ok(image)
}

/// The directory of an image. Its files are named by their digests.
struct Layout(Stage);

/// The root file system of an image, as one archive.
struct Layer {
    descriptor: Value,
    /// The digest before compression.
    diff_id: String,
}

impl Layout {
    /// Adds a file, and returns its descriptor.
    fn blob(&self, kind: &str, bytes: &[u8]) -> anyhow::Result<Value> {
        let new = self.0.dir().join("new");
        fs::write(&new, bytes)?;
        self.add(kind, &new)
    }

    /// Moves a file into the image, and returns its descriptor.
    fn add(&self, kind: &str, file: &Path) -> anyhow::Result<Value> {
        let (digest, size) = (sha256(file)?, fs::metadata(file)?.len());
        self.0.copy(file, &format!("blobs/sha256/{digest}"), 0o644)?;
        fs::remove_file(file)?;
        Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size}))
    }
}

/// The path in the image directory of the file with this descriptor.
fn path(descriptor: &Value) -> anyhow::Result<String> {
    let digest = descriptor["digest"].as_str().context("a descriptor has a digest")?;
    Ok(format!("blobs/{}", digest.replace(':', "/")))
}

/// The root directory of the image.
fn layer(release: &Release<'_>, program: &Program, layout: &Layout) -> anyhow::Result<Layer> {
    let root = release.stage("root")?;
    root.copy(&program.file, "host", 0o755)?;
    let certificates = setup::certificates(release.project)?;
    root.copy(&certificates, "etc/ssl/certs/ca-certificates.crt", 0o644)?;
    release.licences(&root, "licenses", program)?;
    // The container may run as any user.
    for name in ["cache", "tmp"] {
        root.directory(name, 0o1777)?;
    }
    let (tar, compressed) = (layout.0.dir().join("layer.tar"), layout.0.dir().join("layer"));
    root.tar(&["cache", "etc", "host", "licenses", "tmp"], &tar)?;
    gzip(&tar, &compressed)?;
    let diff_id = format!("sha256:{}", sha256(&tar)?);
    fs::remove_file(&tar)?;
    Ok(Layer { descriptor: layout.add(LAYER, &compressed)?, diff_id })
}

/// The configuration of a container of this image.
fn config(release: &Release<'_>, processor: &str, layer: &Layer) -> Value {
    let second = 1_000_000_000_u64;
    json!({
        "created": release.created,
        "architecture": processor,
        "os": "linux",
        "config": {
            "User": USER,
            // The health check asks the host at this address.
            "Env": ["PATH=/", "HOST_CACHE_DIR=/cache", "HOST_LISTEN=127.0.0.1:8080"],
            "Entrypoint": ["/host"],
            "Cmd": ["run"],
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            // Volumes are writable even if the root file system is not, and faster than it.
            "Volumes": {"/cache": {}, "/tmp": {}},
            "Healthcheck": {
                "Test": ["CMD", "/host", "health"],
                "Interval": 30 * second,
                "Timeout": 5 * second,
                "StartPeriod": 10 * second,
            },
            "Labels": labels(release),
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        "history": [{"created_by": "cargo xtask dist"}],
    })
}

/// The labels of the image.
fn labels(release: &Release<'_>) -> Value {
    json!({
        "org.opencontainers.image.created": release.created,
        "org.opencontainers.image.description": release.summary,
        "org.opencontainers.image.documentation": format!("{}#documentation", release.repository),
        "org.opencontainers.image.licenses": release.licence,
        "org.opencontainers.image.revision": release.commit,
        "org.opencontainers.image.source": release.repository,
        "org.opencontainers.image.title": "Task Host",
        "org.opencontainers.image.url": release.repository,
        "org.opencontainers.image.version": release.version,
    })
}
