"""The python-task-queue side of the benchmark: `python.py insert|run COUNT SECONDS [quiet]`,
in a directory with `queue`. Works on so many tasks, or for so long, and prints how many tasks
that was in a second, without Python's own start. `quiet` switches its progress bars off, which
it makes one of for each deletion."""
import os
import sys
import time

from taskqueue import MockTask, RegisteredTask, TaskQueue


class CopyTask(RegisteredTask):
    def __init__(self, source, target):
        super().__init__(source, target)

    def execute(self):
        with open(self.source, "rb") as source:
            data = source.read()
        with open(self.target, "wb") as target:
            target.write(data)


what, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
queue = TaskQueue("fq://" + os.path.abspath("queue"), progress=sys.argv[4:] != ["quiet"])

if what == "insert":
    # The first insertion into a new queue waits a second for the counter to appear.
    queue.insert([MockTask(n=-1)])

start = time.perf_counter()
if what == "insert":
    done = queue.insert([MockTask(n=n) for n in range(count)])
else:
    done = queue.poll(
        lease_seconds=300,
        stop_fn=lambda executed, elapsed_time: executed >= count or elapsed_time > seconds,
        tally=True,
    )
print(done / (time.perf_counter() - start))
