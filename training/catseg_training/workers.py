"""The processes of a data loader: how they are started and hand over what they prepared, and what to do if they
cannot."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch.utils.data import DataLoader, Dataset, get_worker_info

from catseg_hf.errors import UserError, first_line
from catseg_hf.utils.threads import available_cpus

from .interruption import TerminationNotice, shield_worker


# For every process that trains or evaluates.
DEFAULT_NUM_WORKERS = min(2, available_cpus())
SHARED_MEMORY = Path("/dev/shm")
# How the messages of torch's DataLoader about workers that ended begin.
ENDED = "DataLoader worker (pid"
REMEDY = (
    "--dataloader_num_workers 0 prepares images without other processes; fewer of them need less; docker run "
    "--shm-size 2g gives a container more shared memory."
)


def _unchanged(example: Any) -> Any:
    return example


def open_loader(
    dataset: Dataset, num_workers: int, collate: Callable[[Any], Any] = _unchanged, **options: Any
) -> DataLoader:
    """
    A loader for [`LoadedBatches`].

    Args:
        dataset (`Dataset`): What is loaded.
        num_workers (`int`): Processes that do so, 0 for this one alone.
        collate (`Callable`, *optional*): What makes a batch of examples.
        options: Further arguments of `DataLoader`.
    """
    return DataLoader(
        dataset, num_workers=num_workers, collate_fn=_Sharing(collate), worker_init_fn=shield_worker, **options
    )


class LoadedBatches(Iterator):
    """
    The batches of a loader of [`open_loader`]. Its workers run while this is kept.

    Raises:
        UserError: If a worker cannot be started or cannot hand over a batch, because memory has run out say.
        Stopped: If a signal comes while a worker is waited for.
    """

    def __init__(self, loader: DataLoader):
        self._has_workers = loader.num_workers > 0
        try:
            self._batches = iter(loader)
        except OSError as error:
            if not self._has_workers:
                raise
            raise UserError(
                f"The processes that prepare images could not be started: {first_line(error)}{_shared_memory()}. "
                f"{REMEDY}"
            ) from error

    def __next__(self) -> Any:
        with TerminationNotice.interrupting() if self._has_workers else nullcontext():
            return next(self._batches)


@contextmanager
def explained_ends_of_workers() -> Iterator[None]:
    """
    Raises:
        UserError: In place of the error that torch raises, at any time, when a worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(ENDED):
            raise
        raise UserError(
            f"A process that prepares images has ended, perhaps for want of memory{_shared_memory()}: "
            f"{first_line(error)}. {REMEDY}"
        ) from error


class _Sharing:
    """
    Makes batches and, in a worker, puts their tensors into shared memory. A queue would do so later, in a thread of
    its own whose failures nobody hears of.
    """

    def __init__(self, collate: Callable[[Any], Any]):
        self.collate = collate

    def __call__(self, examples: Any) -> Any:
        batch = self.collate(examples)
        if get_worker_info() is None:
            return batch
        try:
            return recursively_apply(torch.Tensor.share_memory_, batch)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"A process that prepares images could not hand them over: {first_line(error)}{_shared_memory()}. "
                f"{REMEDY}"
            ) from error


def _shared_memory() -> str:
    """How much of it there is, where that can be told."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return ""
    return f" ({SHARED_MEMORY}: {usage.free / 2**20:,.0f} of {usage.total / 2**20:,.0f} MB are free)"
