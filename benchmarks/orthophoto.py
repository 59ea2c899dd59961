"""A synthetic orthophoto of the embedded model's world: fields of one texture each, roads of another between them, and
things on the fields. The same for the same size and seed; drawn row of fields by row of fields."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from catseg_training.world.backgrounds import texture
from catseg_training.world.evaluation import read_scenes
from catseg_training.world.words import backgrounds, classes, things


FIELD, ROAD = 192, 24  # pixels
ROAD_WORD = "gravel"
LEAST_THING = 300  # pixels of one that is cut out
THINGS_ON_FIELD = 3
NO_CLASS = 255


class Orthophoto:
    """
    Args:
        scenes (`Path`): Folder of scenes of the emoji world, whose things are cut out.
        split (`str`): Which of them.
        seed (`int`): What is where.
    """

    def __init__(self, scenes: Path, split: str, seed: int = 0):
        self.seed = seed
        self.things = list(_cut_outs(*read_scenes(scenes, split)))
        self.fields = [word for word in backgrounds() if word != ROAD_WORD]

    def rows(self, width: int, height: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Tops, pixels (h, width, 3) and classes (h, width) of its rows of fields."""
        names = classes()
        for row, top in enumerate(range(0, height, FIELD)):
            fields = [self._field(row, column, names) for column in range(-(-width // FIELD))]
            pixels, labels = (np.concatenate(parts, axis=1) for parts in zip(*fields, strict=True))
            yield top, pixels[: height - top, :width], labels[: height - top, :width]

    def _field(self, row: int, column: int, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, row, column])
        word = str(rng.choice(self.fields))
        pixels = np.array(texture(word, FIELD, rng))
        labels = np.full((FIELD, FIELD), names.index(word), dtype=np.uint8)
        for _ in range(THINGS_ON_FIELD):
            thing, mask, index = self.things[rng.integers(len(self.things))]
            top, left = (int(rng.integers(FIELD - ROAD - side)) for side in mask.shape)
            place = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
            pixels[place][mask], labels[place][mask] = thing[mask], index
        road = np.array(texture(ROAD_WORD, FIELD, rng))
        for strip in (slice(None), slice(-ROAD, None)), (slice(-ROAD, None), slice(None)):
            pixels[strip], labels[strip] = road[strip], names.index(ROAD_WORD)
        return pixels, labels

    def write(self, image: Path, labels: Path, width: int, height: int):
        """Writes it as a GeoTIFF of 10 cm per pixel, and its classes as another one."""
        common = {
            "driver": "GTiff",
            "width": width,
            "height": height,
            "crs": "EPSG:32633",
            "transform": Affine(0.1, 0, 400_000, 0, -0.1, 5_600_000),
            "compress": "deflate",
            "zlevel": 1,
            "blockysize": FIELD,
        }
        with (
            rasterio.open(image, "w", count=3, dtype="uint8", photometric="rgb", **common) as pixels_file,
            rasterio.open(labels, "w", count=1, dtype="uint8", nodata=NO_CLASS, **common) as labels_file,
        ):
            for top, pixels, own in self.rows(width, height):
                window = Window(0, top, width, len(own))
                pixels_file.write(pixels.transpose(2, 0, 1), window=window)
                labels_file.write(own, 1, window=window)


def _cut_outs(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Of each scene its large things: pixels (h, w, 3), which of them are the thing's, and its class."""
    for image, own in zip(images, labels, strict=True):
        counts = np.bincount(own.ravel(), minlength=len(things()))[: len(things())]
        for index in np.flatnonzero(counts >= LEAST_THING):
            rows, columns = np.nonzero(own == index)
            box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
            if max(np.ptp(rows), np.ptp(columns)) < FIELD - ROAD - 2:
                yield image[box], own[box] == index, int(index)
