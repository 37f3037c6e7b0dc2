"""Summarises CSV files: count, smallest, largest and mean value of each numeric column, in
`summary.json`.

Replace this example with your own task. README.md says how to test, build and queue it.
"""

import csv
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from task_host_guest import Reject, Task, task

log = logging.getLogger(__name__)


@dataclass
class Options:
    """The task's parameters: `payload_info` in its message, such as `{"min_rows": 10}`."""

    min_rows: int = 1


@task
def summary(task: Task[Options]) -> None:
    """Reads the inputs and writes the outputs."""
    if not task.inputs:
        # A retry would fail the same way. Otherwise, raise `Retry`.
        raise Reject("the task has no inputs")
    summaries = {}
    for key in task.inputs:
        with task.open(key, newline="") as file:
            names, *rows = [row for row in csv.reader(file) if row] or [[]]
        if len(rows) < task.payload.min_rows:
            wanted = task.payload.min_rows
            raise Reject(f"input {key} has {len(rows)} rows; min_rows is {wanted}")
        columns = dict(zip(names, zip_longest(*rows, fillvalue="")))
        found = {name: summarise(cells) for name, cells in columns.items()}
        summaries[key] = {name: values for name, values in found.items() if values}
        log.info("%s: %d rows", key, len(rows))
    task.write_json("summary.json", summaries)


def summarise(cells: Iterable[str]) -> dict[str, float]:
    """The summary of a column. Empty if a cell is not a number, or if all cells are empty."""
    try:
        numbers = [float(cell) for cell in cells if cell]
    except ValueError:
        return {}
    if not numbers or not all(map(math.isfinite, numbers)):
        return {}
    return {
        "count": len(numbers),
        "min": min(numbers),
        "max": max(numbers),
        "mean": sum(numbers) / len(numbers),
    }
