"""The endless sequence of training batches: the same for any number of processes, and from any step on."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from accelerate import Accelerator
from torch.utils.data import Sampler

from catseg_hf.errors import UserError

from ..workers import LoadedBatches, open_loader
from .crops import EpochSampler, StreamingCrops, TrainingCrops


class StepSampler(Sampler[list[tuple[int, int]]]):
    """
    One process's batches of `(epoch, index)`, from step `first_step` on, without end.

    The epochs follow each other without a gap, and each step takes the next images of that sequence, accumulated
    batch by accumulated batch and within these process by process. So no image is dropped or repeated at the end of
    an epoch, and a step has the same images however it is divided.

    Args:
        num_examples (`int`): Number of images.
        seed (`int`): Of their order in every epoch.
        batch_size (`int`): Images of one process at a time.
        accumulation_steps (`int`): Batches of a process in one step.
        rank (`int`), world_size (`int`): Of the process.
    """

    def __init__(
        self,
        num_examples: int,
        seed: int,
        batch_size: int,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.accumulation_steps = accumulation_steps
        self.rank, self.world_size = rank, world_size
        self.step_size = batch_size * accumulation_steps * world_size
        self.first_step = 0

        @lru_cache(maxsize=4)
        def order(epoch: int) -> list[tuple[int, int]]:
            sampler = EpochSampler(num_examples, seed)
            sampler.set_epoch(epoch)
            return list(sampler)

        self._order = order

    def batch(self, step: int, accumulated: int, rank: int) -> list[tuple[int, int]]:
        """`(epoch, index)` of the images that process `rank` takes in the given batch of `step`, both from 0."""
        start = step * self.step_size + (accumulated * self.world_size + rank) * self.batch_size
        places = [divmod(position, self.num_examples) for position in range(start, start + self.batch_size)]
        return [self._order(epoch)[place] for epoch, place in places]

    def ends_epoch(self, step: int) -> bool:
        """Whether the last image of an epoch is among those of the `step`-th step, counted from 1."""
        return step * self.step_size // self.num_examples > (step - 1) * self.step_size // self.num_examples

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.first_step
        while True:
            for accumulated in range(self.accumulation_steps):
                yield self.batch(step, accumulated, self.rank)
            step += 1


class CropBatches:
    """
    Batches of [`TrainingCrops`], on the processor. `next` gives one after another from where [`~CropBatches.start`]
    began.

    Args:
        crops (`TrainingCrops`): Training images.
        seed (`int`), batch_size (`int`): See [`StepSampler`].
        accelerator (`Accelerator`): Tells which process this is, and how many batches a step accumulates.
        num_workers (`int`): Processes that prepare batches.
    """

    def __init__(self, crops: TrainingCrops, seed: int, batch_size: int, accelerator: Accelerator, num_workers: int):
        self.crops = crops
        self.sampler = StepSampler(
            len(crops),
            seed,
            batch_size,
            accelerator.gradient_accumulation_steps,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self._loader = open_loader(
            crops, num_workers, _stack, batch_sampler=self.sampler, pin_memory=accelerator.device.type == "cuda"
        )

    def start(self, step: int, position: list[int] | None = None):
        """Begins with the first batch of `step`, counted from 0."""
        self.sampler.first_step = step
        self._batches = LoadedBatches(self._loader)

    def __next__(self) -> dict[str, torch.Tensor]:
        return next(self._batches)

    def position(self) -> None:
        """What [`~CropBatches.start`] needs beside the step: nothing."""

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends with the `step`-th step."""
        return self.sampler.ends_epoch(step)

    def describe(self, step: int, accumulated: int, rank: int) -> str:
        """The names of the images in one batch."""
        examples = self.sampler.batch(step, accumulated, rank)
        return ", ".join(str(self.crops.dataset[index]["name"]) for _, index in examples)


class StreamedBatches:
    """
    Batches of [`StreamingCrops`], pass after pass, with the interface of [`CropBatches`].

    Every pass gives each image of this process once. What is left at its end, or at that of a worker, and does not
    fill a batch goes into the next one, since an incomplete batch would count for as much as the others.

    Args:
        crops (`StreamingCrops`): Training images of this process.
        batch_size (`int`): Images in a batch.
        accelerator (`Accelerator`): Tells about this process.
        num_workers (`int`): Processes that prepare batches.
    """

    def __init__(self, crops: StreamingCrops, batch_size: int, accelerator: Accelerator, num_workers: int):
        self.crops = crops
        self.batch_size = batch_size
        self.rank = accelerator.process_index
        self._loader = open_loader(
            crops, num_workers, _stack, batch_size=batch_size, pin_memory=accelerator.device.type == "cuda"
        )

    def start(self, step: int, position: list[int] | None = None):
        """Begins behind `position`, a pass and how many of its images are done: these are read again."""
        self._pass, num_done = position or (0, 0)
        self._open_pass()
        while self._num_taken < num_done:
            self._take(num_done - self._num_taken)
            if position is not None and self._pass != position[0]:
                raise UserError(
                    f"Process {self.rank} finds fewer images in the stream than it had taken from it, {num_done:,}: "
                    "go on with the data that the run began with, or begin a new one."
                )

    def __next__(self) -> dict[str, torch.Tensor]:
        parts, num_missing = [], self.batch_size
        while num_missing:
            parts.append(self._take(num_missing))
            num_missing -= len(parts[-1]["labels"])
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _take(self, limit: int) -> dict[str, torch.Tensor]:
        """At least one image, and at most so many."""
        if self._rest is None:
            self._rest = next(self._batches, None)
        if self._rest is None:
            if self._num_taken == 0:
                raise UserError(
                    f"Process {self.rank} finds no image in the stream: use fewer processes, or leave --streaming out."
                )
            self._pass += 1
            self._open_pass()
            return self._take(limit)
        size = len(self._rest["labels"])
        taken = {name: value[:limit] for name, value in self._rest.items()}
        self._rest = {name: value[limit:] for name, value in self._rest.items()} if size > limit else None
        self._num_taken += min(size, limit)
        return taken

    def _open_pass(self):
        self.crops.set_epoch(self._pass)
        self._batches = LoadedBatches(self._loader)
        self._rest, self._num_taken = None, 0

    def position(self) -> list[int]:
        """The pass, and how many of its images were taken."""
        return [self._pass, self._num_taken]

    def ends_epoch(self, step: int) -> bool:
        return False

    def describe(self, step: int, accumulated: int, rank: int) -> str:
        """Where about in the stream a batch was: a stream has no names."""
        return f"a batch of process {rank} in pass {self._pass} over the stream, up to its {self._num_taken}-th image"


def _stack(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
