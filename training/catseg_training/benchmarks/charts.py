"""A heat map of what is taken for what."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from catseg_hf.visualization import MAX_NAME_LENGTH
from catseg_hf.visualization.figure import font_families, writable_names


MAX_CLASSES = 24
MIN_SHARE_WITH_NUMBER = 0.01


def confused_classes(matrix: np.ndarray, max_classes: int = MAX_CLASSES) -> list[int]:
    """Classes with the largest confusions, in pixels, in their order: pair by pair until there are enough."""
    confusions = matrix.copy()
    np.fill_diagonal(confusions, 0)
    chosen: list[int] = []
    # Each pair adds a class at least, unless both have been there.
    for cell in np.argsort(-confusions, axis=None, kind="stable")[: max_classes**2]:
        label, prediction = divmod(int(cell), len(matrix))
        if confusions[label, prediction] == 0:
            break
        new = [index for index in (label, prediction) if index not in chosen]
        if len(chosen) + len(new) > max_classes:
            break
        chosen += new
    return sorted(chosen)


def confusion_chart(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """
    A heat map of the classes with the largest confusions: rows are the labels' classes, columns the predictions', and
    a cell is the share of all pixels of the label's class that got this prediction. Names that no font here can write
    are "#" and the class index.

    Args:
        matrix (`np.ndarray` of shape `(C, C)`): Pixels by label and prediction.
        class_names (`Sequence[str]`): The C names.
    """
    classes = confused_classes(matrix)
    if not classes:
        figure = Figure(figsize=(4, 1))
        figure.text(0.5, 0.5, "No pixel was taken for another class", ha="center", va="center")
        return figure
    shares = matrix[np.ix_(classes, classes)] / np.maximum(matrix[classes].sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.34 * len(classes)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(shares >= MIN_SHARE_WITH_NUMBER), strict=True):
        share = shares[row, column]
        color = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=color)
    names = list(writable_names({index: class_names[index][:MAX_NAME_LENGTH] for index in classes}).values())
    text = {"fontsize": 7, "fontfamily": font_families(names), "parse_math": False}
    axes.set_xticks(range(len(classes)), names, rotation=90, **text)
    axes.set_yticks(range(len(classes)), names, **text)
    axes.set_xlabel("prediction", fontsize=8)
    axes.set_ylabel("label", fontsize=8)
    axes.set_title(f"The {len(classes)} classes with the largest confusions", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.6)
    bar.set_label("% of the label's pixels", fontsize=7)
    bar.set_ticks([0, 0.5, 1], labels=["0", "50", "100"], fontsize=6)
    return figure
