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

CITATION = """\
@article{everingham2010pascal,
  title   = {The PASCAL Visual Object Classes (VOC) Challenge},
  author  = {Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
  journal = {International Journal of Computer Vision},
  volume  = {88},
  number  = {2},
  pages   = {303--338},
  year    = {2010}
}
"""

MIN_ID, MAX_ID = -65536, 65535
SMALL_ID = 1024  # Smaller ids are their own places in a matrix and need no table.
MAX_IDS = 8192  # The counts of so many take 0.5 GB.


class PairCounts:
    """
    Pixels by the ids of their label and prediction, whichever of these are classes.

    Args:
        ids (`np.ndarray` of shape `(N,)`): Different ids, not all of which need have occurred.
        pixels (`np.ndarray` of shape `(N, N)`): Pixels by label (rows) and prediction (columns), int64.
    """

    def __init__(self, ids: np.ndarray, pixels: np.ndarray):
        self.ids = ids
        self.pixels = pixels

    @classmethod
    def nothing(cls) -> "PairCounts":
        return cls(np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.int64))

    @classmethod
    def of_image(cls, prediction: Any, label: Any) -> "PairCounts":
        """Counts an image; raises `ValueError` unless both are integers up to 65535 of the same shape."""
        prediction, label = _to_ids(prediction, "prediction"), _to_ids(label, "label")
        if prediction.shape != label.shape:
            raise ValueError(
                f"The prediction's shape {prediction.shape} is not the label's, {label.shape}: resize the prediction, "
                "as `post_process_semantic_segmentation(target_sizes=...)` does, and leave the label as it is."
            )
        prediction, label = prediction.ravel(), label.ravel()
        low = int(min(prediction.min(initial=0), label.min(initial=0)))
        high = int(max(prediction.max(initial=0), label.max(initial=0)))
        if low >= 0 and high < SMALL_ID:
            ids = np.arange(high + 1)
        else:
            # numpy finds negative ids at the table's end.
            table = np.zeros(MAX_ID - MIN_ID + 1, dtype=np.intp)
            table[prediction] = table[label] = 1
            ids = np.flatnonzero(table)
            _check_number(ids)
            table[ids] = np.arange(len(ids))
            prediction, label = table[prediction], table[label]
            ids[ids > MAX_ID] -= len(table)
        pairs = np.multiply(label, len(ids), dtype=np.intp)
        pairs += prediction
        return cls(ids, np.bincount(pairs, minlength=len(ids) ** 2).reshape(len(ids), len(ids)))

    def add(self, other: "PairCounts"):
        """Adds other counts; raises `ValueError` if there are too many ids."""
        ids = np.union1d(self.ids, other.ids)
        if len(ids) > len(self.ids):
            _check_number(ids)
            pixels = np.zeros((len(ids), len(ids)), dtype=np.int64)
            pixels[self._cells(ids)] = self.pixels
            self.ids, self.pixels = ids, pixels
        self.pixels[other._cells(self.ids)] += other.pixels

    def _cells(self, ids: np.ndarray) -> tuple:
        """Where its pixels belong in a matrix of more ids, sorted ones."""
        num = len(self.ids)
        if np.array_equal(self.ids, ids[:num]):  # slices are far faster
            return slice(num), slice(num)
        places = np.searchsorted(ids, self.ids)
        return np.ix_(places, places)


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
        num_labels: int,
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
        self.reduce_labels = reduce_labels
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
        self.add(PairCounts.of_image(prediction, label))

    def add(self, counts: PairCounts):
        """Adds counts of ids, or raises `ValueError` as [`~ConfusionMatrix.update`] does and adds nothing."""
        ids, pixels = counts.ids, counts.pixels
        labels = np.array([self.label_map.get(label, label) for label in ids.tolist()], dtype=np.int64)
        is_ignored = labels == self.ignore_index
        if self.reduce_labels:
            is_ignored |= labels == 0
            labels -= 1
        pixels = pixels[~is_ignored]
        rows, columns = pixels.any(axis=1), pixels.any(axis=0)
        labels, predictions = labels[~is_ignored][rows], ids[columns]
        accepted = f"accepted are 0 to {self.num_labels - 1} (`num_labels` is {self.num_labels})"
        if (bad := labels[(labels < 0) | (labels >= self.num_labels)]).size:
            raise ValueError(
                f"A label has the id {bad[0] + bool(self.reduce_labels)}; {accepted} and `ignore_index`, which is "
                f"{self.ignore_index}. If its pixels do not count, give it as `ignore_index`; if 0 is the background "
                "and 1 the first class, `reduce_labels=True`; if ids have gaps, a `label_map`."
            )
        if (bad := predictions[(predictions < 0) | (predictions >= self.num_labels)]).size:
            raise ValueError(
                f"A prediction has the id {bad[0]}; {accepted}. Was it made for another vocabulary, or are there "
                "pixels without a class?"
            )
        np.add.at(self.matrix, np.ix_(labels, predictions), pixels[np.ix_(rows, columns)])

    def merge(self, other: "ConfusionMatrix"):
        """Adds what another one of the same classes has counted."""
        if self.num_labels != other.num_labels:
            raise ValueError(f"{self.num_labels} and {other.num_labels} classes cannot be merged.")
        self.matrix = self.matrix + other.matrix

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


