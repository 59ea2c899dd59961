"""Scenes of things over backgrounds, with exact label maps: pure functions of a seed and an index."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, radians, sin, sqrt, tau

import numpy as np
from PIL import Image, ImageFilter

from .backgrounds import texture
from .captions import caption
from .glyphs import GlyphCache
from .words import backgrounds, classes, things


NUM_THINGS = (3, 9)
COVERAGE = 0.7  # of the scene, were nothing turned, hidden or cut
PLACES_TRIED = 4


@dataclass
class Scene:
    """
    Args:
        image (`np.ndarray` of shape `(size, size, 3)`): RGB, uint8.
        labels (`np.ndarray` of shape `(size, size)`): Class ids in the order of `words.classes()`, uint8.
        words (`list[str]`): The words of all labels, in the order of their ids.
        caption (`str`): A sentence that names all of them.
    """

    image: np.ndarray
    labels: np.ndarray
    words: list[str]
    caption: str


def draw_scene(
    glyphs: GlyphCache,
    seed: int,
    index: int,
    size: int = 128,
    num_things: Sequence[int] = NUM_THINGS,
    num_backgrounds: Sequence[int] = (1, 3),
) -> Scene:
    """
    A scene of the emoji world: the same for the same arguments.

    Args:
        glyphs (`GlyphCache`): Draws the things.
        seed, index (`int`): Together the scene's random numbers.
        size (`int`): Its side in pixels.
        num_things, num_backgrounds (`Sequence[int]`): The least and the most of each.
    """
    rng = np.random.default_rng([seed, index])
    names = classes()
    image, labels = _draw_backgrounds(rng, size, rng.integers(num_backgrounds[0], num_backgrounds[1] + 1))
    count = rng.integers(num_things[0], num_things[1] + 1)
    centres: list[np.ndarray] = []
    for class_id in rng.choice(len(things()), count, replace=False).tolist():
        side = size * sqrt(COVERAGE / count) * rng.uniform(0.8, 1.25)
        centres.append(_place(rng, size, side, centres))
        _paste_thing(rng, image, labels, glyphs(names[class_id], side), side, centres[-1], class_id)
    label_map = np.asarray(labels)
    present = np.flatnonzero(np.bincount(label_map.ravel(), minlength=len(names))).tolist()
    words = [names[class_id] for class_id in present]
    things_present = [names[class_id] for class_id in present if class_id < len(things())]
    return Scene(
        image=_photograph(rng, image),
        labels=label_map,
        words=words,
        caption=caption(things_present, words[len(things_present) :], rng),
    )


def _draw_backgrounds(rng: np.random.Generator, size: int, count: int) -> tuple[Image.Image, Image.Image]:
    first, *others = rng.choice(len(backgrounds()), count, replace=False).tolist()
    image = texture(backgrounds()[first], size, rng)
    labels = Image.new("L", (size, size), len(things()) + first)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    for other in others:
        angle, phase = rng.uniform(0, tau, 2).tolist()
        along, across = x * cos(angle) + y * sin(angle), y * cos(angle) - x * sin(angle)
        side = across + rng.uniform(0, 0.08) * np.sin(phase + rng.uniform(5, 20) * along) > rng.uniform(-0.05, 0.2)
        mask = Image.fromarray(side.astype(np.uint8) * 255)
        image.paste(texture(backgrounds()[other], size, rng), mask=mask)
        labels.paste(len(things()) + other, mask=mask)
    return image, labels


def _place(rng: np.random.Generator, size: int, side: float, centres: list[np.ndarray]) -> np.ndarray:
    """The centre, of a few random ones, that is farthest from the others."""
    margin = 0.35 * side
    candidates = rng.uniform(margin, size - margin, (PLACES_TRIED, 2))
    if not centres:
        return candidates[0]
    distances = np.linalg.norm(candidates[:, None] - np.stack(centres), axis=-1).min(axis=1)
    return candidates[distances.argmax()]


def _paste_thing(
    rng: np.random.Generator,
    image: Image.Image,
    labels: Image.Image,
    glyph: Image.Image,
    side: float,
    centre: np.ndarray,
    class_id: int,
):
    angle, scale = radians(rng.uniform(-25, 25)), glyph.width / side
    mirror = -1 if rng.random() < 0.5 else 1
    stretch = rng.uniform(0.85, 1.15)
    extent = ceil(side * 1.4)
    left, top = np.round(centre - extent / 2).astype(int).tolist()
    a, b = mirror * scale * stretch * cos(angle), mirror * scale * stretch * sin(angle)
    d, e = -scale / stretch * sin(angle), scale / stretch * cos(angle)
    middle, half = glyph.width / 2, extent / 2
    coefficients = (a, b, middle - (a + b) * half, d, e, middle - (d + e) * half)
    thing = glyph.transform((extent, extent), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    alpha = thing.getchannel("a")
    opacity = np.asarray(alpha)
    if rng.random() < 0.5:
        offset = (rng.uniform(-0.12, 0.12, 2) * side).astype(int).tolist()
        shadow = Image.fromarray((opacity * np.float32(rng.uniform(0.2, 0.5))).astype(np.uint8))
        image.paste((0, 0, 0), (left + offset[0], top + offset[1]), shadow)
    image.paste(thing.convert("RGBA").convert("RGB"), (left, top), alpha)
    labels.paste(class_id, (left, top), Image.fromarray((opacity >= 128).view(np.uint8) * np.uint8(255)))


def _photograph(rng: np.random.Generator, image: Image.Image) -> np.ndarray:
    """The scene under a light from one side, in colours that are a little off, blurred and noisy."""
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8) * max(1, image.width / 128)))
    pixels = np.asarray(image, dtype=np.float32)
    across = np.linspace(-0.5, 0.5, image.width, dtype=np.float32)
    slopes = rng.uniform(-0.3, 0.3, 2).astype(np.float32)
    light = (np.float32(rng.uniform(0.8, 1.15)) + slopes[0] * across[:, None] + slopes[1] * across)[..., None]
    gains = rng.uniform(0.92, 1.08, 3).astype(np.float32)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(0, 7))
    return (pixels * light * gains + noise).clip(0, 255).astype(np.uint8)
