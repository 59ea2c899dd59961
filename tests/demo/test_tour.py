"""The committed notebook: executed from top to bottom, with its outputs. `make tour` executes it again."""

import ast
import importlib
import json
import re

import pytest

from conftest import ROOT


NOTEBOOK = ROOT / "demo" / "tour.ipynb"


STEPS = [
    *("Load", "Segment", "Change the words", "Look at the probabilities", "Refine with masks"),
    *("Fine-tune for a minute on a folder", "Evaluate", "Save", "Export"),
]


@pytest.fixture(scope="module")
def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


@pytest.fixture(scope="module")
def code_cells(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_steps(cells):
    first_lines = [cell["source"][0].strip() for cell in cells if cell["cell_type"] == "markdown"]
    assert [line.removeprefix("## ") for line in first_lines if line.startswith("## ")] == STEPS


def test_what_the_cells_import_from_the_library_is_there(code_cells):
    imports = [node for cell in code_cells for node in ast.walk(ast.parse("".join(cell["source"])))]
    imports = [node for node in imports if isinstance(node, ast.ImportFrom) and node.module.startswith("catseg_hf")]
    names = [(importlib.import_module(node.module), alias.name) for node in imports for alias in node.names]
    assert {module.__name__ for module, _ in names} >= {"catseg_hf", "catseg_hf.export.runtime"}
    assert [name for module, name in names if not hasattr(module, name)] == []


def test_every_cell_was_executed_in_order(code_cells):
    assert [cell["execution_count"] for cell in code_cells] == list(range(1, len(code_cells) + 1))


def test_outputs(code_cells):
    outputs = [output for cell in code_cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 8
    assert NOTEBOOK.stat().st_size < 1_500_000
    assert "site-packages" not in NOTEBOOK.read_text()  # neither warnings nor folders of the machine that executed it


def test_the_export_segments_as_the_model_does(code_cells):
    printed = "".join(code_cells[-1]["outputs"][0]["text"])
    assert float(re.fullmatch(r"([\d.]+)% of the pixels have the pipeline's class\n", printed)[1]) > 99.9
