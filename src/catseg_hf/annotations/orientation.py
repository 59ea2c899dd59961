"""In which orientation an image's labels are, where its EXIF data asks for a turn."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ..errors import UserError, first_line
from ..image_io_catseg import ORIENTATIONS
from .dataset import OTHER_SIZE, ShapeError


# Orientations that swap width and height.
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True)
class ImageHeader:
    """
    What an image file says of itself.

    Attributes:
        size (`tuple[int, int]`): Height and width of the pixels as they are stored.
        orientation (`int`): Of EXIF, 1 to 8.
        suffix (`str`): Of its format, such as ".jpg".
    """

    size: tuple[int, int]
    orientation: int
    suffix: str

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the image as it is shown."""
        return self.size[::-1] if self.orientation in _SIDEWAYS else self.size


def read_header(file: Path | bytes, name: str) -> ImageHeader:
    """
    Reads an image's header, without its pixels.

    Raises:
        UserError: If it is none.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            try:
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            except Exception:  # malformed EXIF data, of which Pillow raises all kinds: as for images that are read
                orientation = 1
            suffix = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(image.format, f".{image.format.lower()}")
            return ImageHeader(image.size[::-1], orientation if orientation in ORIENTATIONS else 1, suffix)
    except Exception as error:
        raise UserError(f"{name} cannot be read as an image: {first_line(error)}") from error


def frame_of(header: ImageHeader, size: tuple[int, int] | None, is_upright: bool) -> tuple[tuple[int, int], bool]:
    """
    The height and width in which labels are drawn, and whether these are those of the upright image.

    Args:
        header ([`ImageHeader`]): Of the image.
        size (`tuple[int, int]` or `None`): Height and width that the labels name.
        is_upright (`bool`): What the tool means where the size does not tell.

    Raises:
        ShapeError: If it is neither.
    """
    if size is None or header.size == header.upright_size == size:
        return (header.upright_size if is_upright else header.size), is_upright
    if size in (header.size, header.upright_size):
        return size, size == header.upright_size
    (height, width), (image_height, image_width) = size, header.upright_size
    raise ShapeError(
        OTHER_SIZE, f"its labels are for {width} x {height} pixels, and it has {image_width} x {image_height}"
    )


def turned_upright(labels: np.ndarray, orientation: int) -> np.ndarray:
    """A label map (H, W) of the stored pixels as it goes with the upright image."""
    if orientation not in ORIENTATIONS:
        return labels
    return np.asarray(Image.fromarray(labels).transpose(ORIENTATIONS[orientation]))
