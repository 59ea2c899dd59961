"""The project's metric, loaded by its path: as a module it would be lost behind any installed package `metrics`."""

from functools import cache
from pathlib import Path
from typing import Any

import evaluate


MEAN_IOU = Path(__file__).resolve().parents[1] / "metrics" / "mean_iou"


def confusion_matrix(num_labels: int, ignore_index: int) -> Any:
    """An empty `ConfusionMatrix` (`update`, `matrix`, `scores`) of `training/metrics/mean_iou`."""
    return _metric().confusion_matrix(num_labels=num_labels, ignore_index=ignore_index)


@cache
def _metric() -> evaluate.Metric:
    return evaluate.load(str(MEAN_IOU))
