"""Tests the inputs that a plan asks for, and the task that it receives."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from task_host_guest import Needs, Reject, Task, _build, more, optional, prefix, task
from task_host_guest._guest import find
from task_host_guest.testing import plan, run


@dataclass
class Tile:
    x: int
    y: int = 0


def tiles(task: Task[Tile]) -> Needs:
    x, y = task.payload.x, task.payload.y
    yield f"tiles/{x}-{y}.raw"
    yield optional(f"tiles/{x + 1}-{y}.raw")
    yield prefix("masks/")


@task(plan=tiles)
def smooth(task: Task[Tile]) -> None:
    right = f"tiles/{task.payload.x + 1}-{task.payload.y}.raw"
    task.write("smooth.raw", task.read(right) if right in task.inputs else "at the edge")


@task
class Volume:
    def __init__(self) -> None:
        self.calls = 0

    def plan(self, task: Task[None]) -> Needs:
        self.calls += 1
        assert self.calls == 1, "the object is that of another call"
        yield "first"
        if "volume/info" not in task.inputs:
            yield more("volume/info")
        yield from map(optional, task.read_json("volume/info")["chunks"])

    def execute(self, task: Task[None]) -> None:
        assert self.calls == 0


def test_a_function_has_a_plan():
    needs = plan(smooth, payload={"x": 1})
    assert needs == ["tiles/1-0.raw", optional("tiles/2-0.raw"), prefix("masks/")]
    assert repr(needs) == "['tiles/1-0.raw', optional('tiles/2-0.raw'), prefix('masks/')]"
    # `run` does not call the plan.
    assert run(smooth, payload={"x": 1}).text("smooth.raw") == "at the edge"
    assert run(smooth, payload={"x": 1}, inputs={"tiles/2-0.raw": "2"}).text("smooth.raw") == "2"


def test_a_class_has_a_plan_that_reads_an_index_first():
    asked = plan(Volume)
    assert asked == more("first", "volume/info") != ["first", "volume/info"]
    assert repr(asked) == "more('first', 'volume/info')"
    info = {"volume/info": '{"chunks": ["a", "b"]}'}
    assert plan(Volume, inputs=info) == ["first", optional("a"), optional("b")]
    run(Volume)


def returned(value):
    @task(plan=lambda task: value)
    def guest(task):
        pass

    return plan(guest)


def test_a_plan_returns_what_it_asks_for_in_any_form():
    assert returned(None) == returned([]) == []
    assert returned("key") == returned(("key",)) == ["key"]
    assert returned(prefix("p")) == returned(iter([prefix("p")])) == [prefix("p")]
    assert returned(more("index")) == returned([more("index"), "never"]) == more("index")
    assert returned(["a", more()]) == more("a")

    def generator() -> Iterator[str]:
        yield "a"
        return more("b")

    assert returned(generator()) == more("a", "b")


@pytest.mark.parametrize("value", [7, [None], [b"a"], [["a"]]])
def test_what_a_plan_can_not_ask_for_is_told(value):
    with pytest.raises(TypeError, match="a plan asks for keys, .* not for .* of the type"):
        returned(value)


def test_what_is_no_key_is_told():
    for ask in (optional, prefix, more):
        with pytest.raises(TypeError, match="not for 7 of the type int"):
            ask(7)


def test_a_plan_sees_its_message_and_fails_as_other_calls_do():
    def shows(task):
        assert (task.id, task.attempt, task.base_directory) == (7, 3, "d")
        return [*task.inputs, task.payload["key"]]

    guest = task(plan=shows)(lambda task: None)
    asked = plan(guest, inputs={"a": ""}, payload={"key": "b"}, id=7, attempt=3, base_directory="d")
    assert asked == ["a", "b"]
    with pytest.raises(Reject, match="the payload does not fit this task, at x: "):
        plan(smooth, payload={"x": "1"})
    with pytest.raises(Reject, match="'b' is not .*: none; to read it in a plan, ask for it with `more` first"):
        plan(task(plan=lambda task: task.read("b"))(lambda task: None))
    with pytest.raises(FileNotFoundError):
        plan(task(plan=lambda task: task.write("a", "b"))(lambda task: None))


def test_keys_from_the_root_are_found_as_they_were_asked_for():
    @task
    def reads(task):
        assert "models/m" in task.inputs and "/models/m" in task.inputs and 7 not in task.inputs
        task.write("m", task.read("/models/m") + task.read("models/m"))

    for key in ("models/m", "/models/m"):
        assert run(reads, inputs={key: "m"}).text("m") == "mm"


def test_an_input_is_not_written_outside_of_its_directory(tmp_path):
    for key in (f"/{tmp_path}/a", "../a", "a/../../b", "a//b", "a/", ""):
        with pytest.raises(ValueError, match="is not the key of an input"):
            run(task(lambda task: None), inputs={key: "a"})
    assert not list(tmp_path.iterdir())


def test_an_error_names_some_of_many_inputs():
    @task
    def reads(task):
        task.read("x")

    with pytest.raises(Reject, match="inputs are: 0, 1, .*, 19, and 30 more$"):
        run(reads, inputs={str(n): "" for n in range(50)})


def test_the_plan_has_the_type_of_the_payload_too():
    @task
    class Typed:
        def plan(self, task: Task[Tile]) -> Needs:
            return [str(task.payload.x)]

        def execute(self, task):
            pass

    assert plan(Typed, payload={"x": 4}) == ["4"]
    assert plan(task(plan=Typed().plan)(lambda task: None), payload={"x": 4}) == ["4"]


def test_what_can_not_be_a_plan_is_told():
    @task
    def bare(task):
        pass

    with pytest.raises(TypeError, match="bare has no plan"):
        plan(bare)
    with pytest.raises(TypeError, match="the plan of a task is a function"):
        task(plan=["a"])
    with pytest.raises(TypeError, match="Volume is a class: its plan is its method `plan`"):
        task(plan=tiles)(Volume)


class Module:
    __name__ = "app"
    __doc__ = None

    def __init__(self, guest):
        self.guest = guest
        self.nothing = None


def test_a_component_has_the_world_of_its_task(tmp_path, monkeypatch):
    assert find(Module(smooth)).has_plan and find(Module(Volume)).has_plan
    assert not find(Module(task(lambda task: None))).has_plan

    monkeypatch.chdir(tmp_path)
    begin = "from task_host_guest import task\nprint('loud')\n"
    function = "def app(task):\n    return []\n"
    (tmp_path / "planned.py").write_text(f"{begin}@task(plan=len)\n{function}")
    (tmp_path / "bare.py").write_text(f"{begin}@task\n{function}")
    (tmp_path / "broken.py").write_text("import no_such_module")
    worlds = {name: _build.world(name) for name in ("planned", "bare", "broken")}
    assert worlds == {"planned": "task-with-plan", "bare": "task", "broken": "task"}
    assert not (tmp_path / "__pycache__").exists()
