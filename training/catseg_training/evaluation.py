"""Evaluation at the labels' own size, shared between processes, with the sliding window or without."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import evaluate
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from catseg_hf import CATSegProcessor
from metrics.mean_iou.mean_iou import ConfusionMatrix

from .data.examples import EvaluationImages
from .interruption import shield_worker


METRICS = ("confusion_matrix", "mean_iou")
NUM_KEPT_EXAMPLES = 4


@dataclass
class Evaluation:
    """
    Attributes:
        scores (`dict`): The metric's keys; on the main process only if the metric is evaluate's own.
        num_examples (`int`): How many pictures counted.
        examples (`list[dict]`): The main process's first ones: `image`, `label`, `prediction` and `name`.
    """

    scores: dict[str, Any] = field(default_factory=dict)
    num_examples: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


class SummedConfusionMatrix:
    """This project's metric: each process counts its own pictures, and the counts are added."""

    def __init__(self, num_labels: int, ignore_index: int, accelerator: Accelerator):
        self.counts = ConfusionMatrix(num_labels, ignore_index)
        self.accelerator = accelerator

    def update(self, prediction: torch.Tensor, label: Any):
        self.counts.update(prediction.numpy(), label)

    def scores(self) -> dict[str, Any]:
        if self.accelerator.num_processes > 1:
            matrix = torch.from_numpy(self.counts.matrix).to(self.accelerator.device)
            self.counts.matrix = self.accelerator.reduce(matrix, reduction="sum").cpu().numpy()
        return self.counts.scores()


class HubMeanIou:
    """evaluate's mean_iou from the Hub, which collects the label maps of all processes and scores them in one."""

    def __init__(self, num_labels: int, ignore_index: int, accelerator: Accelerator):
        self.arguments = {"num_labels": num_labels, "ignore_index": ignore_index}
        self.metric = evaluate.load(
            "mean_iou", num_process=accelerator.num_processes, process_id=accelerator.process_index
        )

    def update(self, prediction: torch.Tensor, label: Any):
        self.metric.add_batch(predictions=[prediction.numpy()], references=[label])

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
    Segments every picture once, whatever the number of processes, into the model's own vocabulary.

    Args:
        model (`nn.Module`): The model as `accelerator.prepare` gave it. It is left as it was, in training or not.
        processor ([`CATSegProcessor`]): Its processor.
        dataset ([`EvaluationImages`]): Pictures and labels.
        accelerator (`Accelerator`): Whose processes all call this together.
        num_labels (`int`), ignore_index (`int`): Number of classes, and the label of pixels that do not count.
        sliding_window (`bool`): Whether to average windows and a global view.
        batch_size (`int`): Pictures in a forward pass.
        metric (`"confusion_matrix"` or `"mean_iou"`): This project's, or evaluate's from the Hub.
        num_workers (`int`): Processes that prepare pictures.
        stop (`Callable[[], bool]`): Asked before every batch, in all processes together.

    Returns:
        [`Evaluation`], or `None` if `stop` said so.
    """
    counts = (SummedConfusionMatrix, HubMeanIou)[METRICS.index(metric)](num_labels, ignore_index, accelerator)
    result = Evaluation(num_examples=len(dataset))
    was_training = model.training
    model.eval()
    try:
        for inputs, examples in _batches(dataset, processor, accelerator, sliding_window, batch_size, num_workers):
            if stop():
                return None
            with torch.no_grad():
                outputs = model(**inputs.to(accelerator.device), sliding_window=sliding_window)
            sizes = [example["label"].shape for example in examples]
            # The last batch may have fewer pictures than inputs: see `_batches`.
            outputs.logits = outputs.logits[: len(sizes)]
            predictions = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            for example, prediction in zip(examples, predictions, strict=True):
                prediction = prediction.cpu()
                counts.update(prediction, example["label"])
                if len(result.examples) < NUM_KEPT_EXAMPLES:
                    result.examples.append(example | {"prediction": prediction.numpy()})
    finally:
        model.train(was_training)
    result.scores = counts.scores()
    return result


def _batches(
    dataset: EvaluationImages,
    processor: CATSegProcessor,
    accelerator: Accelerator,
    sliding_window: bool,
    batch_size: int,
    num_workers: int,
) -> Iterable[tuple[Any, list[dict[str, Any]]]]:
    """
    Inputs of this process's pictures, and these. All processes get as many batches, since sharded models run only
    together: where the pictures do not suffice, the last one is put in again among the inputs, but not the examples.
    """
    world_size, rank = accelerator.num_processes, accelerator.process_index
    starts = range(rank * batch_size, len(dataset) + rank * batch_size, world_size * batch_size)
    indices = [range(start, start + batch_size) for start in starts]
    loader = DataLoader(
        dataset,
        batch_sampler=[[min(index, len(dataset) - 1) for index in batch] for batch in indices],
        collate_fn=_Collator(processor, sliding_window),
        num_workers=num_workers,
        worker_init_fn=shield_worker,
    )
    progress = tqdm(loader, desc="Evaluating", leave=False, disable=not accelerator.is_main_process)
    for batch, (inputs, examples) in zip(indices, progress, strict=True):
        yield inputs, examples[: max(0, len(dataset) - batch.start)]


class _Collator:
    """Prepares a batch where it is loaded."""

    def __init__(self, processor: CATSegProcessor, sliding_window: bool):
        self.processor = processor
        self.sliding_window = sliding_window

    def __call__(self, examples: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
        images = [Image.fromarray(example["image"]) for example in examples]
        return self.processor(images=images, sliding_window=self.sliding_window), examples
