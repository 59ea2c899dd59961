"""labelme reads its JSON file: python read_labelme.py EXPORT OUTPUT.png."""

import sys
from pathlib import Path

import numpy as np
from labelme import utils
from labelme._label_file import read_label_file
from PIL import Image


export, output = map(Path, sys.argv[1:])
(path,) = (export / "labelme").glob("*.json")
data = read_label_file(str(path))
size = utils.img_data_to_arr(data.image_data).shape[:2]
labels = (export / "labelme" / "labels.txt").read_text().splitlines()
values = {label: index + 1 for index, label in enumerate(labels)}
ids, _ = utils.shapes_to_label(size, data.shapes, values)
Image.fromarray(np.where(ids == 0, 255, ids - 1).astype(np.uint8)).save(output)
