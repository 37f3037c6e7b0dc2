# A python-task-queue task for volumes, and its worker in Python. A test of tasks that name their
# own inputs runs the same messages with a component.
import itertools

import numpy as np

BUCKET = os.environ.get("BUCKET", "bucket")


class DownsampleTask(RegisteredTask):
    def __init__(self, layer_path, mip, shape, offset, fill_missing=False):
        super().__init__(layer_path, mip, shape, offset, fill_missing)

    def path(self, name):
        """Where an object of `s3://NAME/KEY` is: the bucket is a directory."""
        key = self.layer_path.split("://")[1].split("/", 1)[1]
        return os.path.join(BUCKET, key, name)

    def execute(self):
        with open(self.path("info")) as file:
            info = json.load(file)
        fine, coarse = info["scales"][self.mip], info["scales"][self.mip + 1]
        factor = [int(c / f) for c, f in zip(coarse["resolution"], fine["resolution"])]
        begin, end = clamp(self.offset, [o + s for o, s in zip(self.offset, self.shape)], fine)
        voxels = np.zeros([e - b for b, e in zip(begin, end)], info["data_type"], order="F")
        for low, high in chunks(fine, begin, end):
            name = self.path(chunk_name(fine, low, high))
            if self.fill_missing and not os.path.exists(name):
                continue
            chunk = np.fromfile(name, info["data_type"])
            chunk = chunk.reshape([h - l for l, h in zip(low, high)], order="F")
            into, out = [], []
            for l, h, b, e in zip(low, high, begin, end):
                first, last = max(l, b), min(h, e)
                into.append(slice(first - b, last - b))
                out.append(slice(first - l, last - l))
            voxels[tuple(into)] = chunk[tuple(out)]
        sums, counts = voxels.astype(np.uint64), np.ones(voxels.shape, np.uint64)
        for axis, step in enumerate(factor):
            starts = np.arange(0, voxels.shape[axis], step)
            sums = np.add.reduceat(sums, starts, axis)
            counts = np.add.reduceat(counts, starts, axis)
        small = (sums // counts).astype(info["data_type"])
        begin = [b // f for b, f in zip(begin, factor)]
        end = [b + n for b, n in zip(begin, small.shape)]
        for low, high in chunks(coarse, begin, end):
            part = tuple(slice(l - b, h - b) for l, h, b in zip(low, high, begin))
            name = self.path(chunk_name(coarse, low, high))
            os.makedirs(os.path.dirname(name), exist_ok=True)
            with open(name, "wb") as file:
                file.write(small[part].tobytes(order="F"))


def clamp(begin, end, scale):
    first = scale["voxel_offset"]
    last = [o + s for o, s in zip(first, scale["size"])]
    return [max(b, f) for b, f in zip(begin, first)], [min(e, l) for e, l in zip(end, last)]


def chunks(scale, begin, end):
    axes = []
    for first, size, b, e in zip(scale["voxel_offset"], scale["chunk_sizes"][0], begin, end):
        axes.append([(low, low + size) for low in range(first + (b - first) // size * size, e, size)])
    for box in itertools.product(*axes):
        yield clamp([low for low, _ in box], [high for _, high in box], scale)


def chunk_name(scale, low, high):
    return scale["key"] + "/" + "_".join(f"{l}-{h}" for l, h in zip(low, high))


def tasks():
    """The parts of the volume, 32 x 32 x 16 voxels each."""
    for x, y, z in itertools.product(range(16, 266, 32), range(32, 282, 32), range(0, 30, 16)):
        yield DownsampleTask("s3://archive/volumes/cells", 0, [32, 32, 16], [x, y, z], True)
