"""The decorator `task`, and the calls of one task."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from ._payload import decoder
from ._plan import More, Need, Needs, gathered
from ._task import Task

G = TypeVar("G", bound=Callable[..., Any])
P = TypeVar("P")

MARK = "__task_host_guest__"
"""The attribute that the decorator sets on a function or class."""

PLAN = "__task_host_plan__"
"""The attribute of a marked function that holds its plan."""

CALLS = ("prepare", "execute", "finalize")


@overload
def task(guest: G) -> G: ...


@overload
def task(*, plan: Callable[[Task[P]], Needs]) -> Callable[[G], G]: ...


def task(guest: Any = None, *, plan: Callable[..., Any] | None = None) -> Any:
    """Makes a function or a class the task of its module. A module has one task.

    The function receives a `Task`, reads its inputs and writes its outputs. A class does this in
    its method `execute`. It may have a method `prepare`, which is called before `execute`, and a
    method `finalize`, which is called after `execute` succeeded. All three see the same object.

    A task that names its own inputs has a plan: the method `plan` of a class, or a function given
    as `@task(plan=tiles)`. The plan receives the `Task` too, and returns or yields keys. It is
    called before the other calls, and may be called several times. Nothing that it stores is kept.
    """
    if plan is not None and not callable(plan):
        raise TypeError("the plan of a task is a function")
    if guest is None and plan is not None:
        return lambda guest: marked(guest, plan)
    return marked(guest, plan)


def marked(guest: Any, plan: Callable[..., Any] | None) -> Any:
    if inspect.isclass(guest):
        if not callable(getattr(guest, "execute", None)):
            raise TypeError(f"{guest.__name__} has no method `execute`")
        if plan is not None:
            raise TypeError(f"{guest.__name__} is a class: its plan is its method `plan`")
    elif not callable(guest):
        raise TypeError("@task marks a function or a class")
    setattr(guest, MARK, guest)
    if plan is not None:
        setattr(guest, PLAN, plan)
    return guest


class Guest:
    """A marked function or class, with a decoder for its payload."""

    _marked: Any

    def __init__(self, marked: Any) -> None:
        if getattr(marked, MARK, None) is not marked:
            raise TypeError(f"{marked!r} is not marked with @task")
        self._marked = marked
        self._decode = decoder(payload_type(marked))

    @property
    def has_plan(self) -> bool:
        """Whether the task names its own inputs."""
        return plan_of(self._marked) is not None

    def start(self, message: Message, inputs: Path, outputs: Path) -> Execution:
        """Reads the payload. Rejects the task if the payload does not fit."""
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

    def plan(self, message: Message, inputs: Path, outputs: Path) -> list[str | Need] | More:
        """Calls the plan on a separate object."""
        execution = self.start(message, inputs, outputs)
        execution.task._hint = "; to read it in a plan, ask for it with `more` first"
        return gathered(execution.plan())


class Message(typing.NamedTuple):
    """A task as the host sends it."""

    id: int
    name: str
    base_directory: str
    inputs: Sequence[str]
    attempt: int
    payload: str | None


class OfFunction:
    """The object for a marked function, which is the call `execute`."""

    def __init__(self, execute: Callable[[Task[Any]], object]) -> None:
        self.execute = execute
        self.plan = plan_of(execute)


class Execution:
    """The calls of one task, on one object."""

    def __init__(self, task: Task[Any], guest: Any) -> None:
        self.task = task
        self._guest = guest

    def call(self, name: str) -> None:
        """Makes one of the three calls."""
        call = getattr(self._guest, name, None)
        if call is not None:
            call(self.task)
        if name == "finalize":
            self.task._close()

    def plan(self) -> Any:
        """Calls the plan, and returns its result."""
        return self._guest.plan(self.task)


def plan_of(marked: Any) -> Any:
    """The plan of a marked function or class. None if it has no plan."""
    plan = getattr(marked, "plan" if inspect.isclass(marked) else PLAN, None)
    return plan if callable(plan) else None


def payload_type(marked: Any) -> Any:
    """The type in the annotation `Task[…]` of the calls. Without an annotation, any JSON fits."""
    calls = [marked]
    if inspect.isclass(marked):
        calls = [getattr(marked, name) for name in CALLS if hasattr(marked, name)]
    for call in [*calls, plan_of(marked)]:
        if call is None:
            continue
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
        if value is not None and getattr(value, MARK, None) is value
    }
    if len(marked) == 1:
        return Guest(*marked.values())
    if not marked:
        raise TypeError(f"{module.__name__} has no function or class that is marked with @task")
    names = ", ".join(value.__name__ for value in marked.values())
    raise TypeError(f"{module.__name__} has several tasks: {names}; a component has one")
