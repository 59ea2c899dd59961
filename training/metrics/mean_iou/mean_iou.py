"""Mean intersection over union of segmentations from running counts: any number of pictures, in bounded memory."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import IO, Any

import datasets
import evaluate
import numpy as np


DESCRIPTION = """\
Intersection over union (IoU) of a class is the number of pixels that are of the class in both the prediction and the
label, divided by the number that are of it in at least one of them. Mean IoU is its mean over the classes. Predictions
are counted as they come, so that memory does not grow with the number of pictures.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (`Sequence`): For each picture, a class index for every pixel: integers of shape `(height, width)`.
        Pictures may be numpy arrays, torch tensors, PIL images or nested lists, and their sizes may differ.
    references (`Sequence`): The labels, in the same sizes.
    num_labels (`int`): Number of classes. Like all that follow, it is given here or to `evaluate.load`; labels and
        predictions are checked as they are added if it and `ignore_index` are given there.
    ignore_index (`int`, *optional*): Label of the pixels that do not count, whatever was predicted for them; it may
        need 16 bits. Without it every pixel counts.
    nan_to_num (`float`, *optional*): What is returned in place of NaN. Means are taken before.
    label_map (`Mapping[int, int]`, *optional*): New ids in place of the labels' old ones.
    reduce_labels (`bool`, *optional*, defaults to `False`): For labels with 0 for the background and 1 for the first
        class: 0 is ignored, `ignore_index` stays, all others become one less. It follows `label_map`.
Returns:
    `dict[str, float | np.ndarray]`:
    - `mean_iou`: mean over the classes that are in a label or a prediction.
    - `mean_iou_present`: mean over the classes that are in a label.
    - `mean_accuracy`: mean over the classes that are in a label.
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

# A part of a picture and what is made of it fit into a core's cache.
PIXELS_AT_ONCE = 1 << 15
# Ids are -65536 to 65535, the negative ones at the end of a table, where numpy looks for them.
MIN_ID, MAX_ID = -(1 << 16), (1 << 16) - 1
# Classes have smaller ids, marks of ignored pixels may have larger ones.
MAX_SMALL = 1 << 12
UNKNOWN = -1
# Of a matrix: 1 GB.
MAX_CELLS = 1 << 27


