//! Halves the resolution of a part of a volume, as a registered task of python-task-queue asks for
//! it: `{"class": "DownsampleTask", "layer_path": "s3://BUCKET/cells", "mip": 0, …}`.
//!
//! The message names no inputs. The plan reads the volume's `info`, and then asks for the chunks of
//! the task's part. The volume has Neuroglancer's precomputed layout, with raw chunks.
// The component's file has the name of its tasks, DownsampleTask.wasm. The test binary has another
// name.
#![cfg_attr(not(test), expect(non_snake_case, reason = "the file's name"))]

mod volume;

use serde::Deserialize;
use task_host_sdk::{Context, Error, Guest, Input, Needs, Outcome, Plan, Result, Task};
use volume::{Block, Bounds, Info, Scale, Vector};

/// The attributes of the registered task.
#[derive(Deserialize)]
struct Downsample {
    /// The volume: `s3://BUCKET/KEY`, or the key alone.
    layer_path: String,
    /// The number of the scale that is read. The next scale is written.
    mip: usize,
    /// The size of the part in voxels of the scale that is read.
    shape: Vector,
    /// The first voxel of the part.
    offset: Vector,
    /// If true, missing chunks are black. If false, they fail the task.
    #[serde(default)]
    fill_missing: bool,
    /// If true, chunks that are all black are not written.
    #[serde(default)]
    delete_black_uploads: bool,
}

impl Downsample {
    /// The key of an object of the volume, relative to the bucket's root.
    fn key(&self, name: &str) -> String {
        let path = self.layer_path.strip_prefix("precomputed://").unwrap_or(&self.layer_path);
        let key = match path.split_once("://") {
            Some((_, rest)) => rest.split_once('/').map_or("", |(_bucket, key)| key),
            None => path,
        };
        format!("{}/{name}", key.trim_matches('/'))
    }

    /// The scale that is read, and the scale that is written.
    fn scales<'a>(&self, info: &'a Info) -> Result<(&'a Scale, &'a Scale)> {
        let scale = |mip| info.scales.get(mip).with_context(|| format!("info has no scale {mip}"));
        let (from, to) = (scale(self.mip)?, scale(self.mip + 1)?);
        for scale in [from, to] {
            if scale.encoding != "raw" {
                let encoding = &scale.encoding;
                return Err(Error::reject(format!("{}: the encoding {encoding}", scale.key)));
            }
        }
        Ok((from, to))
    }

    /// The voxels that are read.
    fn part(&self, from: &Scale) -> Bounds {
        Bounds::at(self.offset, self.shape).clamp(from.bounds())
    }
}

#[derive(Default)]
struct VolumeDownsample;

impl Plan for VolumeDownsample {
    fn plan(task: &Task<Downsample>) -> Result<Needs> {
        let (wanted, mut needs) = (task.payload(), Needs::new());
        let key = format!("/{}", wanted.key("info"));
        let Some(info) = task.input(&key) else {
            needs.key(key).and_more();
            return Ok(needs);
        };
        let info: Info = info.read_json()?;
        let (from, _) = wanted.scales(&info)?;
        for chunk in from.chunks(wanted.part(from)) {
            let key = format!("/{}", wanted.key(&from.name(chunk)));
            match wanted.fill_missing {
                true => needs.optional_key(key),
                false => needs.key(key),
            };
        }
        Ok(needs)
    }
}

impl Guest for VolumeDownsample {
    type Payload = Downsample;

    fn execute(&mut self, task: &Task<Downsample>) -> Result<Outcome> {
        let wanted = task.payload();
        let input = |name: &str| task.input(&wanted.key(name));
        let info: Info = input("info").context("no info")?.read_json()?;
        let (from, to) = wanted.scales(&info)?;
        let part = wanted.part(from);
        let mut voxels = Block::black(part, info.voxel_bytes()?);
        for chunk in from.chunks(part) {
            if let Some(file) = input(&from.name(chunk)) {
                voxels.copy(&read(&file, chunk, info.voxel_bytes()?)?);
            }
        }
        let factor = to.factor(from)?;
        for chunk in to.chunks(part.shrunk(factor).clamp(to.bounds())) {
            let small = voxels.average(chunk, factor);
            if !(wanted.delete_black_uploads && small.is_black()) {
                task.write(&wanted.key(&to.name(chunk)), small.bytes())?;
            }
        }
        Ok(task.done())
    }
}

