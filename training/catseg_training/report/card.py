"""The card (README.md) of a trained model: data, hyperparameters, curves and results, with metadata for the Hub."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from catseg_hf import CATSegConfig
from catseg_hf.hub.model_cards import USAGE, card_metadata, write_card
from catseg_hf.loading.names import is_hub_id
from catseg_hf.utils.files import replaced_file

from ..lora import ADAPTER


# The files of `results.py` that are shown, and what is said of them.
IMAGES = {
    "training_curves.png": "Loss, gradient norm, learning rate and mean IoU against the steps",
    "per_class_iou.png": "IoU of every class",
    "predictions.png": "Images with their labels and predictions",
}
# The metric's keys in the order of the table, their names in the metadata's words and in the table's.
METRICS = {
    "mean_iou_present": ("Mean IoU (classes in the labels)", "mIoU of the classes that occur in the labels"),
    "mean_iou": ("Mean IoU", "mIoU of the classes that occur in labels or predictions"),
    "mean_accuracy": ("Mean accuracy", "mean accuracy of the classes that occur in the labels"),
    "overall_accuracy": ("Overall accuracy", "share of the pixels that are right"),
}

INTRODUCTION = """\
{origin}

- images, or windows of them, at {image_size} x {image_size} pixels
- {num_classes} classes of its own ({first_classes}), and any others that you name"""

LIMITS = """\
- It names regions by what their words mean to CLIP, and carries the biases of CLIP's images and texts and of its own
  training data. Every pixel gets one of the given classes, also where none of them is right.
- The results hold for the data above. Other kinds of images were not looked at."""

LICENCE = "MIT, see LICENSE; the training data may set conditions of its own. "

ADAPTER_USAGE = """

