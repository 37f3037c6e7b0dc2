"""The Pillow side of the benchmark with real images, in a directory with `queue` and `bucket`.

`tiles.py cut COUNT IMAGE...` cuts 512x512 PNG tiles, each different, into bucket/data/0_input.
`tiles.py run COUNT` works on so many tasks, and prints the seconds that they took, without Python's
own start.
"""
import os
import sys
import time

from PIL import Image
from taskqueue import RegisteredTask, TaskQueue

SIDE = 512


class DownsampleTask(RegisteredTask):
    def __init__(self, source, target, level):
        super().__init__(source, target, level)

    def execute(self):
        with Image.open(self.source) as image:
            image.reduce(2).save(self.target, compress_level=self.level)


def cut(count, images):
    os.makedirs("bucket/data/0_input")
    for n in range(count):
        image = images[n % len(images)]
        nth = n // len(images)
        # Steps that are coprime to the range visit all places before they repeat one.
        left, top = (nth * 37) % (image.width - SIDE), (nth * 53) % (image.height - SIDE)
        tile = image.crop((left, top, left + SIDE, top + SIDE))
        tile.save(f"bucket/data/0_input/{n}.png")


what, count = sys.argv[1], int(sys.argv[2])
if what == "cut":
    cut(count, [Image.open(path).convert("RGB") for path in sys.argv[3:]])
else:
    queue = TaskQueue("fq://" + os.path.abspath("queue"), progress=False)
    start = time.perf_counter()
    queue.poll(
        lease_seconds=300,
        stop_fn=lambda executed, elapsed_time: executed >= count,
        tally=True,
    )
    print(time.perf_counter() - start)
