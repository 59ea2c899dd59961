"""Mean intersection over union from a running confusion matrix: any number of images in bounded memory."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import datasets
import evaluate
import numpy as np


DESCRIPTION = """\
Intersection over union (IoU) of a class is the number of pixels that are of the class in both the prediction and the
label, divided by the number that are of it in at least one of them. Mean IoU is its mean over the classes. Images are
counted as they come, so memory does not grow with their number.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (`Sequence`): A class id for every pixel of each image: integers of shape `(height, width)` in numpy
        arrays, torch tensors, PIL images or nested lists. Sizes may differ from image to image.
    references (`Sequence`): The labels, of the same sizes.
    num_labels (`int`): Number of classes. This and all that follows is given here or to `evaluate.load`; ids are
        checked as they are added if `num_labels` and `ignore_index` are given there.
    ignore_index (`int`, *optional*): Label, up to 65535, of the pixels that do not count. Without it all count.
    nan_to_num (`float`, *optional*): Replaces NaN in the results. Means are taken before.
    label_map (`Mapping[int, int]`, *optional*): New ids in place of the labels' old ones, all replaced at once.
    reduce_labels (`bool`, *optional*, defaults to `False`): For labels with 0 for the background and 1 for the first
        class: 0 is ignored, `ignore_index` stays, all others become one less, after `label_map`.
Returns:
    `dict[str, float | np.ndarray]`:
    - `mean_iou`: mean over the classes in a label or a prediction.
    - `mean_iou_present`: mean over the classes in a label.
    - `mean_accuracy`: mean over the classes in a label.
    - `overall_accuracy`: share of the pixels that are predicted right.
    - `per_category_iou`, `per_category_accuracy`: float64 arrays of shape `(num_labels,)`, NaN for the classes that
      the mean leaves out.
Examples:
    >>> metric = evaluate.load("training/metrics/mean_iou", num_labels=3, ignore_index=255)
    >>> metric.add(prediction=[[0, 1], [1, 1]], reference=[[0, 0], [1, 255]])
    >>> metric.compute()["mean_iou"]
    0.5
"""

SETTINGS = ("num_labels", "ignore_index", "label_map", "reduce_labels")
MIN_ID, MAX_ID = -65536, 65535

Counts = tuple[np.ndarray, np.ndarray]  # different pairs of a label and a prediction, and the pixels of each
NOTHING: Counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)


def count_pairs(prediction: Any, label: Any) -> Counts:
    """Counts an image, whichever ids are classes; raises `ValueError` unless both are integers of the same shape."""
    prediction, label = _to_ids(prediction, "prediction"), _to_ids(label, "label")
    if prediction.shape != label.shape:
        raise ValueError(
            f"The prediction's shape {prediction.shape} is not the label's, {label.shape}: resize the prediction, "
            "as `post_process_semantic_segmentation(target_sizes=...)` does, and leave the label as it is."
        )
    return np.unique(label * 2**17 + prediction, return_counts=True)


def add_up(*counts: Counts) -> Counts:
    """The sum of several counts."""
    pairs, pixels = (np.concatenate(parts) for parts in zip(*counts, strict=True))
    pairs, places = np.unique(pairs, return_inverse=True)
    return pairs, np.bincount(places, pixels, minlength=len(pairs)).astype(np.int64)


class ConfusionMatrix:
    """
    Pixels by the classes of their label and prediction.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*): Label of the pixels that do not count, whatever was predicted for them.
        label_map (`Mapping[int, int]`, *optional*), reduce_labels (`bool`, *optional*): As of the metric.

    Attributes:
        matrix (`np.ndarray` of shape `(num_labels, num_labels)`): Pixels by label (rows) and prediction (columns),
            int64. It may be set, such as to the sum over several processes.
    """

    def __init__(
        self,
        num_labels: int | None = None,
        ignore_index: int | None = None,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool | None = None,
    ):
        if not isinstance(num_labels, Integral) or num_labels < 1:
            raise ValueError(
                f"`num_labels` must be the number of classes, got {num_labels!r}: give it to `compute` or "
                "`evaluate.load`."
            )
        if ignore_index is not None and not isinstance(ignore_index, Integral):
            raise ValueError(f"`ignore_index` must be an integer or None (nothing), got {ignore_index!r}.")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.label_map = label_map or {}
        self.reduce_labels = bool(reduce_labels)
        self.matrix = np.zeros((num_labels, num_labels), dtype=np.int64)

    def update(self, prediction: Any, label: Any):
        """
        Counts an image, or several of one size.

        Args:
            prediction, label (numpy array, torch tensor, PIL image or nested lists): Integers of the same shape.

        Raises:
            ValueError: If the shapes differ, a label is neither a class nor ignored, or a prediction is no class where
                the label counts. Nothing is counted then.
        """
        self.add(count_pairs(prediction, label))

    def add(self, counts: Counts):
        """Adds counts, or raises `ValueError` as [`~ConfusionMatrix.update`] does and adds nothing."""
        pairs, pixels = counts
        labels, predictions = np.divmod(pairs - MIN_ID, 2**17)
        predictions += MIN_ID
        if self.label_map:
            labels = np.array([self.label_map.get(label, label) for label in labels.tolist()], dtype=np.int64)
        is_counted = labels != self.ignore_index
        if self.reduce_labels:
            is_counted &= labels != 0
            labels -= 1
        labels, predictions = labels[is_counted], predictions[is_counted]
        accepted = f"accepted are 0 to {self.num_labels - 1} (`num_labels` is {self.num_labels})"
        if (bad := labels[(labels < 0) | (labels >= self.num_labels)]).size:
            raise ValueError(
                f"A label has the id {bad[0] + self.reduce_labels}; {accepted} and `ignore_index`, which is "
                f"{self.ignore_index}. If its pixels do not count, give it as `ignore_index`; if 0 is the background "
                "and 1 the first class, `reduce_labels=True`; if ids have gaps, a `label_map`."
            )
        if (bad := predictions[(predictions < 0) | (predictions >= self.num_labels)]).size:
            raise ValueError(
                f"A prediction has the id {bad[0]}; {accepted}. Was it made for another vocabulary, or are there "
                "pixels without a class?"
            )
        np.add.at(self.matrix, (labels, predictions), pixels[is_counted])

    def scores(self) -> dict[str, Any]:
        """What the metric returns: means as floats, NaN if no pixel counts, and arrays with a value for each class."""
        correct, labelled, predicted = self.matrix.diagonal(), self.matrix.sum(axis=1), self.matrix.sum(axis=0)
        iou = _divide(correct, labelled + predicted - correct)
        accuracy = _divide(correct, labelled)
        return {
            "mean_iou": _mean(iou),
            "mean_iou_present": _mean(iou[labelled > 0]),
            "mean_accuracy": _mean(accuracy),
            "overall_accuracy": float(_divide(correct.sum(), labelled.sum())),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }


def _to_ids(values: Any, name: str) -> np.ndarray:
    if hasattr(values, "detach"):  # torch, which a metric for arrays need not import
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The {name} must be an array of class ids, all rows of one length: {error}") from error
    if array.size and array.dtype.kind not in "bui":
        raise ValueError(
            f"The {name} must hold class ids, integers, but its type is {array.dtype}: of logits or probabilities, "
            "take the arg max over the classes."
        )
    for limit in (array.min(initial=0), array.max(initial=0)):
        if not MIN_ID <= limit <= MAX_ID:
            raise ValueError(f"The {name} has the id {limit}; at most {MAX_ID} is accepted.")
    return array.astype(np.int64, copy=False)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    """Of those that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS_DESCRIPTION)
