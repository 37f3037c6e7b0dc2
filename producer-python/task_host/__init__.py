"""Sends tasks to the queues of Task Host: SQS, Pub/Sub and directories.

    from task_host import Task, submit

    tasks = (Task("blur", "datasets/cells", [f"0_input/{n}.png"], {"sigma": 2}, n) for n in range(1_000_000))
    print(submit(tasks, queue="sqs://blur"))

``submit`` writes each task to the program ``host`` as it comes, so memory does not grow with their number.
``host`` sends them in batches, many at a time, and shows the progress on a terminal.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from typing import IO, Any, Dict, Iterable, Mapping, NamedTuple, Optional, Sequence, Union

__all__ = ["Refused", "Sent", "SubmitError", "Task", "program", "submit"]


class Task(NamedTuple):
    """A task, as ``host submit`` and SimpleTasks know it."""

    #: The name of its component.
    name: str
    #: The prefix of the keys of its inputs and outputs in the bucket.
    base_directory: str
    #: The keys of its inputs, relative to the base directory.
    inputs: Sequence[str] = ()
    #: Its parameters: what JSON can hold. None leaves them out.
    payload: Any = None
    #: A number of yours, which reports repeat.
    id: Optional[int] = None

    def message(self) -> Dict[str, Any]:
        """The message of the task."""
        info: Dict[str, Any] = {} if self.id is None else {"id": self.id}
        info.update(name=self.name, base_directory=self.base_directory, inputs=list(self.inputs))
        message: Dict[str, Any] = {"basic_info": info}
        if self.payload is not None:
            message["payload_info"] = self.payload
        return message


class Sent(NamedTuple):
    """What became of the tasks."""

    #: The address of the queue.
    queue: str
    #: Tasks that are in the queue now; in a dry run, that would be.
    sent: int
    #: Tasks that were left out, because their receipts say that they are done (``--skip-done``).
    skipped: int
    #: Tasks that the queue refused, or that are no tasks. ``host`` has said why on standard error.
    refused: int


class SubmitError(Exception):
    """``host submit`` failed. What it said is on standard error."""

    def __init__(self, code: int, message: Optional[str] = None) -> None:
        super().__init__(message or "host submit ended with exit code {}".format(code))
        #: The exit code of ``host submit``.
        self.code = code


class Refused(SubmitError):
    """Some tasks were refused. The others are in the queue."""

    def __init__(self, code: int, sent: Sent) -> None:
        tasks = "1 task was" if sent.refused == 1 else "{} tasks were".format(sent.refused)
        super().__init__(code, "{} refused, {} sent".format(tasks, sent.sent))
        #: What became of the tasks.
        self.sent = sent


def program() -> str:
    """The path of ``host``: that of this Python environment, or else the one on the ``PATH``.

    Raises ``FileNotFoundError`` if there is none. A program for name servers may have the same name.
    """
    scripts = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    places = [os.path.join(directory, "host") for directory in scripts if directory]
    found = [shutil.which("task-host"), shutil.which("host")]
    for path in places + [path for path in found if path]:
        if os.access(path, os.X_OK) and _is_ours(path):
            return path
    raise FileNotFoundError("there is no program host: pip install task-host")


def _is_ours(path: str) -> bool:
    said = subprocess.run(
        [path, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return b"task-host:guest" in said.stdout


def submit(
    tasks: Iterable[Union[Task, Mapping[str, Any]]],
    queue: Optional[str] = None,
    options: Sequence[str] = (),
) -> Sent:
    """Sends tasks to a queue.

    ``tasks`` may be a generator. Each is a :class:`Task`, or a message as a dictionary. ``queue`` is a
    directory, ``sqs://NAME`` or another address; without it, ``HOST_QUEUE`` or ``host.toml`` names the queue.
    ``options`` are further options of ``host submit``, such as ``["--create-queues"]`` or ``["--skip-done"]``.

    Raises :class:`Refused` if some tasks were refused, and :class:`SubmitError` if ``host submit`` failed.
    If ``tasks`` raises an exception, that one passes through; tasks before it may have been sent, unless
    the option ``--all-or-nothing`` was given.
    """
    command = [program(), "submit", "--json"]
    if queue is not None:
        command += ["--queue", queue]
    command += [*options, "-"]
    host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert host.stdin is not None and host.stdout is not None
    try:
        _write(tasks, host.stdin)
        said = host.stdout.read()
    except BaseException:
        # The end of its input would tell it that these are all tasks.
        host.kill()
        raise
    finally:
        host.stdout.close()
        _close(host.stdin)
        code = host.wait()
    if not said.strip():
        raise SubmitError(code)
    summary = json.loads(said)
    sent = Sent(*(summary[field] for field in Sent._fields))
    if code == 3:
        raise Refused(code, sent)
    if code != 0:
        raise SubmitError(code)
    return sent


def _write(tasks: Iterable[Union[Task, Mapping[str, Any]]], to: IO[bytes]) -> None:
    for task in tasks:
        message = task.message() if isinstance(task, Task) else task
        line = json.dumps(message, allow_nan=False, separators=(",", ":"))
        try:
            to.write(line.encode() + b"\n")
        except BrokenPipeError:
            # It has ended early, and its exit code says why.
            return
    _close(to)


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        pass
