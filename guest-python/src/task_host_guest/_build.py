"""Builds the component of a project with componentize-py."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

ENTRY = "task_host_entry"
"""The module with the world's class. Each build generates it."""

CODE = """\
import {module}
from task_host_guest._component import world

WitWorld = world({module})
"""

HAS_PLAN = """\
import importlib, sys
sys.path.append({package!r})
from task_host_guest._guest import find
sys.exit({code} if find(importlib.import_module({module!r})).has_plan else 0)
"""

PLANNED = 100
"""The exit code that says that a module's task has a plan."""

TRACEBACK = "Traceback (most recent call last):"

HINTS = """\
A component has packages in pure Python, and the standard library without processes, threads and
networks. Install a package with pip in the environment that runs this command. A package with
compiled code, such as numpy, does not work."""

IGNORED = {".venv", "venv", "build", "dist", "node_modules", "__pycache__"}


def main() -> None:
    """Builds the project in the current directory, and prints the path of the component."""
    module, component = settings()
    parser = argparse.ArgumentParser(
        prog="python -m task_host_guest",
        description="Builds a component from the module with the task, and prints its path. "
        "Does nothing if the component is newer than the project and its packages.",
    )
    parser.add_argument("--module", default=module, help="default: %(default)s")
    parser.add_argument("--output", default=component, type=Path, help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="build a component that is up to date")
    arguments = parser.parse_args()
    if arguments.force or not is_fresh(arguments.output):
        build(arguments.module, arguments.output)
    print(arguments.output)


def settings() -> tuple[str, Path]:
    """The module and the path of the component. `pyproject.toml` has the module, as `module` in
    `[tool.task-host]`, and the name of the project, which names the component."""
    import tomllib

    try:
        project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))
    except FileNotFoundError:
        sys.exit("there is no pyproject.toml here: run this in the directory of a project")
    name = project.get("project", {}).get("name", "component")
    module = project.get("tool", {}).get("task-host", {}).get("module", "app")
    return module, Path("build", re.sub("[-.]", "_", name) + ".wasm")


def is_fresh(component: Path) -> bool:
    """Whether the component is newer than all files that it is made from."""
    try:
        built = component.stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return all(path.stat().st_mtime_ns < built for path in [*sources(), *packages(), Path(__file__)])


def sources() -> Iterator[Path]:
    """The project's own files that can be part of the component, and its settings."""
    for directory, below, files in os.walk("."):
        below[:] = [name for name in below if name not in IGNORED and name[0] != "."]
        for file in files:
            if file.endswith(".py") or file == "pyproject.toml":
                yield Path(directory, file)


def packages() -> list[Path]:
    """The directories of installed packages, which change when a package is installed."""
    return [Path(path) for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}]


def build(module: str, component: Path) -> None:
    """Builds the component of a module. Exits if the build fails."""
    try:
        import componentize_py  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError:
        sys.exit("componentize-py is not installed; install it with: pip install componentize-py")
    print(f"building {component}", file=sys.stderr)
    component.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="task-host-guest-") as directory:
        Path(directory, f"{ENTRY}.py").write_text(CODE.format(module=module))
        made = component.with_suffix(".new")
        command = [sys.executable, "-c", "from componentize_py import script; script()", "--quiet"]
        command += ["--wit-path", str(Path(__file__).with_name("wit")), "--world", world(module)]
        command += ["componentize", ENTRY, "--output", str(made)]
        # This package may be in a directory of `PYTHONPATH`.
        for path in [Path(), Path(__file__).parents[1], *packages(), Path(directory)]:
            command += ["--python-path", str(path)]
        built = subprocess.run(command, check=False, capture_output=True, text=True)
    if built.returncode != 0:
        sys.exit(f"{module} was not built\n{shown(built.stdout + built.stderr)}")
    os.replace(made, component)


def world(module: str) -> str:
    """The world of a module's task. Imports the module in another process to find the task."""
    package = str(Path(__file__).parents[1])
    program = HAS_PLAN.format(package=package, module=module, code=PLANNED)
    command = [sys.executable, "-B", "-c", program]
    # If the module can't be imported, componentize-py reports the error later.
    ended = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    return "task-with-plan" if ended.returncode == PLANNED else "task"


def shown(errors: str) -> str:
    """The errors of componentize-py, or the traceback of the project's code if they have one."""
    begin, end = errors.find(f"{TRACEBACK}\n  File \"/"), errors.find("\n\nCaused by:")
    if not 0 <= begin < end:
        return errors
    # In the component, directories have numbers as names.
    lines = re.sub(r'File "/0/', 'File "', errors[begin:end].rstrip()).split("\n")
    frames = [n for n, line in enumerate(lines) if line.startswith("  File ")]
    own = [n for n in frames if ENTRY not in lines[n]]
    text = "\n".join([TRACEBACK, *lines[own[0] if own else 1 :]])
    return f"{text}\n{HINTS}" if "ModuleNotFoundError" in lines[-1] or "C-ext" in text else text
