"""`pytest` runs these tests natively, without WebAssembly."""

import pytest
from task_host_guest import Reject
from task_host_guest.testing import run

from app import summary


def test_numeric_columns_are_summarised():
    done = run(summary, inputs={"0_input/a.csv": "name,size\na,1\nb,\nc,4\n"})
    columns = done.json("summary.json")["0_input/a.csv"]
    assert columns == {"size": {"count": 2, "min": 1, "max": 4, "mean": 2.5}}


def test_a_short_file_is_rejected():
    with pytest.raises(Reject, match="input a.csv has 1 rows; min_rows is 2"):
        run(summary, inputs={"a.csv": "size\n1\n"}, payload={"min_rows": 2})


def test_a_misspelt_parameter_is_rejected():
    with pytest.raises(Reject, match="unknown field `min_row`"):
        run(summary, payload={"min_row": 1})
