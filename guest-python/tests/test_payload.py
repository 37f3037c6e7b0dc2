"""Tests that payloads become values of the annotated type, or that errors say where they don't."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional

import pytest
from task_host_guest import Reject, Task
from task_host_guest._guest import payload_type
from task_host_guest._payload import decoder


class Kind(enum.Enum):
    MEAN = "mean"
    MODE = "mode"


Level = NewType("Level", int)


@dataclass
class Part:
    size: tuple[int, int]
    kind: Kind = Kind.MEAN


@dataclass
class Options:
    complexID: int
    thresholds: list[float] = field(default_factory=list)
    part: Part | None = None
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    method: Literal["a", 2] = "a"
    level: Annotated[Level, "metres"] = Level(0)
    anything: Any = None
    seen: int = field(default=0, init=False)

    def __post_init__(self):
        if self.level < 0:
            raise ValueError("level is below 0")


def test_a_payload_has_its_type():
    text = """{"complexID": 9223372036854775807, "thresholds": [1, 2.5], "part": {"size": [1, 2],
        "kind": "mode"}, "names": {"x": ["y"]}, "method": 2, "level": 3, "anything": {"a": [null]}}"""
    part = Part((1, 2), Kind.MODE)
    wanted = Options(2**63 - 1, [1.0, 2.5], part, {"x": ["y"]}, 2, Level(3), {"a": [None]})
    assert decoder(Options)(text) == wanted
    assert decoder(Options)('{"complexID": 1}') == Options(1)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[]", "task: [] is not an object"),
        ("{}", "task: missing field `complexID`"),
        ('{"complexID": true}', "task, at complexID: true is not a whole number"),
        ('{"complexID": 1.5}', "task, at complexID: 1.5 is not a whole number"),
        ('{"complexID": 1, "thresholds": [1, "x"]}', 'task, at thresholds[1]: "x" is not a number'),
        ('{"complexID": 1, "part": {"size": [1]}}', "at part.size: [1] is not a list of 2 values"),
        ('{"complexID": 1, "part": {"size": [1, 2], "kind": 1}}', 'kind: 1 is not "mean" or "mode"'),
        ('{"complexID": 1, "names": {"x": "y"}}', 'at names.x: "y" is not a list'),
        ('{"complexID": 1, "method": "b"}', 'at method: "b" is not "a" or 2'),
        ('{"complexID": 1, "level": -1}', "task: level is below 0"),
        ('{"complexID": 1, "seen": 1}', "unknown field `seen`; the fields are: `complexID`, `thr"),
    ],
)
def test_a_payload_that_does_not_fit_is_rejected_where_it_does_not(text, wanted):
    with pytest.raises(Reject) as rejected:
        decoder(Options)(text)
    assert str(rejected.value).startswith("the payload does not fit this task")
    assert wanted in str(rejected.value)


def test_a_missing_payload_is_null_or_has_no_fields():
    @dataclass
    class Defaults:
        top: int = 1

    assert decoder(Defaults)(None) == Defaults()
    assert decoder(Optional[Defaults])(None) is None
    assert decoder(Any)(None) is None
    with pytest.raises(Reject, match="no payload, and needs one: missing field `complexID`; the"):
        decoder(Options)(None)


def test_a_type_that_json_does_not_have_is_told_at_the_build():
    @dataclass
    class Odd:
        path: Path

    for wanted in [Odd, dict[int, str], list[Path], lambda: None]:
        with pytest.raises(TypeError):
            decoder(wanted)


def test_classes_may_contain_themselves():
    assert decoder(Tree)('{"below": [{"below": []}]}') == Tree([Tree([])])


@dataclass
class Tree:
    below: "list[Tree]"


def test_a_model_checks_itself():
    class Invalid(ValueError):
        def errors(self):
            return [{"loc": ("parts", 1, "size"), "msg": "Input should be a valid integer"}]

    class Model:
        @classmethod
        def model_validate(cls, value):
            if "size" not in value:
                raise Invalid
            return value["size"]

    assert decoder(Model)('{"size": 1}') == 1
    with pytest.raises(Reject, match=r"at parts\[1\].size: Input should be a valid integer"):
        decoder(Model)("{}")


def test_the_type_is_that_of_the_annotation():
    def plain(task):
        pass

    def untyped(task: Task):
        pass

    def typed(task: Task[Options]) -> None:
        pass

    class Class:
        def execute(self, task):
            pass

        def finalize(self, task: "Task[Options]"):
            pass

    assert [payload_type(one) for one in (plain, untyped, typed, Class)] == [
        Any, Any, Options, Options,
    ]
