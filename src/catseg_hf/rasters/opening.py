"""Opens rasters, and refuses what could not be segmented to the end."""

import os
from typing import TYPE_CHECKING

from ..errors import UserError, first_line


try:
    import rasterio
    from rasterio.errors import RasterioError
except ImportError:  # the extra "geo"
    rasterio = None
    RasterioError = OSError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


# How the names of rasters begin that are not files here.
REMOTE = ("http://", "https://", "ftp://", "s3://", "gs://", "az://", "/vsi")


def require_rasterio():
    """
    Raises:
        UserError: If rasterio is not installed.
    """
    if rasterio is None:
        raise UserError('Rasters need rasterio: install it, or catseg_hf with its extra, "catseg_hf[geo]".')


def open_raster(source: str) -> "DatasetReader":
    """
    A raster of any kind that GDAL reads, by path or URL.

    Raises:
        UserError: If it cannot be opened, holds no bands, is rotated or is cut off.
    """
    require_rasterio()
    try:
        dataset = rasterio.open(source)
    except RasterioError as error:
        raise UserError(
            f"The raster {source!r} could not be opened: {first_line(error)}. Name a file or URL that GDAL reads."
        ) from error
    try:
        _check(dataset, source)
    except BaseException:
        dataset.close()
        raise
    return dataset


def _check(dataset: "DatasetReader", source: str):
    if dataset.count == 0:
        parts = ", ".join(dataset.subdatasets[:3]) or "none"
        raise UserError(f"The raster {source!r} has no bands itself: name one of its parts ({parts}).")
    transform = dataset.transform
    if transform.b or transform.d:
        raise UserError(
            f"The raster {source!r} is rotated (its transform is {tuple(transform)[:6]}), but only rasters whose rows "
            "and columns follow the axes of their coordinate system are accepted: turn it first, "
            "`gdalwarp IN.tif UPRIGHT.tif`."
        )
    if not source.startswith(REMOTE):  # of which GDAL would look for dozens of files beside it, one by one
        for path in dataset.files:
            if os.path.isfile(path):
                _check_complete(path)


def _check_complete(path: str):
    """Refuses a TIFF some of whose blocks would lie after the end of the file: what a broken download leaves."""
    with open(path, "rb") as file:
        if file.read(2) not in (b"II", b"MM"):
            return
    size = os.path.getsize(path)
    with rasterio.open(path, driver="GTiff") as dataset:
        separate = dataset.interleaving is not None and dataset.interleaving.value.lower() == "band"
        for band in dataset.indexes if separate else [1]:
            block_height, block_width = dataset.block_shapes[band - 1]
            for row in range(-(-dataset.height // block_height)):
                for column in range(-(-dataset.width // block_width)):
                    place = f"{column}_{row}"
                    offset, length = (
                        int(dataset.get_tag_item(f"BLOCK_{name}_{place}", "TIFF", bidx=band) or 0)
                        for name in ("OFFSET", "SIZE")
                    )
                    if offset + length > size:
                        raise UserError(
                            f"The raster {path!r} is cut off: its rows from {row * block_height} of {dataset.height} "
                            f"lie after the end of the file, at {size:,} bytes. Copy or download it again."
                        )