def _check_number(ids: np.ndarray):
    if len(ids) > MAX_IDS:
        raise ValueError(f"There are {len(ids)} different ids, but at most {MAX_IDS} are counted: are they class ids?")


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
    # Not every array of integers can be an index.
    return array if array.dtype.kind in "ui" and array.dtype != np.uint64 else array.astype(np.int64)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    """Of those that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS_DESCRIPTION)
class MeanIou(evaluate.Metric):
    """Counts pairs of ids as they come, so `compute` may be the first to be told which are classes."""

    def __init__(
        self,
        *,
        num_labels: int | None = None,
        ignore_index: int | None = None,
        nan_to_num: float | None = None,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if self.num_process > 1:
            raise ValueError(
                "This metric counts in one process: load it without `num_process` in each, and add up the `matrix` of "
                "their `confusion_matrix()`."
            )
        self.nan_to_num = nan_to_num
        self.settings = {
            "num_labels": num_labels,
            "ignore_index": ignore_index,
            "label_map": label_map,
            "reduce_labels": reduce_labels,
        }
        if num_labels is not None:
            ConfusionMatrix(**self.settings)
        self._forget()

    def _forget(self):
        self._counts, self._num_images = PairCounts.nothing(), 0

    def _info(self) -> evaluate.MetricInfo:
        image = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
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
        batch = _count(predictions, references)
        if self.settings["num_labels"] is not None and self.settings["ignore_index"] is not None:
            ConfusionMatrix(**self.settings).add(batch)
        self._counts.add(batch)
        self._num_images += len(predictions)

    def confusion_matrix(self, **settings) -> ConfusionMatrix:
        """Counts since the last `compute`, which takes the same settings."""
        given = {name: value for name, value in settings.items() if value is not None}
        confusion_matrix = ConfusionMatrix(**(self.settings | given))
        confusion_matrix.add(self._counts)
        return confusion_matrix

    def compute(
        self,
        *,
        predictions: Sequence | None = None,
        references: Sequence | None = None,
        num_labels: int | None = None,
        ignore_index: int | None = None,
        nan_to_num: float | None = None,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool | None = None,
    ) -> dict[str, Any]:
        """
        Scores of all images since the last call and of those that are given. The metric is empty after it, but not
        after an error (`ValueError`), which changes nothing.
        """
        matrix = self.confusion_matrix(
            num_labels=num_labels, ignore_index=ignore_index, label_map=label_map, reduce_labels=reduce_labels
        )
        if predictions is not None or references is not None:
            matrix.add(_count(predictions, references))
        elif not len(self):
            raise ValueError("There is nothing to compute: call `add` or `add_batch` first, or give both inputs.")
        self._forget()
        results, nan = matrix.scores(), self.nan_to_num if nan_to_num is None else nan_to_num
        return results if nan is None else {name: np.nan_to_num(value, nan=nan) for name, value in results.items()}


def _count(predictions: Sequence | None, references: Sequence | None) -> PairCounts:
    if predictions is None or references is None:
        raise ValueError("Predictions and references are needed, both.")
    if len(predictions) != len(references):
        raise ValueError(f"There are {len(predictions)} predictions for {len(references)} references.")
    counts = PairCounts.nothing()
    for prediction, reference in zip(predictions, references, strict=True):
        counts.add(PairCounts.of_image(prediction, reference))
    return counts
