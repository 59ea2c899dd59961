#!/usr/bin/env bash
# What the tools' own code reads of our exports: `bash tests/annotations/peers/judge_exports.sh`, with access to PyPI.
# Writes exports/ (what was read) and readings/ (label maps, and COCO's AP of the export against itself) beside this
# script, which tests/annotations/test_annotation_exports.py compares with what is written now. PYTHON has catseg_hf.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PYTHONPATH="$here/../..:${PYTHONPATH:-}" "$python" "$here/write_exports.py" "$work/exports"

judge() { # a name, its packages, and the formats that they read
  python3 -m venv "$work/$1"
  # shellcheck disable=SC2086
  "$work/$1/bin/pip" install --quiet $2
  for kind in classes instances; do
    mkdir -p "$here/readings/$kind"
    for format in $3; do
      env -u PYTHONPATH "$work/$1/bin/python" "$here/read_$format.py" "$work/exports/$kind" "$here/readings/$kind/$format.png"
    done
  done
}

export QT_QPA_PLATFORM=offscreen
rm -rf "$here/exports" "$here/readings"
judge pycocotools "pycocotools==2.0.11 numpy==2.3.5 pillow==12.3.0" coco
judge label-studio-sdk "label-studio-sdk==2.1.2" label_studio
judge labelme "labelme==6.3.1" labelme
judge datumaro "datumaro==1.13.12" "cvat coco_panoptic voc"
judge ultralytics "ultralytics==8.4.190 opencv-python-headless" yolo
for kind in classes instances; do
  mkdir -p "$here/exports/$kind"
  (cd "$work/exports/$kind" && find . -type f ! -path ./hard.png ! -path ./hard_labels.png ! -name .catseg-hf -exec cp --parents {} "$here/exports/$kind" \;)
done
