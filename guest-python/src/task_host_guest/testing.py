"""Runs a task in a unit test: natively, with two directories like in the host, without limits.

    done = run(summary, inputs={"0_input/a.csv": "x\\n1\\n"}, payload={"min_rows": 1})
    assert done.json("summary.json") == …

Exceptions of the task are raised in the test: `Reject`, `Retry` and all others.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ._guest import CALLS, Guest, Message
from ._plan import More, Need

__all__ = ["Finished", "plan", "run"]

Content: TypeAlias = str | bytes | os.PathLike[str]


@dataclass
class Finished:
    """A task that succeeded."""

    outputs: dict[str, bytes]
    """The contents of its outputs, by key."""

    def text(self, key: str) -> str:
        """An output as text."""
        return self.outputs[key].decode()

    def json(self, key: str) -> Any:
        """The JSON of an output."""
        return json.loads(self.outputs[key])


def run(
    guest: Any,
    *,
    inputs: Mapping[str, Content] | None = None,
    payload: Any = None,
    id: int = -1,
    name: str = "test",
    base_directory: str = "datasets/test",
    attempt: int = 1,
) -> Finished:
    """Runs the three calls of a guest. An input is given by its content or by the path of a file.
    The payload is sent as JSON; None sends no payload. The plan is not called, so give the inputs
    that it would ask for too."""
    given = by_key(inputs)
    message = made(given, payload, id, name, base_directory, attempt)
    with directories(given) as (inputs_directory, outputs_directory):
        execution = Guest(guest).start(message, inputs_directory, outputs_directory)
        for call in CALLS:
            execution.call(call)
        files = sorted(path for path in outputs_directory.rglob("*") if path.is_file())
        outputs = {str(f.relative_to(outputs_directory)): f.read_bytes() for f in files}
        for key in execution.task.outputs:
            if key not in outputs:
                raise AssertionError(f"the task began the output {key!r}, which does not exist")
        return Finished(outputs)


def plan(
    guest: Any,
    *,
    inputs: Mapping[str, Content] | None = None,
    payload: Any = None,
    id: int = -1,
    name: str = "test",
    base_directory: str = "datasets/test",
    attempt: int = 1,
) -> list[str | Need] | More:
    """Calls the plan of a guest once, and returns the inputs that it asks for, or `more(…)` if it
    asks for another call. To test that call, add the inputs that it asked for to `inputs`.

        assert plan(tiles, payload={"x": 1}) == ["tiles/1.raw", optional("tiles/2.raw")]
    """
    planned = Guest(guest)
    if not planned.has_plan:
        raise TypeError(f"{guest.__name__} has no plan")
    given = by_key(inputs)
    message = made(given, payload, id, name, base_directory, attempt)
    with directories(given) as (inputs_directory, outputs_directory):
        outputs_directory.rmdir()
        return planned.plan(message, inputs_directory, outputs_directory)


def made(
    inputs: Iterable[str],
    payload: Any,
    id: int,
    name: str,
    base_directory: str,
    attempt: int,
) -> Message:
    """The message that the host would send."""
    sent = None if payload is None else json.dumps(payload)
    return Message(id, name, base_directory, tuple(inputs), attempt, sent)


def by_key(inputs: Mapping[str, Content] | None) -> dict[str, Content]:
    """The inputs by the keys that a task sees: without the `/` of keys from the bucket's root.

    Raises `ValueError` for a text that is not a key, because it may be a path to another directory.
    """
    seen = {}
    for key, content in (inputs or {}).items():
        relative = key.removeprefix("/")
        if any(segment in ("", ".", "..") for segment in relative.split("/")):
            raise ValueError(f"{key!r} is not the key of an input, such as 'tiles/1.png'")
        seen[relative] = content
    return seen


@contextmanager
def directories(inputs: Mapping[str, Content]) -> Iterator[tuple[Path, Path]]:
    """The directory with the inputs, and an empty directory for the outputs."""
    with tempfile.TemporaryDirectory(prefix="task-host-guest-") as directory:
        [inputs_directory, outputs_directory] = [Path(directory, d) for d in ("inputs", "outputs")]
        for created in (inputs_directory, outputs_directory):
            created.mkdir()
        for key, content in inputs.items():
            file = inputs_directory / key
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                content = content.encode()
            file.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
        yield inputs_directory, outputs_directory
