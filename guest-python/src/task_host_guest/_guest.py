"""The decorator, and the three calls around one task."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ._payload import decoder
from ._task import Task

G = TypeVar("G", bound=Callable[..., Any])

MARK = "__task_host_guest__"
"""The attribute of what the decorator has marked."""

CALLS = ("prepare", "execute", "finalize")


def task(guest: G) -> G:
    """Makes a function or a class the task of its module, which a component has one of.

    The function gets a `Task`, reads its inputs and writes its outputs. A class has a method
    `execute` that does so, and may have `prepare`, which is called before, and `finalize`, which is
    called after a success. All three see one object of the class.
    """
    if inspect.isclass(guest):
        if not callable(getattr(guest, "execute", None)):
            raise TypeError(f"{guest.__name__} has no method `execute`")
    elif not callable(guest):
        raise TypeError("@task marks a function or a class")
    setattr(guest, MARK, guest)
    return guest


class Guest:
    """What was marked, with what reads its payload."""

    _marked: Any

    def __init__(self, marked: Any) -> None:
        if getattr(marked, MARK, None) is not marked:
            raise TypeError(f"{marked!r} is not marked with @task")
        self._marked = marked
        self._decode = decoder(payload_type(marked))

    def start(self, message: Message, inputs: Path, outputs: Path) -> Execution:
        """Reads the payload. Rejects the task if it does not fit."""
        task: Task[Any] = Task(
            id=message.id,
            name=message.name,
            base_directory=message.base_directory,
            inputs=message.inputs,
            attempt=message.attempt,
            payload=self._decode(message.payload),
            payload_json=message.payload,
            inputs_directory=inputs,
            outputs_directory=outputs,
        )
        if inspect.isclass(self._marked):
            return Execution(task, self._marked())
        return Execution(task, OfFunction(self._marked))


class Message(typing.NamedTuple):
    """A task as the host sends it."""

    id: int
    name: str
    base_directory: str
    inputs: Sequence[str]
    attempt: int
    payload: str | None


class OfFunction:
    """A function as the only call."""

    def __init__(self, execute: Callable[[Task[Any]], object]) -> None:
        self.execute = execute


class Execution:
    """The calls of one task, which see one object."""

    def __init__(self, task: Task[Any], guest: Any) -> None:
        self.task = task
        self._guest = guest

    def call(self, name: str) -> None:
        """One of the three calls."""
        call = getattr(self._guest, name, None)
        if call is not None:
            call(self.task)
        if name == "finalize":
            self.task._close()


def payload_type(marked: Any) -> Any:
    """The type in the annotation `Task[…]` of the calls. Without one, any JSON fits."""
    calls = [marked]
    if inspect.isclass(marked):
        calls = [getattr(marked, name) for name in CALLS if hasattr(marked, name)]
    for call in calls:
        hints = typing.get_type_hints(call, include_extras=True)
        hints.pop("return", None)
        for hint in hints.values():
            if typing.get_origin(hint) is Task:
                return typing.get_args(hint)[0]
    return Any


def find(module: Any) -> Guest:
    """The guest of a module."""
    marked: dict[int, Any] = {
        id(value): value
        for value in vars(module).values()
        if getattr(value, MARK, None) is value
    }
    if len(marked) == 1:
        return Guest(*marked.values())
    if not marked:
        raise TypeError(f"{module.__name__} has no function or class that is marked with @task")
    names = ", ".join(value.__name__ for value in marked.values())
    raise TypeError(f"{module.__name__} has several tasks: {names}; a component has one")
