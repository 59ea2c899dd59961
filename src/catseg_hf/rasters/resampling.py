"""Rasters at another resolution, resampled as they are read."""

from typing import TYPE_CHECKING

from ..errors import UserError


try:
    from affine import Affine
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT
except ImportError:  # the extra "geo"
    pass

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


def resampled(dataset: "DatasetReader", source: str, resolution: float, *, by_mask: bool) -> "WarpedVRT":
    """
    A raster with pixels of another size, from the same corner, bilinear (over all pixels that a larger one covers).

    Args:
        dataset (`rasterio.DatasetReader`): The raster.
        source (`str`): What messages call it.
        resolution (`float`): Units of its CRS per pixel.
        by_mask (`bool`): Whether the mask beside the bands says what holds something, as a last band, alpha. If not,
            nodata and alpha of the file do: GDAL forgets a mask where there is nodata.

    Raises:
        UserError: If it has no CRS, one in degrees, or the resolution makes no pixels of it.
    """
    if dataset.crs is None:
        raise UserError(
            f"--resolution is {resolution:g}, but the raster {source!r} has no coordinate reference system, so that "
            "its units are unknown: give it one, `gdal_edit.py -a_srs EPSG:NUMBER`, or leave the option out."
        )
    if dataset.crs.is_geographic:
        raise UserError(
            f"--resolution is {resolution:g}, but the raster {source!r} is in degrees ({dataset.crs}), which are not "
            "equally long everywhere: reproject it to metres first, `gdalwarp -t_srs EPSG:NUMBER IN.tif OUT.tif`, or "
            "leave the option out."
        )
    transform = dataset.transform
    # Rounded, so that the middle of every pixel lies in the raster: beyond it there would be zeros.
    width, height = (
        round(abs(side) * count / resolution)
        for side, count in ((transform.a, dataset.width), (transform.e, dataset.height))
    )
    if width < 1 or height < 1:
        raise UserError(
            f"--resolution is {resolution:g}, but the raster {source!r} is only {abs(transform.a) * dataset.width:g} "
            f"by {abs(transform.e) * dataset.height:g} units of its CRS: give a smaller number."
        )
    scaled = Affine(
        resolution if transform.a > 0 else -resolution,
        0,
        transform.c,
        0,
        resolution if transform.e > 0 else -resolution,
        transform.f,
    )
    validity = {"src_nodata": None, "add_alpha": True} if by_mask else {}
    return WarpedVRT(
        dataset,
        src_crs=dataset.crs,
        crs=dataset.crs,
        transform=scaled,
        width=width,
        height=height,
        resampling=Resampling.bilinear,
        **validity,
    )
