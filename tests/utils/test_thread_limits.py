"""Threads and processes: as many as this process may have CPUs, and a word where they are fewer than asked for."""

import os
import subprocess
import sys

import pytest
import torch

import app
import segment_photo
import train
from catseg_hf import cli
from catseg_hf.commands import convert, export
from catseg_hf.utils import threads
from catseg_hf.utils.processes import join_processes
from catseg_training.processes import build_accelerator


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


class Reached(Exception):
    """Instead of the work that a program would begin."""


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (cli.main, ["segment", "a.png", "--output", "out"]),
        (cli.main, ["video", "a.mp4", "--output", "out.mp4"]),
        (convert.main, ["--checkpoint_path", "a.pth", "--output_dir", "out"]),
        (export.main, ["--model", "a", "--format", "onnx", "--output", "out"]),
        (train.main, ["--model_name_or_path", "a", "--dataset_name", "a", "--output_dir", "out"]),
        (app.main, []),
        (segment_photo.main, []),
    ],
    ids=["segment", "video", "convert", "export", "train", "app", "segment_photo"],
)
def test_programs_limit_their_threads(main, arguments, tmp_path, monkeypatch):
    def reach():
        raise Reached

    monkeypatch.chdir(tmp_path)
    for module in (threads, sys.modules[main.__module__], sys.modules[build_accelerator.__module__]):
        monkeypatch.setattr(module, "limit_threads", reach, raising=False)
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(Reached):
        main(*[arguments] * (main not in (app.main, segment_photo.main)))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there are no affinities here")
def test_affinity():
    """torch takes that of its start by itself, but not a later one."""
    code = (
        "import os, torch; torch.set_num_threads(2); os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); "
        "from catseg_hf.utils.threads import limit_threads; limit_threads(); print(torch.get_num_threads())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("OMP_NUM_THREADS", None)
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout == "1\n" and "1 thread: the CPU quota or affinity of this process" in result.stderr


LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "is_said"),
    [
        ({}, False),
        (LAUNCHED, False),  # one process was asked for
        (ADDRESS, False),
        ({**LAUNCHED, **ADDRESS}, True),
        ({**LAUNCHED, **ADDRESS, "RANK": "0", "WORLD_SIZE": "1"}, False),
        ({**LAUNCHED, **ADDRESS, "OMPI_COMM_WORLD_RANK": "0"}, False),
    ],
)
def test_one_process_where_several_were_asked_for(environment, is_said, monkeypatch, capsys):
    for name in (*LAUNCHED, *ADDRESS, "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with join_processes() as processes:
        assert processes.size == 1
    printed = capsys.readouterr().err
    assert printed.count("`torchrun --nproc_per_node N` in its place starts N.") == is_said
    assert bool(printed) == is_said


@pytest.mark.slow
def test_accelerate_launch(tmp_path):
    """It says nothing itself, and leaves what the process is recognised by."""
    (tmp_path / "script.py").write_text(
        "from catseg_training.processes import build_accelerator; print(build_accelerator().num_processes)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    for count, is_said in (("2", True), ("1", False)):
        command = [*launcher, "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", count]
        result = subprocess.run([*command, tmp_path / "script.py"], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip().endswith("1")
        assert ("This process works alone" in result.stderr) == is_said