fn read(file: &Input, chunk: Bounds, voxel_bytes: usize) -> Result<Block> {
    Block::new(chunk, voxel_bytes, file.read()?).with_context(|| file.to_string())
}

task_host_sdk::export!(VolumeDownsample, plan);

#[cfg(test)]
mod tests {
    use task_host_sdk::testing::Sandbox;

    use super::*;

    /// A volume of 6 x 4 x 2 voxels, in chunks of 4 x 4 x 2.
    const INFO: &str = r#"{"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [
        {"key": "8_8_40", "size": [6, 4, 2], "resolution": [8, 8, 40], "voxel_offset": [0, 0, 0],
         "chunk_sizes": [[4, 4, 2]], "encoding": "raw"},
        {"key": "16_16_40", "size": [3, 2, 2], "resolution": [16, 16, 40], "voxel_offset": [0, 0, 0],
         "chunk_sizes": [[4, 4, 2]], "encoding": "raw"}]}"#;

    fn task(fill_missing: bool) -> String {
        format!(
            r#"{{"layer_path": "s3://b/cells/", "mip": 0, "shape": [8, 4, 2], "offset": [0, 0, 0],
                "fill_missing": {fill_missing}, "compress": "gzip"}}"#
        )
    }

    #[test]
    fn the_plan_reads_the_info_and_asks_for_the_chunks() {
        let mut sandbox = Sandbox::new().unwrap();
        sandbox.payload(task(true));
        let mut want = Needs::new();
        want.key("/cells/info").and_more();
        assert_eq!(sandbox.plan::<VolumeDownsample>().unwrap(), want);
        sandbox.input("cells/info", INFO).unwrap();
        let mut want = Needs::new();
        want.optional_key("/cells/8_8_40/0-4_0-4_0-2").optional_key("/cells/8_8_40/4-6_0-4_0-2");
        assert_eq!(sandbox.plan::<VolumeDownsample>().unwrap(), want);
        let mut want = Needs::new();
        want.key("/cells/8_8_40/0-4_0-4_0-2").key("/cells/8_8_40/4-6_0-4_0-2");
        assert_eq!(sandbox.payload(task(false)).plan::<VolumeDownsample>().unwrap(), want);
    }

    #[test]
    fn voxels_are_averages_and_holes_are_black() {
        let mut sandbox = Sandbox::new().unwrap();
        let chunk: Vec<u8> = (0..32).collect();
        sandbox.payload(task(true));
        sandbox.input("cells/info", INFO).unwrap();
        sandbox.input("cells/8_8_40/0-4_0-4_0-2", chunk).unwrap();
        sandbox.run::<VolumeDownsample>().unwrap();
        let small = sandbox.output("cells/16_16_40/0-3_0-2_0-2").unwrap();
        // (0 + 1 + 4 + 5) / 4, (2 + 3 + 6 + 7) / 4, and the hole.
        assert_eq!(small, [2, 4, 0, 10, 12, 0, 18, 20, 0, 26, 28, 0]);
    }

    #[test]
    fn a_chunk_of_another_size_is_no_chunk() {
        let mut sandbox = Sandbox::new().unwrap();
        sandbox.payload(task(true)).input("cells/info", INFO).unwrap();
        sandbox.input("cells/8_8_40/4-6_0-4_0-2", [0; 17]).unwrap();
        let error = sandbox.run::<VolumeDownsample>().unwrap_err();
        let want = "input cells/8_8_40/4-6_0-4_0-2: has 17 bytes instead of 16";
        assert_eq!(error.text(), want);
    }
}
