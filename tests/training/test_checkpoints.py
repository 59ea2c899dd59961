"""Checkpoints are there whole or not at all."""

import errno
import json
import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import nn

from catseg_hf.utils.files import replaced_together
from catseg_training.checkpoints import (
    CheckpointError,
    TrainingState,
    check_same_run,
    complete_checkpoints,
    find_checkpoint,
    remove_checkpoint,
    remove_incomplete,
    save_checkpoint,
    save_unwrapped,
)


resource = pytest.importorskip("resource")


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    save_unwrapped(accelerator)
    model = nn.Linear(100, 100)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    yield accelerator
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def state_of(step: int) -> TrainingState:
    return TrainingState(run={"seed": 1}, step=step, history=[{"step": step, "loss": 0.1 + 0.2}], positions=[[0, 3]])


def test_saved_and_found(accelerator, tmp_path):
    for step in (2, 10):
        save_checkpoint(accelerator, tmp_path, state_of(step), write_more=lambda folder: (folder / "more").touch())
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-2"]
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
    latest = find_checkpoint(tmp_path, "latest")
    assert latest == tmp_path / "checkpoint-10" and (latest / "more").exists()
    assert TrainingState.read(latest) == state_of(10)
    with pytest.raises(CheckpointError, match="later than checkpoint-2 .checkpoint-10"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-2"))
    assert find_checkpoint(tmp_path / "new", str(tmp_path / "checkpoint-2")) == tmp_path / "checkpoint-2"
    assert find_checkpoint(tmp_path / "new", "latest") is None


def test_a_step_is_saved_once(accelerator, tmp_path):
    save_checkpoint(accelerator, tmp_path, state_of(2))
    before = (tmp_path / "checkpoint-2" / "model.safetensors").stat()
    save_checkpoint(accelerator, tmp_path, state_of(2))
    assert (tmp_path / "checkpoint-2" / "model.safetensors").stat().st_ino == before.st_ino


def test_the_last_ones_are_kept(accelerator, tmp_path):
    for step in (8, 9, 10, 11):
        save_checkpoint(accelerator, tmp_path, state_of(step), total_limit=2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11"]


@pytest.mark.parametrize("limit", [None, 1])
def test_full_disk(limit, accelerator, tmp_path):
    """Files cannot grow beyond a limit, as on a full disk: the one before stays, though only one is to be kept."""
    save_checkpoint(accelerator, tmp_path, state_of(1), total_limit=limit)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(
            CheckpointError,
            match=r"Could not write .*checkpoint-2: .*large.*GB of the disk.*"
            r"last complete one is .*checkpoint-1\. Make room",
        ):
            save_checkpoint(accelerator, tmp_path, state_of(2), total_limit=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["checkpoint-1"]
    assert len(load_file(tmp_path / "checkpoint-1" / "model.safetensors")) == 2


@pytest.mark.parametrize("target", ["torch.save", "os.fsync", "os.replace", "pathlib.Path.write_text"])
def test_full_disk_at_any_file(target, accelerator, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        with pytest.raises(CheckpointError, match="No space left on device.*There is no earlier one"):
            save_checkpoint(accelerator, tmp_path, state_of(1))
    assert names(tmp_path) == []


def test_rests_of_killed_runs_are_removed(accelerator, tmp_path):
    ours = (".checkpoint-3.incomplete", ".model.incomplete")
    others = (".incomplete", ".checkpoint-3", ".cache", "checkpoint-3.incomplete", ".checkpoint-x.incomplete")
    for name in (*ours, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_incomplete(tmp_path)
    assert names(tmp_path) == sorted(others)
    remove_incomplete(tmp_path / "not there")


def test_a_checkpoint_is_not_seen_half_removed(accelerator, tmp_path, monkeypatch):
    folder = save_checkpoint(accelerator, tmp_path, state_of(1))
    monkeypatch.setattr("shutil.rmtree", lambda folder: None)  # killed there
    remove_checkpoint(folder)
    assert complete_checkpoints(tmp_path) == []
    monkeypatch.undo()
    remove_incomplete(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [None, "{", json.dumps({"global_step": 3, "log_history": []})])
def test_no_checkpoint_of_ours(content, tmp_path):
    if content is not None:
        (tmp_path / "training_state.json").write_text(content)
    with pytest.raises(CheckpointError, match="no checkpoint that this script has written.*--resume_from_checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path))


def test_same_run():
    saved = {"seed": 1, "learning_rate": 0.1, "max_train_steps": 10}
    assert check_same_run(saved, dict(saved), ()) == []
    changed = check_same_run(saved, saved | {"max_train_steps": 20}, ("max_train_steps",))
    assert changed == ["max_train_steps was 10 and is now 20"]
    with pytest.raises(CheckpointError, match="another run: seed was 1 and is now 2. A resumed run goes on"):
        check_same_run(saved, saved | {"seed": 2, "max_train_steps": 20}, ("max_train_steps",))
    with pytest.raises(CheckpointError, match="new was None and is now 3"):
        check_same_run(saved, saved | {"new": 3}, ())


def test_evaluation_of_a_step_is_recorded_once():
    state = state_of(2)
    assert not state.is_evaluated()
    state.record_evaluation({"mean_iou": 0.1, "eval_seconds": 1.0})
    state.record_evaluation({"mean_iou": 0.2, "eval_seconds": 2.0})
    assert state.is_evaluated()
    assert [entry.get("mean_iou") for entry in state.history] == [None, 0.2]
    state.step = 3
    assert not state.is_evaluated()


def test_files_are_replaced_together(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("a", "kept", "folder/old"):
        (tmp_path / name).write_text("old")
    with pytest.raises(ZeroDivisionError):
        with replaced_together(tmp_path) as folder:
            (folder / "a").write_text("new")
            raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "old"
    with replaced_together(tmp_path) as folder:
        (folder / "a").write_text("new")
        (folder / "folder").mkdir()
        (folder / "folder" / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a", "folder", "kept"] and names(tmp_path / "folder") == ["b"]
    assert (tmp_path / "a").read_text() == "new"
