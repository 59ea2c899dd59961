"""Images as the pipeline takes them: paths, URLs, base64 text, bytes, files, PIL images, arrays and tensors."""

import base64
import binascii
import os
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import Image

from .errors import UserError, first_line
from .image_io_catseg import open_image, upright
from .tiled_image_catseg import TiledImage, check_tile_fits
from .tiles_catseg import TileGrid


URL_TIMEOUT = 30.0


def read_pixels(
    image: Any,
    image_processor: Any,
    timeout: float | None = URL_TIMEOUT,
    value_range: tuple[float, float] | None = None,
) -> torch.Tensor:
    """
    Reads an image of any kind that [`OpenVocabularySegmentationPipeline`] takes.

    Args:
        image: Path, URL, base64 text, bytes, binary file, PIL image, array or tensor.
        image_processor ([`CATSegImageProcessor`] or [`CATSegImageProcessorPil`]): Converts it.
        timeout (`float`, *optional*, defaults to 30): Seconds that a URL may take to answer; `None` waits forever.
        value_range (`tuple[float, float]`, *optional*): The stored values that become black and white; by default the
            image processor's.

    Returns:
        `torch.Tensor` of shape (3, H, W): RGB as uint8, or as float32 for a float array.

    Raises:
        UserError: If it cannot be read, with a sentence that names the image.
    """
    picture, value_range, name = _read_picture(image, image_processor, timeout, value_range)
    return _process(picture, image_processor, value_range, name)


def read_tiled(
    image: Any,
    image_processor: Any,
    timeout: float | None,
    value_range: tuple[float, float] | None,
    tile_size: int,
    tile_overlap: float,
) -> TiledImage:
    """An image as [`read_pixels`] takes it, and its tiles. One in RGB stays as it is, since a copy of it is large."""
    picture, value_range, name = _read_picture(image, image_processor, timeout, value_range)
    if isinstance(picture, Image.Image) and picture.mode == "RGB" and value_range is None and min(picture.size):
        size = picture.height, picture.width
    else:
        picture = _process(picture, image_processor, value_range, name)
        size = tuple(picture.shape[-2:])
    check_tile_fits(tile_size, size, name)
    return TiledImage(picture, TileGrid.cover(size, tile_size, tile_overlap))


def _read_picture(
    image: Any, image_processor: Any, timeout: float | None, value_range: tuple[float, float] | None
) -> "tuple[Image.Image | np.ndarray | torch.Tensor, tuple[float, float] | None, str]":
    """The decoded image, upright; the stored values that are still to become black and white; and what messages call
    the image."""
    is_text = isinstance(image, str | os.PathLike)
    name = f"The image {_shorten(image)}" if is_text else f"The image of type {type(image).__name__}"
    value_range = value_range or image_processor.value_range
    try:
        if not _is_decoded(image):
            image, value_range = _open(image, name, timeout, value_range), None
        elif isinstance(image, Image.Image):
            image = upright(image, name)
    except (OSError, UnicodeError, binascii.Error, httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"{name} could not be read: {first_line(error)}.") from error
    return image, value_range, name


def _process(
    image: "Image.Image | np.ndarray | torch.Tensor",
    image_processor: Any,
    value_range: tuple[float, float] | None,
    name: str,
) -> torch.Tensor:
    try:
        return image_processor.process_image(image, value_range=value_range)
    except UserError as error:
        raise UserError(f"{name} could not be read: {first_line(error)}.") from error


def _is_decoded(image: Any) -> bool:
    return isinstance(image, Image.Image | np.ndarray | torch.Tensor)


def _open(image: Any, name: str, timeout: float | None, value_range: tuple[float, float] | None) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        if os.path.isfile(image):
            return open_image(image, name, value_range)
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            response = httpx.get(image, timeout=timeout, follow_redirects=True)
            return open_image(response.raise_for_status().content, name, value_range)
        if isinstance(image, str) and not os.path.exists(image):
            return _decode_base64(image, name, value_range)
        raise FileNotFoundError("there is no such file")
    if is_encoded(image):
        return open_image(image, name, value_range)
    raise UserError(
        f"{name} could not be read: paths, URLs, bytes, binary files, PIL images, arrays and tensors are accepted, of "
        "a dataset its column of images (`dataset['image']`)."
    )


def is_encoded(image: Any) -> bool:
    """Whether it is an image file's contents, as bytes or as a file to read them from."""
    return isinstance(image, bytes | bytearray | memoryview) or hasattr(image, "read")


def _decode_base64(text: str, name: str, value_range: tuple[float, float] | None) -> Image.Image:
    is_data_url = text.startswith("data:image/")
    try:
        return open_image(base64.decodebytes(text.rpartition(",")[2].encode()), name, value_range)
    except (UserError, UnicodeError, binascii.Error) as error:
        if is_data_url:
            raise
        raise FileNotFoundError("there is no such file") from error


def _shorten(text: str | os.PathLike, length: int = 200) -> str:
    text = os.fspath(text)
    return repr(text if len(text) <= length else f"{text[:length]}...")
