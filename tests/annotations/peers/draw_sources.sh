#!/usr/bin/env bash
# Draws the sources of make_sources.py with the tools that they are of, each in an environment of its own, and writes
# what CI compares with: tests/annotations/peers/draw_sources.sh SOURCES EXPECTED. Needs the network, and Python 3.11 or newer.
# ENVIRONMENTS names a folder in which environments stay for the next run.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
sources=$(realpath -m "$1") expected=$(realpath -m "$2")
if [ -z "${ENVIRONMENTS:-}" ]; then
  ENVIRONMENTS=$(mktemp -d)
  trap 'rm -rf "$ENVIRONMENTS"' EXIT
fi

draw() { # environment, its packages in one word, script with its arguments
  local python="$ENVIRONMENTS/$1/bin/python"
  if [ ! -x "$python" ]; then
    python3 -m venv "$ENVIRONMENTS/$1"
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet $2
  fi
  (cd "$here" && env -u PYTHONPATH QT_QPA_PLATFORM=offscreen "$python" "${@:3}")
}

rm -rf "$sources" "$expected"
mkdir -p "$sources" "$expected"
python "$here/make_sources.py" "$sources"

coco=$sources/coco/annotations roboflow=$sources/roboflow
draw pycocotools "pycocotools==2.0.11 pillow" draw_pycocotools.py "$expected/coco" \
  "train=$coco/stuff_train2017.json+$coco/instances_train2017.json" "val=$coco/instances_val2017.json"
draw pycocotools "pycocotools==2.0.11 pillow" draw_pycocotools.py "$expected/roboflow" \
  "train=$roboflow/train/_annotations.coco.json" "valid=$roboflow/valid/_annotations.coco.json"
draw labelme "labelme==6.3.1" draw_labelme.py "$sources/labelme" "$expected/labelme"
for pair in coco_panoptic:coco_panoptic cvat:cvat voc:voc_segmentation cvat_masks:voc_segmentation camvid:camvid; do
  name=${pair%%:*}
  draw datumaro "datumaro==1.13.12" draw_datumaro.py "$sources/$name" "${pair##*:}" "$expected/$name"
done
draw cityscapes "cityscapesscripts==2.2.4" draw_cityscapes.py "$sources/cityscapes" "$expected/cityscapes"
draw label_studio "label-studio-sdk==2.1.2 pycocotools==2.0.11" draw_label_studio.py \
  "$sources/label_studio/export.json" "$sources/label_studio/config.xml" "$expected/label_studio"
draw ultralytics "ultralytics==8.4.190" draw_ultralytics.py "$sources/yolo" "$expected/yolo"
