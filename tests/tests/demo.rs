//! `cargo xtask demo`, with the test build of the host.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use task_host_tests::{Cloud, Finished, files, server, target};

#[test]
fn the_demo_begins_afresh_and_leaves_a_picture() {
    let dir = tempfile::tempdir().unwrap();
    let demo = dir.path().join("demo");
    // Simulates an earlier demo that was interrupted.
    std::fs::create_dir_all(demo.join("queue/queue")).unwrap();
    std::fs::write(demo.join(".made-by-cargo-xtask-demo"), "").unwrap();
    std::fs::write(demo.join("queue/queue/0--left.json"), "{").unwrap();

    let mut xtask = Command::new(target().join("debug/xtask"));
    xtask.args(["demo", "--profile", "dev", "--dir"]).arg(&demo);
    let finished = Finished::run(&mut xtask).good();
    let is_picture = |word: &&str| word.ends_with(".png") && Path::new(word).is_file();
    let pictures: Vec<&str> = finished.stdout.split_whitespace().filter(is_picture).collect();
    assert!(pictures.len() >= 2, "hardly any picture is named:\n{}", finished.stdout);
    for picture in pictures {
        let bytes = std::fs::read(picture).unwrap();
        assert!(bytes.starts_with(b"\x89PNG\r\n") && bytes.len() > 10_000, "{picture}");
    }
    let messages = |queue: &str| files(&demo.join(queue).join("queue")).len();
    assert_eq!(messages("queue"), 0, "tasks are left");
    assert_eq!(messages("queue-errors"), 0, "tasks were given up");
}

/// Uses the same commands with other URLs.
#[test]
fn the_demo_runs_on_sqs_and_s3() {
    demo(&Cloud::aws());
}

#[test]
fn the_demo_runs_on_sqs_with_data_in_gcs() {
    let cloud = Cloud::hybrid();
    let bin = cloud.file("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("gcloud"), GCLOUD).unwrap();
    std::fs::set_permissions(bin.join("gcloud"), Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let cloud = cloud.with("PATH", &format!("{}:{path}", bin.display()));
    demo(&cloud.with("GCS", &server("TASK_HOST_TEST_GCS")));
}

/// Simulates `gcloud storage cp --recursive … DIR gs://BUCKET/DIR` with the test server.
const GCLOUD: &str = r#"#!/bin/bash
set -euo pipefail
[[ "$1 $2 $3" == 'storage cp --recursive' ]]
args=("$@")
dir=${args[-2]} url=${args[-1]}
cd "$dir"
find . -type f -printf '%P\n' | while read -r file; do
    printf 'upload-file = "%s"\nurl = "%s"\n' "$file" "$GCS/${url#gs://}/$file"
done | curl -fsS --config -
"#;

#[track_caller]
fn demo(cloud: &Cloud) {
    let mut xtask = Command::new(target().join("debug/xtask"));
    xtask.args(["demo", "--profile", "dev", "--queue", &cloud.queue, "--bucket", &cloud.bucket]);
    xtask.arg("--dir").arg(cloud.file("demo"));
    let path = std::env::var("PATH").unwrap();
    xtask.env("PATH", format!("{}:{path}", target().join("aws/bin").display()));
    xtask.envs(cloud.variables());
    let finished = Finished::run(&mut xtask).good();
    assert!(finished.stdout.contains("431 done"), "{}", finished.stdout);
    for picture in ["mandelbrot/0_render/seahorses", "hubble/1_downsampled/hubble_deep_field"] {
        let bytes = cloud.object(&format!("datasets/{picture}.png")).unwrap();
        assert!(bytes.starts_with(b"\x89PNG\r\n") && bytes.len() > 10_000, "{picture}");
    }
}

#[test]
fn the_demo_does_not_clear_a_directory_that_is_not_its_own() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    let mut xtask = Command::new(target().join("debug/xtask"));
    xtask.args(["demo", "--profile", "dev", "--dir"]).arg(dir.path());
    let refused = Finished::run(&mut xtask).code(1);
    assert!(refused.stderr.contains("thesis.tex"), "{}", refused.stderr);
    assert!(dir.path().join("thesis.tex").exists());
}
