"""What CAT-Seg's image processors take for the pixels of an image: one rule for modes, bit depths and channels."""

from math import inf
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension, ImageInput
from transformers.utils import logging

from .errors import UserError


logger = logging.get_logger(__name__)

RANGE_REMEDY = "Say which values are black and white: `value_range=(LOW, HIGH)`, or --range LOW HIGH."
# 14 bits are what cameras deliver at most.
DARK_BITS = 14
_WARNED_BITS: set[int] = set()
# Of images of which other copies are made on the way.
_ROWS_AT_ONCE = 256


def rgb_pixels(
    image: ImageInput,
    name: str = "The image",
    *,
    value_range: tuple[float, float] | None = None,
    do_convert_rgb: bool | None = True,
    input_data_format: str | ChannelDimension | None = None,
    do_rescale: bool | None = True,
    device: "str | torch.device | None" = None,
) -> torch.Tensor:
    """
    An image as RGB.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The image, see
            [`CATSegImageProcessorPil.preprocess`].
        name (`str`): What messages call it.
        value_range (`tuple[float, float]`, *optional*): The values that become 0 and 255; what lies outside becomes
            one of these. By default integers up to 255 stay as they are, larger ones are those of 16 bits, and floats
            keep their range.
        do_convert_rgb (`bool`): Whether grey images and alpha are accepted.
        input_data_format (`str` or `ChannelDimension`, *optional*): Where the channels are.
        do_rescale (`bool`): Whether floats are 0..255 and not 0..1, to warn where they are not.
        device (`str` or `torch.device`, *optional*): Where the result is.

    Returns:
        `torch.Tensor` of shape (3, H, W): uint8 in 0..255, or float32 in the range that it came in.

    Raises:
        `UserError`: for an image that is empty, not finite, out of range or not an image.
    """
    if isinstance(image, Image.Image):
        if image.mode == "RGB":
            image, input_data_format = _split_channels(image), ChannelDimension.FIRST
        else:
            image = _open_pil(image, name) if do_convert_rgb else np.array(image)
            input_data_format = ChannelDimension.LAST
    image = to_tensor(image).to(device)
    shape = tuple(image.shape)
    if image.ndim == 2:
        image, input_data_format = image[None], ChannelDimension.FIRST
    if image.ndim != 3 or 0 in shape:
        raise UserError(
            f"{name} has shape {shape}, but at least one pixel is needed, in shape (H, W), (H, W, C) or "
            "(C, H, W). Leave it out or repair it."
        )
    if input_data_format is None:
        ends = [(c, axis) for c in (3, 4, 1) for axis in (0, 2) if shape[axis] == c]
        input_data_format = ChannelDimension.LAST if ends and ends[0][1] == 2 else ChannelDimension.FIRST
        if len(ends) == 2:
            layout = "(H, W, C)" if input_data_format == ChannelDimension.LAST else "(C, H, W)"
            logger.warning_once(
                f"An image of shape {shape} may have its channels first or last and is taken as {layout}: pass "
                "`input_data_format`, or a PIL image, if that is wrong."
            )
    if ChannelDimension(input_data_format) == ChannelDimension.LAST:
        image = image.permute(2, 0, 1)
    if image.shape[0] not in ((1, 3, 4) if do_convert_rgb else (3,)):
        raise UserError(
            f"{name} has shape {shape} and so {image.shape[0]} channels, but "
            f"{'1, 3 or 4 are' if do_convert_rgb else '3 without `do_convert_rgb` are'} accepted. Pass it as RGB."
        )
    if value_range is not None:
        image = _scale_values(image, value_range, name)
    elif image.is_floating_point():
        image = image.float()
        _check_range(image, name)
        if do_rescale and image.max() <= 1:
            logger.warning_once(
                "A float image with values of at most 1 is being rescaled by `rescale_factor`: pass "
                "`do_rescale=False` if its values are 0 to 1."
            )
    else:
        image = _to_8_bit(image, name)
    return image[:3].expand(3, -1, -1).contiguous()


def _split_channels(image: Image.Image) -> np.ndarray:
    """An RGB image as an array (3, H, W), some rows at a time: a large one is copied once and no more."""
    pixels = np.empty((3, image.height, image.width), dtype=np.uint8)
    for top in range(0, image.height, _ROWS_AT_ONCE):
        rows = image.crop((0, top, image.width, min(top + _ROWS_AT_ONCE, image.height)))
        for channel, values in enumerate(rows.split()):
            pixels[channel, top : top + rows.height] = np.asarray(values)
    return pixels


