"""Writes a GeoTIFF of a scene, `scene.tif`, and a graph for it, `model/model.onnx`, into a folder: `python
write_gis_model.py FOLDER`."""

import sys
from pathlib import Path

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.export.fixed import export_fixed
from catseg_testing.gis import RESOLUTION, scene, words
from catseg_testing.rasters import write_raster


folder = Path(sys.argv[1])
write_raster(folder / "scene.tif", scene())
export_fixed(EMBEDDED_MODEL, folder / "model", "onnx", words(), target="gis", resolution=RESOLUTION)
