"""The colours of the classes."""

from functools import lru_cache

import numpy as np


COLOR_LEVELS = 17
MAX_COLORS = 4096
# Not given to a class: the page, pixels of no class, and a grey that is no colour.
RESERVED_COLORS = ((255, 255, 255), (0, 0, 0), (128, 128, 128))


def class_color(index: int) -> tuple[int, int, int]:
    """The RGB colour, 0..255, that class `index` (not negative) has in every image. The first 4096 differ; the lower
    the indices, the more."""
    index %= MAX_COLORS
    # Colours do not depend on how many are made at once, and few are made much faster than all.
    return _distinct_colors(max(256, 1 << index.bit_length()))[index]


@lru_cache
def _distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """Greedily, each colour the one that looks least like all before it."""
    levels = np.linspace(0, 255, COLOR_LEVELS).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    perceived = _to_lab(candidates)
    reserved = _to_lab(np.array(RESERVED_COLORS))
    distances = ((perceived[:, None] - reserved) ** 2).sum(axis=-1).min(axis=-1)
    colors = []
    for _ in range(count):
        farthest = distances.argmax()
        colors.append(tuple(int(channel) for channel in candidates[farthest]))
        distances = np.minimum(distances, ((perceived - perceived[farthest]) ** 2).sum(axis=-1))
    return colors


def _to_lab(colors: np.ndarray) -> np.ndarray:
    """sRGB colours `(..., 3)` in 0..255 in CIE L*a*b* (D65), in which distances are perceived ones."""
    linear = colors / 255
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=-1)
    xyz = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(xyz, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
