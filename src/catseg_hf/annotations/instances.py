"""Masks in their bounding boxes, whole or in the parts that they fall into."""

from collections.abc import Iterator

import numpy as np

from ..errors import UserError


def split_parts(mask: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """
    The 8-connected parts of a mask (H, W), in the order of their first pixels by rows.

    Yields:
        Left and top of a part's box, and its mask in there, (h, w) bool.

    Raises:
        UserError: If OpenCV is not installed.
    """
    cv2 = import_cv2()
    count, components, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    parts = []
    for component in range(1, count):
        left, top, width, height, _ = boxes[component].tolist()
        part = components[top : top + height, left : left + width] == component
        parts.append((top, left + int(part[0].argmax()), left, part))
    for top, _, left, part in sorted(parts, key=lambda part: part[:2]):
        yield left, top, part


def crop_mask(mask: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """What [`split_parts`] yields, with all parts of the mask as one; nothing for a mask without a pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows):
        yield int(columns[0]), int(rows[0]), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def import_cv2():
    """
    OpenCV, which finds parts and contours.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "Instances and polygons need OpenCV: `pip install opencv-python-headless`, or catseg_hf with its extra, "
            '`pip install "catseg_hf[annotations]"`.'
        ) from error
    return cv2
