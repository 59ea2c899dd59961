"""train.py to the bit: the published recipe, any division of a step over processes, and what it takes to stop it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training_recipe import targets_of, total_norm

import train
from catseg_testing.tiny_training import (
    QUICK,
    TrainingDriver,
    history,
    run_train,
    save_checkpoint,
    weights,
    write_pairs,
)
from catseg_training import start as run_setup
from conftest import FIXTURES


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def driver():
    with TrainingDriver() as driver:
        yield driver


@pytest.fixture(scope="module")
def command(data, checkpoint) -> list:
    return ["--model_name_or_path", checkpoint, "--dataset_name", data, *QUICK]


class RepeatedBatch:
    """In place of training batches: always the same one, until the process is told to end."""

    def __init__(self, batch: dict[str, torch.Tensor], count: int):
        self.batch, self.count = batch, count

    def start(self, step: int, position: None):
        pass

    def position(self):
        pass

    def __next__(self) -> dict[str, torch.Tensor]:
        self.count -= 1
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.batch


def test_golden_recipe(model, processor, golden_inputs, data, tmp_path, monkeypatch):
    """The whole script on the authors' batch, told to end after ten of 40 steps: their losses, norms and weights."""
    golden = json.loads((FIXTURES / "training.json").read_text())
    labels = load_file(FIXTURES / "training_labels.safetensors")["labels"].long()
    input_ids = golden_inputs["input_ids"]
    model.set_vocabulary([f"class {index}" for index in range(len(input_ids))], input_ids)
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    batches = RepeatedBatch({"pixel_values": golden_inputs["pixel_values"], "labels": labels}, len(golden["losses"]))
    monkeypatch.setattr(run_setup, "_batches", lambda *arguments: (batches, 1))

    options = ["--max_train_steps", golden["max_iter"], "--per_device_train_batch_size", 2, "--logging_steps", 1]
    arguments = ["--model_name_or_path", tmp_path / "start", "--dataset_name", data, "--skip_evaluation", *options]
    assert run_train(*arguments, "--output_dir", tmp_path / "out") == 143

    (folder,) = (tmp_path / "out").glob("checkpoint-*")
    assert folder.name == "checkpoint-10"
    entries = history(folder)
    assert [entry["loss"] for entry in entries] == pytest.approx(golden["losses"], rel=1e-3)
    norms = [entry["grad_norm"] for entry in entries]
    assert norms[:-1] == pytest.approx(golden["grad_norms"][:-1], rel=1e-3)
    # Adam amplifies rounding from step to step: the golden's own last norm is 1.7e-3 away from its float64 value.
    assert norms[-1] == pytest.approx(golden["grad_norms"][-1], rel=1e-2)
    assert entries[0]["learning_rate"] == golden["base_lr"]
    assert entries[0]["clip_learning_rate"] == pytest.approx(golden["base_lr"] * golden["clip_lr_multiplier"])
    trained = load_file(folder / "model.safetensors")
    for row in golden["params"]:
        targets = targets_of(row["name"])
        assert total_norm(trained[name] for name in targets) == pytest.approx(row["final_norm"], rel=1e-3), targets


def largest_difference(first: Path, second: Path) -> float:
    tensors, others = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert tensors.keys() == others.keys()
    return max(float((tensors[name] - others[name]).abs().max()) for name in tensors)


