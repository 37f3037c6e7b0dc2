"""Tests when a component is built, and which errors are shown if it can't be built."""

import os
from pathlib import Path

import pytest
from task_host_guest import _build

FAILED = """\
Traceback (most recent call last):
  File "<string>", line 1, in <module>
AssertionError: Traceback (most recent call last):
  File "/3/task_host_entry.py", line 1, in <module>
    import app
  File "/0/app.py", line 2, in <module>
    import numpy as np
ModuleNotFoundError: No module named 'numpy'


Caused by:
    ModuleNotFoundError: No module named 'numpy'

Stack backtrace:
   0: <anyhow::Error>::msg
"""


def test_the_traceback_of_the_project_is_shown():
    lines = _build.shown(FAILED).split("\n")
    assert lines[:4] == [
        "Traceback (most recent call last):",
        '  File "app.py", line 2, in <module>',
        "    import numpy as np",
        "ModuleNotFoundError: No module named 'numpy'",
    ]
    assert "pip" in lines[5] and "anyhow" not in _build.shown(FAILED)
    other = "Error: no such file"
    assert _build.shown(other) == other


def test_settings_are_those_of_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no pyproject.toml here"):
        _build.settings()
    Path("pyproject.toml").write_text('[project]\nname = "csv-summary"\n')
    assert _build.settings() == ("app", Path("build/csv_summary.wasm"))
    Path("pyproject.toml").write_text('[tool.task-host]\nmodule = "main"\n')
    assert _build.settings() == ("main", Path("build/component.wasm"))


def test_a_component_is_built_again_after_a_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_build, "packages", lambda: [])
    component = Path("build/a.wasm")
    assert not _build.is_fresh(component)
    component.parent.mkdir()
    component.touch()
    newer = component.stat().st_mtime_ns + 10**9
    for ignored in ["build/x.py", ".venv/x.py", "data.csv"]:
        Path(ignored).parent.mkdir(exist_ok=True)
        Path(ignored).touch()
        os.utime(ignored, ns=(newer, newer))
    assert _build.is_fresh(component)
    Path("below").mkdir()
    Path("below/app.py").touch()
    os.utime("below/app.py", ns=(newer, newer))
    assert not _build.is_fresh(component)
