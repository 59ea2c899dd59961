"""Segmentations that follow class-agnostic masks, such as those of Segment Anything: every mask takes one class."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .errors import UserError
from .tensor_ops_catseg import at_least_float32


# Bounds what is held beside the probabilities, whatever the number of masks and the image's size.
_MAX_CHUNK_BYTES = 64 * 2**20

Box = tuple[slice, slice]
Masks = torch.Tensor | np.ndarray | Iterable[torch.Tensor | np.ndarray | Mapping[str, Any]]


def refine_with_masks(probabilities: torch.Tensor, masks: Masks) -> torch.LongTensor:
    """
    Gives every mask the class with the highest mean probability inside it, and every pixel the class of the mask that
    is the surest of it, the one whose class has the highest mean probability. Pixels under no mask keep their own most
    probable class. Of equals the first class and the first mask win.

    Args:
        probabilities (`torch.Tensor` of shape (T, H, W)):
            Probabilities of the classes, in 0..1, in the image's size: `segmentation_scores` of
            `post_process_semantic_segmentation`.
        masks (`torch.Tensor` or `np.ndarray` of shape (N, h, w), or iterable of N of shape (h, w)):
            Booleans, `True` inside. Masks may overlap, be empty and have holes. Those of another size than (H, W) are
            resized with nearest; they must have its aspect ratio, and so no padding. Also the list of dictionaries
            that the mask generators of segment-anything and sam2 return, each with such a `segmentation`.

    Returns:
        `torch.LongTensor` of shape (H, W): the class of every pixel, on the device of the probabilities.

    Raises:
        UserError: If the probabilities are no floats in 0..1 of three axes, or a mask is not one of booleans or of
            another aspect ratio.
    """
    _check_probabilities(probabilities)
    probability, segmentation = probabilities.max(dim=0)
    return refine_segmentation(segmentation, probability, probabilities, masks)[0]


def refine_segmentation(
    segmentation: torch.LongTensor,
    probability: torch.Tensor,
    probabilities: torch.Tensor,
    masks: Masks,
) -> tuple[torch.LongTensor, torch.Tensor]:
    """
    [`refine_with_masks`] for probabilities of another size than the image: the result is as if they were resized to it
    with bilinear, for which there is no room with many classes.

    Args:
        segmentation (`torch.LongTensor` of shape (H, W)): The most probable class of every pixel.
        probability (`torch.Tensor` of shape (H, W)): Its probability.
        probabilities (`torch.Tensor` of shape (T, h, w)): Probabilities of the classes, of any size.
        masks: As for [`refine_with_masks`].

    Returns:
        Two tensors of shape (H, W): the class of every pixel, and its probability; under a mask that is the mean
        probability of the class inside it.
    """
    probabilities = at_least_float32(probabilities)
    segmentation = segmentation.clone()
    certainty = torch.full_like(segmentation, -1, dtype=probabilities.dtype)  # of the mask that a pixel is under
    weigh_pixels = _pixel_weights(probabilities, segmentation.shape)
    largest_map = max(segmentation.numel(), probabilities[0].numel())
    per_chunk = max(1, _MAX_CHUNK_BYTES // (largest_map * probabilities.element_size()))
    masks = _crop_masks(masks, segmentation.shape, segmentation.device)
    while chunk := list(islice(masks, per_chunk)):
        weights = torch.stack([weigh_pixels(*mask_and_box) for mask_and_box in chunk]).flatten(1)
        means = weights @ probabilities.flatten(1).T / weights.sum(dim=1, keepdim=True)  # (N, T)
        certainties, classes = means.max(dim=1)
        for (mask, box), mean, index in zip(chunk, certainties.tolist(), classes.tolist(), strict=True):
            wins = mask & (certainty[box] < mean)
            segmentation[box].masked_fill_(wins, index)
            certainty[box].masked_fill_(wins, mean)
    return segmentation, torch.where(certainty < 0, probability, certainty)


def _pixel_weights(
    probabilities: torch.Tensor, size: tuple[int, int]
) -> Callable[[torch.BoolTensor, Box], torch.Tensor]:
    """
    What tells how much each of the probabilities (T, h, w) counts in the sum inside a mask of `size`: the sum of
    resized probabilities is one of the probabilities, weighted by what the resize makes of each.
    """
    if probabilities.shape[1:] == size:

        def weigh(mask: torch.BoolTensor, box: Box) -> torch.Tensor:
            weights = torch.zeros_like(probabilities[0])
            weights[box] = mask.to(weights.dtype)
            return weights

        return weigh

    rows, columns = (
        F.interpolate(torch.eye(old).to(probabilities)[None], size=new, mode="linear", align_corners=False)[0]
        for old, new in zip(probabilities.shape[1:], size, strict=True)
    )
    return lambda mask, box: rows[:, box[0]] @ mask.to(rows.dtype) @ columns[:, box[1]].T


def _crop_masks(masks: Any, size: tuple[int, int], device: torch.device) -> Iterator[tuple[torch.BoolTensor, Box]]:
    """Masks at `size`, each cut to its bounding box, with the box; without the empty ones."""
    if isinstance(masks, str | Mapping) or not isinstance(masks, Iterable):
        raise UserError(
            f"The masks are of type {type(masks).__name__}, but booleans of shape (N, height, width), or several of "
            "shape (height, width), are needed. Of a mask-generation pipeline's result these are its 'masks'."
        )
    for index, mask in enumerate(masks):
        mask = torch.as_tensor(_checked_mask(mask, index, size)).to(device)
        if mask.shape != size:
            mask = F.interpolate(mask[None, None].to(torch.uint8), size=size, mode="nearest-exact")[0, 0].bool()
        inside = [mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()]
        if len(inside[0]):
            box = tuple(slice(int(places[0]), int(places[-1]) + 1) for places in inside)
            yield mask[box], box


def _checked_mask(mask: Any, index: int, size: tuple[int, int]) -> torch.Tensor | np.ndarray:
    if isinstance(mask, Mapping):
        if isinstance(mask.get("segmentation"), Mapping) or "segmentation" not in mask:
            raise UserError(
                f"Mask {index} is a dictionary with {', '.join(map(repr, mask))}, but its 'segmentation' must be an "
                'array: of the mask generators of segment-anything and sam2, with `output_mode="binary_mask"`.'
            )
        mask = mask["segmentation"]
    mask = mask if isinstance(mask, torch.Tensor) else np.asarray(mask)
    dtype = str(mask.dtype).removeprefix("torch.")
    if dtype != "bool" or mask.ndim != 2 or 0 in mask.shape:
        raise UserError(
            f"Mask {index} has shape {tuple(mask.shape)} and dtype {dtype}, but booleans of shape (height, width) "
            "are needed: compare its values with a threshold, `mask > 0`, and pass one mask as `masks[None]`."
        )
    if not _is_resized(mask.shape, size):
        (mask_height, mask_width), (height, width) = mask.shape, size
        raise UserError(
            f"Mask {index} is of {mask_width} x {mask_height} pixels (width x height), but the image of {width} x "
            f"{height}, another aspect ratio: pass masks of the whole image without padding, which "
            "`post_process_masks` of Segment Anything's processors takes off, and to `refine_with_masks` "
            "probabilities in the image's size (`target_sizes`)."
        )
    return mask


def _is_resized(resized: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a size can be that of an image of `size` at another scale, each side rounded up or down."""
    pairs = list(zip(resized, size, strict=True))
    return max((side - 1) / whole for side, whole in pairs) < min((side + 1) / whole for side, whole in pairs)


def _check_probabilities(probabilities: torch.Tensor):
    described = f"of type {type(probabilities).__name__}"
    if isinstance(probabilities, torch.Tensor):
        described = f"of shape {tuple(probabilities.shape)} and {probabilities.dtype}"
        if probabilities.ndim == 3 and probabilities.numel() and probabilities.is_floating_point():
            lowest, highest = (float(value) for value in probabilities.aminmax())
            if 0 <= lowest and highest <= 1:
                return
            described = f"between {lowest} and {highest}"
    raise UserError(
        f"The probabilities are {described}, but floats from 0 to 1 of shape (classes, height, width) are needed: "
        "the `segmentation_scores` of `post_process_semantic_segmentation(..., return_segmentation_scores=True)`."
    )


__all__ = ["refine_with_masks"]
