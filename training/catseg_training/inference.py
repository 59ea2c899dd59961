"""Segments a dataset's images: shared between processes, batch by batch, in one view of each image or in several."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers.modeling_outputs import SemanticSegmenterOutput

from catseg_hf import CATSegProcessor
from catseg_hf.guided_upsampling_catseg import as_guide
from catseg_hf.utils.threads import available_cpus

from .interruption import Stopped
from .views import MeanProbabilities, Views
from .workers import LoadedBatches, open_loader


logger = logging.getLogger(__name__)

# Of one prompt that occurs twice, the logits differ by rounding only, in bfloat16 too.
MAX_ROUNDING = 0.1

Step, Result = TypeVar("Step"), TypeVar("Result")
# Logits (T, h, w), or probabilities over all views, None without an image.
Outputs = Iterable[torch.Tensor | MeanProbabilities | None]


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
    dataset: Dataset,
    share: Share,
    batch_size: int,
    num_workers: int,
    prepare: Callable | None = None,
    pin_memory: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """
    This process's batches of examples, each behind what `prepare` makes of it where it is loaded. What a process has
    less than another is prepared of the dataset's last example, since models that are sharded run only together.

    Raises:
        Stopped: If `stop` says so, which all processes ask together for every batch.
    """
    batches = share.batches(len(dataset), batch_size)
    loader = open_loader(
        dataset,
        num_workers,
        _Collator(prepare),
        batch_sampler=[[*batch, *[len(dataset) - 1] * (count - len(batch))] for batch, count in batches],
        pin_memory=pin_memory,
    )
    loaded = LoadedBatches(loader)
    for batch, _ in batches:
        was_stopped, prepared, examples = False, None, []
        try:
            prepared, examples = next(loaded)
        except Stopped:
            was_stopped = True
        if stop() or was_stopped:
            raise Stopped
        yield prepared, [_with_arrays(example) for example in examples[: len(batch)]]


class _Collator:
    def __init__(self, prepare: Callable | None):
        self.prepare = prepare

    def __call__(self, examples: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
        # Unlike arrays, tensors come out of a worker without being copied through a pipe.
        return None if self.prepare is None else self.prepare(examples), [
            {name: torch.tensor(value) if isinstance(value, np.ndarray) else value for name, value in example.items()}
            for example in examples
        ]


def _with_arrays(example: dict[str, Any]) -> dict[str, Any]:
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in example.items()}


class _ViewMaker:
    """Prepares the images of examples: for each view one batch of all of them, since views have one size."""

    def __init__(self, processor: CATSegProcessor, views: Views):
        self.processor = processor
        self.views = views

    def __call__(self, examples: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        # An example that could not be read has no image, but processes must keep together.
        images = [example.get("image", np.zeros((1, 1, 3), np.uint8)) for example in examples]
        return [
            dict(
                self.processor(
                    images=[Image.fromarray(view.cut(image)) for image in images],
                    sliding_window=self.views.sliding_window,
                    value_range=None,  # they are in 8 bits already
                )
            )
            for view in self.views.parts
        ]


class _BatchedModel:
    """
    Logits of a batch of images.

    Args:
        model (`nn.Module`): The model.
        sliding_window (`bool`): Whether it averages windows and a global view.
        share ([`Share`]): Of the process, all of which must run the model as often.
        exact (`bool`): Whether an image must get the very bits that it gets alone. The first batch of every size
            tells whether all do, for the sizes of the products decide on the order of their sums. If not, the model
            gets images one by one.
    """

    def __init__(self, model: nn.Module, sliding_window: bool, share: Share, exact: bool):
        self.model = model
        self.sliding_window = sliding_window
        self.share = share
        self.exact = exact
        self._is_exact = {1: True}

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, T, h, w) of what the processor gave."""
        batch_size = len(inputs["pixel_values"])
        if not self.exact or self._is_exact.get(batch_size):
            return self._together(inputs)
        alone = [
            self._together({name: pixels[index : index + 1] for name, pixels in inputs.items()})
            for index in range(batch_size)
        ]
        logits = torch.cat(alone)
        if batch_size not in self._is_exact:
            self._is_exact[batch_size] = self._all(torch.equal(self._together(inputs), logits))
            if not self._is_exact[batch_size] and self.share.rank == 0:
                logger.info(f"The model gets images one by one: batches of {batch_size} are rounded differently here.")
        return logits

    def _together(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**inputs, sliding_window=self.sliding_window).logits

    def _all(self, value: bool) -> bool:
        return all(gather_object([value])) if self.share.world_size > 1 else value


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
    exact: bool = True,
    upsampling: str = "bilinear",
    repeated_prompts: Mapping[int, int] | None = None,
    stop: Callable[[], bool] = lambda: False,
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
        batch_size (`int`): Images that are loaded at a time, and that the model gets at once.
        num_workers (`int`): Processes that prepare images.
        exact (`bool`): Whether predictions must not depend on the batch size in a single pixel. The model then gets
            images one by one where a batch is rounded differently.
        upsampling (`str`): `"guided"` lets the classes' borders follow those in the images.
        repeated_prompts (`Mapping[int, int]`, *optional*):
            Classes that have the same prompt as a class of a lower index, and that index, which wins ties.
        stop (`Callable[[], bool]`): Asked for every batch, in all processes together.

    Yields:
        `list[dict]`: The examples of a batch, with `prediction` (H, W), int64, a tensor on the device. Where the
            model leaves a core free, it is made while the model is at the next batch.

    Raises:
        Stopped: If `stop` said so.
    """
    batched_model = _BatchedModel(model, views.sliding_window, share, exact)

    def logits_of(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return _with_ties(batched_model(inputs), repeated_prompts or {})

    def run_model() -> Iterator[tuple[list[dict[str, Any]], Outputs]]:
        prepare, pin_memory = _ViewMaker(processor, views), device.type == "cuda"
        for inputs, examples in load_batches(dataset, share, batch_size, num_workers, prepare, pin_memory, stop):
            inputs = [
                {name: pixels.to(device, non_blocking=True) for name, pixels in of_view.items()} for of_view in inputs
            ]
            yield (
                examples,
                logits_of(inputs[0]) if views.is_single else _mean_probabilities(logits_of, inputs, examples, views),
            )

    def add_predictions(batch: tuple[list[dict[str, Any]], Outputs]) -> list[dict[str, Any]]:
        for example, output in zip(*batch, strict=False):
            if "image" in example:
                guide = as_guide(example["image"]) if upsampling == "guided" else None
                example["prediction"] = _most_probable_class(processor, output, example["label"].shape, guide)
        return batch[0]

    num_threads = share.world_size * torch.get_num_threads()
    has_free_core = device.type != "cpu" or num_threads < available_cpus()
    yield from (_beside if has_free_core else map)(add_predictions, run_model())


def _beside(function: Callable[[Step], Result], steps: Iterable[Step]) -> Iterator[Result]:
    """
    What the function makes of each step, in a thread of its own: it goes on while the next step is made.

    It has one core. A second team of OpenMP's threads would make the model's own wait for each other differently, and
    take longer, even while it has nothing to do.
    """
    num_threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_use_one_core).result()
        torch.set_num_threads(num_threads)  # for threads that are started from now on, as it was
        unfinished = None
        for step in steps:
            following = thread.submit(function, step)
            if unfinished is not None:
                yield unfinished.result()
            unfinished = following
        if unfinished is not None:
            yield unfinished.result()


def _use_one_core():
    """Gives this thread one core for good: asked once, torch takes no later number for it."""
    torch.set_num_threads(1)
    torch.get_num_threads()


def _most_probable_class(
    processor: CATSegProcessor,
    output: torch.Tensor | MeanProbabilities,
    size: tuple[int, int],
    guide: torch.Tensor | None,
) -> torch.Tensor:
    """Classes (H, W) of an image with logits (T, h, w), or with probabilities over all views; guided by the image
    (3, H, W), if that is given."""
    if isinstance(output, MeanProbabilities):
        return output.most_probable_class(guide)
    outputs = SemanticSegmenterOutput(logits=output[None])
    guides = None if guide is None else [guide]
    return processor.image_processor.post_process_most_probable_class(outputs, [size], guides)[0][0]


def _mean_probabilities(
    logits_of: Callable,
    inputs: list[Mapping[str, torch.Tensor]],
    examples: list[Mapping[str, Any]],
    views: Views,
) -> list[MeanProbabilities | None]:
    """Each image's probabilities over all views, None if there was no image."""
    means = [MeanProbabilities(views, *example["label"].shape) if "image" in example else None for example in examples]
    for view, of_view in zip(views.parts, inputs, strict=True):
        for flip in (False, True) if views.flip else (False,):
            logits = logits_of({name: pixels.flip(-1) if flip else pixels for name, pixels in of_view.items()})
            for mean, of_image in zip(means, logits.flip(-1) if flip else logits, strict=False):
                if mean is not None:
                    mean.add(view, of_image)
    return means


def _with_ties(logits: torch.Tensor, repeated_prompts: Mapping[int, int]) -> torch.Tensor:
    """Logits (B, T, h, w) in which classes with one prompt have one logit, the lower index's."""
    for index, first in repeated_prompts.items():
        own, lower = logits[:, index], logits[:, first]
        logits[:, index] = torch.where((own - lower).abs() < MAX_ROUNDING, lower, own)
    return logits
