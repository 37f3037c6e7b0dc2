"""A task with the package `task_host_guest` that names its own data: the index of a volume, its
chunks, of which some are missing, and all masks."""

from dataclasses import dataclass

from task_host_guest import Needs, Retry, Task, more, optional, prefix, task

calls = []


@dataclass
class Volume:
    path: str
    early: bool = False
    """The plan fails at the first attempt."""


@task
class Reads:
    def plan(self, task: Task[Volume]) -> Needs:
        calls.append(task.id)
        print(f"plan {len(calls)} of {task.id}")
        if task.payload.early and task.attempt == 1:
            raise Retry("too early to plan")
        index = f"{task.payload.path}/info"
        if index not in task.inputs:
            yield more(index)
        info = task.read_json(index)
        yield f"{task.payload.path}/{info['scale']}/header"
        for chunk in info["chunks"]:
            yield optional(f"{task.payload.path}/{info['scale']}/{chunk}")
        yield prefix(f"{task.payload.path}/masks/")
        yield "/models/m"

    def execute(self, task: Task[Volume]) -> None:
        found = {key: task.read_text(key) for key in task.inputs}
        assert not calls, "the plan's instance is another"
        assert "/models/m" in task.inputs
        task.write_json(f"found/{task.id}.json", found)
