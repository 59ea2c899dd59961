"""datumaro reads COCO panoptic: python read_coco_panoptic.py EXPORT OUTPUT.png."""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from datumaro import Dataset
from datumaro.components.annotation import AnnotationType
from PIL import Image


export, output = map(Path, sys.argv[1:])
with tempfile.TemporaryDirectory() as folder:
    # The names by which it knows the format.
    annotations = Path(folder, "annotations")
    shutil.copytree(export / "coco_panoptic" / "panoptic", annotations / "panoptic_train")
    shutil.copy(export / "coco_panoptic" / "panoptic.json", annotations / "panoptic_train.json")
    Path(folder, "images", "train").mkdir(parents=True)
    shutil.copy(export / "hard.png", Path(folder, "images", "train"))
    dataset = Dataset.import_from(folder, "coco_panoptic")
    (item,) = dataset
    names = [label.name for label in dataset.categories()[AnnotationType.label]]
    order = (export / "labelme" / "labels.txt").read_text().splitlines()
    ids = np.full(np.asarray(item.annotations[0].image).shape, 255, np.uint8)
    for annotation in item.annotations:
        ids[np.asarray(annotation.image) > 0] = order.index(names[annotation.label])
Image.fromarray(ids).save(output)
