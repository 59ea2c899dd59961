"""Intersection over union of the emoji world's words."""

import numpy as np

from .words import classes


def word_iou(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    Intersection over union of every word, in [0, 1], over the pixels of some class; NaN for a word that neither has.

    Args:
        predictions, labels (`np.ndarray` of one shape): Class ids in the order of `words.classes()`. Larger ones in
            `labels` are no class.
    """
    num_classes = len(classes())
    has_class = labels < num_classes
    pairs = labels[has_class].astype(np.int64) * num_classes + predictions[has_class]
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    intersection = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    with np.errstate(invalid="ignore"):
        ious = intersection / union
    return dict(zip(classes(), ious.tolist(), strict=True))
