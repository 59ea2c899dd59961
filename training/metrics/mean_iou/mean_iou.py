"""Mean intersection over union from a running confusion matrix: any number of images in bounded memory."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import datasets
import evaluate
import numpy as np


DESCRIPTION = """
Intersection over union (IoU) of a class is the number of pixels that are of the class in both the prediction and the
label, divided by the number that are of it in at least one of them. Mean IoU is its mean over the classes.
"""
INPUTS_DESCRIPTION = """
Args:
    predictions, references (`Sequence`): The class of every pixel of each image, and its label: integers of shape
        `(height, width)` in numpy arrays, torch tensors, PIL images or nested lists.
    num_labels (`int`): Number of classes. This and all that follows is given here or to `evaluate.load`; images are
        checked as they are added if `num_labels` and `ignore_index` are given there.
    ignore_index (`int`, *optional*): Label of the pixels that do not count. Without it all count.
    reduce_labels (`bool`, *optional*): Whether labels have 0 for the background, which is ignored, and begin at 1.
    nan_to_num (`float`, *optional*): Replaces NaN in the results. Means are taken before.
Returns:
    `mean_iou` (over the classes in a label or a prediction), `mean_iou_present` and `mean_accuracy` (over those in a
    label), `overall_accuracy`, and arrays `per_category_iou` and `per_category_accuracy` with NaN for other classes.
