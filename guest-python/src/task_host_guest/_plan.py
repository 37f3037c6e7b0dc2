"""The inputs that a plan asks for."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Need:
    """A result of `optional` or `prefix`. The key of an object that must exist is a `str`."""

    kind: str
    """`optional` or `prefix`."""
    text: str
    """The key or the prefix."""

    def __repr__(self) -> str:
        return f"{self.kind}({self.text!r})"


class More(tuple["str | Need", ...]):
    """The inputs that a plan needs before it can name the rest. A result of `more`."""

    def __repr__(self) -> str:
        return f"more({', '.join(map(repr, self))})"


Needs: TypeAlias = Iterable[str | Need | More]
"""The values that a plan returns, or yields one by one."""


def optional(key: str) -> Need:
    """An object that may be missing, such as a hole in a volume. If it is missing, it is not in
    `task.inputs`."""
    return Need("optional", text(key))


def prefix(key: str) -> Need:
    """All objects below a prefix, such as `masks/`, in the order of their keys. There may be none."""
    return Need("prefix", text(key))


def more(*needs: str | Need) -> More:
    """Ends a plan that must read these inputs first. The plan is called again when the inputs are
    present. A plan returns or yields the result of `more`."""
    return More(need if isinstance(need, Need) else text(need) for need in needs)


def text(key: object) -> str:
    if isinstance(key, str):
        return key
    raise TypeError(
        f"a plan asks for keys, `optional(key)` and `prefix(key)`, not for {key!r} of the type "
        f"{type(key).__name__}"
    )


def gathered(planned: Any) -> list[str | Need] | More:
    """All needs that a plan returned or yielded."""
    needs: list[str | Need] = []
    for need in each(planned):
        if isinstance(need, More):
            return More([*needs, *need])
        needs.append(need if isinstance(need, Need) else text(need))
    return needs


def each(planned: Any) -> Iterator[Any]:
    """The needs, one by one. The last one may be a `More`."""
    if isinstance(planned, Generator):
        # A generator may end with `return more(…)`.
        planned = yield from planned
    if planned is None:
        return
    if isinstance(planned, (str, Need, More)) or not isinstance(planned, Iterable):
        yield planned
    else:
        yield from planned
