"""Textures drawn from noise, one function for each background."""

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw


TILE_SIZE = 192
VARIANTS = 12


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Smooth noise in about [-1, 1] whose details are `TILE_SIZE / rows` high and `TILE_SIZE / columns` wide."""
    grid = Image.fromarray(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((TILE_SIZE, TILE_SIZE), Image.Resampling.BICUBIC))


def _mix(first: tuple[int, int, int], second: tuple[int, int, int], share: np.ndarray) -> np.ndarray:
    share = share.clip(0, 1)[..., None]
    return np.array(first) * (1 - share) + np.array(second) * share


def _axes() -> tuple[np.ndarray, np.ndarray]:
    return np.mgrid[:TILE_SIZE, :TILE_SIZE].astype(np.float32)


def _brick_wall(rng: np.random.Generator) -> np.ndarray:
    y, x = _axes()
    height, width = rng.integers(11, 15), rng.integers(24, 32)
    row = (y // height).astype(int)
    shifted = x + (row % 2) * width / 2
    column = (shifted // width).astype(int)
    mortar = (y % height < 2) | (shifted % width < 2)
    tone = rng.uniform(0, 1, (row.max() + 1, column.max() + 1))[row, column] + 0.2 * _noise(rng, 64, 64)
    return np.where(mortar[..., None], (200, 190, 178), _mix((140, 60, 44), (190, 92, 66), tone))


def _carpet(rng: np.random.Generator) -> np.ndarray:
    y, x = _axes()
    period = rng.uniform(18, 26)
    diamond = np.abs((x / period) % 1 - 0.5) + np.abs((y / period) % 1 - 0.5)
    weave = 0.15 * _noise(rng, 96, 96)
    pattern = np.where(np.abs(diamond - 0.5) < 0.12, 1.0, np.where(diamond < 0.2, 0.6, 0.0))
    return _mix((112, 30, 96), (226, 170, 196), pattern + weave)


def _cloudy_sky(rng: np.random.Generator) -> np.ndarray:
    clouds = _noise(rng, 5, 4) + 0.5 * _noise(rng, 12, 9) + 0.25 * _noise(rng, 24, 18)
    return _mix((92, 160, 232), (248, 250, 255), 0.4 + 0.9 * clouds)


def _grass(rng: np.random.Generator) -> np.ndarray:
    blades = 0.5 + 0.5 * _noise(rng, 28, 96) + 0.25 * _noise(rng, 6, 6)
    return _mix((34, 92, 26), (124, 190, 62), blades)


def _gravel(rng: np.random.Generator) -> np.ndarray:
    image = Image.new("RGB", (TILE_SIZE, TILE_SIZE), (58, 56, 54))
    draw = ImageDraw.Draw(image)
    for _ in range(900):
        (x, y), (width, height) = rng.uniform(-4, TILE_SIZE, 2), rng.uniform(5, 11, 2)
        tone = int(rng.integers(96, 200))
        draw.ellipse((x, y, x + width, y + height), fill=(tone, tone - 3, tone - 8), outline=(70, 68, 66))
    return np.asarray(image, dtype=np.float32)


def _night_sky(rng: np.random.Generator) -> np.ndarray:
    sky = _mix((10, 12, 40), (40, 34, 92), 0.5 + 0.6 * _noise(rng, 4, 4))
    for y, x in rng.integers(0, TILE_SIZE - 2, (150, 2)):
        side = int(rng.integers(1, 3))
        sky[y : y + side, x : x + side] = rng.uniform(150, 255)
    return sky


def _sand(rng: np.random.Generator) -> np.ndarray:
    y, x = _axes()
    ripples = np.sin(y / rng.uniform(2.5, 4) + 2.5 * _noise(rng, 5, 5) + x / 40)
    return _mix((206, 170, 112), (244, 218, 164), 0.5 + 0.3 * ripples + 0.35 * _noise(rng, 96, 96))


def _snow(rng: np.random.Generator) -> np.ndarray:
    drifts = 0.6 + 0.4 * _noise(rng, 6, 4) + 0.25 * _noise(rng, 64, 64)
    return _mix((206, 218, 236), (255, 255, 255), drifts)


def _water(rng: np.random.Generator) -> np.ndarray:
    waves = 0.45 + 0.6 * _noise(rng, 36, 10) + 0.3 * _noise(rng, 70, 24)
    return _mix((14, 72, 138), (104, 190, 220), waves)


def _wood(rng: np.random.Generator) -> np.ndarray:
    y, x = _axes()
    plank = (x // 28).astype(int)
    grain = 0.5 + 0.35 * np.sin(x / 1.6 + 5 * _noise(rng, 3, 8)) + 0.3 * _noise(rng, 8, 96)
    tone = rng.uniform(-0.25, 0.25, plank.max() + 1)[plank]
    board = _mix((112, 70, 34), (186, 130, 78), grain + tone)
    return np.where((x % 28 < 1.5)[..., None], (62, 38, 20), board)


PAINTERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "brick wall": _brick_wall,
    "carpet": _carpet,
    "cloudy sky": _cloudy_sky,
    "grass": _grass,
    "gravel": _gravel,
    "night sky": _night_sky,
    "sand": _sand,
    "snow": _snow,
    "water": _water,
    "wood": _wood,
}


@cache
def _tile(word: str, variant: int) -> Image.Image:
    rng = np.random.default_rng([sorted(PAINTERS).index(word), variant])
    return Image.fromarray(PAINTERS[word](rng).clip(0, 255).astype(np.uint8))


def texture(word: str, size: int, rng: np.random.Generator) -> Image.Image:
    """A `size` x `size` RGB image of a background, cut from one of its `VARIANTS` tiles."""
    tile = _tile(word, int(rng.integers(VARIANTS)))
    window = min(size, 128) * rng.uniform(0.75, 1.33)
    left, top = rng.uniform(0, TILE_SIZE - window, 2)
    box = (left + window, top, left, top + window) if rng.random() < 0.5 else (left, top, left + window, top + window)
    left, top, right, bottom = box
    coefficients = ((right - left) / size, 0, left, 0, (bottom - top) / size, top)
    return tile.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
