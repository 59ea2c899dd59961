"""Maps of classes as polygons, made band by band of rows and in one piece across them."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError, first_line


try:
    import pyogrio
    import shapely
    from affine import Affine
    from pyogrio.errors import DataSourceError
    from rasterio.features import rasterize, shapes
except ImportError:  # the extra "geo"
    pyogrio = shapely = None
    DataSourceError = OSError

if TYPE_CHECKING:
    from rasterio.crs import CRS


DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON", ".fgb": "FlatGeobuf"}


def check_vector_packages():
    """
    Raises:
        UserError: If shapely or pyogrio is not installed.
    """
    if pyogrio is None:
        raise UserError('Polygons need pyogrio and shapely: install catseg_hf with its extra, "catseg_hf[geo]".')


@dataclass
class Polygons:
    """
    N polygons.

    Attributes:
        geometries (`np.ndarray` of `shapely.Polygon`): In pixels from the raster's corner, x to the right and y down.
        classes (`np.ndarray`): Of each its class.
        probabilities (`np.ndarray`): The mean over its pixels of the probability of its class, in 0..1.
        num_pixels (`np.ndarray`): How many these are.
    """

    geometries: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    num_pixels: np.ndarray

    def largest(self, min_area: int) -> "Polygons":
        """Those of at least so many pixels."""
        kept = self.num_pixels >= min_area
        return Polygons(*(values[kept] for values in vars(self).values()))

    def simplified(self, tolerance: float) -> "Polygons":
        """With borders of fewer corners, the same ones on both sides, that moved by about `tolerance` pixels. The
        other values stay those of the pixels."""
        if not len(self.geometries):
            return self
        # Neighbours have a vertex in common wherever a third one begins only after this.
        covered = shapely.coverage_clean(self.geometries)
        simple = shapely.coverage_simplify(covered, tolerance)
        kept = ~shapely.is_empty(simple)
        return Polygons(simple[kept], self.classes[kept], self.probabilities[kept], self.num_pixels[kept])


class Polygonizer:
    """
    Makes polygons of a map of classes: pixels of one class that have sides in common are one, with its holes.

    Args:
        nodata (`int`): The value of pixels of no class.
    """

    def __init__(self, nodata: int):
        self.nodata = nodata
        self._pieces: list = []
        self._classes: list[int] = []
        self._num_pixels: list[np.ndarray] = []
        self._sums: list[np.ndarray] = []
        self._parents: list[int] = []
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, top: int, labels: np.ndarray, probability: np.ndarray):
        """Takes the next rows (h, W): classes, and their probabilities in 0..255."""
        place = Affine.translation(0, top)
        found = list(shapes(labels, mask=labels != self.nodata, connectivity=4, transform=place))
        first = len(self._pieces)
        owners = np.full(labels.shape, -1, dtype=np.int32)
        if found:
            numbered = [(shape, first + index) for index, (shape, _) in enumerate(found)]
            rasterize(numbered, out=owners, transform=place)
        is_held = owners >= 0
        own, values = owners[is_held] - first, probability[is_held]
        self._num_pixels.append(np.bincount(own, minlength=len(found)))
        self._sums.append(np.bincount(own, weights=values, minlength=len(found)) / 255)
        for shape, value in found:
            exterior, *holes = shape["coordinates"]
            self._pieces.append(shapely.Polygon(exterior, holes))
            self._classes.append(int(value))
            self._parents.append(len(self._parents))
        if self._last is not None:
            above, owners_above = self._last
            is_common = (above == labels[0]) & (above != self.nodata)
            for pair in np.unique(np.stack([owners_above[is_common], owners[0][is_common]]), axis=1).T:
                self._join(*map(int, pair))
        self._last = labels[-1], owners[-1]

    def _root(self, index: int) -> int:
        while self._parents[index] != index:
            self._parents[index] = self._parents[self._parents[index]]
            index = self._parents[index]
        return index

    def _join(self, first: int, second: int):
        first, second = sorted((self._root(first), self._root(second)))
        self._parents[second] = first

    def polygons(self) -> Polygons:
        """Those of all rows, from top to bottom."""
        groups = defaultdict(list)
        for index in range(len(self._pieces)):
            groups[self._root(index)].append(index)
        num_pixels, sums = (np.concatenate([[], *parts]) for parts in (self._num_pixels, self._sums))
        areas = np.array([num_pixels[own].sum() for own in groups.values()], dtype=np.int64)
        totals = np.array([sums[own].sum() for own in groups.values()])
        geometries = np.empty(len(groups), dtype=object)
        for index, own in enumerate(groups.values()):
            geometries[index] = _joined([self._pieces[piece] for piece in own])
        classes = np.array([self._classes[root] for root in groups], dtype=np.int64)
        return Polygons(geometries, classes, totals / np.maximum(areas, 1), areas)


def _joined(pieces: list) -> "shapely.Polygon":
    """Pieces that have sides in common as one polygon, with no vertex but its corners. Coordinates are integers, and
    so exact."""
    if len(pieces) == 1:
        return pieces[0]
    whole = shapely.union_all(pieces)
    return shapely.Polygon(_corners(whole.exterior), [_corners(hole) for hole in whole.interiors])


def _corners(ring: "shapely.LinearRing") -> np.ndarray:
    points = shapely.get_coordinates(ring)[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def write_polygons(
    path: Path, polygons: Polygons, names: Sequence[str], transform: "Affine", crs: "CRS | None", layer: str
):
    """
    Writes polygons with the attributes `class` (its name), `class_id`, `probability`, `pixels` and `area` (in square
    units of the CRS; not for one in degrees).

    Raises:
        UserError: If the file cannot be written.
    """
    geometries = shapely.transform(polygons.geometries, lambda points: _to_crs(points, transform))
    geometries = shapely.orient_polygons(geometries)
    kind = "Polygon"
    if (shapely.get_type_id(geometries) != shapely.GeometryType.POLYGON).any():
        kind = "MultiPolygon"
        geometries = np.array([shapely.multipolygons(shapely.get_parts(geometry)) for geometry in geometries])
    columns = {
        "class": np.array([names[index] for index in polygons.classes], dtype=object),
        "class_id": polygons.classes.astype(np.int32),
        "probability": polygons.probabilities.astype(np.float64),
        "pixels": polygons.num_pixels.astype(np.int64),
    }
    if crs is None or not crs.is_geographic:
        columns["area"] = polygons.num_pixels * abs(transform.a * transform.e)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")  # the raster has none, which has been said
            pyogrio.raw.write(
                path,
                geometry=shapely.to_wkb(geometries),
                field_data=list(columns.values()),
                fields=list(columns),
                geometry_type=kind,
                crs=None if crs is None else crs.to_wkt(),
                driver=DRIVERS[path.suffix.lower()],
                layer=layer,
            )
    except (DataSourceError, RuntimeError) as error:
        raise UserError(f"Could not write {path}: {first_line(error)}.") from error


def _to_crs(points: np.ndarray, transform: "Affine") -> np.ndarray:
    return points * (transform.a, transform.e) + (transform.c, transform.f)
