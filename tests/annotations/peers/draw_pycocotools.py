"""Label maps of COCO JSONs by pycocotools, shapes in the order of the file: python draw_pycocotools.py OUTPUT
SPLIT=JSON [SPLIT=JSON+JSON ...]. Several files of a split are drawn one over the other."""

import sys
from pathlib import Path

import numpy as np
from label_maps import write, write_classes
from pycocotools.coco import COCO


output, names = Path(sys.argv[1]), {}
for argument in sys.argv[2:]:
    split, _, paths = argument.partition("=")
    drawn = {}
    for path in paths.split("+"):
        coco = COCO(path)
        names |= {category["id"]: category["name"] for category in coco.dataset["categories"]}
        for image in coco.dataset["images"]:
            labels = drawn.setdefault(image["file_name"], np.full((image["height"], image["width"]), -1))
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
                if annotation["segmentation"]:
                    labels[coco.annToMask(annotation).astype(bool)] = annotation["category_id"]
    for name, labels in drawn.items():
        write(output, split, name, labels)
write_classes(output, names)
