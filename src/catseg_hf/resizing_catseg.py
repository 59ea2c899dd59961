"""The sizes that images and label maps are resized to, and how."""

import numpy as np
import torch
from PIL import Image


def get_resized_size(height: int, width: int, shortest_edge: int, longest_edge: int | None = None) -> tuple[int, int]:
    """
    Size of an image after step 1, as detectron2 rounds it; a side never falls below one pixel.

    Args:
        height (`int`), width (`int`): Size of the image in pixels.
        shortest_edge (`int`): Wanted length of the shorter side.
        longest_edge (`int`, *optional*): Limit of the longer side, which wins over `shortest_edge`.

    Returns:
        `tuple[int, int]`: New height and width.
    """
    scale = shortest_edge / min(height, width)
    sides = (shortest_edge, scale * width) if height < width else (scale * height, shortest_edge)
    if longest_edge is not None and max(sides) > longest_edge:
        scale = longest_edge / max(sides)
        sides = (sides[0] * scale, sides[1] * scale)
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


def nearest_source(old: int, new: int) -> torch.Tensor:
    """Which of `old` positions each of `new` positions takes: Pillow's own choice, made on a row of indices, so that
    any integer type can be resized as Pillow would."""
    row = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return torch.from_numpy(np.array(row.resize((new, 1), Image.Resampling.NEAREST))[0]).long()
