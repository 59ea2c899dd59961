"""Masks as polygons, for formats that have no masks: one polygon for each part, holes joined to the outside."""

from collections.abc import Iterator

import numpy as np

from .instances import import_cv2


def trace_pixels(mask: np.ndarray) -> list[np.ndarray]:
    """
    Polygons through the outermost pixels of a mask, which `cv2.fillPoly` draws as the same mask.

    Args:
        mask (`np.ndarray` of shape (H, W), bool).

    Returns:
        `list[np.ndarray]` of shape (N, 2), integers, x and y: one for each 8-connected part. A hole is joined to the
        outside by a line that goes through pixels of the mask and back. One pixel is one point.

    Raises:
        UserError: If OpenCV is not installed.
    """
    return [_simplify(_around_corners(polygon, mask)) for polygon in _trace(mask)]


def trace_borders(mask: np.ndarray) -> list[np.ndarray]:
    """
    Polygons along the borders between pixels, which pycocotools draws as the same mask: [`trace_pixels`], but
    coordinates are of pixels' corners, so that a mask of 10 x 10 pixels is a square from 0 to 10.
    """
    doubled = mask.repeat(2, axis=0).repeat(2, axis=1)
    return [_simplify((polygon + polygon % 2) // 2) for polygon in _trace(doubled)]


def _trace(mask: np.ndarray) -> Iterator[np.ndarray]:
    cv2 = import_cv2()
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [contour.reshape(-1, 2) for contour in contours]
    for index, (_, _, first_hole, outside) in enumerate(hierarchy.reshape(-1, 4).tolist() if contours else []):
        if outside >= 0:
            continue
        holes, hole = [], first_hole
        while hole >= 0:
            holes.append(contours[hole])
            hole = int(hierarchy.reshape(-1, 4)[hole, 0])
        yield _join_holes(contours[index], holes) if holes else contours[index]


def _join_holes(outside: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    points, following, places = [], [], {}

    def add(point: tuple[int, int], successor: int) -> int:
        points.append(point)
        following.append(successor)
        places.setdefault(point, len(points) - 1)
        return len(points) - 1

    def add_ring(ring: np.ndarray) -> tuple[int, int]:
        first = len(points)
        for point in map(tuple, ring.tolist()):
            add(point, len(points) + 1)
        return first, len(points) - 1

    first, last = add_ring(outside)
    following[last] = first
    # From the left to the right: what lies to the left of a hole's leftmost pixel is joined already.
    for hole in sorted(
        (np.roll(hole, -int(hole[:, 0].argmin()), axis=0) for hole in holes), key=lambda hole: hole[0, 0]
    ):
        x, y = hole[0].tolist()
        while (x, y) not in places:
            x -= 1
        joint = places[x, y]
        first, last = add_ring(hole)
        closing = add(points[first], len(points) + 1)
        back = add(points[joint], following[joint])
        following[joint], following[last], following[closing] = first, closing, back
    order, node = [0], following[0]
    while node != 0:
        order.append(node)
        node = following[node]
    return np.array([points[node] for node in order])


def _around_corners(polygon: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """With a point of the mask between two that touch at a corner, where there is one: readers that add points and cut
    them down to whole numbers otherwise leave the mask there."""
    following = np.roll(polygon, -1, axis=0)
    corners = np.stack([np.stack([following[:, 0], polygon[:, 1]], 1), np.stack([polygon[:, 0], following[:, 1]], 1)])
    is_diagonal = (np.abs(following - polygon) == 1).all(axis=1)
    is_inside = mask[corners[..., 1], corners[..., 0]] & is_diagonal  # (2, N)
    places = np.flatnonzero(is_inside.any(axis=0))
    return np.insert(polygon, places + 1, corners[1 - is_inside[0, places], places], axis=0)


def _simplify(polygon: np.ndarray) -> np.ndarray:
    """Without points that repeat the one before or lie on the way between two others."""
    polygon = polygon[(polygon != np.roll(polygon, 1, axis=0)).any(axis=1)] if len(polygon) > 1 else polygon
    if len(polygon) < 3:
        return polygon
    before, after = polygon - np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0) - polygon
    is_straight = before[:, 0] * after[:, 1] == before[:, 1] * after[:, 0]
    is_forward = (before * after).sum(axis=1) > 0
    return polygon[~(is_straight & is_forward)]
