"""Boundary IoU: against its definition, pixel by pixel, and by hand."""

import math

import numpy as np
import pytest

from catseg_training.boundary_iou import BoundaryIou, boundary_region, boundary_scores, boundary_width


IGNORED = 255


def literal_counts(prediction: np.ndarray, label: np.ndarray, num_labels: int) -> np.ndarray:
    """Mask by mask: the pixels of each that have one outside of it, or outside of the image, within d pixels."""
    height, width = label.shape
    distance = max(1, round(0.02 * math.hypot(height, width)))

    def region(mask: np.ndarray) -> set[tuple[int, int]]:
        inside = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
        steps = range(-distance, distance + 1)
        return {(y, x) for y, x in inside if any((y + i, x + j) not in inside for i in steps for j in steps)}

    counts = np.zeros((3, num_labels), int)
    for index in range(num_labels):
        of_label = region((label == index) & (label != IGNORED))
        of_prediction = region((prediction == index) & (label != IGNORED))
        counts[:, index] = len(of_label & of_prediction), len(of_label), len(of_prediction)
    return counts


def blobs(height: int, width: int, num_labels: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, num_labels, (3, 4))
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    ids = coarse[rows[:, None], columns]
    ids[generator.random(ids.shape) < 0.01] = 0
    return ids


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (20, 31), (60, 60), (40, 120), (2, 90)])
@pytest.mark.parametrize("seed", [0, 1])
def test_definition(size, seed):
    label, prediction = blobs(*size, 5, seed), blobs(*size, 5, seed + 10)
    prediction[: size[0] // 2] = label[: size[0] // 2]
    label[: size[0] // 3, size[1] // 2 :] = IGNORED
    expected = literal_counts(prediction, label, 5)
    counts = BoundaryIou(5, IGNORED)
    counts.add(prediction.astype(np.uint8), label.astype(np.uint8))
    np.testing.assert_array_equal(counts.counts, expected)
    assert counts.counts.dtype == np.int64


@pytest.mark.parametrize(
    "size, expected", [((1, 1), 1), ((50, 50), 1), ((128, 128), 4), ((480, 640), 16), ((3000, 4000), 100)]
)
def test_width(size, expected):
    assert boundary_width(*size) == expected


def test_region_by_hand():
    """At 50 x 50 pixels d is 1: a square's region is its outline, diagonals included, and so is the image's."""
    ids = np.zeros((50, 50), int)
    ids[10:20, 30:40] = 1
    ids[19, 39] = 0  # a corner is missing, whose diagonal neighbour is so at the boundary
    region = boundary_region(ids)
    of_square = region & (ids == 1)
    assert of_square.sum() == 4 * 10 - 4 - 1 + 1 and of_square[18, 38] and not of_square[17, 37]
    assert region[0].all() and region[:, -1].all()
    of_rest = region & (ids == 0)
    assert of_rest[9, 29] and of_rest[19, 39] and not of_rest[8, 28]


def test_score_by_hand():
    """A square that is found one pixel to the right: thin bands of the outlines agree, most of the areas does."""
    label, prediction = np.zeros((50, 50), int), np.zeros((50, 50), int)
    label[10:20, 10:20] = prediction[10:20, 11:21] = 1
    counts = BoundaryIou(2)
    counts.add(prediction, label)
    # Top and bottom rows agree in 9 pixels each; of 36 in each outline.
    assert counts.counts[:, 1].tolist() == [18, 36, 36]
    assert counts.scores()["per_category_boundary_iou"][1] == pytest.approx(18 / 54)


def test_ignored_pixels():
    """They are in no region, whatever is predicted there, and masks end at them."""
    label = np.zeros((50, 50), int)
    label[:, 20:30] = IGNORED
    counts = []
    for answer in (0, 1, 7):
        prediction = np.zeros((50, 50), int)
        prediction[:, 20:30] = answer
        metric = BoundaryIou(2, IGNORED)
        metric.add(prediction, label)
        counts.append(metric.counts.tolist())
        assert metric.scores()["mean_boundary_iou"] == 1
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][0] == [2 * (2 * 50 + 2 * 18), 0]  # the outlines of two masks of 50 x 20


def test_sums_over_images_in_any_parts():
    """Counts are summed before anything is divided, also those of several processes."""
    pairs = [(blobs(30, 40, 4, seed), blobs(30, 40, 4, seed + 20)) for seed in range(4)]
    whole, parts = BoundaryIou(4, IGNORED), [BoundaryIou(4, IGNORED) for _ in range(2)]
    for index, pair in enumerate(pairs):
        whole.add(*pair)
        parts[index % 2].add(*pair)
    together = boundary_scores(parts[0].counts + parts[1].counts)
    for name, value in whole.scores().items():
        np.testing.assert_array_equal(together[name], value)
    expected = sum(literal_counts(*pair, 4) for pair in pairs)
    iou = expected[0] / (expected[1] + expected[2] - expected[0])
    np.testing.assert_array_equal(whole.scores()["per_category_boundary_iou"], iou)


def test_means():
    """Class 2 is only predicted, class 3 in neither."""
    counts = np.array([[2, 0, 0, 0], [4, 2, 0, 0], [4, 0, 2, 0]])
    scores = boundary_scores(counts)
    assert scores["mean_boundary_iou"] == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert scores["mean_boundary_iou_present"] == pytest.approx((1 / 3 + 0) / 2)
    np.testing.assert_array_equal(np.isnan(scores["per_category_boundary_iou"]), [False, False, False, True])
    nothing = boundary_scores(np.zeros((3, 2), int))
    assert math.isnan(nothing["mean_boundary_iou"]) and math.isnan(nothing["mean_boundary_iou_present"])


def test_maps_are_left_as_they_are():
    label, prediction = blobs(20, 20, 3, 0), blobs(20, 20, 3, 1)
    label[0] = IGNORED
    before = label.copy(), prediction.copy()
    BoundaryIou(3, IGNORED).add(prediction, label)
    assert np.array_equal(label, before[0]) and np.array_equal(prediction, before[1])
