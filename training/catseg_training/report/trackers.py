"""Experiment trackers, through accelerate."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.tracking import filter_trackers
from PIL import Image

from catseg_hf.errors import UserError


logger = get_logger(__name__)

PROJECT = "catseg"


def choose_trackers(report_to: str) -> list[str] | str | None:
    """
    What `Accelerator(log_with=...)` takes for `--report_to`.

    Raises:
        UserError: If the tracker is not installed.
    """
    if report_to in ("none", "all"):
        return None if report_to == "none" else "all"
    if not filter_trackers([report_to], logging_dir="."):
        raise UserError(f"--report_to {report_to} needs the package: install it (pip install {report_to}).")
    return [report_to]


def start_trackers(accelerator: Accelerator, arguments: Mapping[str, Any], run_id: str, next_step: int):
    """
    Opens the run's trackers and gives them its arguments. Those that can show a run that continues as one, with each
    step once: TensorBoard hides what was logged of later steps, Weights & Biases keeps that and takes no step again.

    Args:
        accelerator (`Accelerator`): Of the run.
        arguments (`Mapping[str, Any]`): The command line.
        run_id (`str`): The run, the same whenever it continues.
        next_step (`int`): The first step that it will log.
    """
    accelerator.init_trackers(
        PROJECT,
        # TensorBoard takes no None.
        {name: value for name, value in arguments.items() if value is not None},
        {"tensorboard": {"purge_step": next_step}, "wandb": {"id": run_id, "resume": "allow"}},
    )


def log_values(accelerator: Accelerator, values: Mapping[str, float], step: int):
    """Logs numbers to every tracker, except those that are not numbers."""
    accelerator.log({name: value for name, value in values.items() if math.isfinite(value)}, step=step)


def log_image(accelerator: Accelerator, name: str, image: Image.Image, step: int):
    """Shows an image in every tracker that can."""
    pixels = np.asarray(image)[None]
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: pixels}, step=step, dataformats="NHWC")
        elif tracker.name == "trackio":
            import trackio

            tracker.log({name: trackio.Image(pixels[0])}, step=step)
        elif hasattr(tracker, "log_images"):
            tracker.log_images({name: pixels}, step=step)
