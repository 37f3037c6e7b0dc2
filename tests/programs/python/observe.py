"""What a Python program can observe beside its task. Leaves `observed/ID.txt`, one `NAME: VALUE` a
line."""

import os
import random
import secrets
import struct
import time
import uuid
from pathlib import Path

from wit_world.imports.types import Outcome


def bits(number):
    return struct.pack(">d", number).hex()


def observe(task):
    start = time.monotonic_ns()
    yield "time", time.time_ns()
    yield "date", time.ctime()
    yield "random", os.urandom(16).hex()
    yield "secret", secrets.token_hex(16)
    yield "random of the module", random.Random().getrandbits(64)
    yield "unique", uuid.uuid4()
    yield "hash order", ",".join({f"word {n}" for n in range(40)})
    yield "hash", hash("a word")

    time.sleep(0.005)
    yield "slept", time.monotonic_ns() - start
    while time.monotonic_ns() - start < 8_000_000:
        pass
    yield "waited", time.monotonic_ns() - start
    yield "processor", time.process_time_ns()

    for name in ["b", "a", "c"]:
        Path(name).write_text("x" * 200)
    yield "listing", ",".join(os.listdir("."))
    yield "listing of inputs", ",".join(os.listdir("/inputs/in"))
    for path in ["a", "b", "c", "/inputs/in/1", "/inputs/in/2"]:
        state = os.stat(path)
        yield f"times of {path}", f"{state.st_mtime_ns} {state.st_ctime_ns}"
        yield f"number of {path}", state.st_ino
    for name in ["b", "a", "c"]:
        os.remove(name)

    infinite = float("inf")
    (marked,) = struct.unpack(">d", bytes.fromhex("fff8000000001234"))
    yield "not a number", ",".join(map(bits, [infinite - infinite, infinite * 0.0, marked + 1.0]))
    yield "address", id(object())


class WitWorld:
    def prepare(self, task):
        pass

    def execute(self, task):
        os.chdir("/outputs")
        lines = "".join(f"{name}: {value}\n" for name, value in observe(task))
        os.mkdir("observed")
        Path(f"observed/{task.info.id}.txt").write_text(lines)
        return Outcome(True, [])

    def finalize(self, task, outcome):
        pass
