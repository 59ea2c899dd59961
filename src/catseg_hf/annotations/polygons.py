"""Polygons as pixels, by the rules of those who draw them: pycocotools, OpenCV and Pillow."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .dataset import CLIPPED, OUTSIDE, WITHOUT_AREA, Canvas, ShapeError


# Corners of an ellipse where there is no rule but that for polygons.
ELLIPSE_CORNERS = 360
# Farther out, in sides of the image, a corner is a mistake, and tracing the edge to it takes all memory.
_FARTHEST = 100
# What tools write for the border itself, rounded.
_TOLERANCE = 1.0


def checked_points(points: Any, size: tuple[int, int], minimum: int) -> np.ndarray:
    """
    Corners as `np.ndarray` of shape (N, 2), columns and rows in pixels, float64.

    Args:
        points: Of pairs, or their numbers in one row.
        size (`tuple[int, int]`): Height and width of the image.
        minimum (`int`): How many the shape needs.

    Raises:
        ShapeError: If they are fewer, no numbers, or all outside the image.
    """
    array = np.asarray(points, dtype=np.float64)
    if array.ndim == 1 and array.size % 2:
        raise ValueError(f"an odd number of coordinates, {array.size}")
    array = array.reshape(-1, 2)
    if len(array) < minimum:
        raise ShapeError(WITHOUT_AREA, f"it has {len(array)} point{'s' * (len(array) != 1)} and needs {minimum}")
    if not np.isfinite(array).all():
        raise ValueError("coordinates that are no finite numbers")
    farthest = _FARTHEST * max(*size, 1)
    if (array.min(axis=0) > size[::-1]).any() or (array.max(axis=0) < 0).any() or np.abs(array).max() > farthest:
        corner = ", ".join(f"{value:g}" for value in array[np.abs(array).sum(axis=1).argmax()])
        raise ShapeError(OUTSIDE, f"a point at ({corner}), of an image of {size[1]} x {size[0]} pixels")
    return array


def remark_clipped(canvas: Canvas, points: np.ndarray, described: str):
    """Says that corners lie outside the image."""
    if (points < -_TOLERANCE).any() or (points > np.array(canvas.size[::-1]) + _TOLERANCE).any():
        canvas.remark(CLIPPED, described)


def pycocotools_mask(parts: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W), bool, of polygons, each (N, 2) with three corners or more, together."""
    from pycocotools import mask

    encoded = mask.frPyObjects([part.ravel().tolist() for part in parts], *size)
    return mask.decode(mask.merge(encoded)).view(bool)


def opencv_mask(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W), bool, of a polygon with its border, corners cut to whole numbers, as Ultralytics draws it."""
    import cv2

    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, points.astype(np.int32)[None], color=1)
    return mask.view(bool)


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """The corners (4, 2) of an upright rectangle."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def ellipse(center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """Corners (N, 2) on an upright ellipse."""
    angles = np.arange(ELLIPSE_CORNERS) * (2 * math.pi / ELLIPSE_CORNERS)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + center


def rotated(points: np.ndarray, degrees: float, about: tuple[float, float] | np.ndarray) -> np.ndarray:
    """Points (N, 2) turned clockwise, as they are seen."""
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (points - about) @ turn + about
