"""Workers that prepare images: started in every way, and none of their ends leaves the others waiting."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import DataLoader, Dataset, get_worker_info

import evaluate_benchmarks
from catseg_hf.errors import UserError
from catseg_testing.tiny_training import CLASSES, QUICK, history, run_train, save_checkpoint, weights, write_pairs
from catseg_testing.workers import no_worker_is_left
from catseg_training import workers
from catseg_training.benchmarks import evaluation
from catseg_training.benchmarks.images import BenchmarkImages
from catseg_training.data.batches import StepSampler
from catseg_training.data.crops import TrainingCrops
from catseg_training.data.examples import EvaluationImages
from catseg_training.run import Run
from catseg_training.workers import LoadedBatches, explained_ends_of_workers, open_loader
from conftest import ALL_START_METHODS


needs_fork = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="only workers that are forked are patched with this process"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(autouse=True)
def seldom_waiting(monkeypatch):
    """torch looks every five seconds whether workers have ended."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.fixture
def train(data, checkpoint):
    """train.py with two workers, on two steps and an evaluation unless options say otherwise; its exit status."""
    options = [*QUICK, "--dataloader_num_workers", 2, "--max_train_steps", 2, "--per_device_train_batch_size", 2]
    command = ["--model_name_or_path", checkpoint, "--dataset_name", data, *options, "--eval_steps", "end"]
    return lambda *arguments: run_train(*command, *arguments)


@pytest.fixture(scope="module")
def complete(data, checkpoint, tmp_path_factory) -> Path:
    """What two steps give in one process, without evaluation."""
    folder = tmp_path_factory.mktemp("complete")
    options = [*QUICK, "--max_train_steps", 2, "--per_device_train_batch_size", 2, "--skip_evaluation"]
    assert run_train("--model_name_or_path", checkpoint, "--dataset_name", data, *options, "--output_dir", folder) == 0
    return folder


@pytest.fixture
def evaluate(data, checkpoint, tmp_path):
    """evaluate_benchmarks.py with two workers on the validation images; its exit status."""
    description = {"name": "own", "vocabulary": CLASSES, "images": "images/validation", "labels": "labels/validation"}
    description |= {"ignore_index": 255, "label_map": None, "image_suffix": ".png", "label_suffix": ".png"}
    (tmp_path / "own.json").write_text(json.dumps(description))
    command = ["--data_root", data, "--benchmarks", tmp_path / "own.json", "--dataloader_num_workers", 2]

    def run(*arguments: object) -> int:
        try:
            return evaluate_benchmarks.main([str(argument) for argument in (*command, *arguments)])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()

    return run


@pytest.mark.parametrize("start_method", ALL_START_METHODS, indirect=True)
def test_every_way_to_start_them(start_method, train, evaluate, checkpoint, tmp_path, monkeypatch):
    """Training, its evaluation, and that of a model and of predictions give what one process alone gives."""
    monkeypatch.setattr(evaluation, "NUM_DRAWN", 0)  # which takes longer than everything else
    monkeypatch.setattr(evaluate_benchmarks, "write_benchmark_report", lambda folder, result: None)
    alone = ["--dataloader_num_workers", 0, "--output_dir"]
    assert train("--output_dir", tmp_path / "train") == train(*alone, tmp_path / "alone") == 0
    assert weights(tmp_path / "train") == weights(tmp_path / "alone")
    predictions = tmp_path / "predictions"
    given = ["--model", checkpoint, "--predictions_dir", predictions]
    assert evaluate(*given, *alone, tmp_path / "one process") == 0
    assert evaluate("--model", checkpoint, "--output_dir", tmp_path / "model") == 0
    assert evaluate("--from_predictions", predictions, "--output_dir", tmp_path / "files") == 0
    scores = [
        json.loads((tmp_path / name / "results.json").read_text())["own"]["per_category_iou"]
        for name in ("one process", "model", "files")
    ]
    assert scores[0] == scores[1] == scores[2]


FULL = RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


@needs_fork
@pytest.mark.parametrize("script", ["train", "eval_only", "model", "predictions"])
def test_what_cannot_be_handed_over(script, train, evaluate, checkpoint, data, tmp_path, capsys, monkeypatch):
    """As with 64 MB of shared memory, which containers have by default: no process waits for it."""

    def refuse(tensor):
        raise FULL

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    if script in ("train", "eval_only"):
        status = train(*["--eval_only"] * (script == "eval_only"), "--output_dir", tmp_path / "out")
    elif script == "model":
        status = evaluate("--model", checkpoint, "--output_dir", tmp_path / "out")
    else:
        shutil.copytree(data / "labels" / "validation", tmp_path / "predictions" / "own")
        status = evaluate("--from_predictions", tmp_path / "predictions", "--output_dir", tmp_path / "out")
    printed = capsys.readouterr().err.partition("error: ")[2]
    assert status == 1
    assert str(FULL) in printed and "Traceback" not in printed
    assert "--dataloader_num_workers 0" in printed and "docker run --shm-size" in printed


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=["full", "files", "memory"],
)
def test_what_has_run_out(error, monkeypatch):
    monkeypatch.setattr(workers, "get_worker_info", lambda: "a worker")
    monkeypatch.setattr(torch.Tensor, "share_memory_", Mock(side_effect=error))
    with pytest.raises(
        UserError, match=rf"(?s)not hand them over: {re.escape(str(error))}.*--dataloader_num_workers 0"
    ):
        open_loader([], 0, list).collate_fn([torch.zeros(1)])