def check_divisions(start: Path, whole: Path, *others: Path):
    assert largest_difference(start, whole) > 1e-3  # something was learned
    for folder in others:
        assert largest_difference(whole, folder) < 1e-5, folder.name
        losses = [[entry["loss"] for entry in history(run) if "loss" in entry] for run in (whole, folder)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        scores = [[entry["mean_iou"] for entry in history(run) if "mean_iou" in entry] for run in (whole, folder)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-2)


TEN_STEPS = ["--max_train_steps", 10, "--checkpointing_steps", 5, "--eval_steps", "end"]


@pytest.mark.slow
@needs_fork
def test_a_step_is_the_same_however_it_is_divided(driver, command, checkpoint, tmp_path):
    """Ten steps through four epochs: a batch of two, two accumulated batches, two processes, and the last five steps
    of the two processes done by one that accumulates."""
    divisions = {
        "whole": ([2], {}),
        "accumulated": ([1, "--gradient_accumulation_steps", 2], {}),
        "processes": ([1], {"world_size": 2}),
    }
    for name, (options, processes) in divisions.items():
        arguments = [*command, *TEN_STEPS, "--per_device_train_batch_size", *options, "--output_dir", tmp_path / name]
        result = driver.run(*arguments, **processes)
        assert set(result["status"]) == {0}, result["stderr"]
    resumed = ["--resume_from_checkpoint", tmp_path / "processes" / "checkpoint-5", "--output_dir", tmp_path / "one"]
    result = driver.run(*command, *TEN_STEPS, "--per_device_train_batch_size", *divisions["accumulated"][0], *resumed)
    assert result["status"] == [0], result["stderr"]
    check_divisions(checkpoint, tmp_path / "whole", *(tmp_path / name for name in ("accumulated", "processes", "one")))


LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1]
    + ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 29513],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29514],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(launcher, command, checkpoint, tmp_path):
    """The same through `accelerate launch` and `torchrun`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    for name, start, batch_size in (("whole", [], 2), ("processes", ["-m", *LAUNCHERS[launcher]], 1)):
        options = [*TEN_STEPS, "--per_device_train_batch_size", batch_size, "--output_dir", tmp_path / name]
        arguments = [sys.executable, *start, train.__file__, *command, *options]
        result = subprocess.run(list(map(str, arguments)), env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    check_divisions(checkpoint, tmp_path / "whole", tmp_path / "processes")


@pytest.fixture(scope="module")
def uninterrupted(driver, command, tmp_path_factory) -> tuple[list, Path, dict]:
    """A run of nine steps that passes the ends of three epochs, what it wrote, and how it went."""
    arguments = [*command, "--max_train_steps", 9, "--checkpointing_steps", 2, "--checkpoints_total_limit", 2]
    arguments += ["--per_device_train_batch_size", 2, "--eval_steps", "4", "--logging_steps", 3]
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    result = driver.run(*arguments, "--output_dir", output)
    assert result["status"] == [0], result["stderr"]
    return arguments, output, result


def course(folder: Path) -> list[dict]:
    """What was logged, without what depends on the machine."""
    measured = ("images_per_second", "memory_gb", "eval_seconds")
    return [{name: entry[name] for name in entry if name not in measured} for entry in history(folder)]


@pytest.mark.slow
@needs_fork
def test_killed_while_it_writes(driver, uninterrupted, tmp_path):
    """Killed at changes of the file system all over a run, and resumed each time."""
    arguments, complete, result = uninterrupted
    output = tmp_path / "out"
    resume = [*arguments, "--output_dir", output, "--resume_from_checkpoint", "latest"]
    rests = []
    for share in (0.3, 0.45):
        killed = driver.run(*resume, killed_at=int(share * result["changes"]))
        assert killed["status"] == [-signal.SIGKILL], killed["stderr"]
        assert list(output.glob("checkpoint-*")) and not (output / "model.safetensors").exists()
        rests += output.glob(".checkpoint-*.incomplete")
    assert rests  # half-written checkpoints
    result = driver.run(*resume)
    assert result["status"] == [0], result["stderr"]
    assert weights(output) == weights(complete)
    assert course(output) == course(complete)
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in complete.iterdir())


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_ten_random_moments(num_workers, driver, command, tmp_path):
    arguments = [*command, "--max_train_steps", 300, "--checkpointing_steps", 10, "--checkpoints_total_limit", 2]
    arguments += ["--per_device_train_batch_size", 3, "--eval_steps", 100, "--dataloader_num_workers", num_workers]
    complete = driver.run(*arguments, "--output_dir", tmp_path / "complete")
    assert complete["status"] == [0], complete["stderr"]
    # From a change of the file system on, so that the eleventh run is the first to end however noisy the machine is.
    changes, seconds = complete["changes"] / 30, complete["seconds"] / 30  # of one checkpoint
    chance = random.Random(num_workers)
    resume = [*arguments, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest"]
    steps = []
    for _ in range(10):
        killed_at, killed_after = 1 + int(changes * chance.uniform(0, 2)), seconds * chance.uniform(0, 0.5)
        result = driver.run(*resume, killed_at=killed_at, killed_after=killed_after)
        assert result["status"] == [-signal.SIGKILL], result["stderr"]
        complete_steps = [int(path.name.split("-")[1]) for path in (tmp_path / "out").glob("checkpoint-*")]
        steps.append(max(complete_steps, default=0))
    assert len(set(steps)) > 4  # it got on in between
    result = driver.run(*resume)
    assert result["status"] == [0], result["stderr"]
    assert weights(tmp_path / "out") == weights(tmp_path / "complete")
    assert course(tmp_path / "out") == course(tmp_path / "complete")


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("world_size, num_workers", [(1, 2), (2, 1)])
def test_terminated_with_its_workers(world_size, num_workers, driver, command, tmp_path):
    """SIGTERM to every process of a run, as a scheduler sends it: one checkpoint, and the same weights in the end."""
    arguments = [*command, "--max_train_steps", 200, "--per_device_train_batch_size", 2, "--skip_evaluation"]
    arguments += ["--dataloader_num_workers", num_workers, "--checkpointing_steps", 20, "--checkpoints_total_limit", 1]
    complete = driver.run(*arguments, "--output_dir", tmp_path / "complete", world_size=world_size)
    assert set(complete["status"]) == {0}, complete["stderr"]
    resume = [*arguments, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest"]
    killed_at, killed_after = int(0.4 * complete["changes"]), complete["seconds"] / 40
    result = driver.run(
        *resume, world_size=world_size, killed_at=killed_at, killed_after=killed_after, terminated=True
    )
    assert set(result["status"]) == {143}, result["stderr"]
    (saved,) = (tmp_path / "out").glob("checkpoint-*")
    assert 0 < int(saved.name.split("-")[1]) < 200
    result = driver.run(*resume, world_size=world_size)
    assert set(result["status"]) == {0}, result["stderr"]
    assert weights(tmp_path / "out") == weights(tmp_path / "complete")


@pytest.mark.slow
@needs_fork
def test_stream_resumed(driver, command, data, tmp_path):
    """A streamed dataset continues inside a pass, too."""
    shutil.copytree(data, tmp_path / "data")
    arguments = [*command, "--dataset_name", tmp_path / "data", "--streaming", "--max_train_steps", 9]
    arguments += ["--per_device_train_batch_size", 2, "--checkpointing_steps", 2, "--dataloader_num_workers", 1]
    complete = driver.run(*arguments, "--output_dir", tmp_path / "complete")
    assert complete["status"] == [0], complete["stderr"]
    resume = [*arguments, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest"]
    assert driver.run(*resume, killed_at=int(0.4 * complete["changes"]))["status"] == [-signal.SIGKILL]
    assert list((tmp_path / "out").glob("checkpoint-*"))
    result = driver.run(*resume)
    assert result["status"] == [0], result["stderr"]
    assert weights(tmp_path / "out") == weights(tmp_path / "complete")
