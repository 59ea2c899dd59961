"""Threads and processes: as many as this process may have CPUs, and a word where they are fewer than asked for."""

import pytest
import torch

from catseg_hf.utils import threads


@pytest.fixture
def torch_threads(monkeypatch) -> list[int]:
    """The number of torch's threads, of which there are 8 at first, as a list that grows with each change."""
    numbers = [8]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    return numbers


@pytest.mark.parametrize(
    ("num_cpus", "expected", "printed"),
    [
        (1, [8, 1], "1 thread: the CPU quota or affinity of this process (OMP_NUM_THREADS gives another number).\n"),
        (3, [8, 3], "3 threads: the CPU quota or affinity of this process (OMP_NUM_THREADS gives another number).\n"),
        (8, [8], ""),
        (128, [8], ""),
    ],
)
def test_no_more_threads_than_cpus(num_cpus, expected, printed, torch_threads, monkeypatch, capsys):
    """And they are spoken of once."""
    monkeypatch.setattr(threads, "cpu_count", lambda: num_cpus)
    for _ in range(2):
        threads.limit_threads()
    assert torch_threads == expected
    assert capsys.readouterr().err == printed


def test_a_number_that_was_asked_for(torch_threads, monkeypatch, capsys):
    monkeypatch.setattr(threads, "cpu_count", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    threads.limit_threads()
    assert torch_threads == [8] and capsys.readouterr().err == ""


def test_one_process_speaks_for_all(torch_threads, monkeypatch, capsys):
    monkeypatch.setattr(threads, "cpu_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    threads.limit_threads()
    assert torch_threads == [8, 1] and capsys.readouterr().err == ""
