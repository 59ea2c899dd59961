"""The committed notebook: executed from top to bottom, with its outputs. `make tour` executes it again."""

import json
from pathlib import Path

import pytest


NOTEBOOK = Path(__file__).parent.parent / "demo" / "tour.ipynb"


@pytest.fixture(scope="module")
def code_cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_every_cell_was_executed_in_order(code_cells):
    assert [cell["execution_count"] for cell in code_cells] == list(range(1, len(code_cells) + 1))


def test_outputs(code_cells):
    outputs = [output for cell in code_cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 7
    assert NOTEBOOK.stat().st_size < 1_500_000
    assert "site-packages" not in NOTEBOOK.read_text()  # neither warnings nor folders of the machine that executed it