def _scale_values(image: torch.Tensor, value_range: tuple[float, float], name: str) -> torch.Tensor:
    """Pixels (C, H, W) of any type as uint8, where the two values of `value_range` become 0 and 255."""
    low, high = check_value_range(value_range)
    scaled = []
    for rows in image.split(_ROWS_AT_ONCE, dim=1):
        rows = rows.to(torch.float64)
        if not torch.isfinite(rows).all():
            raise UserError(f"{name} holds NaN or infinite pixels, but only finite values can be scaled: repair it.")
        scaled.append(((rows - low) * (255 / (high - low))).clamp(0, 255).round().to(torch.uint8))
    return torch.cat(scaled, dim=1)


def check_value_range(value_range: Any) -> tuple[float, float]:
    """
    Returns:
        `tuple[float, float]`: The two values.

    Raises:
        `UserError`: if these are not two finite numbers, the lower one first.
    """
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low = high = 0.0
    if not -inf < low < high < inf:
        raise UserError(
            f"`value_range` is {value_range!r}, but the values that become black and white are needed, the lower one "
            "first: for example (0, 3000)."
        )
    return low, high


def warn_if_dark(highest: int, name: str):
    """Warns of an image of 16 bits that uses a small part of them, once for each part that it may be."""
    bits = highest.bit_length()
    if bits <= DARK_BITS and bits not in _WARNED_BITS:
        _WARNED_BITS.add(bits)
        logger.warning(
            f"{name} has 16 bits, but no value above {highest:,} of 65,535, and so is nearly black (others may be "
            f"too). {RANGE_REMEDY}"
        )


def flatten_images(images: Any, ndim: int) -> list[Any]:
    """One image, a batched array, or lists of them, as a flat list of images with at most `ndim` axes. Paths count as
    images."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in flatten_images(item, ndim)]
    is_batch = isinstance(images, np.ndarray | torch.Tensor) and images.ndim == ndim + 1
    return list(images) if is_batch else [images]


def to_tensor(array: "np.ndarray | torch.Tensor") -> torch.Tensor:
    """An array of any byte order and strides as a tensor."""
    if isinstance(array, torch.Tensor):
        return array
    array = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    if min(array.strides, default=0) < 0:  # of an axis of length 1
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise UserError(f"An array of type {array.dtype} is not accepted: pass integers or floats.") from error


def _check_range(image: torch.Tensor, name: str) -> None:
    if not torch.isfinite(image).all():
        raise UserError(
            f"{name} holds NaN or infinite pixels, but only finite values are accepted: 0 to 255, or 0 to 1 "
            "with `do_rescale=False`. Repair the image or leave it out."
        )
    if image.abs().max() > 65535:
        raise UserError(
            f"{name} holds values from {image.min():.3g} to {image.max():.3g}, but 0 to 255 are accepted, or 0 "
            "to 1 with `do_rescale=False`. Rescale its values first."
        )


def _to_8_bit(image: torch.Tensor, name: str) -> torch.Tensor:
    """Integer pixels as uint8: those wider than 8 bits are scaled from 16 bits, never clipped."""
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    is_16_bit = image.dtype == torch.uint16
    image = image.to(torch.int32 if is_16_bit else torch.int64)
    lowest, highest = int(image.min()), int(image.max())
    if lowest < 0 or highest > 65535:
        raise UserError(
            f"{name} holds integers from {lowest} to {highest}, but only 0 to 255 (8 bits) and 0 to 65535 "
            f"(16 bits) are accepted. {RANGE_REMEDY}"
        )
    if is_16_bit or highest > 255:
        warn_if_dark(highest, name)
        image = (image + 128) // 257
    return image.to(torch.uint8)


def _open_pil(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image of any mode as an array that is RGB in 8 bits, or grey in integers of 8 to 32 bits."""
    if image.mode == "F":
        pixels = np.array(image)
        _check_range(torch.from_numpy(pixels), name)
        # A float image does not tell its range: 0..1, 0..255 and 0..65535 are told apart by the brightest pixel.
        return np.rint(pixels * 255 if pixels.max() <= 1 else pixels).astype(np.int64)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.array(image)
    try:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        elif image.mode == "La":
            image = image.convert("LA")
        return np.array(image.convert("RGB"))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} of mode {image.mode!r} cannot be made RGB ({error}): leave out its `info['transparency']`."
        ) from error
