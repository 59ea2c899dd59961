"""An image that is segmented in tiles, and what is accepted for their size and overlap."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from PIL import Image

from .bands_catseg import Window
from .configuration_catseg import CATSegConfig
from .errors import UserError
from .tiles_catseg import TileGrid


MAX_TILE_OVERLAP = 0.5


@dataclass(frozen=True)
class TiledImage:
    """
    An image of which windows are cut.

    Attributes:
        image (`PIL.Image.Image` in RGB, or `torch.Tensor` of shape (3, H, W)): The image, which is not copied.
        grid ([`TileGrid`]): Its tiles.
    """

    image: "Image.Image | torch.Tensor"
    grid: TileGrid

    def crop(self, window: Window) -> "Image.Image | torch.Tensor":
        """A part of the image, of its kind."""
        top, left, height, width = window
        if isinstance(self.image, Image.Image):
            return self.image.crop((left, top, left + width, top + height))
        return self.image[:, top : top + height, left : left + width]


def check_tile_size(tile_size: Any, config: CATSegConfig) -> int:
    """
    Raises:
        UserError: If it is no number of pixels, or smaller than what the model makes one value of.
    """
    patch_size = config.clip_config.vision_config.patch_size
    if not isinstance(tile_size, Integral) or isinstance(tile_size, bool) or tile_size < patch_size:
        raise UserError(
            f"`tile_size` is {tile_size!r}, but a number of pixels of at least {patch_size}, the model's patch, is "
            "needed: give one at which a tile shows as much as the images that the model was trained on, such as 640."
        )
    return int(tile_size)


def check_tile_overlap(tile_overlap: Any) -> float:
    """
    Raises:
        UserError: If it is no share that leaves a step from tile to tile.
    """
    is_number = isinstance(tile_overlap, Real) and not isinstance(tile_overlap, bool)
    if not is_number or not 0 <= tile_overlap <= MAX_TILE_OVERLAP:
        raise UserError(
            f"`tile_overlap` is {tile_overlap!r}, but a share of a tile from 0 to {MAX_TILE_OVERLAP} is needed: more "
            "leaves too small a step from tile to tile. 0.25 is the default."
        )
    return float(tile_overlap)


def check_tile_fits(tile_size: int, size: tuple[int, int], name: str):
    """
    Raises:
        UserError: If tiles are larger than an image of this height and width, which `name` is called.
    """
    height, width = size
    if tile_size > max(size):
        raise UserError(
            f"{name} has {width} x {height} pixels (width x height), but `tile_size` is {tile_size}: give at most "
            f"{max(size)}, its longer side, or leave it out, to segment the image as a whole."
        )
