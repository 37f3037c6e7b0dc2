"""Tests a task's message, its inputs, its outputs, and the calls."""

from dataclasses import dataclass

import pytest
from task_host_guest import Reject, Retry, Task, task
from task_host_guest._guest import find
from task_host_guest.testing import run


@dataclass
class Scale:
    factor: float = 2


@task
def scale(task: Task[Scale]) -> None:
    for key in task.inputs:
        numbers = task.read_json(key)
        task.write_json(f"1_scaled/{key}", [n * task.payload.factor for n in numbers])


def test_a_function_reads_inputs_and_writes_outputs():
    done = run(scale, inputs={"a/1.json": "[1, 2]", "2.json": b"[3]"}, payload={"factor": 10})
    assert done.outputs.keys() == {"1_scaled/a/1.json", "1_scaled/2.json"}
    assert done.json("1_scaled/a/1.json") == [10, 20]
    assert run(scale, inputs={"a": "[1]"}).json("1_scaled/a") == [2]


def test_a_class_has_one_object_for_its_three_calls():
    @task
    class Counts:
        def __init__(self):
            self.seen = []

        def prepare(self, task):
            self.seen.append("prepare")

        def execute(self, task):
            self.seen.append("execute")

        def finalize(self, task):
            task.write("seen", " ".join([*self.seen, "finalize"]))

    for _ in range(2):
        assert run(Counts).text("seen") == "prepare execute finalize"


def test_the_message_is_seen():
    @task
    def shows(task):
        assert task.payload == {"a": [1]} and task.payload_json == '{"a": [1]}'
        task.write("shown", f"{task.id} {task.name} {task.base_directory} {task.attempt}")

    done = run(shows, payload={"a": [1]}, id=7, name="n", base_directory="d", attempt=3)
    assert done.text("shown") == "7 n d 3"


def test_files_are_opened_and_created(tmp_path):
    (tmp_path / "file").write_text("é\n")

    @task
    def copies(task):
        key = task.input
        with task.open(key) as text, task.open(key, "rb") as data:
            assert (text.read(), data.read()) == ("é\n", "é\n".encode())
        assert task.read(key).decode() == task.read_text(key) == task.path(key).read_text("utf-8")
        with task.create("a/b.txt") as file:
            file.write("é")
        # This file is never closed, and must be complete nevertheless.
        task.create("left.bin", "wb").write(b"x")
        task.output_path("c/d").write_bytes(b"y")
        task.write("e", bytearray(b"z"))
        assert task.outputs == ("a/b.txt", "left.bin", "c/d", "e")

    outputs = run(copies, inputs={"in": tmp_path / "file"}).outputs
    assert outputs == {"a/b.txt": "é".encode(), "left.bin": b"x", "c/d": b"y", "e": b"z"}


@pytest.mark.parametrize("key", ["", "/a", "../a", "a/../../b", "a//b", "./a", "a/"])
def test_outputs_stay_in_their_directory(key):
    @task
    def escapes(task):
        task.write(key, b"")

    with pytest.raises(Reject, match="can't be the key of an output"):
        run(escapes)


def test_what_is_no_input_is_told():
    @task
    def reads(task):
        task.read("b")

    with pytest.raises(Reject, match="'b' is not an input of the task; its inputs are: a"):
        run(reads, inputs={"a": ""})
    with pytest.raises(Reject, match="its inputs are: none"):
        run(reads)


def test_an_output_that_was_begun_exists_at_the_end():
    @task
    def forgets(task):
        task.output_path("a")

    with pytest.raises(AssertionError, match="'a'"):
        run(forgets)


def test_what_a_task_raises_is_raised():
    @task
    def fails(task):
        raise task.payload_error

    for error in [Retry("later"), Reject("never"), KeyError("k")]:
        Task.payload_error = error
        with pytest.raises(type(error)):
            run(fails)
    del Task.payload_error


class Module:
    """Stands for a module with these names in it."""

    def __init__(self, **names):
        self.__name__ = "app"
        self.__dict__.update(names)


def test_a_module_has_one_task():
    assert find(Module(scale=scale, again=scale, other=1))
    with pytest.raises(TypeError, match="app has no function or class that is marked with @task"):
        find(Module(other=1))

    @task
    def second(task):
        pass

    with pytest.raises(TypeError, match="app has several tasks: scale, second"):
        find(Module(scale=scale, second=second))


def test_what_can_not_be_a_task_is_told():
    class NoCalls:
        pass

    with pytest.raises(TypeError, match="NoCalls has no method `execute`"):
        task(NoCalls)
    with pytest.raises(TypeError, match="function or a class"):
        task(7)
    with pytest.raises(TypeError, match="is not marked with @task"):
        run(lambda task: None)
