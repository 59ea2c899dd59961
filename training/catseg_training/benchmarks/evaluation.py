"""One benchmark from its files to its results."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from ..inference import ALONE, Share
from ..interruption import Stopped
from .description import RULES, Benchmark
from .files import BenchmarkFiles
from .images import BenchmarkImages
from .predictions import prediction_file, save_prediction
from .predictors import FilePredictor, ModelPredictor
from .tally import Tally


logger = logging.getLogger(__name__)

# Images that are drawn, of the best and of the worst.
NUM_DRAWN = 4
SECONDS_BETWEEN_SCORES = 1.0


@dataclass
class BenchmarkResult:
    """
    Attributes:
        benchmark ([`Benchmark`]): What was evaluated.
        values (`dict`): The metric's scores, counts of images and pixels, and what they were made with.
        matrix (`np.ndarray` of shape `(C, C)`): Pixels by label and prediction.
        rows (`list[dict]`): Scores of each image, or its `problem`.
        best, worst (`list[dict]`): Examples with their predictions.
    """

    benchmark: Benchmark
    values: dict[str, Any]
    matrix: np.ndarray
    rows: list[dict[str, Any]]
    best: list[dict[str, Any]]
    worst: list[dict[str, Any]]


def evaluate_benchmark(
    benchmark: Benchmark,
    files: BenchmarkFiles,
    predictor: ModelPredictor | FilePredictor,
    accelerator: Accelerator,
    tally_dir: Path,
    *,
    resume: bool = False,
    save_seconds: float = 30.0,
    predictions_dir: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> BenchmarkResult | None:
    """
    Scores predictions for a benchmark's images. All processes call this together.

    Args:
        benchmark ([`Benchmark`]), files ([`BenchmarkFiles`]): The benchmark, and where its images lie.
        predictor ([`ModelPredictor`] or [`FilePredictor`]): Where predictions come from.
        accelerator (`Accelerator`): Tells which process this is.
        tally_dir (`Path`): Folder for what was counted, seen by all processes.
        resume (`bool`): Whether to go on with what is there.
        save_seconds (`float`): How often what was counted is written.
        predictions_dir (`Path`, *optional*): Folder to save predictions in.
        stop (`Callable[[], bool]`): Asked for every batch, in all processes together.

    Returns:
        [`BenchmarkResult`]: On the main process. None on the others, or if it was told to stop.

    Raises:
        UserError: If there are counts of another evaluation.
    """
    images = BenchmarkImages(benchmark, files.files)
    tally = Tally(benchmark, tally_dir, save_seconds)
    run = {"num_images": len(images), "images": _names_digest(files), "benchmark": _digest(benchmark)}
    run |= predictor.identity
    tally.check(run, resume)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        tally.prepare(run, resume)
    accelerator.wait_for_everyone()
    tally.load()

    predictor.prepare(benchmark)
    share = Share(accelerator.process_index, accelerator.num_processes)
    indices = tally.remaining(len(images))
    start, was_stopped = time.perf_counter(), False
    with (
        tqdm(
            desc=benchmark.name,
            total=len(images),
            initial=len(images) - len(indices),
            unit="image",
            disable=not accelerator.is_main_process,
        ) as progress,
        # While the model is at the next batch.
        ThreadPoolExecutor(1) as thread,
    ):
        counter = _Counter(benchmark, tally, predictions_dir, progress)
        counting = Future()
        counting.set_result(None)
        try:
            for examples in predictor.batches(images, indices, share, stop):
                counting.result()
                counting = thread.submit(counter.count, examples, share.world_size * len(examples))
        except Stopped:
            was_stopped = True
        counting.result()
    tally.write_part(at_once=True)
    accelerator.wait_for_everyone()
    if was_stopped or not accelerator.is_main_process:
        return None
    seconds = time.perf_counter() - start
    tally.load()
    values = _values(benchmark, tally) | {
        "num_images_expected": benchmark.num_images or len(images),
        "seconds": seconds,
        "images_per_second": len(indices) / seconds,
        "settings": predictor.identity,
    }
    order = _by_score(tally.rows, benchmark.rule)
    best, worst = order[:NUM_DRAWN], order[: -NUM_DRAWN - 1 : -1]
    try:
        drawn = {
            example["index"]: example
            for examples in predictor.batches(images, sorted({*best, *worst}), ALONE)
            for example in _fetched(examples)
            if "prediction" in example
        }
    except Stopped:
        return None
    return BenchmarkResult(
        benchmark,
        values,
        tally.matrix,
        tally.rows,
        best=[drawn[index] for index in best if index in drawn],
        worst=[drawn[index] for index in worst if index in drawn],
    )


class _Counter:
    """
    What is done with predictions, which takes no part of the model's time in a thread of its own.

    Args:
        benchmark ([`Benchmark`]), tally ([`Tally`]): What is evaluated, and where it is counted.
        predictions_dir (`Path`, *optional*): Folder to save predictions in.
        progress (`tqdm`): Shows how far all processes are, and the mean IoU of this one.
    """

    def __init__(self, benchmark: Benchmark, tally: Tally, predictions_dir: Path | None, progress: tqdm):
        self.benchmark = benchmark
        self.tally = tally
        self.predictions_dir = predictions_dir
        self.progress = progress
        self._scored_at = 0.0

    def count(self, examples: Sequence[dict[str, Any]], num_done: int):
        """Counts a batch; `num_done` images are done in all processes together, or fewer at the end."""
        for example in _fetched(examples):
            if self.predictions_dir is not None and "prediction" in example:
                file = prediction_file(self.predictions_dir, self.benchmark.name, example["name"])
                save_prediction(file, example["prediction"], len(self.benchmark.class_names))
            self.tally.add(example)
        self.tally.write_part()
        self.progress.update(min(num_done, self.progress.total - self.progress.n))
        if not self.progress.disable and time.perf_counter() - self._scored_at > SECONDS_BETWEEN_SCORES:
            self._scored_at = time.perf_counter()
            self.progress.set_postfix(mIoU=f"{self.tally.scores()[self.benchmark.rule]:.1%}")


def _fetched(examples: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Examples with their predictions as arrays, taken from the model's device."""
    for example in examples:
        if "prediction" in example:
            example["prediction"] = example["prediction"].cpu().numpy()
    return examples


