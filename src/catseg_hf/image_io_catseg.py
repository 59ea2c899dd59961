"""Reads images whose pixels decode, whatever is wrong with their metadata."""

import os
import warnings
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from transformers.utils import logging

from .errors import UserError, first_line
from .image_pixels_catseg import rgb_pixels, warn_if_dark
from .stored_images_catseg import PNG_START, StoredImage, decode, describe_refused, read_all_bits


logger = logging.get_logger(__name__)

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow looks for an orientation.
ORIENTATION_KEYS = ("exif", "parsed_exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")

JPEG_START, JPEG_SCAN, JPEG_COMMENT, JPEG_ADOBE = b"\xff\xd8", 0xDA, 0xFE, 0xEE
JPEG_APPLICATION = range(0xE0, 0xF0)


def open_image(
    source: str | os.PathLike | bytes | BinaryIO,
    name: str | None = None,
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """
    Decodes an image and turns it upright, as its EXIF orientation says. Its mode stays, unless `value_range` is given.

    Malformed metadata is not damage: where it keeps Pillow from decoding, it is left out, and where the orientation
    cannot be read, the image stays as it is stored. Either is said in one warning, and so is it if the file has
    further frames or pages, of which nothing is read.

    Args:
        source (`str`, `PathLike`, `bytes` or binary file): The image file, or what it contains.
        name (`str`, *optional*): What messages call it; by default "The image" and its path.
        value_range (`tuple[float, float]`, *optional*): The stored values that become 0 and 255, see [`rgb_pixels`].

    Returns:
        `PIL.Image.Image`, loaded: the file may be removed.

    Raises:
        OSError: If there is no such file, or it must not be read.
        UserError: If the pixels do not decode, or are more than `PIL.Image.MAX_IMAGE_PIXELS` allows.
    """
    data, name = read_bytes(source, name)
    stored = decode_image(data, name)
    if stored.num_frames > 1:
        logger.warning_once(f"{name} has {stored.num_frames} frames or pages, of which only the first is read.")
    image, is_deep = stored.image, stored.bits > 8 and len(stored.image.getbands()) > 1
    if stored.is_misread or (is_deep and value_range is not None):
        image = _as_8_bit(read_all_bits(data, name), name, value_range)
        image.info = stored.image.info
    elif stored.white_is_zero and stored.bits > 8:
        image = _as_8_bit(2**stored.bits - 1 - np.asarray(image), name, value_range)
    elif value_range is not None:
        image = _as_8_bit(image, name, value_range)
    elif is_deep:
        colors = [extrema for band, extrema in zip(image.getbands(), image.getextrema(), strict=True) if band != "A"]
        warn_if_dark(256 * max(highest for _, highest in colors) + 255, name)
    return upright(image, name, stored.image)


def read_bytes(source: str | os.PathLike | bytes | BinaryIO, name: str | None = None) -> tuple[bytes, str]:
    """What an image file contains, and what messages call it; see [`open_image`]."""
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            return file.read(), name or f"The image {os.fspath(source)!r}"
    data = bytes(source) if isinstance(source, bytes | bytearray | memoryview) else source.read()
    return data, name or f"The image of type {type(source).__name__}"


def decode_image(data: bytes, name: str) -> StoredImage:
    """
    An image file as it is stored, whatever is wrong with its metadata.

    Raises:
        UserError: If the pixels do not decode.
    """
    try:
        return decode(data)
    except Exception as error:
        stored = _decode_without_metadata(data)
        if stored is None:
            raise _unreadable(name, error, data) from error
        logger.warning_once(f"{name} has malformed metadata, which was left out, its orientation too.")
        return stored


def raise_pixel_limit(max_pixels: int):
    """Makes this process read images of so many pixels, which Pillow otherwise takes for attacks."""
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # Pillow refuses more than twice as many
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def upright(image: Image.Image, name: str, described_by: Image.Image | None = None) -> Image.Image:
    """
    The image, loaded, turned as its EXIF orientation says, or that of the image which it was made of (`described_by`).
    `name` is what messages call it.

    Raises:
        UserError: If the pixels do not decode.
    """
    try:
        image.load()
    except Exception as error:
        raise _unreadable(name, error) from error
    try:
        method = ORIENTATIONS.get((described_by or image).getexif().get(ExifTags.Base.Orientation))
    except Exception:
        logger.warning_once(f"{name} has malformed EXIF data: it stays as it is stored.")
        return image
    if method is None:
        return image
    turned = image.transpose(method)
    for key in ORIENTATION_KEYS:
        turned.info.pop(key, None)
    return turned


def _as_8_bit(image: "Image.Image | np.ndarray", name: str, value_range: tuple[float, float] | None) -> Image.Image:
    return Image.fromarray(rgb_pixels(image, name, value_range=value_range).permute(1, 2, 0).numpy())


def _unreadable(name: str, error: Exception, data: bytes = b"") -> UserError:
    """What to say of an exception of Pillow's."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return UserError(
            f"{name} is very large: {first_line(error)}. If you trust it, raise the limit: "
            "`PIL.Image.MAX_IMAGE_PIXELS`, or --max_image_pixels on the command line."
        )
    return UserError(f"{name} could not be read: {describe_refused(data, error)}.")


def _decode_without_metadata(data: bytes) -> StoredImage | None:
    """The image of a JPEG or PNG file without the parts that say nothing about its pixels, if that decodes."""
    if data.startswith(JPEG_START):
        data = _jpeg_without_metadata(data)
    elif data.startswith(PNG_START):
        data = _png_without_metadata(data)
    else:
        return None
    try:
        return decode(data)
    except Exception:
        return None


def _jpeg_without_metadata(data: bytes) -> bytes:
    """Without comments and application segments; only Adobe's tells how colours are stored."""
    kept, position = [JPEG_START], len(JPEG_START)
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != JPEG_SCAN:
        marker, length = data[position + 1], 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        is_colour = marker == JPEG_ADOBE and length >= 16
        if is_colour or not (marker in JPEG_APPLICATION or marker == JPEG_COMMENT):
            kept.append(data[position : position + length])
        position += length
    return b"".join([*kept, data[position:]])


def _png_without_metadata(data: bytes) -> bytes:
    """Without ancillary chunks, whose type begins with a small letter."""
    kept, position = [PNG_START], len(PNG_START)
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 5].isupper():
            kept.append(data[position:end])
        position = end
    return b"".join(kept)


__all__ = ["open_image", "upright"]
