"""Label maps that are images: of ids or of colours, and what their colours stand for."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ..errors import UserError
from ..image_io_catseg import decode_image, read_bytes, upright
from ..label_maps_catseg import read_label_ids, refuse_lossy
from .dataset import OTHER_SIZE, Canvas, ShapeError
from .sources import read_text


Key = TypeVar("Key")
# Names that tools and data sets give to what counts for no class.
VOID_NAMES = frozenset({"void", "ignore", "ignored", "__ignore__", "unlabeled", "unlabelled"})


def read_colors(path: Path, size: tuple[int, int]) -> np.ndarray:
    """
    The colours (H, W, 3), uint8, of a label map; a palette's are looked up.

    Raises:
        UserError: If it is damaged, stored with loss, or not of the size (height, width).
    """
    data, name = read_bytes(path, str(path))
    stored = decode_image(data, name)
    refuse_lossy(stored.is_lossy, stored.image.format, name)
    return _of_size(np.asarray(upright(stored.image, name).convert("RGB")), size, path)


def read_ids(path: Path, size: tuple[int, int]) -> np.ndarray:
    """
    The ids (H, W) of a label map, those of the palette if it has one.

    Raises:
        UserError: As of [`read_colors`].
    """
    return _of_size(read_label_ids(*read_bytes(path, str(path))), size, path)


def _of_size(pixels: np.ndarray, size: tuple[int, int], path: Path) -> np.ndarray:
    if pixels.shape[:2] != size:
        sizes = " and ".join(f"{width} x {height}" for height, width in (pixels.shape[:2], size))
        raise ShapeError(OTHER_SIZE, f"{path} and its image differ in size (width x height): {sizes}")
    return pixels


def header_mode(path: Path) -> str | None:
    """The mode of an image without decoding it, or `None` if it is none."""
    try:
        with Image.open(path) as image:
            return image.mode
    except (OSError, ValueError, SyntaxError):
        return None


def fill_colors(path: Path, colors: Mapping[tuple[int, int, int], str], canvas: Canvas):
    """
    Takes over a label map: of colours, or of one channel of ids, which are the places of the colours.

    Raises:
        UserError: As of [`read_colors`].
    """
    if header_mode(path) not in ("RGB", "RGBA", "P"):
        names = dict(enumerate(colors.values()))
        canvas.fill(read_ids(path, canvas.size), names, lambda number: f"id {number}")
        return
    pixels = read_colors(path, canvas.size).astype(np.int64)
    packed = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]
    names = {(red << 16) + (green << 8) + blue: name for (red, green, blue), name in colors.items()}
    canvas.fill(packed, names, lambda code: f"colour ({code >> 16}, {code >> 8 & 255}, {code & 255})")


def read_color_list(path: Path) -> dict[tuple[int, int, int], str]:
    """
    The colours of a text file: `R G B name` as in CamVid's label_colors.txt, or `name:R,G,B:parts:actions` as in
    CVAT's labelmap.txt.

    Raises:
        UserError: For a line of another form, and a colour of two names.
    """
    colors: dict[tuple[int, int, int], str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if line.count(":") >= 1:
                name, levels = line.split(":")[:2]
                red, green, blue = map(int, levels.split(","))
            else:
                *levels, name = line.split(maxsplit=3)
                red, green, blue = map(int, levels)
        except ValueError:
            raise UserError(
                f"{path}, line {number}, {line!r}, is neither `R G B name` nor `name:R,G,B:parts:actions`."
            ) from None
        _add_name(colors, (red, green, blue), name.strip(), path)
    if not colors:
        raise UserError(f"{path} names no colours.")
    return colors


def read_id_list(path: Path) -> dict[int, str]:
    """
    The ids of Roboflow's _classes.csv: `Pixel Value, Class`.

    Raises:
        UserError: For a line of another form, and an id of two names.
    """
    rows = [row for row in csv.reader(io.StringIO(read_text(path)), skipinitialspace=True) if row][1:]
    try:
        pairs = [(int(value), name.strip()) for value, name in rows]
    except ValueError:
        raise UserError(f"{path} is not a table of `Pixel Value, Class`.") from None
    names: dict[int, str] = {}
    for value, name in pairs:
        _add_name(names, value, name, path)
    return names


def _add_name(names: dict[Key, str], key: Key, name: str, path: Path):
    if names.setdefault(key, name) != name:
        raise UserError(
            f"{path} names {key} twice, {names[key]!r} and {name!r}: remove one, since a pixel is of one class only."
        )
