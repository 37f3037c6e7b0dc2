"""The task that a guest's calls receive: its message, its inputs and its outputs."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

P = TypeVar("P")

MOST_SHOWN = 20
"""The most inputs that an error names."""


class Reject(Exception):
    """Rejects the task: its report goes to the error queue at once. The text is the reason."""


class Retry(Exception):
    """Ends this attempt. The host retries the task, with growing waits, until its attempts are used
    up. The text is the reason."""


class Keys(tuple[str, ...]):
    """The keys of inputs. There may be thousands. A key relative to the bucket's root begins with a
    slash in a plan, but not in the list of inputs. Both forms are found."""

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.removeprefix("/") in self._set

    @functools.cached_property
    def _set(self) -> frozenset[str]:
        return frozenset(self)


class Task(Generic[P]):
    """One task. `Task[Options]` has a payload of the type `Options`."""

    id: int
    """The producer's number for the task; -1 if it gave none."""
    name: str
    """The name that selected this component."""
    base_directory: str
    """The key prefix that inputs and outputs are relative to."""
    inputs: Sequence[str]
    """The keys of the inputs, relative to `base_directory`: first the message's inputs in their
    order, then the inputs that the plan asked for and that exist."""
    attempt: int
    """The number of this attempt, from 1."""
    payload: P
    """The task's own parameters."""
    payload_json: str | None
    """The payload as it was sent. None if the message has none."""

    def __init__(
        self,
        *,
        id: int,
        name: str,
        base_directory: str,
        inputs: Sequence[str],
        attempt: int,
        payload: P,
        payload_json: str | None,
        inputs_directory: Path,
        outputs_directory: Path,
    ) -> None:
        self.id = id
        self.name = name
        self.base_directory = base_directory
        self.inputs = Keys(inputs)
        self.attempt = attempt
        self.payload = payload
        self.payload_json = payload_json
        self._inputs = inputs_directory
        self._outputs = outputs_directory
        self._written: dict[str, None] = {}
        self._open: list[IO[Any]] = []
        self._hint = ""

    @property
    def input(self) -> str:
        """The key of the only input. Rejects the task if it has no input or several inputs."""
        if len(self.inputs) != 1:
            raise Reject(f"the task has {len(self.inputs)} inputs, and needs exactly one")
        return self.inputs[0]

    def path(self, key: str) -> Path:
        """The file of an input, for libraries that take a path."""
        if key not in self.inputs:
            known = ", ".join(self.inputs[:MOST_SHOWN]) or "none"
            if len(self.inputs) > MOST_SHOWN:
                known += f", and {len(self.inputs) - MOST_SHOWN} more"
            raise Reject(f"{key!r} is not an input of the task; its inputs are: {known}{self._hint}")
        return self._inputs / key.removeprefix("/")

    def open(self, key: str, mode: str = "r", **options: Any) -> IO[Any]:
        """Opens an input. Takes the options of the built-in `open`. The encoding is UTF-8."""
        return _open(self.path(key), mode, options)

    def read(self, key: str) -> bytes:
        """The bytes of an input."""
        return self.path(key).read_bytes()

    def read_text(self, key: str, encoding: str = "utf-8") -> str:
        """The text of an input."""
        return self.path(key).read_text(encoding)

    def read_json(self, key: str) -> Any:
        """The JSON of an input."""
        return json.loads(self.read(key))

    @property
    def outputs(self) -> Sequence[str]:
        """The keys of the outputs that were written through this object. At the end, the host
        checks that they exist."""
        return tuple(self._written)

    def output_path(self, key: str) -> Path:
        """The file of an output, for libraries that take a path. Creates its directories."""
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise Reject(
                f"{key!r} can't be the key of an output: a key is a relative path without empty "
                "parts, `.` and `..`, such as '0_output/4.dat'"
            )
        path = self._outputs / key
        if "/" in key:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._written[key] = None
        return path

    def create(self, key: str, mode: str = "w", **options: Any) -> IO[Any]:
        """Creates an output and opens it. Takes the options of the built-in `open`. The encoding is
        UTF-8. Files that are still open at the end of the task are closed then."""
        file = _open(self.output_path(key), mode, options)
        self._open.append(file)
        return file

    def write(self, key: str, data: str | bytes | bytearray | memoryview) -> None:
        """Writes an output."""
        path = self.output_path(key)
        if isinstance(data, str):
            data = data.encode()
        path.write_bytes(data)

    def write_json(self, key: str, value: Any) -> None:
        """Writes an output as JSON."""
        self.write(key, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def _close(self) -> None:
        """Closes the files of `create`, which writes what they have buffered."""
        for file in self._open:
            file.close()
        self._open.clear()


def _open(path: os.PathLike[str], mode: str, options: dict[str, Any]) -> IO[Any]:
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    return open(path, mode, **options)
