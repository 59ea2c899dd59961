"""Evaluation at the labels' own size, shared between processes, with the sliding window or without."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from catseg_hf import CATSegProcessor

from .data.examples import EvaluationImages
from .inference import Share, segment_images
from .interruption import Stopped
from .metric import load_metric
from .views import Views


METRICS = ("confusion_matrix", "mean_iou")
NUM_KEPT_EXAMPLES = 4


@dataclass
class Evaluation:
    """
    Attributes:
        scores (`dict`): The metric's keys; on the main process only if the metric is evaluate's own.
        num_examples (`int`): How many images counted.
        examples (`list[dict]`): The main process's first ones: `image`, `label`, `prediction` and `name`.
    """

    scores: dict[str, Any] = field(default_factory=dict)
    num_examples: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


class SummedConfusionMatrix:
    """This project's metric: each process counts its own images, and the counts are added."""

    def __init__(self, num_labels: int, ignore_index: int, accelerator: Accelerator):
        self.metric = load_metric(num_labels, ignore_index)
        self.accelerator = accelerator

    def update(self, prediction: np.ndarray, label: np.ndarray):
        self.metric.add(prediction=prediction, reference=label)

    def scores(self) -> dict[str, Any]:
        matrix = self.metric.confusion_matrix()
        if self.accelerator.num_processes > 1:
            counts = torch.from_numpy(matrix).to(self.accelerator.device)
            matrix = self.accelerator.reduce(counts, reduction="sum").cpu().numpy()
        return self.metric.scores(matrix)


class HubMeanIou:
    """evaluate's mean_iou from the Hub, which collects the label maps of all processes and scores them in one."""

    def __init__(self, num_labels: int, ignore_index: int, accelerator: Accelerator):
        self.arguments = {"num_labels": num_labels, "ignore_index": ignore_index}
        self.metric = evaluate.load(
            "mean_iou", num_process=accelerator.num_processes, process_id=accelerator.process_index
        )

    def update(self, prediction: np.ndarray, label: np.ndarray):
        self.metric.add_batch(predictions=[prediction], references=[label])

    def scores(self) -> dict[str, Any]:
        return self.metric.compute(**self.arguments) or {}


def evaluate_model(
    model: nn.Module,
    processor: CATSegProcessor,
    dataset: EvaluationImages,
    accelerator: Accelerator,
    *,
    num_labels: int,
    ignore_index: int,
    sliding_window: bool,
    batch_size: int = 1,
    metric: str = METRICS[0],
    num_workers: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """
    Segments every image once, whatever the number of processes, into the model's own vocabulary.

    Args:
        model (`nn.Module`): The model as `accelerator.prepare` gave it. It is left as it was, in training or not.
        processor ([`CATSegProcessor`]): Its processor.
        dataset ([`EvaluationImages`]): Images and labels.
        accelerator (`Accelerator`): Whose processes all call this together.
        num_labels (`int`), ignore_index (`int`): Number of classes, and the label of pixels that do not count.
        sliding_window (`bool`): Whether to average windows and a global view.
        batch_size (`int`): Images at a time; the scores do not depend on it.
        metric (`"confusion_matrix"` or `"mean_iou"`): This project's, or evaluate's from the Hub.
        num_workers (`int`): Processes that prepare images.
        stop (`Callable[[], bool]`): Asked for every batch, in all processes together.

    Returns:
        [`Evaluation`], or `None` if `stop` said so.
    """
    counts = (SummedConfusionMatrix, HubMeanIou)[METRICS.index(metric)](num_labels, ignore_index, accelerator)
    result = Evaluation(num_examples=len(dataset))
    was_training = model.training
    model.eval()
    share = Share(accelerator.process_index, accelerator.num_processes)
    batches = segment_images(
        model,
        processor,
        dataset,
        accelerator.device,
        views=Views(sliding_window),
        share=share,
        batch_size=batch_size,
        num_workers=num_workers,
        stop=stop,
    )
    total = len(share.batches(len(dataset), batch_size))
    try:
        for examples in tqdm(
            batches, desc="Evaluating", total=total, leave=False, disable=not accelerator.is_main_process
        ):
            for example in examples:
                example["prediction"] = example["prediction"].cpu().numpy()
                counts.update(example["prediction"], example["label"])
                if len(result.examples) < NUM_KEPT_EXAMPLES:
                    result.examples.append(example)
    except Stopped:
        return None
    finally:
        model.train(was_training)
    result.scores = counts.scores()
    return result
