"""What a run leaves for its readers: results as JSON and CSV, a chart of the classes, curves and images."""

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from catseg_hf.utils.files import replaced_file
from catseg_hf.visualization import draw_segmentation
from catseg_hf.visualization.fonts import fitting_font

from .charts import class_chart, curves_chart


# Of the images in a grid, in pixels.
IMAGE_HEIGHT, MAX_IMAGE_WIDTH, GAP, FONT_SIZE = 320, 640, 12, 14


def write_results(output_dir: str | os.PathLike, results: Mapping[str, Any], class_names: Sequence[str]):
    """
    Writes `all_results.json`, and when `results` holds `per_category_iou` also `per_class_iou.csv`,
    `per_class_iou.json` and `per_class_iou.png`.

    Args:
        output_dir (`str` or `os.PathLike`): Folder, made if it is not there. Each file replaces the one before whole.
        results (`Mapping[str, Any]`): Everything that is known at the end: the metric's keys without a prefix
            (`mean_iou`, `mean_iou_present`, `mean_accuracy`, `overall_accuracy`, `per_category_iou`,
            `per_category_accuracy`) and any others (steps, seconds, loss...). Values may be numpy or torch scalars and
            arrays, paths, nested mappings and lists. NaN and infinities are written as null.
        class_names (`Sequence[str]`): Name of every class index, `num_labels` of them.

    Raises:
        ValueError: If there are not as many names as classes.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    classes = _class_rows(results, class_names) if "per_category_iou" in results else []
    write_json(output_dir / "all_results.json", results)
    if classes:
        write_json(output_dir / "per_class_iou.json", classes)
        with replaced_file(output_dir / "per_class_iou.csv") as path:
            _write_csv(path, classes)
        save_figure(class_chart(classes), output_dir / "per_class_iou.png")


def prediction_grid(
    examples: Iterable[Mapping[str, Any]], class_names: Sequence[str], ignore_index: int | None = 255
) -> Image.Image:
    """
    One image with a row for each example: input, label and perhaps prediction, and beside them the classes' names
    (or "#" and the index, see `draw_legend`) and shares of the area.

    Args:
        examples (`Iterable[Mapping[str, Any]]`): Each with `image` (`PIL.Image.Image`, or uint8 `(H, W, 3)`), `label`
            and, in all or none, `prediction` (integers `(H, W)`, numpy or torch, in the image's size), and perhaps
            `name`.
        class_names (`Sequence[str]`): Name of every class index.
        ignore_index (`int`, *optional*, defaults to 255): Of the labels. These pixels are left uncoloured.

    Returns:
        `PIL.Image.Image` in RGB.

    Raises:
        ValueError: If sizes differ or a class has no name.
    """
    rows = [_grid_row(example, class_names, ignore_index) for example in examples]
    font = ImageFont.load_default(FONT_SIZE)
    titles = ("input", "label", "prediction")[: max((len(row) for _, row in rows), default=3)]
    widths = [max((row[column].width for _, row in rows), default=120) + GAP for column in range(len(titles))]
    heights = [max(image.height for image in row) + 24 + GAP for _, row in rows]
    grid = Image.new("RGB", (sum(widths) + GAP, sum(heights) + 24 + GAP), "white")
    draw = ImageDraw.Draw(grid)
    lefts = [GAP + sum(widths[:column]) for column in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, GAP), title, fill="black", font=font)
    top = 24 + GAP
    for (caption, row), height in zip(rows, heights, strict=True):
        caption, font = _caption(caption)
        draw.text((GAP, top), caption, fill="dimgray", font=font)
        for left, image in zip(lefts, row, strict=True):
            grid.paste(image, (left, top + 24))
        top += height
    return grid


def _caption(text: str) -> tuple[str, ImageFont.FreeTypeFont]:
    """A text as it can be written, and its font."""
    font = fitting_font(text, FONT_SIZE)
    if font is None:
        return text.encode("ascii", "backslashreplace").decode(), ImageFont.load_default(FONT_SIZE)
    return text, font


def _grid_row(
    example: Mapping[str, Any], class_names: Sequence[str], ignore_index: int | None
) -> tuple[str, list[Image.Image]]:
    """Caption and images."""
    image = example["image"]
    image = (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")
    maps = {key: np.asarray(example[key]).astype(np.int64) for key in ("label", "prediction") if key in example}
    for key, ids in maps.items():
        if ids.shape != (image.height, image.width):
            raise ValueError(
                f"The {key} of shape {ids.shape} (height, width) is not of the image's size, "
                f"{(image.height, image.width)}."
            )
    counted = np.ones(maps["label"].shape, dtype=bool) if ignore_index is None else maps["label"] != ignore_index
    caption = [example["name"]] if example.get("name") is not None else []
    if "prediction" in maps:
        right = (maps["label"] == maps["prediction"])[counted]
        caption.append(
            f"{right.mean():.1%} of the labelled pixels are right" if right.size else "no pixel is labelled"
        )
    maps["label"] = np.where(counted, maps["label"], -1)

    scale = min(IMAGE_HEIGHT / image.height, MAX_IMAGE_WIDTH / image.width)
    size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    image = image.resize(size, Image.Resampling.BILINEAR)
    drawn = [draw_segmentation(image, _resize_nearest(ids, size), class_names) for ids in maps.values()]
    return ": ".join(map(str, caption)), [image, *drawn]


def _resize_nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Ids `(H, W)` in the size (width, height)."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(reversed(size), ids.shape, strict=True)
    )
    return ids[rows[:, None], columns]


def plot_curves(history: Iterable[Mapping[str, float]], path: str | os.PathLike):
    """
    Draws the run's course against the steps, one panel for each quantity that occurs.

    Args:
        history (`Iterable[Mapping[str, float]]`): What was logged, in any order: mappings with `step` and any of
            `loss`, `learning_rate`, `grad_norm`, `mean_iou`, `mean_iou_present`. Others are left out, and an entry
            need not have all.
        path (`str` or `os.PathLike`): PNG file to write. It is not written when nothing was logged.
    """
    figure = curves_chart(history)
    if figure is not None:
        save_figure(figure, Path(path))


def _class_rows(results: Mapping[str, Any], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Index, name, IoU and accuracy of every class."""
    iou = _to_floats(results["per_category_iou"])
    accuracy = _to_floats(results.get("per_category_accuracy", iou))
    if len(class_names) != len(iou):
        raise ValueError(f"There are {len(class_names)} names for {len(iou)} classes.")
    return [
        {"id": index, "name": class_names[index], "iou": iou[index], "accuracy": accuracy[index]}
        for index in range(len(iou))
    ]


def _to_floats(values: Any) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def write_json(path: Path, value: Any):
    """Writes nested mappings and lists, numpy and torch values among them. NaN and infinities become null."""
    text = json.dumps(_to_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    with replaced_file(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return _to_json(value.tolist())
    if isinstance(value, (list, tuple, set)):
        return [_to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _write_csv(path: Path, classes: Sequence[Mapping[str, Any]]):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(classes[0]))
        writer.writeheader()
        for row in classes:
            writer.writerow({name: "" if value != value else value for name, value in row.items()})


def save_figure(figure: Figure, path: Path):
    """Writes a figure as a PNG file."""
    with replaced_file(path) as aside:
        figure.savefig(aside, dpi=120, format="png")
