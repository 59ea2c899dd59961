"""Small georeferenced rasters for tests."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from PIL import Image


ROOT = Path(__file__).parents[2]
# Half metres in UTM zone 33.
TRANSFORM = Affine(0.5, 0, 400_000, 0, -0.5, 5_600_000)


def scene(height: int = 200, width: int = 300) -> np.ndarray:
    """A part of the demo's scene, uint8 of shape (3, height, width)."""
    image = Image.open(ROOT / "demo" / "scene.png").convert("RGB").crop((0, 0, width, height))
    return np.asarray(image).transpose(2, 0, 1).copy()


def write_raster(path: Path, bands: np.ndarray, **profile: object) -> Path:
    """Bands (C, H, W) as a tiled, compressed GeoTIFF; the profile can say otherwise."""
    count, height, width = bands.shape
    settings = {
        "driver": "GTiff",
        "crs": "EPSG:32633",
        "transform": TRANSFORM,
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
        "compress": "deflate",
        **profile,
    }
    size = {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio.open(path, "w", **size, **settings) as target:
        target.write(bands)
    return path
