"""The world of a component. Only a component can import this module."""

from __future__ import annotations

import io
import logging
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from componentize_py_types import Err
from wit_world.imports import types

from ._failures import is_temporary, log, reason
from ._guest import Execution, Guest, Message, find
from ._plan import More, Need

INPUTS = Path("/inputs")
OUTPUTS = Path("/outputs")

execution: Execution | None = None
"""The task of this instance. It is kept here because each call is made on a new `WitWorld`."""


def world(module: Any) -> type:
    """The class that componentize-py needs. It runs the module's guest."""
    guest = find(module)
    set_up_logging()

    class WitWorld:
        def prepare(self, task: types.Task) -> None:
            global execution
            start()
            try:
                execution = guest.start(received(task), INPUTS, OUTPUTS)
                execution.call("prepare")
            except BaseException as error:
                raise failed(error) from None

        def execute(self, task: types.Task) -> types.Outcome:
            call("execute")
            return types.Outcome(True, [] if execution is None else list(execution.task.outputs))

        def finalize(self, task: types.Task, outcome: types.Outcome) -> None:
            call("finalize")

    return planned(guest, WitWorld) if guest.has_plan else WitWorld


def planned(guest: Guest, base: type) -> type:
    """The class for the world with a plan."""
    try:
        from wit_world.imports import planning
    except ImportError:
        raise TypeError(
            "this component has no plan, although its task has one: its module could not be imported "
            "by the Python that builds the component"
        ) from None

    def need(asked: str | Need) -> planning.Need:
        if isinstance(asked, str):
            return planning.Need_Key(asked)
        kind = planning.Need_OptionalKey if asked.kind == "optional" else planning.Need_Prefix
        return kind(asked.text)

    class Planned(base):  # type: ignore[misc]
        def plan(self, task: types.Task) -> planning.Needs:
            start()
            try:
                needs = guest.plan(received(task), INPUTS, OUTPUTS)
            except BaseException as error:
                raise failed(error) from None
            finally:
                sys.stdout.flush()
            return planning.Needs([need(asked) for asked in needs], isinstance(needs, More))

    return Planned


def call(name: str) -> None:
    if execution is None:
        raise Err(types.Failure_Reject(f"the host called {name} before prepare"))
    try:
        execution.call(name)
    except BaseException as error:
        raise failed(error) from None
    finally:
        sys.stdout.flush()


def received(task: types.Task) -> Message:
    info = task.info
    return Message(
        info.id, info.name, info.base_directory, info.inputs, task.attempt, task.payload
    )


def failed(error: BaseException) -> Err[types.Failure]:
    log(error)
    text = reason(error)
    if is_temporary(error):
        return Err(types.Failure_Retry(text))
    return Err(types.Failure_Reject(text))


def start() -> None:
    """Sets the state that differs between instances, which all begin as copies of the build's."""
    random.seed()
    tempfile.tempdir = str(OUTPUTS)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def set_up_logging() -> None:
    """Sends `logging` to the task's log, with the levels that the host reads. Changes nothing if
    the module has set up `logging` itself."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
