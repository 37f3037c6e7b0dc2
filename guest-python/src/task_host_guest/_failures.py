"""Converts an exception into a failure: whether to retry the task, and the reason."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from types import TracebackType

from ._task import Reject, Retry

HERE = os.path.dirname(__file__)
LIBRARY = os.path.dirname(traceback.__file__)

PERMANENT = {
    getattr(errno, name)
    for name in (
        "ENOENT EPERM EACCES EEXIST ENOTDIR EISDIR ENOTEMPTY EROFS ENOSPC EDQUOT EFBIG "
        "ENAMETOOLONG EILSEQ EINVAL EBADF ESPIPE EXDEV EMLINK ENOTSUP ENOSYS ELOOP ENOTCAPABLE"
    ).split()
    if hasattr(errno, name)
}
"""System errors that a retry would raise again, because the task sees the same files."""

MOST_CAUSES = 5


def is_temporary(error: BaseException) -> bool:
    """Whether a retry may succeed. If an error of a library has a system error as its cause, the
    system error decides."""
    for _ in range(MOST_CAUSES):
        if isinstance(error, Retry):
            return True
        if isinstance(error, Reject):
            return False
        # Libraries raise `OSError` without a number for files that they can't parse.
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno not in PERMANENT
        if isinstance(error, TimeoutError):
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__
    return False


def reason(error: BaseException) -> str:
    """`KeyError: 'min_size' (app.py:10, in summary)`, and a line for each cause."""
    lines = [described(error)]
    cause = error.__cause__
    while cause is not None and len(lines) < MOST_CAUSES:
        lines.append(f"caused by {described(cause)}")
        cause = cause.__cause__
    if isinstance(error, ModuleNotFoundError):
        lines.append(
            "A component has only the modules that were imported when it was built: import this one "
            "at the top of the file."
        )
    return "\n".join(lines)


def described(error: BaseException) -> str:
    if isinstance(error, (Reject, Retry)):
        return str(error) or type(error).__name__
    first, *more = said(error).split("\n")
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    text = f"{name}: {first}" if first else name
    place = position(error.__traceback__)
    return "\n".join([f"{text} ({place})" if place else text, *more])


def said(error: BaseException) -> str:
    """The text of an exception."""
    if isinstance(error, MemoryError) and not str(error):
        return "the task needs more memory than its limit; the host's `--memory` raises it"
    if isinstance(error, SystemExit):
        return f"the task called sys.exit({error.code!r})"
    # Error numbers differ between WebAssembly and Linux, so the number is left out.
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        name = "" if error.filename is None else f": {os.fspath(error.filename)!r}"
        return f"{error.strerror}{name}"
    try:
        return str(error)
    except Exception as second:
        return f"its text can't be read: {type(second).__name__}"


def position(frames: TracebackType | None) -> str | None:
    """The innermost line of the user's own code: `app.py:10, in summary`. If there is none, the
    innermost line of a package's code."""
    own = package = None
    while frames is not None:
        code = frames.tb_frame.f_code
        file = code.co_filename
        if not (file.startswith(("<", HERE))):
            place = f"{os.path.basename(file)}:{frames.tb_lineno}, in {code.co_name}"
            if "site-packages" in file:
                package = place
            elif not file.startswith(LIBRARY):
                own = place
        frames = frames.tb_next
    return own or package


def log(error: BaseException) -> None:
    """Writes the traceback to the task's log, without the calls of this package. For `Reject` and
    `Retry`, writes only the traceback of the cause."""
    shown: BaseException | None = error
    if isinstance(error, (Reject, Retry)):
        shown = error.__cause__
    if shown is None:
        return
    frames = shown.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(HERE):
        frames = frames.tb_next
    traceback.print_exception(type(shown), shown, frames, limit=-50, file=sys.stderr)
