"""What an evaluation has counted so far, on disk: a run that was killed goes on behind it."""

import json
import logging
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from catseg_hf.errors import UserError
from catseg_hf.utils.files import replaced_file

from ..boundary_iou import BoundaryIou, boundary_scores
from ..metric import load_metric
from .description import Benchmark


logger = logging.getLogger(__name__)

RUN_FILE = "run.json"


class Tally:
    """
    The confusion matrix, the counts of Boundary IoU and a row of scores for each image, of all processes and runs
    together.

    They are kept as parts, files that are written whole and never changed: every image is in one of them.

    Args:
        benchmark ([`Benchmark`]): What is evaluated.
        folder (`Path`): Where the parts are, seen by all processes.
        part_seconds (`float`): Time between two parts. What was counted since the last one is lost with a run that is
            killed.
    """

    def __init__(self, benchmark: Benchmark, folder: Path, part_seconds: float = 30.0):
        self.benchmark = benchmark
        self.folder = folder
        self.part_seconds = part_seconds
        self.rows: list[dict[str, Any]] = []
        self.matrix, self.boundary = self._nothing()
        self._metric = load_metric(len(benchmark.class_names), benchmark.ignore_index)
        self._boundary = BoundaryIou(len(benchmark.class_names), benchmark.ignore_index)
        self._begin_part()

    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        size = len(self.benchmark.class_names)
        return np.zeros((size, size), dtype=np.int64), np.zeros((3, size), dtype=np.int64)

    def _begin_part(self):
        self._new_rows: list[dict[str, Any]] = []
        self._new_matrix, self._new_boundary = self._nothing()
        self._part_begun = time.monotonic()

    def check(self, run: dict[str, Any], resume: bool):
        """
        Looks at what an earlier run has left.

        Args:
            run (`dict`): What the counts depend on, as JSON values; `num_images` is how many images there are.
            resume (`bool`): Whether to go on with it.

        Raises:
            UserError: If it is of another run that is to be gone on with, or of an unfinished one that would be
                lost.
        """
        self.load()
        if not self.rows:
            return
        run_file = self.folder / RUN_FILE
        try:
            saved = json.loads(run_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{run_file} is damaged, so that it is not known what was counted: remove {self.folder} to begin anew "
                f"({error})."
            ) from None
        if not resume and len(self.rows) < saved["num_images"]:
            raise UserError(
                f"{self.folder} holds an evaluation that did not come to its end: go on with --resume, or remove that "
                "folder to begin anew."
            )
        if resume and (differences := [key for key in run if saved.get(key) != run[key]]):
            raise UserError(
                f"{self.folder} holds an evaluation with another {', '.join(differences)}: repeat what it was made "
                "with, or name another --output_dir."
            )

    def prepare(self, run: dict[str, Any], resume: bool):
        """Makes the folder that of this run, as one process does for all after they have called `check`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._parts():
            if not resume or _read_part(path) is None:
                path.unlink()
        with replaced_file(self.folder / RUN_FILE) as path:
            path.write_text(json.dumps(run))

    def load(self):
        """Reads what all processes have counted. A part that is damaged is left out: its images count as not done."""
        rows: dict[int, dict[str, Any]] = {}
        self.matrix, self.boundary = self._nothing()
        for part in map(_read_part, self._parts()):
            if part is not None:
                new_rows, counts, boundary = part
                # An image that had a problem at first may have been repaired since.
                rows |= {row["index"]: row for row in new_rows if "problem" not in row or row["index"] not in rows}
                np.add.at(self.matrix, (counts[:, 0], counts[:, 1]), counts[:, 2])
                self.boundary += boundary
        self.rows = [rows[index] for index in sorted(rows)]

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.json"))

    def remaining(self, num_images: int) -> list[int]:
        """Indices of the images that were not scored yet, those with a problem among them."""
        done = {row["index"] for row in self.rows if "problem" not in row}
        return [index for index in range(num_images) if index not in done]

    def add(self, example: dict[str, Any]):
        """Counts an example: `index`, `name`, and `label` and `prediction` (H, W) or else `problem`."""
        row = {"index": example["index"], "name": example["name"]}
        problem = example.get("problem")
        if problem is None:
            try:
                self._metric.add(prediction=example["prediction"], reference=example["label"])
            except ValueError as error:
                problem = f"The prediction for {example['name']} cannot be scored: {error}"
        if problem is not None:
            self._new_rows.append(row | {"problem": problem})
            return
        matrix = self._metric.confusion_matrix()
        scores = {name: value for name, value in self._metric.compute().items() if isinstance(value, float)}
        height, width = example["label"].shape
        num_pixels = int(matrix.sum())
        boundary = self._boundary.count(example["prediction"], example["label"])
        self._new_rows.append(row | {"height": height, "width": width, "num_pixels": num_pixels} | scores)
        self._new_matrix += matrix
        self.matrix += matrix
        self._new_boundary += boundary
        self.boundary += boundary

    def write_part(self, at_once: bool = False):
        """Writes what was added since the last part, if enough time has passed or `at_once`."""
        if not self._new_rows or not (at_once or time.monotonic() - self._part_begun > self.part_seconds):
            return
        labels, predictions = np.nonzero(self._new_matrix)
        counts = np.stack([labels, predictions, self._new_matrix[labels, predictions]], axis=-1)
        parts = {"rows": self._new_rows, "counts": counts.tolist(), "boundary": self._new_boundary.tolist()}
        text = json.dumps(parts)
        path = self.folder / f"part-{uuid.uuid4().hex}.json"
        with replaced_file(path) as aside:
            aside.write_text(text, encoding="utf-8")
        self._begin_part()

    def scores(self) -> dict[str, Any]:
        """The metric's scores, and those of Boundary IoU, of everything that was loaded and added."""
        return self._metric.scores(self.matrix) | boundary_scores(self.boundary)


def _read_part(path: Path) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray] | None:
    """Rows and counts (number, 3) of a part: class of the label, class of the prediction, pixels; and counts (3, C) of
    Boundary IoU. None if damaged."""
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        counts = np.array(part["counts"], dtype=np.int64).reshape(-1, 3)
        return part["rows"], counts, np.array(part["boundary"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning(f"{path} is damaged: its images are evaluated again ({error}).")
        return None
