"""What a plan asks for: the inputs that a task names itself."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Need:
    """An input, or several, that `optional` or `prefix` made. A key that has to exist is a text."""

    kind: str
    """`optional` or `prefix`."""
    text: str
    """The key or the prefix."""

    def __repr__(self) -> str:
        return f"{self.kind}({self.text!r})"


class More(tuple["str | Need", ...]):
    """What a plan needs before it can tell the rest. `more` makes it."""

    def __repr__(self) -> str:
        return f"more({', '.join(map(repr, self))})"


Needs: TypeAlias = Iterable[str | Need | More]
"""What a plan returns, or yields one by one."""


def optional(key: str) -> Need:
    """An object that may be missing, such as a hole in a volume. It is then not in `task.inputs`."""
    return Need("optional", text(key))


def prefix(key: str) -> Need:
    """All objects below a prefix, such as `masks/`, in the order of their keys. There may be none."""
    return Need("prefix", text(key))


def more(*needs: str | Need) -> More:
    """Ends a plan that has to read these inputs first: it is called again when they are there. A plan
    returns it or yields it."""
    return More(need if isinstance(need, Need) else text(need) for need in needs)


def text(key: object) -> str:
    if isinstance(key, str):
        return key
    raise TypeError(
        f"a plan asks for keys, `optional(key)` and `prefix(key)`, not for {key!r} of the type "
        f"{type(key).__name__}"
    )


def gathered(planned: Any) -> list[str | Need] | More:
    """All that a plan returned or yielded."""
    needs: list[str | Need] = []
    for need in each(planned):
        if isinstance(need, More):
            return More([*needs, *need])
        needs.append(need if isinstance(need, Need) else text(need))
    return needs


def each(planned: Any) -> Iterator[Any]:
    """The needs one by one, the last one of which may be `More`."""
    if isinstance(planned, Generator):
        # It may end with `return more(…)`.
        planned = yield from planned
    if planned is None:
        return
    if isinstance(planned, (str, Need, More)) or not isinstance(planned, Iterable):
        yield planned
    else:
        yield from planned