The update of CLIP is there as an adapter for [peft](https://github.com/huggingface/peft) too, with the aggregator and
the decoder in full: `PeftModel.from_pretrained(base_model, "{name}", subfolder="{folder}")`, where `base_model` is
{base}."""


@dataclass
class TrainingData:
    """
    What a model was trained and evaluated on.

    Attributes:
        name (`str`): As it was given: a repository on the Hub or a folder (of which only the last part is published).
        config_name (`str`, *optional*): Configuration of the Hub's dataset.
        train_split, eval_split (`str`, *optional*): Splits; `None` if there was no training or no evaluation.
        num_train_samples, num_eval_samples (`int`, *optional*): How many images; `None` if not known (streaming).
        on_hub (`bool`): Whether `name` is a repository on the Hub.
    """

    name: str
    config_name: str | None = None
    train_split: str | None = None
    eval_split: str | None = None
    num_train_samples: int | None = None
    num_eval_samples: int | None = None
    on_hub: bool = False


def write_training_card(
    output_dir: str | os.PathLike,
    *,
    name: str,
    config: CATSegConfig,
    data: TrainingData,
    hyperparameters: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    has_adapter: bool = False,
):
    """
    Writes README.md. The images of `results.py` that lie in `output_dir` are shown in it: call this after
    `write_results` and `plot_curves(history, output_dir / "training_curves.png")` and, for examples,
    `prediction_grid(...).save(output_dir / "predictions.png")`.

    Args:
        output_dir (`str` or `os.PathLike`): The folder that the model is saved in.
        name (`str`): What its users load: a repository on the Hub (`--hub_model_id`) or a folder's name.
        config (`CATSegConfig`): The model's configuration.
        data (`TrainingData`): What it was trained and evaluated on.
        hyperparameters (`Mapping[str, Any]`): Names and values for the card's table, in its order.
        results (`Mapping[str, Any]`, *optional*): The metric's keys without a prefix, and perhaps `sliding_window`
            (bool); without it the card says that nothing was evaluated.
        base_model (`str`, *optional*): What training started from, as it was given: a checkpoint or a CLIP, a
            repository on the Hub or a folder (of which only the last part is published).
        has_adapter (`bool`): Whether the folder has an adapter for peft too.
    """
    output_dir = Path(output_dir)
    introduction = INTRODUCTION.format(
        origin=f"This model was trained from {_origin(base_model)} on {_describe(data)}.",
        image_size=config.image_size,
        num_classes=config.num_labels,
        first_classes=", ".join([*config.label_names[:3], "..."]),
    )
    sections = {
        "How to use it": _usage(name, base_model, has_adapter),
        "Training": _training(output_dir, data, hyperparameters),
        "Results": _results(output_dir, data, results),
        "Limits": LIMITS,
    }
    metadata = _metadata(name, data, results or {}, base_model)
    card = write_card(metadata, name.split("/")[-1], introduction, sections, LICENCE)
    with replaced_file(output_dir / "README.md") as path:
        path.write_text(card, encoding="utf-8")


def _metadata(name: str, data: TrainingData, results: Mapping[str, Any], base_model: str | None) -> ModelCardData:
    dataset = data.name if data.on_hub else _last_part(data.name)
    eval_results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=dataset,
            dataset_name=_last_part(data.name),
            dataset_config=data.config_name,
            dataset_split=data.eval_split,
            metric_type=key,
            metric_name=title,
            metric_value=float(results[key]),
        )
        for key, (title, _) in METRICS.items()
        # A mean of nothing is no result.
        if key in results and math.isfinite(results[key])
    ]
    return card_metadata(
        base_model=base_model if is_on_hub(base_model) else None,
        datasets=[data.name] if data.on_hub else None,
        metrics=["mean_iou"] if eval_results else None,
        model_name=name.split("/")[-1] if eval_results else None,
        eval_results=eval_results or None,
    )


def is_on_hub(model: str | None) -> bool:
    """Whether a name is that of a repository on the Hub rather than of a folder."""
    if model is None or Path(model).expanduser().exists():
        return False
    return is_hub_id(model)


def _last_part(name: str) -> str:
    return Path(name.rstrip("/\\")).name or name


def _origin(base_model: str | None) -> str:
    if base_model is None:
        return "random weights"
    if is_on_hub(base_model):
        return f"[{base_model}](https://huggingface.co/{base_model})"
    return f"the checkpoint `{_last_part(base_model)}`"


def _describe(data: TrainingData) -> str:
    name = f"`{_last_part(data.name)}`"
    if data.on_hub:
        name = f"[{data.name}](https://huggingface.co/datasets/{data.name})"
    return f"{name} ({data.config_name})" if data.config_name else name


def _training(output_dir: Path, data: TrainingData, hyperparameters: Mapping[str, Any]) -> str:
    images = "" if data.num_train_samples is None else f", {data.num_train_samples:,} images"
    rows = [_row(name, _format(value)) for name, value in hyperparameters.items()]
    blocks = [
        f"On the split `{data.train_split}` of {_describe(data)}{images}, as published: random crops and horizontal "
        "flips, and binary cross-entropy of every pixel and class.",
        "\n".join(["| | |", "|---|---|", *rows]),
        *_images(output_dir, "training_curves.png"),
    ]
    return "\n\n".join(blocks)


def _usage(name: str, base_model: str | None, has_adapter: bool) -> str:
    usage = USAGE.format(name=name)
    return usage + ADAPTER_USAGE.format(name=name, folder=ADAPTER, base=_origin(base_model)) if has_adapter else usage


def _results(output_dir: Path, data: TrainingData, results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "It has not been evaluated."
    images = "" if data.num_eval_samples is None else f", {data.num_eval_samples:,} images"
    how = ""
    if "sliding_window" in results:
        how = f", {'with' if results['sliding_window'] else 'without'} the sliding window"
    rows = [_row(text, _percent(results[key])) for key, (_, text) in METRICS.items() if key in results]
    blocks = [
        f"On the split `{data.eval_split}` of {_describe(data)}{images}{how}, at the labels' own sizes. Pixels that "
        "the labels ignore do not count.",
        "\n".join([_row("", "%"), "|---|---|", *rows]),
        *_images(output_dir, "per_class_iou.png", "predictions.png"),
    ]
    if (output_dir / "per_class_iou.csv").exists():
        blocks.append("`per_class_iou.csv` and `per_class_iou.json` have every class.")
    return "\n\n".join(blocks)


def _images(output_dir: Path, *files: str) -> list[str]:
    return [f"![{IMAGES[file]}]({file})" for file in files if (output_dir / file).exists()]


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _percent(value: float) -> str:
    return f"{value:.1%}".removesuffix("%") if math.isfinite(value) else "none"


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
