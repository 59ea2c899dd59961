"""Label maps beside images: what is accepted, how they are resized, and ids that begin at 1."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from .errors import UserError
from .image_pixels_catseg import to_tensor
from .resizing_catseg import nearest_source


def prepare_label_map(label: Any, index: int, size: tuple[int, int], pixel_values: torch.Tensor) -> torch.Tensor:
    """
    A label map as it goes with the pixels of its image.

    Args:
        label (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): Class ids, with one channel or without channels.
        index (`int`): Its place in the batch, for the errors.
        size (`tuple[int, int]`): Height and width of its image.
        pixel_values (`torch.Tensor` of shape (3, H, W)): The image as the model takes it.

    Returns:
        `torch.LongTensor` of shape (H, W), resized with Pillow's nearest; the values are never changed.

    Raises:
        `UserError`: for a map of another size than its image, in colour or fractional.
    """
    label = to_tensor(np.array(label) if isinstance(label, Image.Image) else label)
    shape = tuple(label.shape)
    if label.ndim == 3:
        label = label[0] if shape[0] == 1 else label[..., 0] if shape[-1] == 1 else label
    if label.ndim != 2:
        raise UserError(
            f"Segmentation map {index} has shape {shape}, but one class index per pixel is accepted, in shape "
            "(H, W): turn colours into class indices first."
        )
    if tuple(label.shape) != size:
        raise UserError(
            f"Segmentation map {index} has size {tuple(label.shape)} (height, width), but its image has size "
            f"{size}: pass maps of the size of their images."
        )
    # frac() is not 0 for NaN and infinity either.
    if label.is_floating_point() and (label.double().frac() != 0).any():
        raise UserError(
            f"Segmentation map {index} holds values that are not whole numbers, but class indices are "
            "accepted only: pass integers."
        )
    label = label.to(pixel_values.device, torch.int64)
    rows, columns = (
        nearest_source(old, new).to(pixel_values.device)
        for old, new in zip(size, pixel_values.shape[-2:], strict=True)
    )
    return label[rows][:, columns]


def reduce_labels(label: torch.Tensor) -> torch.Tensor:
    """Ids that begin at 1 as ids that begin at 0, with 255 for the former 0."""
    if label.max() > 255:
        raise UserError(
            f"A segmentation map holds the id {int(label.max())}, but `do_reduce_labels` takes ids of at most 255, "
            "which stands for no class: take 1 from the ids before."
        )
    is_class = (label != 0) & (label != 255)
    return torch.where(is_class, label - 1, 255)
