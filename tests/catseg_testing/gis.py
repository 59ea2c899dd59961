"""A small scene in the role of an orthophoto, and the words for it."""

import numpy as np
from PIL import Image

from catseg_training.world.folders import NO_CLASS
from catseg_training.world.words import classes
from conftest import FIXTURES


WORLD = FIXTURES / "emoji_world"
# Centimetres for each pixel, of `catseg_testing.rasters.TRANSFORM`.
RESOLUTION = 50.0


def _first(kind: str) -> np.ndarray:
    return np.asarray(Image.open(sorted((WORLD / kind / "gate").iterdir())[0]))


def scene() -> np.ndarray:
    """A scene, uint8 of shape (3, 128, 128)."""
    return _first("images").transpose(2, 0, 1).copy()


def words() -> list[str]:
    """What is in the scene."""
    labels = _first("labels")
    return [classes()[index] for index in np.unique(labels[labels != NO_CLASS])]
