//! Downsamples a volume in Neuroglancer's precomputed layout with the registered tasks of an
//! unchanged producer. The real python-task-queue inserts them. A Python worker does the same work.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use task_host_tests::{Finished, Place, Script, eventually, files};

/// The class of the tasks, with a worker and a producer in Python.
const DOWNSAMPLE: &str = include_str!("../../python/downsample.py");
const TASKS: u64 = 8 * 8 * 2;
const FIRST: [u64; 3] = [16, 32, 0];
const SIZE: [u64; 3] = [250, 250, 30];
const CHUNK: u64 = 16;
const VOLUME: &str = "volumes/cells";
const SMALL: &str = "16_16_40";

fn script(text: &str) -> Script {
    Script::new(&format!("{DOWNSAMPLE}\n{text}"))
}

/// Creates a volume with missing chunks in a directory bucket.
fn make_volume(bucket: &Path) {
    let scale = |key: &str, by: u64, resolution: u64| {
        let each = |v: [u64; 3]| [v[0] / by, v[1] / by, v[2]];
        json!({"key": key, "size": each(SIZE), "resolution": [resolution, resolution, 40],
               "voxel_offset": each(FIRST), "chunk_sizes": [[CHUNK, CHUNK, CHUNK]],
               "encoding": "raw"})
    };
    let info = json!({"@type": "neuroglancer_multiscale_volume", "type": "image",
                      "data_type": "uint8", "num_channels": 1,
                      "scales": [scale("8_8_40", 1, 8), scale(SMALL, 2, 16)]});
    let root = bucket.join(VOLUME);
    fs::create_dir_all(root.join("8_8_40")).unwrap();
    fs::write(root.join("info"), info.to_string()).unwrap();
    let ranges = |axis: usize| {
        let (first, last) = (FIRST[axis], FIRST[axis] + SIZE[axis]);
        (first..last).step_by(CHUNK as usize).map(move |begin| begin..(begin + CHUNK).min(last))
    };
    for (n, z) in ranges(2).enumerate() {
        for (m, y) in ranges(1).enumerate() {
            for (l, x) in ranges(0).enumerate() {
                if (l + 2 * m + 3 * n) % 5 == 0 {
                    continue;
                }
                let mut voxels = Vec::new();
                for z in z.clone() {
                    for y in y.clone() {
                        let row = x.clone().map(|x| (x * x + 3 * x * y + 7 * z * y + 11 * z) as u8);
                        voxels.extend(row);
                    }
                }
                let (x, y, z) = (x.clone(), y.clone(), z.clone());
                let name =
                    format!("{}-{}_{}-{}_{}-{}", x.start, x.end, y.start, y.end, z.start, z.end);
                fs::write(root.join("8_8_40").join(name), voxels).unwrap();
            }
        }
    }
}

fn small(bucket: &Path) -> BTreeMap<String, Vec<u8>> {
    let dir = bucket.join(VOLUME).join(SMALL);
    files(&dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

#[test]
fn registered_tasks_that_name_their_data_leave_what_a_python_worker_leaves() {
    let place = Place::with(&["DownsampleTask"]);
    let theirs = place.path().join("python-bucket");
    make_volume(&place.path().join("bucket"));
    make_volume(&theirs);
    script("tq.insert(tasks())").run(place.path());
    place.host(&["queue", "cp", "./queue", "./python-queue"]).good();

    place.run(&["-x", "--readable", "volumes", "--receipts"]).good();
    let worker = Script::plain(&format!(
        "{DOWNSAMPLE}\ntq = TaskQueue('fq://' + os.path.abspath('python-queue'), progress=False)\n\
         tq.poll(lease_seconds=60, stop_fn=tq.is_empty)"
    ));
    Finished::run(worker.command(place.path()).env("BUCKET", &theirs)).good();

    let (ours, theirs) = (small(&place.path().join("bucket")), small(&theirs));
    assert_eq!(ours.len() as u64, TASKS);
    assert!(ours.values().flatten().any(|voxel| *voxel != 0));
    assert!(
        ours == theirs,
        "{:?}",
        ours.iter().find(|(name, voxels)| theirs.get(*name) != Some(voxels)).map(|(name, _)| name)
    );

    // Each receipt lists the objects that its task has read: the info, and the chunks that exist.
    let receipts: Vec<Value> = place
        .keys()
        .iter()
        .filter(|key| key.starts_with("_receipts/") && key.ends_with(".json"))
        .map(|key| serde_json::from_slice(&place.object(key).unwrap()).unwrap())
        .collect();
    assert_eq!(receipts.len() as u64, TASKS);
    for receipt in &receipts {
        let inputs = receipt["inputs"].as_array().unwrap();
        let keys: Vec<&str> = inputs.iter().map(|input| input["key"].as_str().unwrap()).collect();
        assert!(keys.contains(&"volumes/cells/info") && (3..=5).contains(&keys.len()), "{keys:?}");
        assert_eq!(receipt["planned"], true);
    }
}

#[test]
fn a_python_worker_and_a_host_share_a_queue_of_tasks_that_name_their_data() {
    let place = Place::with(&["DownsampleTask"]);
    let reference = place.path().join("reference");
    make_volume(&place.path().join("bucket"));
    make_volume(&reference);
    let insert = "tq.insert(tasks())\nBUCKET = 'reference'\nfor task in tasks(): task.execute()";
    script(insert).run(place.path());
    let worker = script(
        "
downsample = DownsampleTask.execute
def execute(self):
    downsample(self)
    open('python/' + '-'.join(map(str, self.offset)), 'x').close()
    time.sleep(0.02)
DownsampleTask.execute = execute

os.mkdir('python')
tq.poll(lease_seconds=60, stop_fn=tq.is_empty, tally=True)
",
    );
    let python = worker.start(place.path(), &place.path().join("logs"));
    let by_python = || files(&place.path().join("python")).len() as u64;
    eventually("work by Python", || {
        let begun = place.path().join("python").exists() && by_python() > 5;
        begun.then_some(())
    });
    let host = place.start(&["-x", "--readable", "volumes", "--parallel", "2"]);
    host.wait().good();
    python.wait().good();
    assert!(by_python() < TASKS, "the host did nothing");
    assert!(small(&place.path().join("bucket")) == small(&reference));
    assert_eq!(place.counts(), (0, 0));
    assert!(place.errors().is_empty());
}
