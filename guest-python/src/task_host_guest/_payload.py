"""Converts the JSON of a payload to the type that the task's annotation names."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import json
import types
import typing
from collections.abc import Callable
from typing import Any

from ._task import Reject

Convert = Callable[[Any, str], Any]
"""Takes a JSON value and its position, such as `thresholds[1]`."""


class Mismatch(Exception):
    """A value that does not fit its type."""

    def __init__(self, at: str, problem: str) -> None:
        super().__init__(problem)
        self.at = at
        self.problem = problem


def decoder(wanted: Any) -> Callable[[str | None], Any]:
    """The function that reads a payload of this type. Raises `TypeError` if no JSON can have it."""
    convert = converter(wanted, {})

    def decode(text: str | None) -> Any:
        if text is None:
            return absent(convert)
        try:
            return convert(json.loads(text), "")
        except Mismatch as error:
            at = f", at {error.at}" if error.at else ""
            raise Reject(f"the payload does not fit this task{at}: {error.problem}") from None

    return decode


def absent(convert: Convert) -> Any:
    """Reads a missing payload as `null` or, if that does not fit, as `{}`."""
    try:
        return convert(None, "")
    except Mismatch:
        pass
    try:
        return convert({}, "")
    except Mismatch as error:
        raise Reject(
            f"the task has no payload, and needs one: {error.problem}; the message gives it as "
            "`payload_info`, and `host try` and `host submit` as `--payload JSON`"
        ) from None


def converter(wanted: Any, known: dict[Any, Convert]) -> Convert:
    """The function that converts JSON values to this type. `known` has the converters of
    dataclasses, because a dataclass may contain itself."""
    if wanted in (Any, object, typing.Any):
        return lambda value, at: value
    if isinstance(wanted, typing.TypeVar):
        return lambda value, at: value
    if wanted in (None, type(None)):
        return plain("null", lambda value: value is None)
    if hasattr(wanted, "__supertype__"):
        return converter(wanted.__supertype__, known)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Annotated:
        return converter(arguments[0], known)
    if origin in (typing.Union, types.UnionType):
        return any_of([converter(one, known) for one in arguments])
    if origin is typing.Literal:
        return literal(arguments)
    base = origin or wanted
    if base is bool:
        return plain("true or false", lambda value: isinstance(value, bool))
    if base is int:
        return plain("a whole number", lambda value: type(value) is int)
    if base is float:
        return number
    if base is str:
        return plain("a string", lambda value: isinstance(value, str))
    if base in LISTS:
        return of_list(base, arguments, known)
    if base in (dict, collections.abc.Mapping):
        return of_dict(arguments, known)
    if isinstance(base, type):
        if issubclass(base, enum.Enum):
            return of_enum(base)
        if hasattr(base, "model_validate"):
            return of_model(base)
        if dataclasses.is_dataclass(base):
            return known.get(base) or of_dataclass(base, known)
    raise TypeError(f"no payload can have the type {wanted!r}")


LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def plain(what: str, fits: Callable[[Any], bool]) -> Convert:
    def convert(value: Any, at: str) -> Any:
        if not fits(value):
            raise Mismatch(at, f"{shown(value)} is not {what}")
        return value

    return convert


def number(value: Any, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Mismatch(at, f"{shown(value)} is not a number")
    return float(value)


def literal(allowed: tuple[Any, ...]) -> Convert:
    names = " or ".join(shown(one) for one in allowed)
    return plain(names, lambda value: any(type(value) is type(a) and value == a for a in allowed))


def any_of(converters: list[Convert]) -> Convert:
    def convert(value: Any, at: str) -> Any:
        problems: list[Mismatch] = []
        for one in converters:
            try:
                return one(value, at)
            except Mismatch as problem:
                problems.append(problem)
        # Reports the error of the type that matched the largest part of the value.
        raise max(problems, key=lambda problem: len(problem.at))

    return convert


def of_list(base: Any, arguments: tuple[Any, ...], known: dict[Any, Convert]) -> Convert:
    made = base if base in (tuple, set, frozenset) else list
    if base is tuple and arguments and arguments[-1] is not Ellipsis:
        parts = [converter(one, known) for one in arguments]

        def convert_tuple(value: Any, at: str) -> Any:
            if not isinstance(value, list) or len(value) != len(parts):
                raise Mismatch(at, f"{shown(value)} is not a list of {len(parts)} values")
            return tuple(c(v, f"{at}[{n}]") for n, (c, v) in enumerate(zip(parts, value)))

        return convert_tuple
    each = converter(arguments[0] if arguments else Any, known)

    def convert(value: Any, at: str) -> Any:
        if not isinstance(value, list):
            raise Mismatch(at, f"{shown(value)} is not a list")
        return made(each(one, f"{at}[{n}]") for n, one in enumerate(value))

    return convert


def of_dict(arguments: tuple[Any, ...], known: dict[Any, Convert]) -> Convert:
    if arguments and arguments[0] is not str:
        raise TypeError(f"the keys of JSON are strings, not {arguments[0]!r}")
    each = converter(arguments[1] if arguments else Any, known)

    def convert(value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            raise Mismatch(at, f"{shown(value)} is not an object")
        return {key: each(one, joined(at, key)) for key, one in value.items()}

    return convert


def of_enum(wanted: type[enum.Enum]) -> Convert:
    names = " or ".join(shown(one.value) for one in wanted)

    def convert(value: Any, at: str) -> Any:
        try:
            return wanted(value)
        except ValueError:
            raise Mismatch(at, f"{shown(value)} is not {names}") from None

    return convert


def of_model(wanted: Any) -> Convert:
    """A pydantic model, which checks values itself."""

    def convert(value: Any, at: str) -> Any:
        try:
            return wanted.model_validate(value)
        except ValueError as error:
            if not hasattr(error, "errors"):
                raise Mismatch(at, str(error)) from None
            first = error.errors()[0]
            for part in first["loc"]:
                at = f"{at}[{part}]" if isinstance(part, int) else joined(at, part)
            raise Mismatch(at, first["msg"]) from None

    return convert


def of_dataclass(wanted: Any, known: dict[Any, Convert]) -> Convert:
    fields: dict[str, Convert] = {}
    needed: set[str] = set()

    def convert(value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            raise Mismatch(at, f"{shown(value)} is not an object")
        for name in value:
            if name not in fields:
                names = ", ".join(f"`{field}`" for field in fields) or "none"
                raise Mismatch(at, f"unknown field `{name}`; the fields are: {names}")
        for name in fields:
            if name in needed and name not in value:
                raise Mismatch(at, f"missing field `{name}`")
        made = {name: fields[name](one, joined(at, name)) for name, one in value.items()}
        try:
            return wanted(**made)
        except ValueError as error:
            # From `__post_init__`, which checks conditions that types can't express.
            raise Mismatch(at, str(error)) from None

    known[wanted] = convert
    hints = typing.get_type_hints(wanted, include_extras=True)
    for field in dataclasses.fields(wanted):
        if not field.init:
            continue
        fields[field.name] = converter(hints[field.name], known)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            needed.add(field.name)
    return convert


def joined(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
