"""label-studio-sdk decodes the brush masks: python read_label_studio.py EXPORT OUTPUT.png."""

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter import brush
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image


export, output = map(Path, sys.argv[1:])
(task,) = json.loads((export / "label_studio" / "tasks.json").read_text())
interface = LabelInterface((export / "label_studio" / "config.xml").read_text())
order = (export / "labelme" / "labels.txt").read_text().splitlines()
(prediction,) = task["predictions"]
assert interface.validate_prediction(prediction)
ids = None
for region in prediction["result"]:
    height, width = region["original_height"], region["original_width"]
    if ids is None:
        ids = np.full((height, width), 255, np.uint8)
    mask = brush.decode_rle(region["value"]["rle"]).reshape(height, width, 4)[..., 3] > 0
    (label,) = region["value"]["brushlabels"]
    ids[mask] = order.index(label)
Image.fromarray(ids).save(output)
