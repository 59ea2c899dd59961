"""Boundary IoU ("Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021) of label maps."""

from typing import Any

import numpy as np


# Of the image's diagonal, as published.
WIDTH = 0.02


class BoundaryIou:
    """
    The boundary region of a mask are its own pixels that lie within d pixels of a pixel outside of it, to the sides or
    diagonally, as in the authors' code; what lies beyond the image's border is outside of every mask. d is 2 % of the
    image's diagonal, rounded, and at least 1. Boundary IoU of a class is the number of pixels that are in the boundary
    regions of both its masks, in the label and in the prediction, divided by the number that are in at least one of
    them; both numbers are summed over all images. Pixels that are ignored are of no class in both maps, so that
    masks end where they begin.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*): Label of the pixels that do not count.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = None):
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.counts = np.zeros((3, num_labels), dtype=np.int64)
        """Pixels by class: in both boundary regions, in the label's and in the prediction's. Those of several
        processes are added."""

    def add(self, prediction: np.ndarray, label: np.ndarray):
        """Counts one image: integers of shape (H, W), class ids or, in the label, the ignored one."""
        self.counts += self.count(prediction, label)

    def count(self, prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
        """The `counts` of one image alone."""
        maps = [np.asarray(ids).astype(np.int64) for ids in (label, prediction)]
        is_ignored = maps[0] == self.ignore_index
        for ids in maps:
            ids[is_ignored] = self.num_labels
        at_boundary = [boundary_region(ids) & ~is_ignored for ids in maps]
        in_both = at_boundary[0] & at_boundary[1] & (maps[0] == maps[1])
        pixels = (maps[0][in_both], maps[0][at_boundary[0]], maps[1][at_boundary[1]])
        return np.stack([np.bincount(ids, minlength=self.num_labels) for ids in pixels])

    def scores(self) -> dict[str, Any]:
        """[`boundary_scores`] of all images so far."""
        return boundary_scores(self.counts)


def boundary_scores(counts: np.ndarray) -> dict[str, Any]:
    """
    Args:
        counts (`np.ndarray` of shape (3, C)): See [`BoundaryIou`].

    Returns:
        `mean_boundary_iou` over the classes in labels or predictions and `mean_boundary_iou_present` over those in
        labels, floats in 0..1 that are NaN without any pixel, and `per_category_boundary_iou`, an array with NaN for
        classes in neither.
    """
    in_both, labelled, predicted = counts
    union = labelled + predicted - in_both
    with np.errstate(invalid="ignore"):
        iou = in_both / union
        return {
            "mean_boundary_iou": float(np.nansum(iou) / np.count_nonzero(union)),
            "mean_boundary_iou_present": float(np.nansum(iou[labelled > 0]) / np.count_nonzero(labelled)),
            "per_category_boundary_iou": iou,
        }


def boundary_width(height: int, width: int) -> int:
    """d, in pixels, for an image of this size."""
    return max(1, round(WIDTH * float(np.hypot(height, width))))


def boundary_region(ids: np.ndarray) -> np.ndarray:
    """Whether each pixel (H, W) of a map of ids is in the boundary region of the mask of its own id: bool (H, W)."""
    distance = boundary_width(*ids.shape)
    region = np.ones(ids.shape, dtype=bool)
    inside = tuple(slice(distance, side - distance) for side in ids.shape)
    if min(ids.shape) > 2 * distance:
        changes = _sums(ids[:, 1:] != ids[:, :-1], (2 * distance + 1, 2 * distance))
        changes += _sums(ids[1:] != ids[:-1], (2 * distance, 2 * distance + 1))
        region[inside] = changes > 0
    return region


def _sums(values: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Sums over all windows of rows and columns that lie inside."""
    rows, columns = window
    totals = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    return totals[rows:, columns:] - totals[:-rows, columns:] - totals[rows:, :-columns] + totals[:-rows, :-columns]
