"""datumaro reads CVAT's XML: python read_cvat.py EXPORT OUTPUT.png."""

import sys
from pathlib import Path

import numpy as np
from datumaro import Dataset
from datumaro.components.annotation import AnnotationType
from PIL import Image


export, output = map(Path, sys.argv[1:])
dataset = Dataset.import_from(str(export / "cvat" / "annotations.xml"), "cvat")
(item,) = dataset
(image,) = [item.media]
names = [label.name for label in dataset.categories()[AnnotationType.label]]
order = [line for line in (export / "labelme" / "labels.txt").read_text().splitlines()]
ids = np.full(item.annotations[0].image.shape, 255, np.uint8)
for annotation in item.annotations:
    ids[np.asarray(annotation.image) > 0] = order.index(names[annotation.label])
Image.fromarray(ids).save(output)
