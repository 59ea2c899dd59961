"""What experiment trackers are shown of a run that was killed and goes on."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

import train
from catseg_testing.tiny_training import QUICK, history, run_train, save_checkpoint, write_pairs
from catseg_training.checkpoints import TrainingState
from catseg_training.report import trackers
from catseg_training.run import Run


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list:
    """Five steps, with checkpoints and evaluations at 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("data")
    start = ["--model_name_or_path", save_checkpoint(folder / "start"), "--dataset_name", write_pairs(folder / "data")]
    options = ["--max_train_steps", 5, "--checkpointing_steps", 2, "--no-sliding_window", "--report_to", "tensorboard"]
    return [*start, *QUICK, *options, "--per_device_train_batch_size", 1, "--max_eval_samples", 1]


@pytest.fixture(autouse=True)
def numbered_files(monkeypatch):
    """TensorBoard reads the files of one second by their numbers in the process as text, 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def shown(output: Path) -> dict[str, list[int]]:
    """Steps by tag, as TensorBoard shows them."""
    events = EventAccumulator(str(output / "logs" / "catseg"))
    events.Reload()
    scalars, images = events.Tags()["scalars"], events.Tags()["images"]
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in scalars}
    return steps | {tag: [event.step for event in events.Images(tag)] for tag in images}


@pytest.mark.parametrize(
    ("name", "step"),
    [("next_batches", 1), ("next_batches", 3), ("save", 4), ("evaluate", 4), ("save_trained_model", 5)],
    ids=lambda value: str(value),
)
def test_each_step_is_shown_once(name, step, command, tmp_path, monkeypatch):
    """Killed before the first checkpoint, between two, before one, before its evaluation and after the last one."""
    owner = Run if hasattr(Run, name) else train
    original = getattr(owner, name)

    def killed(*arguments):
        if owner is train or arguments[0].state.step == step:
            raise KeyboardInterrupt
        return original(*arguments)

    arguments = [*command, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest"]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        assert run_train(*arguments) == 130
    monkeypatch.setattr(train, "save_trained_model", lambda *arguments: None)  # which takes longest
    assert run_train(*arguments) == 0
    entries, tags = history(tmp_path / "out" / "checkpoint-5"), shown(tmp_path / "out")
    assert tags["train/loss"] == [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 5]
    assert tags["eval/mean_iou"] == tags["eval/predictions"] == [2, 4, 5]
    assert [entry["step"] for entry in entries if "mean_iou" in entry] == [2, 4, 5]


def test_a_run_that_begins_anew_in_its_folder(command, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "save_trained_model", lambda *arguments: None)
    for steps in (4, 2):
        options = ["--skip_evaluation", "--max_train_steps", steps, "--output_dir", tmp_path, "--overwrite_output_dir"]
        assert run_train(*command, *options) == 0
    assert shown(tmp_path)["train/loss"] == [1, 2]


def test_an_evaluation_is_shown(command, tmp_path):
    for _ in range(2):
        options = ["--eval_only", "--output_dir", tmp_path / "out", "--overwrite_output_dir"]
        assert run_train(*command, *options) == 0
    assert shown(tmp_path / "out")["eval/mean_iou"] == [0]


def test_what_trackers_are_told(command, tmp_path, monkeypatch):
    """A run that goes on keeps its name, one that begins anew or branches off gets another."""
    monkeypatch.setattr(train, "save_trained_model", lambda *arguments: None)
    told = []
    monkeypatch.setattr(
        trackers.Accelerator, "init_trackers", lambda accelerator, project, config, options: told.append(options)
    )
    options = [*command, "--skip_evaluation", "--report_to", "none", "--resume_from_checkpoint"]
    for output, resume, steps in (("a", "latest", 2), ("a", "latest", 4), ("b", tmp_path / "a" / "checkpoint-2", 4)):
        arguments = [*options, resume, "--max_train_steps", steps, "--output_dir", tmp_path / output]
        assert run_train(*arguments) == 0
    assert [each["tensorboard"] for each in told] == [{"purge_step": 1}, {"purge_step": 3}, {"purge_step": 3}]
    assert {each["wandb"]["resume"] for each in told} == {"allow"}
    first, second, branch = (each["wandb"]["id"] for each in told)
    assert first == second != branch and first.isalnum()


def test_checkpoints_without_a_name(tmp_path):
    """Of an earlier release: the run gets one when it goes on."""
    state = TrainingState(run={}, step=3)
    state.write(tmp_path)
    file = tmp_path / "training_state.json"
    file.write_text(file.read_text().replace(f',\n  "run_id": "{state.run_id}"', ""))
    assert "run_id" not in file.read_text()
    assert TrainingState.read(tmp_path).run_id not in ("", state.run_id)
