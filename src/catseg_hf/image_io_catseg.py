"""Reads images whose pixels decode, whatever is wrong with their metadata."""

import os
import warnings
from io import BytesIO
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError
from transformers.utils import logging

from .errors import UserError, first_line


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
PNG_START = b"\x89PNG\r\n\x1a\n"


def open_image(source: str | os.PathLike | bytes | BinaryIO, name: str | None = None) -> Image.Image:
    """
    Decodes an image and turns it upright, as its EXIF orientation says. Its mode stays.

    Malformed metadata is not damage: where it keeps Pillow from decoding, it is left out, and where the orientation
    cannot be read, the image stays as it is stored. Either is said in one warning.

    Args:
        source (`str`, `PathLike`, `bytes` or binary file): The image file, or what it contains.
        name (`str`, *optional*): What messages call it; by default "The image" and its path.

    Returns:
        `PIL.Image.Image`, loaded: the file may be removed.

    Raises:
        OSError: If there is no such file, or it must not be read.
        UserError: If the pixels do not decode, or are more than `PIL.Image.MAX_IMAGE_PIXELS` allows.
    """
    if isinstance(source, str | os.PathLike):
        name = name or f"The image {os.fspath(source)!r}"
        with open(source, "rb") as file:
            return open_image(file, name)
    name = name or f"The image of type {type(source).__name__}"
    file = BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    start = file.tell()
    try:
        image = _decode(file)
    except Exception as error:
        file.seek(start)
        image = _open_without_metadata(file.read())
        if image is None:
            raise _unreadable(name, error) from error
        logger.warning_once(f"{name} has malformed metadata, which was left out, its orientation too.")
        return image
    return upright(image, name)


def raise_pixel_limit(max_pixels: int):
    """Makes this process read images of so many pixels, which Pillow otherwise takes for attacks."""
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # Pillow refuses more than twice as many
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def upright(image: Image.Image, name: str) -> Image.Image:
    """
    The image, loaded, turned as its EXIF orientation says. `name` is what messages call it.

    Raises:
        UserError: If the pixels do not decode.
    """
    try:
        image.load()
    except Exception as error:
        raise _unreadable(name, error) from error
    try:
        method = ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        logger.warning_once(f"{name} has malformed EXIF data: it stays as it is stored.")
        return image
    if method is None:
        return image
    turned = image.transpose(method)
    for key in ORIENTATION_KEYS:
        turned.info.pop(key, None)
    return turned


def _decode(file: BinaryIO) -> Image.Image:
    """
    Calls Pillow, and nothing else: it raises all kinds of exceptions, for damaged pixels and malformed metadata alike,
    among which a fault of this program would not be noticed.
    """
    image = Image.open(file)
    image.load()
    return image


def _unreadable(name: str, error: Exception) -> UserError:
    """What to say of an exception of Pillow's."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return UserError(
            f"{name} is very large: {first_line(error)}. If you trust it, raise the limit: "
            "`PIL.Image.MAX_IMAGE_PIXELS`, or --max_image_pixels on the command line."
        )
    is_unknown = isinstance(error, UnidentifiedImageError)
    reason = "Pillow knows no such format" if is_unknown else first_line(error)
    return UserError(f"{name} could not be read: {reason}.")


def _open_without_metadata(data: bytes) -> Image.Image | None:
    """The image of a JPEG or PNG file without the parts that say nothing about its pixels, if that decodes."""
    if data.startswith(JPEG_START):
        data = _jpeg_without_metadata(data)
    elif data.startswith(PNG_START):
        data = _png_without_metadata(data)
    else:
        return None
    try:
        return _decode(BytesIO(data))
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
