"""Segments a dataset's images: shared between processes, in one view of each image or in several."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers.modeling_outputs import SemanticSegmenterOutput

from catseg_hf import CATSegProcessor
from catseg_hf.sliding_window_catseg import finite_logit

from .interruption import shield_worker


# Of one prompt that occurs twice, the logits differ by rounding only, in bfloat16 too.
MAX_ROUNDING = 0.1


@dataclass(frozen=True)
class Views:
    """
    How the model looks at an image. Probabilities of several views are averaged.

    Attributes:
        sliding_window (`bool`): Whether to average windows and a global view.
        scales (`tuple[float, ...]`): Factors of the size that the image is resized to at first.
        flip (`bool`): Whether to look at the mirror image, too.
    """

    sliding_window: bool
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


@dataclass(frozen=True)
class Share:
    """The part of the work that one of several processes has."""

    rank: int = 0
    world_size: int = 1

    def batches(self, num_examples: int, batch_size: int) -> list[tuple[range, int]]:
        """
        Indices of this process, batch by batch, and how many examples the fullest process has at that time: all
        processes have as many batches, but the last one may be smaller or empty.
        """
        begin, end = self.rank * batch_size, (self.rank + 1) * batch_size
        return [
            (range(num_examples)[first + begin : first + end], min(batch_size, num_examples - first))
            for first in range(0, num_examples, self.world_size * batch_size)
        ]


ALONE = Share()


def load_batches(
    dataset: Dataset, share: Share, batch_size: int, num_workers: int, prepare: Callable = lambda examples: None
) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """
    This process's batches of examples, each behind what `prepare` makes of it where it is loaded. What a process has
    less than another is prepared of the dataset's last example, since models that are sharded run only together.
    """
    batches = share.batches(len(dataset), batch_size)
    loader = DataLoader(
        dataset,
        batch_sampler=[[*batch, *[len(dataset) - 1] * (count - len(batch))] for batch, count in batches],
        collate_fn=_Collator(prepare),
        num_workers=num_workers,
        worker_init_fn=shield_worker,
    )
    for (batch, _), (prepared, examples) in zip(batches, loader, strict=True):
        yield prepared, examples[: len(batch)]


class _Collator:
    def __init__(self, prepare: Callable):
        self.prepare = prepare

    def __call__(self, examples: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
        return self.prepare(examples), examples


class _ViewMaker:
    """Prepares the images of examples, each at every scale."""

    def __init__(self, processor: CATSegProcessor, views: Views):
        self.processor = processor
        self.views = views

    def __call__(self, examples: list[dict[str, Any]]) -> list[list[Mapping[str, torch.Tensor]]]:
        return [[self._inputs(example, scale) for scale in self.views.scales] for example in examples]

    def _inputs(self, example: dict[str, Any], scale: float) -> Mapping[str, torch.Tensor]:
        # An example that could not be read has no image, but processes must keep together.
        image = Image.fromarray(example.get("image", np.zeros((1, 1, 3), np.uint8)))
        image_processor = self.processor.image_processor
        sizes = {}
        if scale != 1 and self.views.sliding_window:
            sizes["size"] = {name: round(scale * side) for name, side in dict(image_processor.size).items() if side}
        elif scale != 1:
            sizes["image_size"] = round(scale * image_processor.image_size)
        return self.processor(images=image, sliding_window=self.views.sliding_window, **sizes)


def segment_images(
    model: nn.Module,
    processor: CATSegProcessor,
    dataset: Dataset,
    device: torch.device,
    *,
    views: Views,
    share: Share = ALONE,
    batch_size: int = 1,
    num_workers: int = 0,
    repeated_prompts: Mapping[int, int] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """
    Segments every image of a dataset into the model's own vocabulary.

    Args:
        model (`nn.Module`): The model, on the device and in evaluation mode.
        processor ([`CATSegProcessor`]): Its processor.
        dataset (`Dataset`):
            Of mappings with `image` (H, W, 3), uint8, and `label` (H, W), whose size the prediction gets; those that
            have no image are passed on.
        device (`torch.device`): Where the model is.
        views ([`Views`]): How to look at the images.
        share ([`Share`]): Which images are this process's.
        batch_size (`int`):
            Images that are loaded at a time. The model gets them one by one: in a batch, the last bits of a
            probability, and with them the class of a pixel, depend on the batch's size.
        num_workers (`int`): Processes that prepare images.
        repeated_prompts (`Mapping[int, int]`, *optional*):
            Classes that have the same prompt as a class of a lower index, and that index, which wins ties.

    Yields:
        `list[dict]`: The examples of a batch, with `prediction` (H, W), int64, a numpy array.
    """
    for inputs, examples in load_batches(dataset, share, batch_size, num_workers, _ViewMaker(processor, views)):
        logits = [_logits(model, scales, device, views, repeated_prompts or {}) for scales in inputs]
        for example, of_image in zip(examples, logits, strict=False):
            if "image" in example:
                (prediction,) = processor.post_process_semantic_segmentation(
                    SemanticSegmenterOutput(logits=of_image), target_sizes=[example["label"].shape]
                )
                example["prediction"] = prediction.cpu().numpy()
        yield examples


@torch.no_grad()
def _logits(
    model: nn.Module,
    scales: list[Mapping[str, torch.Tensor]],
    device: torch.device,
    views: Views,
    repeated_prompts: Mapping[int, int],
) -> torch.Tensor:
    """Logits (1, T, h, w) of an image, whose probabilities are the means over all views."""
    all_logits = []
    for inputs in scales:
        inputs = {name: pixels.to(device) for name, pixels in inputs.items()}
        all_logits.append(model(**inputs, sliding_window=views.sliding_window).logits)
        if views.flip:
            inputs = {name: pixels.flip(-1) for name, pixels in inputs.items()}
            all_logits.append(model(**inputs, sliding_window=views.sliding_window).logits.flip(-1))
    logits = all_logits[0]
    if len(all_logits) > 1:
        logits = finite_logit(sum(each.float().sigmoid() for each in all_logits) / len(all_logits))
    for index, first in repeated_prompts.items():
        own, lower = logits[:, index], logits[:, first]
        logits[:, index] = torch.where((own - lower).abs() < MAX_ROUNDING, lower, own)
    return logits
