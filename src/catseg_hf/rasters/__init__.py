"""Georeferenced rasters: read window by window through GDAL, and written as maps of classes with what GIS programs
need of them."""

from .opening import open_raster
from .outputs import Outputs
from .reading import RasterReader
from .segmentation import RasterSegmenter, RasterSettings


__all__ = ["Outputs", "RasterReader", "RasterSegmenter", "RasterSettings", "open_raster"]
