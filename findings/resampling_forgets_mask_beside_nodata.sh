#!/usr/bin/env bash
# rasterio 1.4.4 (GDAL 3.10.3). A GeoTIFF may have a mask of its own and a nodata value. Read as it is, the mask decides:
# `read_masks` knows nothing of nodata. Resampled by WarpedVRT, nodata decides and the mask is forgotten without a word,
# with `add_alpha=True` as without: masked pixels come out as valid. With `src_nodata=None` and `add_alpha=True` it is
# the other way round, so that it takes two readers to know both.
# Output seen, of a pixel that is masked, one of nodata and one that holds something:
# as it is [0, 255, 255]; resampled [255, 0, 255]; with alpha [255, 0, 255]; without nodata [0, 255, 255].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "rasterio==1.4.4" "numpy==2.3.5"
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

transform = rasterio.Affine(1, 0, 400_000, 0, -1, 5_600_000)
pixels = np.full((1, 60, 40), 100, np.uint8)
pixels[:, 20:40] = 0
profile = {"driver": "GTiff", "width": 40, "height": 60, "count": 1, "dtype": "uint8", "nodata": 0}
with (
    rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
    rasterio.open("a.tif", "w", crs="EPSG:32633", transform=transform, **profile) as target,
):
    target.write(pixels)
    target.write_mask(np.arange(60)[:, None].repeat(40, axis=1) >= 20)

seen = {}
with rasterio.open("a.tif") as source:
    seen["as it is"] = source.read_masks(1)[[10, 30, 50], 20].tolist()
    for name, options in (
        ("resampled", {}),
        ("with alpha", {"add_alpha": True}),
        ("without nodata", {"add_alpha": True, "src_nodata": None}),
    ):
        size = {"transform": transform @ rasterio.Affine.scale(2), "width": 20, "height": 30}
        with WarpedVRT(source, crs=source.crs, resampling=Resampling.bilinear, **size, **options) as warped:
            seen[name] = warped.read_masks(1)[[5, 15, 25], 10].tolist()
print(seen)
assert seen == {
    "as it is": [0, 255, 255],
    "resampled": [255, 0, 255],
    "with alpha": [255, 0, 255],
    "without nodata": [0, 255, 255],
}
PYTHON
