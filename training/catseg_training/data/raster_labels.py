"""Labels of rasters: other rasters of ids, or layers of polygons with a column of classes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from catseg_hf.bands_catseg import Window
from catseg_hf.errors import UserError, first_line
from catseg_hf.rasters import RasterReader, open_raster


try:
    import pyogrio
    import rasterio
    import shapely
    from affine import Affine
    from pyogrio.errors import DataSourceError
    from rasterio.errors import RasterioError
    from rasterio.features import rasterize
    from rasterio.windows import Window as RasterWindow
except ImportError:  # the extra "geo"
    pyogrio = rasterio = None
    DataSourceError = RasterioError = OSError


NO_CLASS = 255
MAX_CLASSES = 255
# The name of the tag that `catseg-hf raster` writes.
NAMES_TAG = "class_names"


class Labels(Protocol):
    """Of one raster; `classes` are their names, if the labels themselves have some."""

    classes: list[str] | None

    def read(self, window: Window, classes: Sequence[str]) -> np.ndarray:
        """The index in `classes` of every pixel, uint8 of shape (height, width); 255 for none."""


class RasterLabels:
    """
    A raster of ids, 0 for the first class, on the same pixels as the image.

    Args:
        path (`str`): The file.
        image ([`~rasters.RasterReader`]): The image.

    Raises:
        UserError: If it cannot be read, or lies on other pixels.
    """

    def __init__(self, path: str, image: RasterReader):
        self.path = path
        self.dataset = open_raster(path)
        for name, own, other in (
            ("size", self.dataset.shape, image.size),
            ("CRS", self.dataset.crs, image.crs),
            ("transform", tuple(self.dataset.transform)[:6], tuple(image.transform)[:6]),
        ):
            if own != other:
                raise UserError(
                    f"The labels {path!r} and the raster {image.source!r} have another {name} ({own} and {other}): "
                    "bring the labels onto the raster's pixels first, `gdalwarp -r near`."
                )
        if not np.issubdtype(self.dataset.dtypes[0], np.integer):
            raise UserError(f"The labels {path!r} are of the type {self.dataset.dtypes[0]}, but ids are integers.")
        tag = self.dataset.tags().get(NAMES_TAG)
        self.classes = None if tag is None else [name for _, name in sorted(json.loads(tag).items(), key=_by_id)]

    def read(self, window: Window, classes: Sequence[str]) -> np.ndarray:
        """See [`Labels`]."""
        place = RasterWindow(window.left, window.top, window.width, window.height)
        try:
            ids = self.dataset.read(1, window=place).astype(np.int64)
            is_held = self.dataset.read_masks(1, window=place) > 0
        except RasterioError as error:
            raise UserError(f"The labels {self.path!r} could not be read: {first_line(error)}.") from error
        ids[~is_held] = NO_CLASS
        others = np.unique(ids[(ids != NO_CLASS) & ((ids < 0) | (ids >= len(classes)))])
        if len(others):
            raise UserError(
                f"The labels {self.path!r} have the ids {others[:5].tolist()}, but there are {len(classes)} classes: "
                f"ids from 0 to {len(classes) - 1}, and {NO_CLASS} or nodata for none, are accepted."
            )
        return ids.astype(np.uint8)


class VectorLabels:
    """
    A layer of polygons. A pixel belongs to the last of them that its centre lies in, as `rasterio.features.rasterize`
    decides.

    Args:
        path (`str`): The file.
        image ([`~rasters.RasterReader`]): The image.
        column (`str`): The attribute with the name of the class.

    Raises:
        UserError: If it cannot be read, or has another CRS or no such column.
    """

    def __init__(self, path: str, image: RasterReader, column: str):
        if pyogrio is None:
            raise UserError('Polygons need pyogrio and shapely: install catseg_hf with its extra, "catseg_hf[geo]".')
        try:
            information, _, geometries, fields = pyogrio.raw.read(path)
        except DataSourceError as error:
            raise UserError(f"The labels {path!r} could not be read: {first_line(error)}.") from error
        crs = information["crs"] and rasterio.CRS.from_user_input(information["crs"])
        if crs != image.crs:
            raise UserError(
                f"The layer {path!r} has the CRS {crs}, but the raster {image.source!r} has {image.crs}: reproject "
                f"the layer first, `ogr2ogr -t_srs {image.crs} OUT.gpkg {Path(path).name}`."
            )
        columns = dict(zip(information["fields"], fields, strict=True))
        if column not in columns:
            raise UserError(
                f"--class_column is {column!r}, but the layer {path!r} has the columns "
                f"{', '.join(columns) or 'none'}: name one of these."
            )
        self.transform = image.transform
        self.geometries = shapely.from_wkb(geometries)
        self.names = [None if value is None else str(value) for value in columns[column]]
        self.classes = sorted({name for name in self.names if name is not None})
        self.tree = shapely.STRtree(self.geometries)

    def read(self, window: Window, classes: Sequence[str]) -> np.ndarray:
        """See [`Labels`]. Polygons of other classes are none."""
        own = self.transform
        left, top = own.c + own.a * window.left, own.f + own.e * window.top
        right, bottom = left + own.a * window.width, top + own.e * window.height
        box = shapely.box(min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        found = np.sort(self.tree.query(box))
        ids = {name: index for index, name in enumerate(classes)}
        drawn = [(self.geometries[index], ids.get(self.names[index], NO_CLASS)) for index in found]
        size = (window.height, window.width)
        if not drawn:
            return np.full(size, NO_CLASS, dtype=np.uint8)
        return rasterize(drawn, size, fill=NO_CLASS, transform=Affine(own.a, 0, left, 0, own.e, top), dtype="uint8")


def open_labels(path: str, image: RasterReader, column: str | None) -> Labels:
    """Labels of a raster: polygons where a column is named."""
    return RasterLabels(path, image) if column is None else VectorLabels(path, image, column)


def _by_id(pair: tuple[str, str]) -> int:
    return int(pair[0])
