"""Figures of a run: a bar for every class, and the course of its loss and scores."""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from catseg_hf.visualization.figure import font_families, writable_names


# Of the chart of classes, in inches. Its text is 7 points high.
BAR_HEIGHT, BARS_WIDTH, MARGIN = 0.155, 2.0, 0.2
CHARACTER_WIDTH = 0.056
MIN_CHART_WIDTH = 6.5
MAX_BARS_IN_COLUMN = 90
MAX_ABSENT_LINES = 12

# Panels of the curves: title, axis, whether they are noisy, and names in the history with what they are called.
CURVES = (
    ("Loss", "linear", True, {"loss": "loss"}),
    ("Gradient norm before clipping", "log", True, {"grad_norm": "norm"}),
    ("Learning rate outside CLIP", "linear", False, {"learning_rate": "rate"}),
    ("Mean IoU", "linear", False, {"mean_iou_present": "classes in labels", "mean_iou": "and those only predicted"}),
)
SMOOTHED_FROM = 100  # Noisy curves of so many points and more are drawn with their moving average.


def class_chart(classes: Sequence[Mapping[str, Any]]) -> Figure:
    """
    A bar for the IoU of every class, the largest first, in several columns if there are many classes. Those that occur
    in no label have no bar: they are listed below. Names that no font here can write are "#" and the class id.

    Args:
        classes (`Sequence[Mapping[str, Any]]`): In the order of their ids, each with `name`, `iou` and `accuracy`. The
            accuracy of a class that occurs in no label is NaN.
    """
    names = writable_names({index: row["name"] for index, row in enumerate(classes)})
    families = font_families(names.values())
    classes = [{**row, "name": names[index]} for index, row in enumerate(classes)]
    shown = sorted((row for row in classes if not math.isnan(row["accuracy"])), key=lambda row: -row["iou"])
    absent = [row["name"] for row in classes if math.isnan(row["accuracy"])]
    num_columns = max(1, -(-len(shown) // MAX_BARS_IN_COLUMN))
    num_bars = max(1, -(-len(shown) // num_columns))
    names_width = MARGIN + CHARACTER_WIDTH * max((_num_cells(row["name"]) for row in shown), default=0)
    width = max(num_columns * (names_width + BARS_WIDTH) + MARGIN, MIN_CHART_WIDTH)
    lines = _absent_lines(absent, characters=int((width - 2 * MARGIN) / CHARACTER_WIDTH))
    head, foot = 0.75, 0.45 + BAR_HEIGHT * len(lines)
    height = head + BAR_HEIGHT * (num_bars + 1) + foot
    figure = Figure(figsize=(width, height))
    text = {"parse_math": False, "x": MARGIN / width}
    figure.text(y=1 - 0.15 / height, s=_chart_title(classes, shown), va="top", fontsize=10, linespacing=1.4, **text)
    figure.text(y=0.1 / height, s="\n".join(lines), va="bottom", fontsize=7, fontfamily=families, **text)
    column_width = (width - MARGIN) / num_columns
    for column in range(num_columns):
        left, right = column * column_width + names_width, (column + 1) * column_width
        axes = figure.add_axes((left / width, foot / height, (right - left) / width, 1 - (head + foot) / height))
        _draw_bars(axes, shown[column * num_bars : (column + 1) * num_bars], num_bars, families)
        axes.axvline(_mean([row["iou"] for row in shown]), color="#c04040", linewidth=0.8, linestyle="--")
    return figure


def _draw_bars(axes: Axes, rows: Sequence[Mapping[str, Any]], num_bars: int, families: list[str]):
    places = range(len(rows))
    axes.barh(places, [row["iou"] for row in rows], height=0.75, color="#4878a8")
    background = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
    for place, row in enumerate(rows):
        axes.text(row["iou"] + 0.015, place, f"{row['iou']:.1%}", va="center", fontsize=6, bbox=background)
    names = [row["name"] for row in rows]
    axes.set_yticks(places, names, fontsize=7, fontfamily=families, parse_math=False)
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"], fontsize=6)
    axes.set_xlim(0, 1.2)
    axes.set_ylim(num_bars - 0.5, -0.5)
    axes.tick_params(length=2)
    axes.spines[["top", "right"]].set_visible(False)


def _chart_title(classes: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]]) -> str:
    if not shown:
        return "No class occurs in the labels"
    mean = _mean([row["iou"] for row in shown])
    lines = [f"Mean IoU {mean:.1%} of the {len(shown)} classes in the labels (dashed)"]
    counted = [row["iou"] for row in classes if not math.isnan(row["iou"])]
    if len(counted) > len(shown):
        lines.append(f"{_mean(counted):.1%} of {len(counted)} with those that are only predicted")
    return "\n".join(lines)


def _absent_lines(names: Sequence[str], characters: int) -> list[str]:
    """The names in lines of at most so many characters."""
    if not names:
        return []
    lines = [f"Not in the labels ({len(names)}):"]
    for number, name in enumerate(names):
        separator = ";" if number < len(names) - 1 else ""
        if _num_cells(lines[-1]) + _num_cells(name) + 2 > characters:
            if len(lines) == MAX_ABSENT_LINES:
                return [*lines, f"and {len(names) - number} more"]
            lines.append("")
        lines[-1] = f"{lines[-1]} {name}{separator}".lstrip()
    return lines


def curves_chart(history: Iterable[Mapping[str, float]]) -> Figure | None:
    """
    A panel against the steps for each quantity of `CURVES` that occurs; `None` if none does.

    Args:
        history (`Iterable[Mapping[str, float]]`): As of `reporting.plot_curves`.
    """
    history = sorted(history, key=lambda entry: entry["step"])
    panels = []
    for title, scale, is_noisy, names in CURVES:
        points = {
            label: [(entry["step"], entry[name]) for entry in history if _is_finite(entry.get(name))]
            for name, label in names.items()
        }
        if points := {label: of_label for label, of_label in points.items() if of_label}:
            panels.append((title, scale, is_noisy, points))
    if not panels:
        return None
    num_columns = min(2, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(5 * num_columns, 3 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flat
    for axes, (title, scale, is_noisy, points) in zip(grid, panels, strict=False):
        for label, of_label in points.items():
            _draw_curve(axes, label, *np.array(of_label).T, is_noisy)
        if scale == "log" and any(value > 0 for of_label in points.values() for _, value in of_label):
            axes.set_yscale("log")
        else:
            axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
        if not is_noisy:
            highest = max(value for of_label in points.values() for _, value in of_label)
            axes.set_ylim(0, 1.08 * highest if highest > 0 else 1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8, which="both")
        axes.yaxis.get_offset_text().set_fontsize(8)
        axes.grid(alpha=0.3)
        if len(points) > 1:
            axes.legend(fontsize=8)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    return figure


def _draw_curve(axes: Axes, label: str, steps: np.ndarray, values: np.ndarray, is_noisy: bool):
    if not is_noisy or len(steps) < SMOOTHED_FROM:
        axes.plot(steps, values, label=label, marker="." if len(steps) <= 30 else None)
        return
    (line,) = axes.plot(steps, values, linewidth=0.6, alpha=0.4)
    window = len(steps) // 25
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    first = window // 2
    axes.plot(steps[first : first + len(means)], means, label=label, color=line.get_color())


def _num_cells(text: str) -> int:
    """How wide a text is, in letters of the Latin alphabet."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
