"""A task with the package `task_host_guest` that does what its payload says. Mostly, it fails."""

import errno
import json
import logging
import random
import sys
import tempfile
from dataclasses import dataclass

from task_host_guest import Reject, Retry, Task, task

log = logging.getLogger(__name__)


@dataclass
class Order:
    do: str
    depth: int = 0


@task
class Obeys:
    def prepare(self, task: Task[Order]) -> None:
        self.seen = ["prepare"]
        log.debug("not shown")
        log.info("order %d", task.id)

    def execute(self, task: Task[Order]) -> None:
        self.seen.append("execute")
        ORDERS[task.payload.do](task)

    def finalize(self, task: Task[Order]) -> None:
        task.write(f"calls/{task.id}", " ".join([*self.seen, "finalize"]))


def succeed(task: Task[Order]) -> None:
    log.warning("careful")
    print("printed")
    sys.stderr.write("written\n")
    with tempfile.TemporaryFile("w+") as file:
        file.write("temporary")
    task.write(f"random/{task.id}", str(random.random()))


def look_up(task: Task[Order]) -> None:
    json.loads('{"max_size": 1}')["min_size"]


def import_late(task: Task[Order]) -> None:
    import colorsys

    colorsys.rgb_to_hsv(0, 0, 0)


def recurse(task: Task[Order]) -> None:
    recurse(task)


def nest(task: Task[Order]) -> None:
    json.loads("[" * task.payload.depth)


def allocate(task: Task[Order]) -> None:
    kept = []
    while True:
        kept.append(bytearray(16 << 20))


def loop(task: Task[Order]) -> None:
    while True:
        pass


def leave(task: Task[Order]) -> None:
    sys.exit(3)


def reject(task: Task[Order]) -> None:
    raise Reject("there is nothing to do")


def retry_once(task: Task[Order]) -> None:
    if task.attempt == 1:
        raise Retry("not yet")


def fail_once(task: Task[Order]) -> None:
    if task.attempt == 1:
        raise OSError(errno.EIO, "I/O error", "/inputs/a")


ORDERS = {
    order.__name__: order
    for order in [
        succeed, look_up, import_late, recurse, nest, allocate, loop, leave, reject, retry_once,
        fail_once,
    ]
}