class Large(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(2**20)


@pytest.mark.slow
def test_a_small_shared_memory(tmp_path):
    """Of one megabyte, where this process may mount one for itself."""
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm && "
    unshared = ["unshare", "-m", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshared, mount + "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted for one process here")
    load = "from test_workers import *; list(LoadedBatches(open_loader(Large(), 2)))"
    code = f"import sys; sys.path[:] = sys.argv[1:]; {load}"
    command = [*unshared, f'{mount} exec "$@"', "sh", sys.executable, "-c", code, *sys.path, Path(__file__).parent]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 1
    assert "UserError: A process that prepares images could not hand them over: unable to allocate" in result.stderr
    assert "of 1 MB are free" in result.stderr and "--dataloader_num_workers 0" in result.stderr


def test_batches_are_shared_in_workers_only(monkeypatch):
    examples = [torch.zeros(2), {"a": [torch.ones(3), "name"]}]
    collate = open_loader([], 0, list).collate_fn
    assert not collate(examples)[0].is_shared()
    monkeypatch.setattr(workers, "get_worker_info", lambda: "a worker")
    batch = collate(examples)
    assert batch[0].is_shared() and batch[1]["a"][0].is_shared() and batch[1]["a"][1] == "name"


def test_workers_that_cannot_be_started(monkeypatch):
    def refuse(loader):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(DataLoader, "__iter__", refuse)
    with pytest.raises(UserError, match="could not be started: .*Cannot allocate memory.*--dataloader_num_workers 0"):
        LoadedBatches(open_loader([1], 1))
    with pytest.raises(OSError, match="Cannot allocate memory"):
        LoadedBatches(open_loader([1], 0))


@needs_fork
def test_killed_workers(train, tmp_path, capsys, monkeypatch):
    """As by the kernel when memory runs out."""
    monkeypatch.setattr(TrainingCrops, "__getitem__", lambda crops, item: os.kill(os.getpid(), signal.SIGKILL))
    assert train("--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err.partition("error: ")[2]
    assert "A process that prepares images has ended" in error and "Traceback" not in error
    assert "--dataloader_num_workers 0" in error


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="^another$"), explained_ends_of_workers():
        raise RuntimeError("another")


def hang(monkeypatch, dataset: type, hangs: Callable[[object], bool], after: Path | None = None):
    """Has a worker that is asked for an image of which `hangs` is true tell the run to stop, once there is a file
    `after` perhaps, and then hang, as if its disk did not answer."""
    original = dataset.__getitem__

    def getitem(images, asked):
        if get_worker_info() is not None and hangs(asked):
            while after is not None and not after.exists():
                time.sleep(0.01)
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(600)
        return original(images, asked)

    monkeypatch.setattr(dataset, "__getitem__", getitem)


def touch_at(monkeypatch, owner: object, name: str, path: Path):
    """Has a function touch a file before it does what it does."""
    original = getattr(owner, name)

    def touching(*arguments, **options):
        path.touch()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, touching)


@needs_fork
@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_told_to_stop_while_it_waits_to_train(step, train, complete, tmp_path, monkeypatch):
    """There is a checkpoint, from which the run goes on to the same weights."""
    options = ["--skip_evaluation", "--resume_from_checkpoint", "latest", "--output_dir", tmp_path / "out"]
    image = StepSampler(5, seed=42, batch_size=2).batch(step, accumulated=0, rank=0)[0]
    with monkeypatch.context() as patch:
        touch_at(patch, Run, "log", tmp_path / "a step is done")
        hang(patch, TrainingCrops, image.__eq__, after=tmp_path / "a step is done" if step else None)
        assert train(*options) == 143
    assert no_worker_is_left()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == [f"checkpoint-{step}"]
    assert train(*options) == 0
    assert weights(tmp_path / "out") == weights(complete)
    assert [entry["step"] for entry in history(tmp_path / "out")] == [1, 2]


@pytest.mark.slow
@needs_fork
def test_told_to_stop_while_it_waits_to_evaluate(train, tmp_path, monkeypatch):
    options = ["--eval_steps", 1, "--resume_from_checkpoint", "latest", "--output_dir", tmp_path / "out"]
    with monkeypatch.context() as patch:
        hang(patch, EvaluationImages, (1).__eq__)
        assert train(*options) == 143
        assert train("--eval_only", "--output_dir", tmp_path / "evaluated") == 143
    assert no_worker_is_left()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
    assert train(*options) == 0
    assert [entry["step"] for entry in history(tmp_path / "out") if "mean_iou" in entry] == [1, 2]


@needs_fork
@pytest.mark.parametrize("draws", [False, True])
def test_told_to_stop_while_it_waits_for_a_benchmark(draws, evaluate, checkpoint, tmp_path, monkeypatch):
    """For the images that are counted, or for those that are drawn in the end. What was counted stays."""
    command = ["--model", checkpoint, "--resume", "--output_dir", tmp_path / "out"]
    counted = tmp_path / "all is counted"
    with monkeypatch.context() as patch:
        touch_at(patch, evaluation, "_by_score", counted)
        hang(patch, BenchmarkImages, (lambda index: counted.exists()) if draws else (1).__eq__)
        assert evaluate(*command) == 143
    assert no_worker_is_left() and not (tmp_path / "out" / "results.json").exists()
    assert evaluate(*command) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["own"]["num_images"] == 3
