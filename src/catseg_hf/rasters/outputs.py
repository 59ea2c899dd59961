"""What is written of a raster, where, and whether there is room for it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from ..errors import UserError
from ..utils.files import aside_of, explained_write_errors, nearest_folder, synchronise
from .vectors import DRIVERS, check_vector_packages


TIFF_SUFFIXES = (".tif", ".tiff")
# Bytes for each byte of a map, at most.
WITH_OVERVIEWS = 4 / 3


@dataclass(frozen=True)
class Outputs:
    """
    The files that are written of a raster.

    Args:
        labels (`Path`): The map of classes, a GeoTIFF.
        vector (`Path`, *optional*): Polygons: .gpkg, .geojson or .fgb.
        min_area (`int`, *optional*, defaults to 1): Polygons of fewer pixels are left out.
        simplify (`float`, *optional*): About how far the polygons' borders may move, in pixels.
        probabilities (`Path`, *optional*): Probabilities of classes, a GeoTIFF.
        probability_classes (`tuple[int, ...]`): The indices of these classes.

    Raises:
        UserError: If the files' names do not fit what is written to them, or are the same.
    """

    labels: Path
    vector: Path | None = None
    min_area: int = 1
    simplify: float | None = None
    probabilities: Path | None = None
    probability_classes: tuple[int, ...] = ()

    def __post_init__(self):
        for path, option in ((self.labels, "--output"), (self.probabilities, "--probabilities")):
            if path is not None and path.suffix.lower() not in TIFF_SUFFIXES:
                raise UserError(f"{option} is {str(path)!r}, but a GeoTIFF is written: give a name that ends in .tif.")
        if self.vector is not None:
            if self.vector.suffix.lower() not in DRIVERS:
                raise UserError(
                    f"--vector is {str(self.vector)!r}, but {', '.join(DRIVERS)} are written: give a name that ends "
                    "in one of them."
                )
            check_vector_packages()
        if self.simplify is not None and not 0 < self.simplify < float("inf"):
            raise UserError(f"--simplify is {self.simplify}, but a number of pixels above 0 is needed, such as 1.")
        paths = [os.path.realpath(path) for path in self.paths]
        if len(set(paths)) < len(paths):
            raise UserError(f"Two of the outputs would be {paths[0]!r}: give each a name of its own.")

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [path for path in (self.labels, self.vector, self.probabilities) if path is not None]

    def check(self, source: str, num_pixels: int, bytes_per_label: int):
        """
        Raises:
            UserError: If the raster itself would be replaced, a file cannot be written, or the disk could become full.
        """
        for path in self.paths:
            if os.path.realpath(path) == os.path.realpath(source):
                raise UserError(f"The output {str(path)!r} is the raster itself: give another name.")
            if path.is_dir():
                raise UserError(f"The output {str(path)!r} is a folder: name a file.")
            if not (existing := nearest_folder(path.absolute().parent)).is_dir():
                raise UserError(f"The output {str(path)!r} cannot be written, since {existing} is a file.")
        chosen = len(self.probability_classes)
        # The file with its overviews and, where the labels are, what is kept of finished rows.
        per_pixel = {
            self.labels: WITH_OVERVIEWS * bytes_per_label + bytes_per_label + (self.vector is not None) + chosen
        }
        if self.probabilities is not None:
            per_pixel[self.probabilities] = WITH_OVERVIEWS * chosen
        needed: dict[int, int] = {}
        folders: dict[int, Path] = {}
        for path, num_bytes in per_pixel.items():
            folder = nearest_folder(path.absolute().parent)
            device = folder.stat().st_dev
            folders[device] = folder
            needed[device] = needed.get(device, 0) + ceil(num_bytes * num_pixels)
        for device, num_bytes in needed.items():
            free = shutil.disk_usage(folders[device]).free
            if num_bytes > free:
                raise UserError(
                    f"What is written may take {num_bytes:,} bytes, but only {free:,} are free in "
                    f"{folders[device]}: make room, or name outputs on another disk."
                )


@contextmanager
def replaced_output(path: Path) -> Iterator[Path]:
    """A file to write, of the same name in a folder of its own, since GDAL goes by names. It takes the place of `path`
    when the block ends, and is removed if it fails."""
    folder = aside_of(path)
    with explained_write_errors(path):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder / path.name
            synchronise(folder / path.name)
            os.replace(folder / path.name, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