"""
NUM_SMALL = 1024  # Smaller ids are their own places in the matrix; others get the next free ones.
MAX_IDS = 8192  # A matrix of so many takes 0.5 GB.


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS_DESCRIPTION)
class MeanIou(evaluate.Metric):
    """Counts pixels by their two ids, whichever are classes: `compute` may be the first to be told."""

    def __init__(
        self,
        *,
        num_labels: int | None = None,
        ignore_index: int | None = None,
        reduce_labels: bool | None = None,
        nan_to_num: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if self.num_process > 1:
            raise ValueError("Load the metric without `num_process` in each process, and add up `confusion_matrix()`.")
        self.settings = {"num_labels": num_labels, "ignore_index": ignore_index, "reduce_labels": bool(reduce_labels)}
        self.nan_to_num = nan_to_num
        self._places: dict[int, int] = {}  # of the ids that are not small, in their order
        self._pixels = np.zeros((0, 0), dtype=np.int64)  # by the places of label and prediction
        if num_labels is not None:
            self.confusion_matrix()

    def _info(self) -> evaluate.MetricInfo:
        image = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        features = datasets.Features({"predictions": image, "references": image})
        texts = {"description": DESCRIPTION, "inputs_description": INPUTS_DESCRIPTION, "citation": ""}
        return evaluate.MetricInfo(features=features, **texts)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs):
        """Counts one image, or nothing if something is wrong with it (`ValueError`)."""
        # evaluate.combine uses the names of `add_batch`.
        prediction, reference = kwargs.pop("predictions", prediction), kwargs.pop("references", reference)
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions: Sequence | None = None, references: Sequence | None = None):
        """Counts several images, or none of them if something is wrong with one (`ValueError`)."""
        pixels = self._count(predictions, references)
        if self.settings["num_labels"] is not None and self.settings["ignore_index"] is not None:
            self._by_class(pixels)
        self._pixels = pixels

    def confusion_matrix(self, **settings) -> np.ndarray:
        """Pixels since the last `compute`, whose settings it takes, by the classes of label and prediction: an int64
        array of shape `(num_labels, num_labels)`."""
        return self._by_class(self._pixels, **settings)

    def compute(
        self,
        *,
        predictions: Sequence | None = None,
        references: Sequence | None = None,
        nan_to_num: float | None = None,
        **settings,
    ) -> dict[str, Any]:
        """Scores all images since the last call and those that are given. The metric is empty after it, but not after
        an error (`ValueError`)."""
        is_given = predictions is not None or references is not None
        pixels = self._count(predictions, references) if is_given else self._pixels
        if not pixels.size:
            raise ValueError("There is nothing to compute: call `add` or `add_batch` first, or give both inputs.")
        results = self.scores(self._by_class(pixels, **settings))
        self._pixels = self._pixels[:0, :0]
        nan = self.nan_to_num if nan_to_num is None else nan_to_num
        return results if nan is None else {name: np.nan_to_num(value, nan=nan) for name, value in results.items()}

    @staticmethod
    def scores(matrix: np.ndarray) -> dict[str, Any]:
        """What `compute` returns, of a confusion matrix: means as floats, NaN if no pixel counts."""
        correct, labelled, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
        with np.errstate(invalid="ignore"):
            iou, accuracy = correct / (labelled + predicted - correct), correct / labelled
            num_present = np.count_nonzero(labelled)
            return {
                "mean_iou": float(np.nansum(iou) / np.count_nonzero(labelled + predicted)),
                "mean_iou_present": float(np.nansum(iou[labelled > 0]) / num_present),
                "mean_accuracy": float(np.nansum(accuracy) / num_present),
                "overall_accuracy": float(correct.sum() / labelled.sum()),
                "per_category_iou": iou,
                "per_category_accuracy": accuracy,
            }

    def _count(self, predictions: Sequence | None, references: Sequence | None) -> np.ndarray:
        """Pixels so far and those of more images, by the places of label and prediction."""
        if predictions is None or references is None or len(predictions) != len(references):
            raise ValueError("Predictions and references are needed, as many of both.")
        total = self._pixels
        for prediction, label in zip(predictions, references, strict=True):
            prediction, label = to_ids(prediction, "prediction"), to_ids(label, "label")
            if prediction.shape != label.shape:
                raise ValueError(
                    f"The prediction's shape {prediction.shape} is not the label's, {label.shape}: resize the "
                    "prediction (`post_process_semantic_segmentation(target_sizes=...)`)."
                )
            label, prediction = self._to_places(label), self._to_places(prediction)
            size = max(len(total), 1 + label.max(initial=-1), 1 + prediction.max(initial=-1))
            pairs = label * size
            pairs += prediction
            pixels = np.bincount(pairs.ravel(), minlength=size**2).reshape(size, size)
            pixels[: len(total), : len(total)] += total
            total = pixels
        return total

    def _to_places(self, ids: np.ndarray) -> np.ndarray:
        """Ids as places in the matrix."""
        if 0 <= ids.min(initial=0) and ids.max(initial=0) < NUM_SMALL:
            return ids
        is_large = (ids < 0) | (ids >= NUM_SMALL)
        large, inverse = np.unique(ids[is_large], return_inverse=True)
        if NUM_SMALL + len(self._places.keys() | large.tolist()) > MAX_IDS:
            raise ValueError(f"There are more than {MAX_IDS} different ids: are they class ids?")
        places = [self._places.setdefault(value, NUM_SMALL + len(self._places)) for value in large.tolist()]
        ids = ids.copy()
        ids[is_large] = np.array(places)[inverse]
        return ids

    def _by_class(self, pixels: np.ndarray, **settings) -> np.ndarray:
        ids = np.append(np.arange(NUM_SMALL), np.fromiter(self._places, dtype=np.int64))[: len(pixels)]
        settings = {name: value for name, value in settings.items() if value is not None}
        return by_class(pixels, ids, **(self.settings | settings))


def by_class(
    pixels: np.ndarray, ids: np.ndarray, num_labels: int, ignore_index: int | None, reduce_labels: bool
) -> np.ndarray:
    """The confusion matrix of pixels by the places in `ids` of label and prediction."""
    if not isinstance(num_labels, Integral) or num_labels < 1:
        raise ValueError(f"`num_labels` must be the number of classes, got {num_labels!r}: give it to `compute`.")
    if ignore_index is not None and not isinstance(ignore_index, Integral):
        raise ValueError(f"`ignore_index` must be an integer or None (nothing), got {ignore_index!r}.")
    is_counted = pixels.any(axis=1) & (ids != ignore_index) & ~(reduce_labels & (ids == 0))
    is_predicted = pixels[is_counted].any(axis=0)
    labels, predictions = ids[is_counted] - reduce_labels, ids[is_predicted]
    accepted = f"0 to {num_labels - 1} are accepted (`num_labels` is {num_labels})"
    if (bad := labels[(labels < 0) | (labels >= num_labels)]).size:
        raise ValueError(
            f"A label has the id {bad[0] + reduce_labels}; {accepted} and `ignore_index`, which is "
            f"{ignore_index}. Is it to be ignored, or is 0 the background (`reduce_labels`)?"
        )
    if (bad := predictions[(predictions < 0) | (predictions >= num_labels)]).size:
        raise ValueError(f"A prediction has the id {bad[0]}; {accepted}. Was it made for another vocabulary?")
    matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
    matrix[np.ix_(labels, predictions)] = pixels[np.ix_(is_counted, is_predicted)]
    return matrix


def to_ids(values: Any, name: str) -> np.ndarray:
    """Ids as int64, if they are integers."""
    if hasattr(values, "detach"):  # torch, which a metric for arrays need not import
        values = values.detach().cpu()
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "bui":
        raise ValueError(f"The {name} must hold class ids, integers, but its type is {array.dtype}: take the arg max.")
    return array.astype(np.int64, copy=False)
