//! `cargo xtask demo`: runs a few hundred tasks over the images in this repository.
//!
//! After the builds, it runs only commands that a user would type, and prints each command.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use crate::build::{self, Profile};
use crate::command::{run as run_command, styled};
use crate::project::Project;
use crate::setup;

#[derive(Args)]
pub(crate) struct Options {
    /// Directory for queue, bucket and cache; files of an earlier demo are removed
    #[arg(long, default_value = "demo")]
    dir: PathBuf,
    /// Queue, created if missing: sqs://NAME, pubsub://… [default: a directory]
    #[arg(long, value_name = "URL")]
    queue: Option<String>,
    /// Existing bucket: s3://NAME, gs://NAME [default: a directory]
    #[arg(long, value_name = "URL")]
    bucket: Option<String>,
    /// How the host is built
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
}

/// The demo's guests.
const GUESTS: [&str; 5] = ["NO_OP", "image_downsample", "image_threshold", "digest", "render"];
/// A file that marks a directory as created by the demo, so that the demo may clear it.
const MARK: &str = ".made-by-cargo-xtask-demo";
/// Rows and columns of the parts of the rendered picture.
const PARTS: (usize, usize) = (6, 8);

pub(crate) fn run(project: &Project, options: &Options) -> anyhow::Result<()> {
    let dir = std::path::absolute(&options.dir)?;
    clear(&dir)?;
    setup::wasm_target(project)?;
    let guests = build::guests(project)?;
    let host = build::host(project, options.profile)?;

    // Without URLs, uses the short form that a new user would type.
    let queue = match &options.queue {
        None => ["--fq", "./queue"],
        Some(url) => ["--queue", url],
    };
    let bucket = options.bucket.as_deref().unwrap_or("./bucket");

    heading(match &options.bucket {
        None => "The bucket is a directory. Images and components go into it",
        Some(_) => "Images and components go into the bucket",
    });
    let images = fill_bucket(project, &dir)?;
    if let Some(url) = &options.bucket {
        upload(&dir.join("bucket"), url)?;
    }
    let host = |args: &[&str]| {
        let mut command = Command::new(&host);
        command.args(args).current_dir(&dir);
        if options.bucket.is_some() && args[0] != "component" {
            command.args(["--bucket", bucket]);
        }
        if options.queue.is_some() && args[0] != "component" {
            command.arg("--create-queues");
        }
        run_command(&mut command)
    };
    for name in GUESTS {
        let file = format!("{name}.wasm");
        let guest = guests.iter().find(|path| path.file_name() == Some(OsStr::new(&file)));
        let guest = guest.with_context(|| format!("there is no guest {name}"))?;
        let guest = guest.to_str().context("the path of the build directory is not UTF-8")?;
        host(&["component", "push", guest, "--bucket", bucket])?;
    }

    heading(match &options.queue {
        None => "The queue is a directory. Tasks go into it",
        Some(_) => "Tasks go into the queue",
    });
    let each = |name: &str, pattern: &str, payload: Option<&str>| {
        let mut args = vec!["submit", queue[0], queue[1], "--name", name, "--each", pattern];
        args.extend(payload.iter().flat_map(|payload| ["--payload", payload]));
        host(&args)
    };
    each("image_downsample", "datasets/hubble/0_input/**/*.jpg", None)?;
    each(
        "image_threshold",
        "datasets/cell/0_input/**/*.png",
        Some(r#"{"complexID": 1, "thresholds": [100, 140]}"#),
    )?;
    each("digest", "datasets/*/0_input/**", None)?;
    fs::write(dir.join("render.jsonl"), render_tasks())?;
    host(&["submit", queue[0], queue[1], "render.jsonl"])?;

    heading("The host leases tasks, fetches their inputs, runs their components and publishes");
    let started = std::time::Instant::now();
    host(&["run", queue[0], queue[1], "--cache-dir", "./cache", "--exit-when-empty"])?;
    let seconds = started.elapsed().as_secs_f64();
    match &options.bucket {
        None => closing(&options.dir, &dir, images, seconds),
        Some(bucket) => {
            heading("What happened");
            println!(
                "The outputs are in {bucket}/datasets after {seconds:.1} s. Every task ran in its own sandbox."
            );
            Ok(())
        }
    }
}

fn heading(text: &str) {
    println!("\n{}", styled("1", text));
}

/// Creates the directory, or clears the directory of an earlier demo.
fn clear(dir: &Path) -> anyhow::Result<()> {
    let first = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().transpose()?,
        Err(_) => None,
    };
    if let Some(first) = first {
        if !dir.join(MARK).is_file() {
            bail!(
                "{} is not the directory of an earlier demo: it contains {}; choose another with --dir",
                dir.display(),
                first.file_name().to_string_lossy()
            );
        }
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::write(dir.join(MARK), "")?;
    Ok(())
}

/// Copies the images into the bucket, and returns their number.
fn fill_bucket(project: &Project, dir: &Path) -> anyhow::Result<usize> {
    let data = project.root.join("guest-examples/data");
    let bucket = dir.join("bucket/datasets");
    let mut copied = 0;
    for (dataset, whole) in [("hubble", "hubble_deep_field.jpg"), ("cell", "cell.png")] {
        let inputs = bucket.join(dataset).join("0_input");
        fs::create_dir_all(inputs.join("tiles"))?;
        fs::copy(data.join(whole), inputs.join(whole))
            .with_context(|| format!("{whole} of {}", data.display()))?;
        copied += 1;
        for tile in fs::read_dir(data.join("tiles").join(dataset))? {
            let tile = tile?;
            fs::copy(tile.path(), inputs.join("tiles").join(tile.file_name()))?;
            copied += 1;
        }
    }
    println!("{copied} images are in {}", show(&bucket));
    Ok(copied)
}

/// Uploads a directory's content to a cloud bucket with the cloud's own tool.
fn upload(dir: &Path, url: &str) -> anyhow::Result<()> {
    let mut tool = match url.split_once("://") {
        Some(("s3", _)) => {
            let mut aws = Command::new("aws");
            aws.args(["s3", "cp", "--recursive", "--only-show-errors"]);
            aws
        }
        Some(("gs", _)) => {
            let mut gcloud = Command::new("gcloud");
            gcloud.args(["storage", "cp", "--recursive", "--no-user-output-enabled"]);
            gcloud
        }
        _ => bail!("{url}: the demo supports s3:// and gs:// buckets, and directories"),
    };
    // Uploads the content of the bucket's directory, not the directory itself.
    run_command(tool.arg("datasets").arg(format!("{url}/datasets")).current_dir(dir))
}

/// One task for a whole picture, and one for each of its parts.
fn render_tasks() -> String {
    let (rows, columns) = PARTS;
    let (x, y, zoom, size) = (-0.7436, 0.1318, 9.0, 240.0);
    let task = |id: usize, x: f64, y: f64, zoom: f64, width: f64, height: f64, output: String| {
        json!({
            "basic_info": {"id": id, "name": "render", "base_directory": "datasets/mandelbrot"},
            "payload_info": {
                "x": x, "y": y, "zoom": zoom, "width": width as u32, "height": height as u32,
                "output": output,
            },
        })
        .to_string()
            + "\n"
    };
    let mut tasks = task(0, x, y, zoom, 1280.0, 960.0, "0_render/seahorses.png".to_owned());
    // Each part shows its section of the whole.
    let width = 4.0 / f64::powf(2.0, zoom) / columns as f64;
    for row in 0..rows {
        for column in 0..columns {
            tasks += &task(
                1 + row * columns + column,
                x + (column as f64 - (columns as f64 - 1.0) / 2.0) * width,
                y - (row as f64 - (rows as f64 - 1.0) / 2.0) * width,
                zoom + 3.0,
                size,
                size,
                format!("0_render/parts/{row:02}_{column:02}.png"),
            );
        }
    }
    tasks
}

fn closing(given: &Path, dir: &Path, images: usize, seconds: f64) -> anyhow::Result<()> {
    let outputs = count(&dir.join("bucket"))? - images - GUESTS.len();
    let given = given.display();
    heading("What happened");
    println!("\
The bucket got {outputs} outputs in {seconds:.1} s. Every task ran in its own sandbox and saw only its inputs.

  {given}/bucket/datasets/hubble/1_downsampled   sky, at half the size
  {given}/bucket/datasets/cell/2_threshold       a cell, in black and white
  {given}/bucket/datasets/*/0_digest             SHA-256 of each image
  {given}/bucket/datasets/mandelbrot/0_render    pictures without inputs

Open these:

  {given}/bucket/datasets/mandelbrot/0_render/seahorses.png
  {given}/bucket/datasets/hubble/1_downsampled/hubble_deep_field.png

What to type next:

  cargo install --locked --path host   `host` for your own shell
  host run --help                      what a host can be told
  host new my-task                     a task of your own, ready to build and run");
    Ok(())
}

/// The number of files below a directory.
fn count(dir: &Path) -> anyhow::Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

/// The path as seen from the current directory.
fn show(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}
