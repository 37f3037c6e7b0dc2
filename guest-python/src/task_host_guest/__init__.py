"""Tasks for Task Host in Python.

    from task_host_guest import Reject, Task, task

    @task
    def count(task: Task) -> None:
        for key in task.inputs:
            task.write(f"counts/{key}", str(len(task.read(key))))

`python -m task_host_guest` builds the component; `task_host_guest.testing` runs the task in a test.
"""

from ._guest import task
from ._plan import Needs, more, optional, prefix
from ._task import Reject, Retry, Task

__all__ = ["Needs", "Reject", "Retry", "Task", "more", "optional", "prefix", "task"]
