"""Label maps beside images: what is accepted, how they are resized, and ids that begin at 1."""

import os
from typing import Any

import numpy as np
import torch
from PIL import Image

from .errors import UserError
from .image_io_catseg import decode_image, read_bytes, upright
from .image_pixels_catseg import to_tensor
from .resizing_catseg import nearest_source
from .stored_images_catseg import LOSSY_FORMATS


LABEL_MODES = ("1", "L", "P", "I;16", "I;16B", "I", "F")


def read_label_ids(data: bytes, name: str) -> np.ndarray:
    """
    The ids of a label map, as they are stored.

    Args:
        data (`bytes`): What the file contains.
        name (`str`): What messages call it.

    Returns:
        `np.ndarray` of shape (H, W), integers, turned as EXIF data may say.

    Raises:
        `UserError`: for a file that does not decode, was stored with loss, in colour or with fractions.
    """
    stored = decode_image(data, name)
    refuse_lossy(stored.is_lossy, stored.image.format, name)
    ids = image_ids(upright(stored.image, name), name)
    if stored.white_is_zero and stored.bits <= 8 and stored.image.mode != "P":  # Pillow has turned them round
        ids = (1 if stored.image.mode == "1" else 255) - ids
    if stored.bits in (2, 4) and stored.image.mode == "L":  # and spread them over 0..255
        ids = ids // (255 // (2**stored.bits - 1))
    return ids


def refuse_lossy(is_lossy: bool, image_format: str | None, name: str):
    """
    Raises:
        `UserError`: for a label map whose ids have been changed by the format.
    """
    if is_lossy:
        raise UserError(
            f"{name} is stored as {image_format}, whatever its name ends in, which changes ids: between 5 and 100 "
            "everything in between appears. Write the label maps anew as PNG, from where they were drawn."
        )


def image_ids(image: Image.Image, name: str) -> np.ndarray:
    """
    The ids `(H, W)`, integers, of a label map that is an image.

    Raises:
        `UserError`: for one in colour or with fractions.
    """
    if image.mode not in LABEL_MODES:
        raise UserError(
            f"{name} is an image of mode {image.mode}, but a label map has one channel of class ids (modes "
            f"{', '.join(LABEL_MODES)}): save the ids themselves, not colours."
        )
    ids = np.asarray(image)
    if image.mode == "F":
        return whole_ids(ids, name)
    return ids.astype(np.uint8) if ids.dtype == bool else ids.astype(ids.dtype.newbyteorder("="), copy=False)


def whole_ids(ids: np.ndarray, name: str) -> np.ndarray:
    """
    Ids that are stored as floating-point numbers, as integers.

    Raises:
        `UserError`: if there are fractions, infinity or NaN among them.
    """
    is_whole = np.isfinite(ids) & (np.trunc(ids) == ids)
    if not is_whole.all():
        raise UserError(
            f"{name} holds floating-point numbers, {ids[~is_whole][0]} among them, but class ids are whole numbers: "
            "save integers, and an id of its own where there is no class."
        )
    return ids.astype(np.int64)


def open_label_maps(label_maps: Any) -> Any:
    """Paths of label maps, one or lists of them, as their ids `(H, W)`; everything else as it is."""
    if isinstance(label_maps, list | tuple):
        return [open_label_maps(label_map) for label_map in label_maps]
    if isinstance(label_maps, str | os.PathLike) and os.path.isfile(label_maps):
        return read_label_ids(*read_bytes(label_maps, f"The label map {os.fspath(label_maps)!r}"))
    return label_maps


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
        `UserError`: for a map of another size than its image, in colour, fractional, or stored with loss.
    """
    label = _to_ids(label, f"Segmentation map {index}")
    if tuple(label.shape) != size:
        raise UserError(
            f"Segmentation map {index} has size {tuple(label.shape)} (height, width), but its image has size "
            f"{size}: pass maps of the size of their images."
        )
    label = label.to(pixel_values.device, torch.int64)
    rows, columns = (
        nearest_source(old, new).to(pixel_values.device)
        for old, new in zip(size, pixel_values.shape[-2:], strict=True)
    )
    return label[rows][:, columns]


def _to_ids(label: Any, name: str) -> torch.Tensor:
    """A label map of any kind as integers or whole numbers `(H, W)`."""
    if isinstance(label, Image.Image):
        refuse_lossy(label.format in LOSSY_FORMATS, label.format, name)
        label = np.array(label)
    label = to_tensor(label)
    shape = tuple(label.shape)
    if label.ndim == 3:
        label = label[0] if shape[0] == 1 else label[..., 0] if shape[-1] == 1 else label
    if label.ndim != 2:
        raise UserError(
            f"{name} has shape {shape}, but one class index per pixel is accepted, in shape (H, W): turn colours into "
            "class indices first."
        )
    # frac() is not 0 for NaN and infinity either.
    if label.is_floating_point() and (label.double().frac() != 0).any():
        raise UserError(
            f"{name} holds values that are not whole numbers, but class indices are accepted only: pass integers."
        )
    return label


def reduce_labels(label: torch.Tensor) -> torch.Tensor:
    """Ids that begin at 1 as ids that begin at 0, with 255 for the former 0."""
    if label.max() > 255:
        raise UserError(
            f"A segmentation map holds the id {int(label.max())}, but `do_reduce_labels` takes ids of at most 255, "
            "which stands for no class: take 1 from the ids before."
        )
    is_class = (label != 0) & (label != 255)
    return torch.where(is_class, label - 1, 255)
