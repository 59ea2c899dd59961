"""From logits to label maps: the arg max over classes of resized probabilities, in bounded memory."""

from collections.abc import Iterator
from functools import reduce
from operator import index as as_index
from typing import Any

import torch
import torch.nn.functional as F

from .bands_catseg import Band
from .errors import UserError
from .tensor_ops_catseg import resize_bilinear
from .tiles_catseg import most_probable_in_bands


# Bounds what the arg max over classes may hold at a time, whatever the number of classes and the image's size. On the
# CPU, larger tensors are slower: their memory is not used again, but comes from the system each time.
_MAX_CHUNK_BYTES, _MAX_CPU_CHUNK_BYTES = 128 * 2**20, 24 * 2**20
# Processors are many times slower on numbers as small as the probabilities of classes that were cut away. A power of
# two lifts them above that and changes no other bit.
_PROBABILITY_SCALE = 2.0**60
# By how much, relatively, rounding may move what is resized, at most.
_ROUNDING = 1e-4
# Values that stay in the processor's cache while classes are compared.
_MAX_CELLS = 2**17
# Larger images are worked on a part at a time, which rounds their last bits differently.
_MAX_PIXELS_AT_ONCE = 2**24


def with_target_sizes(
    logits: torch.Tensor, target_sizes: "list[tuple[int, int]] | torch.Tensor | None"
) -> list[tuple[torch.Tensor, tuple[int, int]]]:
    """Every image's logits (T, h, w) and the size (height, width) that is wanted of it."""
    if target_sizes is None:
        target_sizes = [tuple(logits.shape[-2:])] * len(logits)
    elif isinstance(target_sizes, torch.Tensor):
        target_sizes = target_sizes.tolist()
    if len(target_sizes) != len(logits):
        raise UserError(
            f"{len(target_sizes)} target sizes were given for {len(logits)} images in the logits: pass one "
            "(height, width) per image."
        )
    return list(zip(logits, map(_check_target_size, target_sizes), strict=True))


def _check_target_size(size: Any) -> tuple[int, int]:
    try:
        height, width = (as_index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise UserError(f"The target size {size!r} is not accepted: pass (height, width), two positive integers.")
    return height, width


def is_large(size: tuple[int, int]) -> bool:
    """Whether images of this height and width are too large to work on all of their pixels at once."""
    return size[0] * size[1] > _MAX_PIXELS_AT_ONCE


def most_probable_bands(logits: torch.Tensor, size: tuple[int, int]) -> Iterator[Band]:
    """Arg max over T of the probabilities (T, h, w) resized to `size`, and its probability, from top to bottom: bands
    of rows of a large image, and one of every other."""
    logits = logits.detach()
    if not is_large(size):
        yield Band(0, *_most_probable_at_once(logits, size))
        return
    on_cpu = logits.device.type == "cpu"
    possible = _possible_classes(logits).int() if on_cpu else torch.arange(len(logits), device=logits.device)
    for top, segmentation, probability in most_probable_in_bands(logits[possible].float().sigmoid(), size):
        yield Band(top, segmentation if len(possible) == len(logits) else possible[segmentation], probability)


def _most_probable_at_once(logits: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = size[0] * size[1] + 2 * logits.shape[-2] * logits.shape[-1]
    best = torch.full(size, -1.0, device=logits.device)
    segmentation = torch.zeros(size, dtype=torch.int64, device=logits.device)
    if logits.device.type == "cpu":
        possible, max_bytes = _possible_classes(logits), _MAX_CPU_CHUNK_BYTES
    else:  # would have to be waited for, which costs more than it saves
        possible, max_bytes = torch.arange(len(logits), device=logits.device), _MAX_CHUNK_BYTES
    # The resize rounds a class by itself differently, so that there are at least two in every chunk.
    max_classes = max(3, max_bytes // (4 * pixels))
    for indices in possible.tensor_split(-(-len(possible) // max_classes)):
        # The first of equal classes, here as in the comparison with those before.
        probabilities = logits[indices].float().sigmoid() * _PROBABILITY_SCALE
        scores, places = resize_bilinear(probabilities[None], size)[0].max(dim=0)
        is_better = scores > best
        segmentation = torch.where(is_better, indices[places], segmentation)
        best = torch.where(is_better, scores, best)
    return segmentation, best / _PROBABILITY_SCALE


def _possible_classes(logits: torch.Tensor) -> torch.Tensor:
    """
    Indices of the classes that may be the most probable one somewhere, whatever size the probabilities of the logits
    (T, h, w) are resized to. Between four pixels, probabilities are a weighted mean of those at the pixels, with one
    set of weights for all classes: a class loses there if at each pixel it is below the mean of the four winners.
    """
    rows, columns = (torch.arange(side + 1).clamp(max=side - 1) for side in logits.shape[1:])
    corners = [(i, j) for i in (rows[:-1, None], rows[1:, None]) for j in (columns[:-1], columns[1:])]
    winner = logits.max(dim=0).indices
    winners = torch.stack([winner[corner] for corner in corners])
    means = torch.stack([logits[(winners, *corner)].double().sigmoid().mean(dim=0) for corner in corners])
    to_reach = (means * (1 - _ROUNDING) - torch.finfo(torch.float32).tiny).clamp(min=0).logit().float()
    loses = []
    for chunk in logits.split(max(1, _MAX_CELLS // winner.numel())):
        values = F.pad(chunk.float(), (0, 1, 0, 1), mode="replicate")
        at_corners = (values[:, :-1, :-1], values[:, :-1, 1:], values[:, 1:, :-1], values[:, 1:, 1:])
        lead = reduce(torch.maximum, map(torch.sub, at_corners, to_reach))
        loses.append(lead.flatten(1).amax(dim=1) < 0)
    return torch.cat(loses).logical_not().nonzero()[:, 0]
