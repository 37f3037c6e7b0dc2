"""Runs a task in a unit test: natively, with two directories as in the host, without limits.

    done = run(summary, inputs={"0_input/a.csv": "x\\n1\\n"}, payload={"min_rows": 1})
    assert done.json("summary.json") == …

What the task raises is raised here: `Reject` and `Retry`, and its own errors.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._guest import CALLS, Guest, Message

__all__ = ["Finished", "run"]


@dataclass
class Finished:
    """A task that succeeded."""

    outputs: dict[str, bytes]
    """What it left, by key."""

    def text(self, key: str) -> str:
        """An output as text."""
        return self.outputs[key].decode()

    def json(self, key: str) -> Any:
        """The JSON of an output."""
        return json.loads(self.outputs[key])


def run(
    guest: Any,
    *,
    inputs: Mapping[str, str | bytes | os.PathLike[str]] | None = None,
    payload: Any = None,
    id: int = -1,
    name: str = "test",
    base_directory: str = "datasets/test",
    attempt: int = 1,
) -> Finished:
    """Runs the three calls of a guest. An input is its content, or the path of a file. The payload is
    sent as JSON; None sends none."""
    given = inputs or {}
    with tempfile.TemporaryDirectory(prefix="task-host-guest-") as directory:
        [inputs_directory, outputs_directory] = [Path(directory, d) for d in ("inputs", "outputs")]
        for made in (inputs_directory, outputs_directory):
            made.mkdir()
        for key, content in given.items():
            file = inputs_directory / key
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                content = content.encode()
            file.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
        sent = None if payload is None else json.dumps(payload)
        message = Message(id, name, base_directory, tuple(given), attempt, sent)
        execution = Guest(guest).start(message, inputs_directory, outputs_directory)
        for call in CALLS:
            execution.call(call)
        files = sorted(path for path in outputs_directory.rglob("*") if path.is_file())
        outputs = {str(f.relative_to(outputs_directory)): f.read_bytes() for f in files}
        for key in execution.task.outputs:
            if key not in outputs:
                raise AssertionError(f"the task began the output {key!r}, which does not exist")
        return Finished(outputs)
