"""datumaro reads PASCAL VOC: python read_voc.py EXPORT OUTPUT.png."""

import sys
from pathlib import Path

import numpy as np
from datumaro import Dataset
from datumaro.components.annotation import AnnotationType
from PIL import Image


export, output = map(Path, sys.argv[1:])
dataset = Dataset.import_from(str(export / "voc"), "voc_segmentation")
(item,) = dataset
names = [label.name for label in dataset.categories()[AnnotationType.label]]
order = (export / "labelme" / "labels.txt").read_text().splitlines()
ids = np.full(np.asarray(item.annotations[0].image).shape, 255, np.uint8)
for annotation in item.annotations:
    if names[annotation.label] != "background":
        ids[np.asarray(annotation.image) > 0] = order.index(names[annotation.label])
Image.fromarray(ids).save(output)
