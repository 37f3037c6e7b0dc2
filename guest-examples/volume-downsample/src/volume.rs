//! Neuroglancer's precomputed volumes. Only raw images are supported:
//! <https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md>.

use serde::Deserialize;
use task_host_sdk::{Error, Result};

/// Three numbers: x, y and z.
pub(crate) type Vector = [u64; 3];

/// The object `info` of a volume.
#[derive(Deserialize)]
pub(crate) struct Info {
    data_type: String,
    num_channels: u64,
    pub(crate) scales: Vec<Scale>,
}

impl Info {
    pub(crate) fn voxel_bytes(&self) -> Result<usize> {
        match (&*self.data_type, self.num_channels) {
            ("uint8", 1) => Ok(1),
            ("uint16", 1) => Ok(2),
            (kind, channels) => {
                Err(Error::reject(format!("a volume of {kind} in {channels} channels")))
            }
        }
    }
}

/// One resolution of a volume.
#[derive(Deserialize)]
pub(crate) struct Scale {
    /// The directory of the scale's chunks.
    pub(crate) key: String,
    size: Vector,
    /// The size of a voxel in nanometers, which may have fractions.
    resolution: [f64; 3],
    #[serde(default)]
    voxel_offset: Vector,
    chunk_sizes: Vec<Vector>,
    pub(crate) encoding: String,
}

impl Scale {
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds::at(self.voxel_offset, self.size)
    }

    /// The chunks that have voxels of a part.
    pub(crate) fn chunks(&self, part: Bounds) -> Vec<Bounds> {
        let all = self.bounds();
        let size = self.chunk_sizes.first().copied().unwrap_or(self.size).map(|size| size.max(1));
        let starts = |axis: usize| {
            let (first, size) = (all.begin[axis], size[axis]);
            let from = first + (part.begin[axis].max(first) - first) / size * size;
            (from..part.end[axis]).step_by(usize::try_from(size).unwrap_or(usize::MAX))
        };
        let mut chunks = Vec::new();
        for z in starts(2) {
            for y in starts(1) {
                chunks.extend(starts(0).map(|x| Bounds::at([x, y, z], size).clamp(all)));
            }
        }
        chunks
    }

    /// The key of a chunk, relative to the volume.
    pub(crate) fn name(&self, Bounds { begin, end }: Bounds) -> String {
        let ranges: Vec<String> =
            begin.iter().zip(end).map(|(begin, end)| format!("{begin}-{end}")).collect();
        format!("{}/{}", self.key, ranges.join("_"))
    }

    /// The number of voxels of a finer scale for one voxel of this scale, in each direction.
    pub(crate) fn factor(&self, finer: &Self) -> Result<Vector> {
        let mut factor = [1; 3];
        for (axis, factor) in factor.iter_mut().enumerate() {
            let ratio = self.resolution[axis] / finer.resolution[axis];
            if !(1.0..=64.0).contains(&ratio) || ratio.fract() != 0.0 {
                let problem = format!("{} is not a multiple of {}", self.key, finer.key);
                return Err(Error::reject(problem));
            }
            *factor = ratio as u64;
        }
        Ok(factor)
    }
}

/// A box of voxels, from `begin` (included) to `end` (excluded).
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    begin: Vector,
    end: Vector,
}

impl Bounds {
    pub(crate) fn at(begin: Vector, size: Vector) -> Self {
        Self { begin, end: each(|axis| begin[axis].saturating_add(size[axis])) }
    }

    /// The part of the box that is in `all`.
    pub(crate) fn clamp(self, all: Self) -> Self {
        let begin = each(|axis| self.begin[axis].max(all.begin[axis]));
        Self { begin, end: each(|axis| self.end[axis].min(all.end[axis]).max(begin[axis])) }
    }

    /// The same box in voxels of a coarser scale.
    pub(crate) fn shrunk(self, factor: Vector) -> Self {
        Self {
            begin: each(|axis| self.begin[axis] / factor[axis]),
            end: each(|axis| self.end[axis].div_ceil(factor[axis])),
        }
    }

    fn size(self) -> Vector {
        each(|axis| self.end[axis] - self.begin[axis])
    }

    fn voxels(self) -> usize {
        self.size().iter().product::<u64>() as usize
    }

    /// The index of a voxel. x changes fastest.
    fn place(self, [x, y, z]: Vector) -> usize {
        let ([x0, y0, z0], [width, height, _]) = (self.begin, self.size());
        (x - x0 + width * ((y - y0) + height * (z - z0))) as usize
    }

    /// The first voxel of each row.
    fn rows(self) -> impl Iterator<Item = Vector> {
        let (ys, x) = (self.begin[1]..self.end[1], self.begin[0]);
        (self.begin[2]..self.end[2]).flat_map(move |z| ys.clone().map(move |y| [x, y, z]))
    }
}

fn each(value: impl Fn(usize) -> u64) -> Vector {
    std::array::from_fn(value)
}

/// The voxels of a box, as little-endian numbers of one or two bytes.
pub(crate) struct Block {
    bounds: Bounds,
    voxel_bytes: usize,
    bytes: Vec<u8>,
}

impl Block {
    pub(crate) fn black(bounds: Bounds, voxel_bytes: usize) -> Self {
        Self { bounds, voxel_bytes, bytes: vec![0; bounds.voxels() * voxel_bytes] }
    }

    /// A block with a chunk's bytes.
    pub(crate) fn new(bounds: Bounds, voxel_bytes: usize, bytes: Vec<u8>) -> Result<Self> {
        let want = bounds.voxels() * voxel_bytes;
        match bytes.len() {
            len if len == want => Ok(Self { bounds, voxel_bytes, bytes }),
            len => Err(Error::reject(format!("has {len} bytes instead of {want}"))),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn is_black(&self) -> bool {
        self.bytes.iter().all(|byte| *byte == 0)
    }

    /// Copies the voxels that both blocks have.
    pub(crate) fn copy(&mut self, from: &Self) {
        let shared = self.bounds.clamp(from.bounds);
        let row = shared.size()[0] as usize * self.voxel_bytes;
        for first in shared.rows() {
            let to = self.bounds.place(first) * self.voxel_bytes;
            let at = from.bounds.place(first) * self.voxel_bytes;
            self.bytes[to..to + row].copy_from_slice(&from.bytes[at..at + row]);
        }
    }

    /// A block of a coarser scale: the averages, rounded down, of this block's voxels.
    pub(crate) fn average(&self, bounds: Bounds, factor: Vector) -> Self {
        let mut small = Self::black(bounds, self.voxel_bytes);
        let voxels = bounds.rows().flat_map(|[x, y, z]| (x..bounds.end[0]).map(move |x| [x, y, z]));
        for (voxel, place) in voxels.zip(small.bytes.chunks_exact_mut(self.voxel_bytes)) {
            let begin = each(|axis| voxel[axis] * factor[axis]);
            let under = Bounds::at(begin, factor).clamp(self.bounds);
            let mut sum = 0;
            for [x, y, z] in under.rows() {
                sum += (x..under.end[0]).map(|x| self.value([x, y, z])).sum::<u64>();
            }
            let average = sum / (under.voxels() as u64).max(1);
            place.copy_from_slice(&average.to_le_bytes()[..self.voxel_bytes]);
        }
        small
    }

    fn value(&self, voxel: Vector) -> u64 {
        let at = self.bounds.place(voxel) * self.voxel_bytes;
        let bytes = &self.bytes[at..at + self.voxel_bytes];
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}