class MeanIou(evaluate.Metric):
    """Counts pairs of ids as they come, so `compute` may be the first to be told which are classes."""

    def __init__(self, *, nan_to_num: float | None = None, **kwargs):
        settings = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
        super().__init__(**kwargs)
        if self.num_process > 1:
            raise ValueError(
                "This metric counts in one process: load it without `num_process` in each, and add up the `matrix` of "
                "their `confusion_matrix()`."
            )
        self.nan_to_num = nan_to_num
        self.settings = {name: value for name, value in settings.items() if value is not None}
        if "num_labels" in self.settings:
            ConfusionMatrix(**self.settings)
        self._counts, self._num_images = NOTHING, 0

    def _info(self) -> evaluate.MetricInfo:
        image = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": image, "references": image}),
            reference_urls=["http://host.robots.ox.ac.uk/pascal/VOC/"],
        )

    def __len__(self) -> int:
        """Number of images since the last `compute`."""
        return self._num_images

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs):
        """Counts one image, or nothing if something is wrong with it (`ValueError`)."""
        # evaluate.combine calls them by the names that `add_batch` has.
        prediction, reference = kwargs.pop("predictions", prediction), kwargs.pop("references", reference)
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs):
        """Counts several images, or none of them if something is wrong with one (`ValueError`)."""
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}: `predictions` and `references` are accepted.")
        batch = _count_images(predictions, references)
        if {"num_labels", "ignore_index"} <= self.settings.keys():
            ConfusionMatrix(**self.settings).add(batch)
        self._counts = add_up(self._counts, batch)
        self._num_images += len(predictions)

    def confusion_matrix(self, **settings) -> ConfusionMatrix:
        """Counts since the last `compute`, which takes the same settings."""
        given = {name: value for name, value in settings.items() if value is not None}
        matrix = ConfusionMatrix(**(self.settings | given))
        matrix.add(self._counts)
        return matrix

    def compute(
        self,
        *,
        predictions: Sequence | None = None,
        references: Sequence | None = None,
        nan_to_num: float | None = None,
        **settings,
    ) -> dict[str, Any]:
        """
        Scores of all images since the last call and of those that are given. The metric is empty after it, but not
        after an error (`ValueError`), which changes nothing.
        """
        matrix = self.confusion_matrix(**settings)
        if predictions is not None or references is not None:
            matrix.add(_count_images(predictions, references))
        elif not len(self):
            raise ValueError("There is nothing to compute: call `add` or `add_batch` first, or give both inputs.")
        self._counts, self._num_images = NOTHING, 0
        results, nan = matrix.scores(), self.nan_to_num if nan_to_num is None else nan_to_num
        return results if nan is None else {name: np.nan_to_num(value, nan=nan) for name, value in results.items()}


def _count_images(predictions: Sequence | None, references: Sequence | None) -> Counts:
    if predictions is None or references is None:
        raise ValueError("Predictions and references are needed, both.")
    if len(predictions) != len(references):
        raise ValueError(f"There are {len(predictions)} predictions for {len(references)} references.")
    return add_up(NOTHING, *(count_pairs(*images) for images in zip(predictions, references, strict=True)))
