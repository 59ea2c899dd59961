#!/usr/bin/env bash
# What GeoDeep's own code makes of `--target gis`: `bash tests/export/peers/geodeep.sh`, with access to PyPI. Writes
# geodeep.json (what its reader found in the metadata) and geodeep.png (its map of a small GeoTIFF) beside this script,
# which tests/export/test_gis_readers.py compares with what is computed now. PYTHON has catseg_hf with the extras
# `export` and `geo`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PYTHONPATH="$here/../..:$here/../../../training:${PYTHONPATH:-}" "$python" "$here/write_gis_model.py" "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet geodeep==0.9.13 onnxruntime==1.32.0 rasterio==1.4.4 numpy==2.4.6 pillow==12.3.0
env -u PYTHONPATH "$work/venv/bin/python" "$here/read_geodeep.py" "$work" "$here"
