"""What a run keeps to continue from: folders `checkpoint-STEP`, complete whenever they are there under that name.

They are filled under another name, synchronised with the disk and renamed, so that a process that is killed at any
moment leaves the last complete one behind.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from catseg_hf.errors import UserError, first_line
from catseg_hf.utils.files import aside_of, replaced_file, synchronise, synchronise_all


STATE_FILE = "training_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# What a killed run may leave: a half-written or half-removed checkpoint, or model.
INCOMPLETE = re.compile(r"\.(checkpoint-\d+|model)\.incomplete")


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or used here."""


@dataclass
class TrainingState:
    """
    What continues a run, beside the tensors.

    Attributes:
        run (`dict`): What makes it this run and no other, see [`check_same_run`].
        step (`int`): Optimizer steps done.
        train_seconds (`float`): Time that they took.
        history (`list[dict]`): What was logged, in order.
        recent_losses (`list[float]`): Losses of the steps since the last log.
        positions (`list`): Of every process, where a streamed dataset was.
        run_id (`str`): What experiment trackers know the run by.
    """

    run: dict[str, Any]
    step: int = 0
    train_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    recent_losses: list[float] = field(default_factory=list)
    positions: list[list[int] | None] = field(default_factory=list)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)

    def is_evaluated(self) -> bool:
        """Whether the model of this step has been evaluated."""
        return any(map(self._is_evaluation, self.history))

    def record_evaluation(self, values: Mapping[str, float]):
        """Adds what the evaluation of this step gave to the history, in place of an earlier one."""
        self.history = [entry for entry in self.history if not self._is_evaluation(entry)]
        self.history.append({"step": self.step, **values})

    def _is_evaluation(self, entry: Mapping[str, float]) -> bool:
        return entry["step"] == self.step and "eval_seconds" in entry

    def write(self, folder: Path):
        """Replaces the file in `folder` whole."""
        with replaced_file(folder / STATE_FILE) as path:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "TrainingState":
        """
        Raises:
            CheckpointError: If the folder holds no checkpoint of this script.
        """
        try:
            return cls(**json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder} is no checkpoint that this script has written (its {STATE_FILE}: {error}): name a folder "
                "checkpoint-STEP of a run, or `latest` (--resume_from_checkpoint)."
            ) from None


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints in a folder, in the order of their steps."""
    if not output_dir.is_dir():
        return []
    return sorted(filter(_is_checkpoint, output_dir.iterdir()), key=_step)


def remove_incomplete(output_dir: Path):
    """Removes what runs that were killed here have left half-written; nothing else."""
    for path in output_dir.iterdir() if output_dir.is_dir() else ():
        if INCOMPLETE.fullmatch(path.name):
            shutil.rmtree(path)


def remove_checkpoint(folder: Path):
    """Removes a checkpoint, which cannot be seen half-removed."""
    aside = aside_of(folder)
    os.replace(folder, aside)
    shutil.rmtree(aside)


def find_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """
    The checkpoint to resume from.

    Args:
        output_dir (`Path`): The run's folder.
        wanted (`str`): "latest", or a checkpoint's folder.

    Returns:
        `Path`, or `None` if there is no latest one.

    Raises:
        CheckpointError: If there is no such folder, or `output_dir` has later checkpoints, which the resumed run would
            meet on its way.
    """
    complete = complete_checkpoints(output_dir)
    if wanted == "latest":
        return complete[-1] if complete else None
    folder = Path(wanted).expanduser().resolve()
    step = TrainingState.read(folder).step
    if later := [path.name for path in complete if _step(path) > step]:
        raise CheckpointError(
            f"{output_dir} has checkpoints later than {folder.name} ({', '.join(later)}): resume from `latest`, or "
            "give another --output_dir to go on from this one."
        )
    return folder


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], may_change: tuple[str, ...]) -> list[str]:
    """
    Compares what makes up two runs.

    Args:
        saved (`Mapping[str, Any]`): Of the checkpoint.
        current (`Mapping[str, Any]`): Of the run that wants to continue it.
        may_change (`tuple[str, ...]`): What is allowed to differ.

    Returns:
        `list[str]`: A sentence for each allowed difference.

    Raises:
        CheckpointError: If anything else differs.
    """
    changes = {
        name: f"{name} was {_brief(saved.get(name))} and is now {_brief(current.get(name))}"
        for name in (*saved, *(name for name in current if name not in saved))
        if saved.get(name) != current.get(name)
    }
    if refused := [change for name, change in changes.items() if name not in may_change]:
        raise CheckpointError(
            f"The checkpoint belongs to another run: {'; '.join(refused)}. A resumed run goes on as it began: give "
            "the same again, or begin a new run in another --output_dir (--model_name_or_path with the checkpoint "
            "begins with its weights)."
        )
    return list(changes.values())


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    state: TrainingState,
    total_limit: int | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> Path:
    """
    Writes `checkpoint-STEP` unless it is there; all processes call this together. Older ones than the last
    `total_limit` are removed afterwards.

    Args:
        accelerator (`Accelerator`): With everything prepared that makes up the run.
        output_dir (`Path`): The run's folder, shared by all machines.
        state (`TrainingState`): What to write beside the tensors.
        total_limit (`int`, *optional*): How many checkpoints to keep.
        write_more (`Callable[[Path], None]`, *optional*): Writes other files into the folder it is given.

    Raises:
        CheckpointError: If it cannot be written, because the disk is full say. What was complete before stays.
    """
    folder = output_dir / f"checkpoint-{state.step}"
    if folder.exists():
        return folder
    aside = aside_of(folder)
    try:
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(aside)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            state.write(aside)
            if write_more is not None:
                write_more(aside)
            _move_into_place(aside, folder)
    except (OSError, RuntimeError, SafetensorError, UserError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        complete = complete_checkpoints(output_dir)
        last = f"The last complete one is {complete[-1]}" if complete else "There is no earlier one"
        raise CheckpointError(
            f"Could not write {folder}: {first_line(error)} ({shutil.disk_usage(output_dir).free / 1e9:.1f} GB of the "
            f"disk are free). {last}. Make room (--checkpoints_total_limit keeps fewer) and resume with "
            "--resume_from_checkpoint latest."
        ) from error
    if accelerator.is_main_process and total_limit is not None:
        for old in complete_checkpoints(output_dir)[:-total_limit]:
            remove_checkpoint(old)
    accelerator.wait_for_everyone()
    return folder


def _is_checkpoint(path: Path) -> bool:
    return CHECKPOINT.fullmatch(path.name) is not None and path.is_dir()


def _step(folder: Path) -> int:
    return int(CHECKPOINT.fullmatch(folder.name)[1])


def _move_into_place(aside: Path, folder: Path):
    synchronise_all(aside)
    os.replace(aside, folder)
    synchronise(folder.parent)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def save_unwrapped(accelerator: Accelerator):
    """Lets checkpoints name the weights as the model does, not as the wrapper for several processes, so that any
    number of processes can read them and they load as a model."""

    def before_save(models: list[nn.Module], weights: list[dict[str, torch.Tensor]], output_dir: str):
        # FSDP writes the weights itself and leaves none here.
        weights[:] = [accelerator.get_state_dict(model) for model, _ in zip(models, weights, strict=False)]

    def before_load(models: list[nn.Module], input_dir: str):
        models[:] = [accelerator.unwrap_model(model) for model in models]

    accelerator.register_save_state_pre_hook(before_save)
    accelerator.register_load_state_pre_hook(before_load)