def _values(benchmark: Benchmark, tally: Tally) -> dict[str, Any]:
    """Scores, and what they cover."""
    scores = tally.scores()
    scored = [row for row in tally.rows if "problem" not in row]
    skipped = [row for row in scored if benchmark.skips_unlabelled and row["num_pixels"] == 0]
    left_out = [{"name": row["name"], "problem": row["problem"]} for row in tally.rows if "problem" in row]
    num_pixels = sum(row["num_pixels"] for row in scored)
    return {
        "title": benchmark.title,
        **{name: value for name, value in scores.items() if isinstance(value, float)},
        **_of_interest(benchmark, scores["per_category_iou"]),
        "num_images": len(scored) - len(skipped),
        "num_images_skipped": len(skipped),
        "num_images_left_out": len(left_out),
        "left_out": left_out,
        "num_pixels": num_pixels,
        "num_ignored_pixels": sum(row["height"] * row["width"] for row in scored) - num_pixels,
        "rules": RULES,
        "published_rule": benchmark.rule,
        "published_percent": dict(benchmark.published),
        "per_category_iou": scores["per_category_iou"],
        "per_category_accuracy": scores["per_category_accuracy"],
        "per_category_boundary_iou": scores["per_category_boundary_iou"],
    }


def _of_interest(benchmark: Benchmark, per_category_iou: np.ndarray) -> dict[str, float]:
    """The mean IoU of the classes of interest that occur in labels or predictions, NaN if none does; nothing for a
    benchmark without such classes."""
    if not benchmark.classes_of_interest:
        return {}
    iou = per_category_iou[list(benchmark.classes_of_interest)]
    iou = iou[~np.isnan(iou)]
    return {"coi_mean_iou": float(iou.mean()) if len(iou) else math.nan}


def _by_score(rows: list[Mapping[str, Any]], rule: str = "mean_iou_present") -> list[int]:
    """Indices of the images with a pixel that counts, the best first."""
    scored = [row for row in rows if row.get("num_pixels")]
    return [row["index"] for row in sorted(scored, key=lambda row: (-row[rule], row["index"]))]


def _names_digest(files: BenchmarkFiles) -> str:
    names = "\n".join(file.name for file in files.files)
    return hashlib.sha256(names.encode()).hexdigest()


def _digest(benchmark: Benchmark) -> str:
    """Of what changes its scores."""
    fields = (
        *("name", "vocabulary", "background", "ignore_index", "ignores_other_ids", "label_format"),
        *("max_shortest_edge", "skips_unlabelled"),
    )
    values = {name: getattr(benchmark, name) for name in fields} | {"label_map": sorted(benchmark.label_map.items())}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
