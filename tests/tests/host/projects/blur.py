"""Blurs grey pictures (binary PGM): each pixel becomes the mean of the pixels around it."""

import re
from dataclasses import dataclass

from task_host_guest import Reject, Task, task


@dataclass
class Options:
    radius: int = 1


@task
def blur(task: Task[Options]) -> None:
    radius = task.payload.radius
    for key in task.inputs:
        data = task.read(key)
        header = re.match(rb"P5\s(\d+)\s(\d+)\s255\s", data)
        if not header:
            raise Reject(f"input {key} is not a grey picture")
        width, height = int(header[1]), int(header[2])
        pixels = memoryview(data)[header.end() :]
        rows = [pixels[y * width : (y + 1) * width] for y in range(height)]
        out = bytearray()
        for y in range(height):
            near = rows[max(0, y - radius) : y + radius + 1]
            columns = [sum(column) for column in zip(*near)]
            for x in range(width):
                around = columns[max(0, x - radius) : x + radius + 1]
                out.append(sum(around) // (len(around) * len(near)))
        task.write(f"1_blurred/{key}", header[0] + bytes(out))
