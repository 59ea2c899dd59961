"""Times the metric of training/metrics/mean_iou against collecting all label maps in Python lists, as evaluate's does.

python benchmarks/mean_iou.py --images 50 --classes 171 --json result.json

`reference_seconds` are those of evaluate's definition in plain numpy at the end of the collecting. A second reference
(`numpy_...`) adds one plain confusion matrix of each image up, and so keeps as little as the metric does.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import evaluate
import numpy as np

from measure import ROOT, measure, write_result


BLOCK = 32  # Side of the regions in pixels.
WRONG, IGNORED = 0.2, 0.05  # Shares of the pixels.
DIFFERENT_IMAGES = 10  # They are shown again and again, so that the inputs take no memory worth counting.


def make_images(num_labels: int, ignore_index: int, height: int, width: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions (int64, as an arg max gives them) and labels (as PNG files give them), both `(height, width)`."""
    generator = np.random.default_rng(0)
    label_type = np.uint8 if max(num_labels - 1, ignore_index) < 256 else np.uint16
    images = []
    for _ in range(DIFFERENT_IMAGES):
        regions = generator.integers(num_labels, size=(-(-height // BLOCK), -(-width // BLOCK)))
        label = np.kron(regions, np.ones((BLOCK, BLOCK), dtype=np.int64))[:height, :width]
        wrong = generator.random(label.shape) < WRONG
        prediction = np.where(wrong, generator.integers(num_labels, size=label.shape), label)
        label[generator.random(label.shape) < IGNORED] = ignore_index
        images.append((prediction, label.astype(label_type)))
    return images


def compare_lists(images: Iterator[tuple[np.ndarray, np.ndarray]], num_labels: int, ignore_index: int) -> dict:
    """Collects label maps, and at the end compares them as evaluate's definition says."""
    predictions, labels = [], []
    for prediction, label in images:
        predictions.append(prediction.tolist())
        labels.append(label.tolist())
    intersection, predicted, labelled = np.zeros((3, num_labels))
    for prediction, label in zip(predictions, labels, strict=True):
        prediction, label = np.array(prediction), np.array(label)
        prediction, label = prediction[label != ignore_index], label[label != ignore_index]
        for area, ids in (
            (intersection, prediction[prediction == label]),
            (predicted, prediction),
            (labelled, label),
        ):
            area += np.histogram(ids, bins=num_labels, range=(0, num_labels - 1))[0]
    return means(intersection, predicted, labelled)


def add_up_matrices(images: Iterator[tuple[np.ndarray, np.ndarray]], num_labels: int, ignore_index: int) -> dict:
    """A running confusion matrix in the plainest form."""
    matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
    for prediction, label in images:
        counted = label != ignore_index
        pairs = num_labels * label[counted].astype(np.int64) + prediction[counted]
        matrix += np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)
    return means(matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1))


def means(intersection: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> dict:
    """evaluate's three means."""
    with np.errstate(invalid="ignore"):
        return {
            "mean_iou": np.nanmean(intersection / (predicted + labelled - intersection)),
            "mean_accuracy": np.nanmean(intersection / labelled),
            "overall_accuracy": intersection.sum() / labelled.sum(),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50, help="how many (%(default)s)")
    parser.add_argument("--classes", type=int, default=171, help="size of the vocabulary (%(default)s)")
    parser.add_argument("--ignore_index", type=int, default=255, help="label that does not count (%(default)s)")
    parser.add_argument("--height", type=int, default=480, help="of an image (%(default)s)")
    parser.add_argument("--width", type=int, default=640, help="of an image (%(default)s)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=2,
        help="timed runs of the reference, ten times as many of the others; the shortest counts (%(default)s)",
    )
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()

    num_labels, ignore_index = arguments.classes, arguments.ignore_index
    different = make_images(num_labels, ignore_index, arguments.height, arguments.width)

    def images(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (different[index % len(different)] for index in range(count))

    metric = evaluate.load(str(ROOT / "training" / "metrics" / "mean_iou"))

    def run(count: int) -> dict:
        for prediction, label in images(count):
            metric.add(prediction=prediction, reference=label)
        return metric.compute(num_labels=num_labels, ignore_index=ignore_index)

    # Short runs are more easily disturbed, and more of them take no time.
    short_repeats = 10 * arguments.repeats
    seconds, peak, scores = measure(lambda: run(arguments.images), "cpu", short_repeats)
    _, peak_of_more, _ = measure(lambda: run(10 * arguments.images), "cpu", 1)
    numpy_seconds, numpy_peak, numpy_scores = measure(
        lambda: add_up_matrices(images(arguments.images), num_labels, ignore_index), "cpu", short_repeats
    )
    reference_seconds, reference_peak, expected = measure(
        lambda: compare_lists(images(arguments.images), num_labels, ignore_index), "cpu", arguments.repeats
    )
    others = {
        "milliseconds_per_image": 1000 * seconds / arguments.images,
        "peak_memory_mb_of_ten_times_as_many": peak_of_more,
        "numpy_seconds": numpy_seconds,
        "numpy_ratio": numpy_seconds / seconds,
        "numpy_peak_memory_mb": numpy_peak,
        "max_abs_difference": max(
            abs(scores[name] - other[name]) for other in (expected, numpy_scores) for name in other
        ),
    }
    case = {"case": "mean IoU", "device": "cpu", **vars(arguments)}
    write_result(case, (seconds, peak), (reference_seconds, reference_peak), others)


if __name__ == "__main__":
    main()
