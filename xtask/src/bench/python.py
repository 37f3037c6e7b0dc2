"""The python-task-queue side of the benchmark: `python.py insert|run COUNT [quiet]`, in a
directory with `queue`. Prints the seconds that the work took, without Python's own start.
`quiet` switches its progress bars off, which it makes one of for each deletion."""
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


what, count = sys.argv[1], int(sys.argv[2])
queue = TaskQueue("fq://" + os.path.abspath("queue"), progress=sys.argv[3:] != ["quiet"])

if what == "insert":
    # Into a queue that never had a task, it waits a second for the counter to appear.
    queue.insert([MockTask(n=-1)])

start = time.perf_counter()
if what == "insert":
    queue.insert([MockTask(n=n) for n in range(count)])
else:
    queue.poll(lease_seconds=300, stop_fn=lambda executed: executed >= count, tally=True)
print(time.perf_counter() - start)
