"""Label maps of images that are too large to be held for all classes: bands of finished rows."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Band(NamedTuple):
    """
    Finished rows of an image.

    Attributes:
        top (`int`): The first of them.
        segmentation (`torch.IntTensor` or `torch.LongTensor` of shape (h, W)): The most probable class of every pixel.
        probability (`torch.FloatTensor` of shape (h, W)): Its probability, in 0..1.
    """

    top: int
    segmentation: torch.Tensor
    probability: torch.Tensor


def label_map(bands: Iterator[Band], size: tuple[int, int]) -> torch.LongTensor:
    """The classes of all pixels of an image of this height and width."""
    first = next(bands)
    if len(first.segmentation) == size[0]:
        return first.segmentation.long()
    segmentation = torch.empty(size, dtype=torch.int64, device=first.segmentation.device)
    for band in chain([first], bands):
        segmentation[band.top : band.top + len(band.segmentation)] = band.segmentation
    return segmentation


def join_bands(bands: Iterator[Band], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes, int64, and the probabilities of all pixels of an image of this height and width."""
    first = next(bands)
    if len(first.segmentation) == size[0]:
        return first.segmentation.long(), first.probability
    segmentation = torch.empty(size, dtype=torch.int64, device=first.segmentation.device)
    probability = torch.empty(size, device=first.probability.device)
    for band in chain([first], bands):
        rows = slice(band.top, band.top + len(band.segmentation))
        segmentation[rows], probability[rows] = band.segmentation, band.probability
    return segmentation, probability
