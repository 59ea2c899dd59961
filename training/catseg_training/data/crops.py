"""Augmented crops for training, each a pure function of the seed, its epoch and its index."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node

from .augmentation import training_crop
from .examples import read_example


class _CropMaker:
    """Makes an item for the model out of a row and a random generator."""

    def __init__(
        self,
        num_labels: int,
        size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        ignore_index: int,
        color_jitter: bool,
    ):
        self.num_labels = num_labels
        self.size = size
        self.ignore_index = ignore_index
        self.color_jitter = color_jitter
        levels = np.arange(256) / 255
        # (3, 256): the normalised value of each grey level.
        self.normalized = ((levels - np.array(image_mean)[:, None]) / np.array(image_std)[:, None]).astype(np.float32)

    def __call__(self, row: Mapping[str, Any], generator: np.random.Generator) -> dict[str, torch.Tensor]:
        image, label = read_example(row, self.num_labels, self.ignore_index)
        image, label = training_crop(image, label, self.size, generator, self.ignore_index, self.color_jitter)
        planes = [np.take(levels, image[..., channel]) for channel, levels in enumerate(self.normalized)]
        return {
            "pixel_values": torch.from_numpy(np.stack(planes)),
            "labels": torch.from_numpy(label.astype(np.int64)),
        }


def idle_workers(num_shards: int, world_size: int, num_workers: int) -> str | None:
    """
    A warning for a stream of fewer shards than workers.

    Args:
        num_shards (`int`): Files of the stream, or other parts of it that are read one by one.
        world_size (`int`): Number of processes.
        num_workers (`int`): Of each process; 0 stands for the process itself.
    """
    wanted = world_size * max(1, num_workers)
    if num_shards >= wanted:
        return None
    counts = f"The stream has {num_shards} shard{'s' * (num_shards > 1)} for {wanted} workers"
    remedy = f"store it in {wanted} files or a multiple"
    if num_shards % world_size:
        return (
            f"{counts}: each of {world_size} processes reads all of it and leaves out what the others take. For more "
            f"speed {remedy}."
        )
    used = num_shards // world_size
    return (
        f"{counts}: {wanted - num_shards} of them have nothing to do. --dataloader_num_workers {used} is as fast; for "
        f"more speed {remedy}."
    )


def _generator(seed: int, *key: int) -> np.random.Generator:
    """Independent of those with any other seed or key."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


class TrainingCrops(torch.utils.data.Dataset):
    """
    Augmented crops. An item is asked for with `(epoch, index)`, as [`EpochSampler`] gives them, and is a pure function
    of the seed and these two, whatever worker or process makes it.

    Args:
        dataset (`datasets.Dataset`): Of [`load_segmentation_data`].
        num_labels (`int`): Size of the vocabulary.
        size (`int`): Side of the crops in pixels.
        image_mean (`Sequence[float]`), image_std (`Sequence[float]`): Of the processor, for pixels in 0..1.
        seed (`int`): At least 0.
        ignore_index (`int`, *optional*, defaults to 255): The label that stands for no class.
        color_jitter (`bool`, *optional*, defaults to `True`): Whether to change brightness, contrast and colours.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        num_labels: int,
        size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        seed: int,
        ignore_index: int = 255,
        color_jitter: bool = True,
    ):
        self.dataset = dataset
        self.seed = seed
        self.make_crop = _CropMaker(num_labels, size, image_mean, image_std, ignore_index, color_jitter)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """`pixel_values` (3, size, size), float32, normalised, and `labels` (size, size), int64, of (epoch, index)."""
        epoch, index = item
        return self.make_crop(self.dataset[index], _generator(self.seed, epoch, index))


class EpochSampler(torch.utils.data.Sampler):
    """
    `(epoch, index)` of every image once, in an order that is a pure function of seed and epoch.

    Args:
        num_examples (`int`): Number of images.
        seed (`int`): At least 0.
        shuffle (`bool`, *optional*, defaults to `True`): Whether to draw a new order for every epoch.
    """

    def __init__(self, num_examples: int, seed: int, shuffle: bool = True):
        self.num_examples = num_examples
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int):
        """Chooses the epoch of the next iterator."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_examples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = range(self.num_examples)
        if self.shuffle:
            order = _generator(self.seed, self.epoch).permutation(self.num_examples).tolist()
        return iter([(self.epoch, index) for index in order])


class StreamingCrops(torch.utils.data.IterableDataset):
    """
    Augmented crops of a streamed dataset, one pass for each epoch: its shards in random order, rows shuffled in a
    buffer.

    Workers and processes read shards of their own, so that crops and their order are a pure function of seed, epoch,
    rank, world size and number of workers, and processes may have different numbers of them.

    Args:
        dataset (`datasets.IterableDataset`): Of [`load_segmentation_data`] with `streaming=True`.
        num_labels, size, image_mean, image_std, seed, ignore_index, color_jitter: As of [`TrainingCrops`].
        buffer_size (`int`, *optional*, defaults to 256):
            How many rows (not decoded) the shuffling chooses from, in every worker.
        rank (`int`, *optional*, defaults to 0), world_size (`int`, *optional*, defaults to 1): Of the process.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        num_labels: int,
        size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        seed: int,
        ignore_index: int = 255,
        color_jitter: bool = True,
        buffer_size: int = 256,
        rank: int = 0,
        world_size: int = 1,
    ):
        # Mixing several shards in a buffer would start a thread for each, in every worker.
        stream = dataset.shuffle(seed=seed, buffer_size=buffer_size, max_buffer_input_shards=1)
        self.dataset = split_dataset_by_node(stream, rank, world_size) if world_size > 1 else stream
        self.seed = seed
        self.rank = rank
        self.make_crop = _CropMaker(num_labels, size, image_mean, image_std, ignore_index, color_jitter)

    def set_epoch(self, epoch: int):
        """Chooses the epoch of the next iterator, persistent workers' too."""
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Items as of [`TrainingCrops`]."""
        worker = torch.utils.data.get_worker_info()
        key = (self.dataset.epoch, self.rank, 0 if worker is None else worker.id)
        for number, row in enumerate(self.dataset):
            yield self.make_crop(row, _generator(self.seed, *key, number))