class ConfusionMatrix:
    """
    Pixels counted by the classes of their label and of their prediction.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*): Label of the pixels that do not count, whatever was predicted for them.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = None):
        self._settings = Settings(num_labels, ignore_index)
        self._settings.validate()
        self._counts = PairCounts()

    @property
    def matrix(self) -> np.ndarray:
        """
        Pixels `(num_labels, num_labels)`, int64, by the label's class (rows) and the prediction's (columns): a new
        array. It may be set, such as to the sum over all processes.
        """
        labels, predictions, pixels = self._settings.select(*self._counts.get())
        matrix = np.zeros((self._settings.num_labels, self._settings.num_labels), dtype=np.int64)
        matrix[np.ix_(labels, predictions)] = pixels
        return matrix

    @matrix.setter
    def matrix(self, matrix: np.ndarray):
        classes = np.arange(self._settings.num_labels)
        if np.shape(matrix) != (classes.size, classes.size):
            raise ValueError(f"A matrix of shape {np.shape(matrix)} is not one of {classes.size} classes.")
        self._counts = PairCounts()
        self._counts.add_counts(classes, classes, np.asarray(matrix))

    def update(self, prediction: Any, label: Any):
        """
        Counts a picture, or several of one size.

        Args:
            prediction, label (numpy array, torch tensor, PIL image or nested lists): Integers of the same shape.

        Raises:
            ValueError: If the shapes differ, a label is neither a class nor ignored, or a prediction is no class.
                Nothing is counted then.
        """
        with self._counts.counting([prediction], [label]):
            self._settings.check(*self._counts.get())

    def merge(self, other: "ConfusionMatrix"):
        """Adds what another one has counted, of the same classes."""
        if self._settings.num_labels != other._settings.num_labels:
            raise ValueError(f"{self._settings.num_labels} and {other._settings.num_labels} classes cannot be merged.")
        self.matrix = self.matrix + other.matrix

    def scores(self) -> dict[str, Any]:
        """What the metric returns: means as floats, NaN if no pixel counts, and arrays with a value for each class."""
        return scores(*self._settings.select(*self._counts.get()), self._settings.num_labels)


class PairCounts:
    """Pixels of every pair of label and prediction, whatever their ids are. Memory grows with different ids only."""

    def __init__(self):
        self._labels, self._predictions = Positions("label"), Positions("prediction")
        self._pixels = np.zeros((0, 0), dtype=np.int64)

    def get(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels' ids `(L,)`, predictions' ids `(P,)` and pixels `(L, P)`, int64. Not all ids need have occurred."""
        return self._labels.ids, self._predictions.ids, self._pixels

    def add_counts(self, labels: np.ndarray, predictions: np.ndarray, pixels: np.ndarray):
        """Adds pixels in the form that `get` returns."""
        self._make_room(labels, predictions)
        cells = np.ix_(self._labels.of(labels), self._predictions.of(predictions))
        np.add.at(self._pixels, cells, pixels)

    @contextmanager
    def counting(self, predictions: Sequence, references: Sequence) -> Iterator[None]:
        """Counts pictures, and takes them back if there is something wrong with one or the block fails."""
        counted = 0
        try:
            for prediction, label in zip(predictions, references, strict=True):
                self._count_picture(prediction, label)
                counted += 1
            yield
        except BaseException:
            for prediction, label in zip(predictions[:counted], references[:counted], strict=True):
                self._count_picture(prediction, label, times=-1)
            raise

    def _count_picture(self, prediction: Any, label: Any, times: int = 1):
        prediction, label = _to_ids(prediction, "prediction"), _to_ids(label, "label")
        if prediction.shape != label.shape:
            raise ValueError(
                f"The prediction's shape {prediction.shape} is not the label's, {label.shape}: resize the prediction, "
                "as `post_process_semantic_segmentation(target_sizes=...)` does, and leave the label as it is."
            )
        prediction, label = prediction.reshape(-1), label.reshape(-1)
        for start in range(0, label.size, PIXELS_AT_ONCE):
            part = slice(start, start + PIXELS_AT_ONCE)
            try:
                cells = self._cells(prediction[part], label[part])
            except ValueError:
                self._count_picture(prediction[:start], label[:start], -times)
                raise
            np.add.at(self._pixels.reshape(-1), cells, times)

    def _cells(self, prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Where in the flattened matrix the pixels are counted."""
        rows, columns = self._labels.of(label), self._predictions.of(prediction)
        if rows is None or columns is None:
            self._make_room(label, prediction)
            return self._cells(prediction, label)
        cells = np.multiply(rows, self._pixels.shape[1], dtype=np.int64)
        cells += columns
        return cells

    def _make_room(self, labels: np.ndarray, predictions: np.ndarray):
        labels, predictions = self._labels.including(labels), self._predictions.including(predictions)
        shape = len(labels.ids), len(predictions.ids)
        if shape[0] * shape[1] > MAX_CELLS:
            raise ValueError(
                f"{shape[0]} different labels and {shape[1]} different predictions are more than can be counted: are "
                "they class indices?"
            )
        old_labels, old_predictions, pixels = self.get()
        self._labels, self._predictions, self._pixels = labels, predictions, np.zeros(shape, dtype=np.int64)
        self._pixels[np.ix_(labels.of(old_labels), predictions.of(old_predictions))] = pixels


class Positions:
    """Places of ids along an axis. Small ids are their own places, so that they need not be looked up."""

    def __init__(self, name: str, num_small: int = 0, others: Sequence[int] = ()):
        self.name = name
        self.num_small = num_small
        self.ids = np.concatenate([np.arange(num_small), np.array(others, dtype=np.int64)])
        self._table = np.full(MAX_ID - MIN_ID + 1, UNKNOWN)
        self._table[self.ids] = np.arange(len(self.ids))

    def of(self, ids: np.ndarray) -> np.ndarray | None:
        """Places in the ids' shape, or None if one has none."""
        low, high = 0 if ids.dtype.kind == "u" else ids.min(initial=0), ids.max(initial=0)
        if low >= 0 and high < self.num_small:
            return ids
        if low < MIN_ID or high > MAX_ID:
            raise ValueError(f"A {self.name} has the id {low if low < MIN_ID else high}; at most {MAX_ID} is taken.")
        places = self._table.take(ids)
        return places if places.min(initial=0) > UNKNOWN else None

    def including(self, ids: np.ndarray) -> "Positions":
        """The same with more ids. The places may be others."""
        ids = np.union1d(self.ids, ids)
        highest = ids.max(initial=-1, where=(ids >= 0) & (ids < MAX_SMALL))
        # Not one by one, since everything counted is moved each time.
        num_small = -(-(int(highest) + 1) // 64) * 64
        return Positions(self.name, num_small, ids[(ids < 0) | (ids >= num_small)])


def _to_ids(values: Any, name: str) -> np.ndarray:
    if hasattr(values, "detach"):  # torch, which a metric for arrays need not import
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The {name} is no picture of class indices, all rows of one length: {error}") from error
    if array.size and array.dtype.kind not in "bui":
        raise ValueError(
            f"The {name} must hold class indices, integers, but its type is {array.dtype}: of logits or "
            "probabilities, take the arg max over the classes."
        )
    # Not every array of integers can be an index.
    return array if array.dtype.kind in "ui" and array.dtype != np.uint64 else array.astype(np.int64)


@dataclass(frozen=True)
class Settings:
    """What `evaluate.load` and `compute` are told about classes and labels; `None` where they are not."""

    num_labels: int | None = None
    ignore_index: int | None = None
    nan_to_num: float | None = None
    label_map: Mapping[int, int] | None = None
    reduce_labels: bool | None = None

    def validate(self):
        if not isinstance(self.num_labels, Integral) or self.num_labels < 1:
            raise ValueError(
                f"`num_labels` must be the number of classes, got {self.num_labels!r}: give it to `compute` or "
                "`evaluate.load`."
            )
        if self.ignore_index is not None and not isinstance(self.ignore_index, Integral):
            raise ValueError(f"`ignore_index` must be an integer or None (nothing), got {self.ignore_index!r}.")

    def check(self, labels: np.ndarray, predictions: np.ndarray, pixels: np.ndarray):
        """
        Args:
            labels, predictions, pixels (`np.ndarray`): As `PairCounts.get` returns them.

        Raises:
            ValueError: If a label is neither in 0..num_labels - 1 nor ignored, or a prediction for a label that is not
                ignored is not in 0..num_labels - 1.
        """
        labels, ignored = self._classes(labels)
        accepted = f"accepted are 0 to {self.num_labels - 1} (`num_labels` is {self.num_labels})"
        outside = np.flatnonzero(self._is_outside(labels) & ~ignored)
        if len(found := outside[pixels[outside].any(axis=1)]):
            raise ValueError(
                f"A label has the id {labels[found[0]]}; {accepted} and `ignore_index`, which is {self.ignore_index}. "
                "If its pixels do not count, give it as `ignore_index`; if 0 is the background and 1 the first class, "
                "`reduce_labels=True`; if ids have gaps, a `label_map`."
            )
        outside = np.flatnonzero(self._is_outside(predictions))
        if len(found := outside[pixels[:, outside][~ignored].any(axis=0)]):
            raise ValueError(
                f"A prediction has the id {predictions[found[0]]}; {accepted}. Was it made for another vocabulary, or "
                "are there pixels without a class?"
            )

    def select(
        self, labels: np.ndarray, predictions: np.ndarray, pixels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What counts, as `PairCounts.get` returns it, with the labels' classes in place of their ids. `check` holds
        for it."""
        self.check(labels, predictions, pixels)
        labels, ignored = self._classes(labels)
        rows = np.flatnonzero(~self._is_outside(labels) & ~ignored)
        columns = np.flatnonzero(~self._is_outside(predictions))
        return labels[rows], predictions[columns], pixels[np.ix_(rows, columns)]

    def _classes(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classes of labels' ids, and which of them are ignored."""
        ignored = np.zeros(labels.shape, dtype=bool)
        if self.label_map:
            labels = np.array([self.label_map.get(label, label) for label in labels.tolist()], dtype=np.int64)
        if self.reduce_labels:
            ignored = labels == 0
            labels = np.where(labels == self.ignore_index, labels, labels - 1)
        if self.ignore_index is not None:
            ignored = ignored | (labels == self.ignore_index)
        return labels, ignored

    def _is_outside(self, ids: np.ndarray) -> np.ndarray:
        return (ids < 0) | (ids >= self.num_labels)


def scores(labels: np.ndarray, predictions: np.ndarray, pixels: np.ndarray, num_labels: int) -> dict[str, Any]:
    """The metric's values for pixels in the form that `PairCounts.get` returns, of classes below `num_labels`."""
    intersection, label_area, prediction_area = np.zeros((3, num_labels), dtype=np.int64)
    rows, columns = np.nonzero(labels[:, None] == predictions)
    np.add.at(intersection, labels[rows], pixels[rows, columns])
    np.add.at(label_area, labels, pixels.sum(axis=1))
    np.add.at(prediction_area, predictions, pixels.sum(axis=0))
    iou = _divide(intersection, label_area + prediction_area - intersection)
    accuracy = _divide(intersection, label_area)
    return {
        "mean_iou": _mean(iou),
        "mean_iou_present": _mean(iou[label_area > 0]),
        "mean_accuracy": _mean(accuracy),
        "overall_accuracy": float(_divide(intersection.sum(), label_area.sum())),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def _replace(path: Path, write: Callable[[IO[bytes]], Any]):
    """Lets `write` make a file, which is seen under `path` when it is complete."""
    aside = path.with_name(f".{path.name}")
    try:
        with aside.open("wb") as file:
            write(file)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    """Of those that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS_DESCRIPTION)
class MeanIou(evaluate.Metric):
    """Counts pairs of ids as they come, so that classes and ignored ids need not be known before `compute`."""

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
        self._settings = Settings(num_labels, ignore_index, nan_to_num, label_map, reduce_labels)
        if num_labels is not None:
            self._settings.validate()
        self._answered: str | None = None
        self._forget()

    def _forget(self):
        self._counts = PairCounts()
        self._num_pictures = 0

    def _info(self) -> evaluate.MetricInfo:
        picture = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": picture, "references": picture}),
            reference_urls=["http://host.robots.ox.ac.uk/pascal/VOC/"],
        )

    def __len__(self) -> int:
        """Number of pictures since the last `compute`."""
        return self._num_pictures

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs):
        """Counts one picture, or nothing if there is something wrong with it (ValueError)."""
        # evaluate.combine calls them by the names that `add_batch` has.
        prediction, reference = kwargs.pop("predictions", prediction), kwargs.pop("references", reference)
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs):
        """Counts several pictures, or none of them if there is something wrong with one (ValueError)."""
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}: `predictions` and `references` are taken.")
        self._check_batch(predictions, references)
        with self._counts.counting(predictions, references):
            if self._settings.num_labels is not None and self._settings.ignore_index is not None:
                self._settings.check(*self._counts.get())
        self._num_pictures += len(predictions)

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
    ) -> dict[str, Any] | None:
        """
        Scores of all pictures since the last call and of those that are given. The metric is empty after it, but not
        after an error (ValueError), which changes nothing. With several processes (`num_process` and `process_id` of
        `evaluate.load`) all must call it; it waits up to `timeout` seconds, as given there, for the last one, and
        returns None in all but the first.
        """
        given = Settings(num_labels, ignore_index, nan_to_num, label_map, reduce_labels)
        settings = replace(self._settings, **{name: value for name, value in vars(given).items() if value is not None})
        settings.validate()
        if predictions is None and references is None:
            predictions, references = [], []
            if not len(self) and self.num_process == 1:
                raise ValueError("There is nothing to compute: call `add` or `add_batch` first, or give both inputs.")
        self._check_batch(predictions, references)
        with self._counts.counting(predictions, references):
            counts = settings.select(*self._counts.get())
            if self.num_process > 1:
                counts = self._gather(*counts)
        self._forget()
        if counts is None:
            return None
        # Among the ids that processes have sent there may be others than classes, without pixels.
        results = scores(*Settings(settings.num_labels).select(*counts), settings.num_labels)
        if settings.nan_to_num is None:
            return results
        return {name: np.nan_to_num(value, nan=settings.nan_to_num) for name, value in results.items()}

    def _check_batch(self, predictions: Sequence | None, references: Sequence | None):
        if predictions is None or references is None:
            raise ValueError("Predictions and references are needed, both.")
        if len(predictions) != len(references):
            raise ValueError(f"There are {len(predictions)} predictions for {len(references)} references.")

    def _gather(
        self, labels: np.ndarray, predictions: np.ndarray, pixels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """All processes' counts in the first one, through files; None in the others."""
        counts = {"labels": labels, "predictions": predictions, "pixels": pixels}
        call = Path(self.data_dir) / f"{self.experiment_id}-{self.num_process}.call"
        if self.process_id > 0:
            self._send(counts, call)
            return None
        total = PairCounts()
        total.add_counts(**counts)
        name = uuid.uuid4().hex
        missing = {process: call.with_suffix(f".{name}-{process}.npz") for process in range(1, self.num_process)}
        try:
            for _ in self._until_timeout(lambda: f"process {min(missing)} has not called `compute`"):
                for process, path in list(missing.items()):
                    if path.exists():
                        with np.load(path) as arrays:
                            total.add_counts(**arrays)
                        path.unlink()
                        del missing[process]
                if not missing:
                    return total.get()
                # Not the same twice: what an earlier run has left does not change.
                _replace(call, lambda file: file.write(f"{name} {time.monotonic_ns()}".encode()))
        finally:
            for path in (call, *missing.values()):
                path.unlink(missing_ok=True)

    def _send(self, counts: dict[str, np.ndarray], call: Path):
        """Waits until the first process calls for counts, and writes the file that it waits for."""
        seen = set()
        for _ in self._until_timeout(lambda: "process 0 has not called `compute`"):
            try:
                text = call.read_text()
            except OSError:
                continue
            name = text.split()[0]
            is_alive = any(other.startswith(name) and other != text for other in seen)
            if is_alive and name != self._answered:
                break
            seen.add(text)
        _replace(call.with_suffix(f".{name}-{self.process_id}.npz"), lambda file: np.savez(file, **counts))
        self._answered = name

    def _until_timeout(self, problem: Callable[[], str]) -> Iterator[None]:
        end = time.monotonic() + self.timeout
        while True:
            yield
            if time.monotonic() > end:
                raise ValueError(
                    f"Process {self.process_id} waited {self.timeout} seconds, and {problem()}: do all have the "
                    f"`experiment_id` {self.experiment_id!r} and a folder in common, {self.data_dir}? If one is slow, "
                    "a longer `timeout` can be given to `evaluate.load`."
                )
            time.sleep(0.03)
