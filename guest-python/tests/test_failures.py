"""Tests that a failure's reason begins with the cause, and that verdicts equal the Rust SDK's."""

import errno
import json
import zipfile

import pytest
from task_host_guest import Reject, Retry
from task_host_guest._failures import is_temporary, log, reason


def caught(call):
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def look_up():
    return {}["min_size"]


def test_the_reason_names_the_exception_and_its_place():
    line = look_up.__code__.co_firstlineno + 1
    place = f"(test_failures.py:{line}, in look_up)"
    assert reason(caught(look_up)) == f"KeyError: 'min_size' {place}"


def test_code_of_the_library_is_not_the_place():
    def parse():
        json.loads("{")

    text = reason(caught(parse))
    assert text.startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert text.endswith(", in parse)")


def test_causes_follow():
    def read():
        try:
            look_up()
        except KeyError as error:
            raise Reject("the header is missing") from error

    first, second = reason(caught(read)).split("\n")
    assert first == "the header is missing"
    assert second.startswith("caused by KeyError: 'min_size' (test_failures.py:")


def test_other_lines_follow_the_place():
    def fails():
        raise ValueError("one\ntwo")

    first, second = reason(caught(fails)).split("\n")
    assert first.startswith("ValueError: one (test_failures.py:") and second == "two"


def test_texts_that_python_lacks():
    def allocates():
        raise MemoryError

    def exits():
        raise SystemExit(3)

    def late():
        import no_such_module

        no_such_module.call()

    assert reason(caught(allocates)).startswith("MemoryError: the task needs more memory than")
    assert reason(caught(exits)).startswith("SystemExit: the task called sys.exit(3) (test_")
    assert "at the top of the file" in reason(caught(late)).split("\n")[1]
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "/inputs/a")
    assert reason(missing) == "FileNotFoundError: No such file or directory: '/inputs/a'"


def test_recursion_is_found():
    def deeper():
        deeper()

    text = reason(caught(deeper))
    assert text.startswith("RecursionError: maximum recursion depth exceeded")
    assert text.endswith(", in deeper)")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (Retry("x"), True),
        (Reject("x"), False),
        (ValueError("x"), False),
        (OSError(errno.EIO, "I/O error"), True),
        (OSError(errno.EINTR, "interrupted"), True),
        (TimeoutError("slow"), True),
        (FileNotFoundError(errno.ENOENT, "missing"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (OSError(errno.EDQUOT, "quota"), False),
        (PermissionError(errno.EPERM, "not permitted"), False),
        (OSError("bad header"), False),
        (zipfile.BadZipFile("x"), False),
    ],
)
def test_what_may_pass_is_retried(error, wanted):
    assert is_temporary(error) is wanted
    wrapped = RuntimeError("reading")
    wrapped.__cause__ = error
    assert is_temporary(wrapped) is wanted


def test_the_traceback_is_logged(capsys):
    log(caught(look_up))
    assert "in look_up" in capsys.readouterr().err
    log(Reject("the reason is in the report"))
    assert capsys.readouterr().err == ""
