"""ultralytics reads and draws the polygons of YOLO's labels: python read_yolo.py EXPORT OUTPUT.png."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from ultralytics.data.utils import polygons2masks, verify_image_label
from ultralytics.utils.ops import resample_segments


export, output = map(Path, sys.argv[1:])
order = (export / "labelme" / "labels.txt").read_text().splitlines()
(image,) = (export / "yolo" / "images" / "train").iterdir()
label_file = export / "yolo" / "labels" / "train" / f"{image.stem}.txt"
arguments = (str(image), str(label_file), "", False, len(order), 0, 0, False)
_, labels, (height, width), segments, _, missing, found, empty, corrupt, message = verify_image_label(arguments)
assert (missing, found, empty, corrupt) == (0, 1, 0, 0), message
assert len(labels) == len(label_file.read_text().splitlines()), message
# As its data set does it before a mask is drawn.
length = max(map(len, segments))
segments = resample_segments(segments, n=length + 1 if length > 1000 else 1000)
points = [segment * np.array([width, height], np.float32) for segment in segments]
ids = np.full((height, width), 255, np.uint8)
for index, mask in zip(labels[:, 0], polygons2masks((height, width), points, color=1), strict=True):
    ids[mask > 0] = index
Image.fromarray(ids).save(output)
