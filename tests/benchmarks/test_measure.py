"""What the benchmarks share."""

import json

import pytest
import torch

from conftest import ROOT


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import measure

    return measure


def test_peak_of_a_gpu(measure, monkeypatch):
    """What its allocator held at most, beyond what it held before, since the peak was forgotten."""
    held = {"now": 3e6, "peak": 9e6}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(peak=held["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["peak"])
    assert measure.peak_memory(lambda: held.update(peak=7e6), "cuda") == 4
    assert measure.peak_memory(lambda: None, "cuda") == 0


def test_a_comparison(measure, tmp_path, capsys):
    file = tmp_path / "result.json"
    measure.write_result({"case": "sum", "device": "cpu", "json": file}, (2.0, 10.0), (6.0, 30.0), {"difference": 0.0})
    result = json.loads(file.read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert (result["seconds"], result["reference_seconds"], result["ratio"]) == (2, 6, 3)
    assert (result["peak_memory_mb"], result["reference_peak_memory_mb"]) == (10, 30)
    assert result["case"] == "sum" and result["difference"] == 0
