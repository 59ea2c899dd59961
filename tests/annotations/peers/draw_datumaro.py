"""Label maps by datumaro, which CVAT exports with: python draw_datumaro.py SOURCE FORMAT OUTPUT.

Polygons and boxes become masks by its own transforms, and the higher z_order lies over the lower."""

import sys
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset
from label_maps import write, write_classes


source, name, output = sys.argv[1:]
dataset = Dataset.import_from(source, name)
if name == "cvat":
    dataset.transform("polygons_to_masks")
    dataset.transform("boxes_to_masks")
categories = dataset.categories()[AnnotationType.label]
for item in dataset:
    masks = [annotation for annotation in item.annotations if annotation.type == AnnotationType.mask]
    if not masks and name != "cvat":
        continue
    labels = np.full(masks[0].image.shape if masks else item.media.size, -1)
    for mask in sorted(masks, key=lambda mask: mask.z_order):
        labels[np.asarray(mask.image, dtype=bool)] = mask.label if mask.label is not None else -1
    write(Path(output), item.subset, item.id + ".png", labels)
write_classes(Path(output), {index: label.name for index, label in enumerate(categories.items)})
