"""Writes GeoTIFFs row by row: tiled, compressed, with overviews, and with what GIS programs show of classes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from ..errors import UserError, first_line
from ..visualization import class_color
from .opening import RasterioError


try:
    import rasterio
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.windows import Window as RasterWindow
except ImportError:  # the extra "geo"
    pass

if TYPE_CHECKING:
    from rasterio.io import DatasetWriter


BLOCK = 512
CREATION = {
    "driver": "GTiff",
    "tiled": True,
    "blockxsize": BLOCK,
    "blockysize": BLOCK,
    "compress": "deflate",
    "bigtiff": "IF_SAFER",  # overviews past 4 GiB would be zeros otherwise
}
# 8-bit probabilities: 0 to this, so that one value is left for no data.
PROBABILITY_STEPS = 254


def label_type(num_classes: int) -> tuple[type, int]:
    """The type of a map of so many classes, and the value of pixels of none."""
    return (np.uint8, 255) if num_classes <= 255 else (np.uint16, 65535)


def write_labels(path: Path, rows: Iterable[tuple[int, np.ndarray]], profile: dict[str, Any], names: Sequence[str]):
    """
    Writes a map of classes with its colours and names, and beside it NAME.aux.xml, where GDAL looks for the names.

    Args:
        path (`Path`): The file.
        rows: Tops and rows (h, W) of it, from top to bottom.
        profile (`dict`): Its width, height, crs and transform.
        names (`Sequence[str]`): The classes.
    """
    dtype, nodata = label_type(len(names))
    with _opened(path, "w", **CREATION, **profile, count=1, dtype=dtype, nodata=nodata) as target:
        target.write_colormap(1, {index: (*class_color(index), 255) for index in range(len(names))})
        target.update_tags(class_names=json.dumps(dict(enumerate(names)), ensure_ascii=False))
        target.set_band_description(1, "class")
        for top, strip in _aligned(rows):
            target.write(strip, 1, window=RasterWindow(0, top, strip.shape[1], len(strip)))
    _add_overviews(path, Resampling.nearest)
    _write_names(path, names)


def write_probabilities(
    path: Path, rows: Iterable[tuple[int, np.ndarray]], profile: dict[str, Any], names: Sequence[str]
):
    """Writes probabilities of classes, a band for each, of rows (K, h, W) in steps of 1 / 254, and 255 for none."""
    own = {"count": len(names), "dtype": np.uint8, "nodata": 255, "interleave": "band"}
    with _opened(path, "w", **CREATION, **profile, **own) as target:
        target.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(names) - 1)
        target.scales = [1 / PROBABILITY_STEPS] * len(names)
        for band, name in enumerate(names, 1):
            target.set_band_description(band, name)
        for top, strip in _aligned(rows):
            target.write(strip, window=RasterWindow(0, top, strip.shape[-1], strip.shape[-2]))
    _add_overviews(path, Resampling.average)


@contextmanager
def _opened(path: Path, mode: str, **options: Any) -> "Iterator[DatasetWriter]":
    """A file of GDAL's to write to, also whose last errors, when it is closed, are sentences."""
    try:
        with rasterio.open(path, mode, **options) as target:
            yield target
    except RasterioError as error:
        raise UserError(f"Could not write {path}: {first_line(error.__cause__ or error)}.") from error


def _aligned(rows: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """The same rows in strips as high as the file's blocks, each of which is then compressed once."""
    top, waiting, height = 0, [], 0
    for _, strip in rows:
        while strip.shape[-2]:
            taken = strip[..., : BLOCK - height, :]
            strip = strip[..., taken.shape[-2] :, :]
            waiting.append(taken)
            height += taken.shape[-2]
            if height == BLOCK:
                yield top, np.concatenate(waiting, axis=-2)
                top, waiting, height = top + BLOCK, [], 0
    if waiting:
        yield top, np.concatenate(waiting, axis=-2)


def _add_overviews(path: Path, resampling: "Resampling"):
    with _opened(path, "r+") as target:
        longest, factors = max(target.width, target.height), []
        while longest > BLOCK * 2 ** len(factors):
            factors.append(2 ** (len(factors) + 1))
        if factors:
            target.build_overviews(factors, resampling)


def _write_names(path: Path, names: Sequence[str]):
    """As GDAL keeps what GeoTIFF has no place for: category names, which QGIS shows in the legend, and a table of
    classes, which ArcGIS reads."""
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    categories = ElementTree.SubElement(band, "CategoryNames")
    table = ElementTree.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    columns = (("Value", 0, 5), ("Class_Name", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
    for index, (name, kind, usage) in enumerate(columns):
        definition = ElementTree.SubElement(table, "FieldDefn", index=str(index))
        for tag, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            ElementTree.SubElement(definition, tag).text = str(value)
    for index, name in enumerate(names):
        ElementTree.SubElement(categories, "Category").text = name
        row = ElementTree.SubElement(table, "Row", index=str(index))
        for value in (index, name, *class_color(index)):
            ElementTree.SubElement(row, "F").text = str(value)
    ElementTree.ElementTree(root).write(f"{path}.aux.xml", encoding="utf-8")
