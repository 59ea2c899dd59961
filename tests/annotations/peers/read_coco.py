"""pycocotools reads annotations.json, and evaluates it against itself: python read_coco.py EXPORT OUTPUT.png."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


export, output = map(Path, sys.argv[1:])
coco = COCO(export / "annotations.json")
(image,) = coco.imgs.values()
ids = np.full((image["height"], image["width"]), 255, np.uint8)
for annotation in coco.anns.values():
    mask = coco.annToMask(annotation)
    left, top, width, height = annotation["bbox"]
    assert mask[top : top + height, left : left + width].sum() == mask.sum() == annotation["area"]
    ids[mask > 0] = annotation["category_id"] - 1
Image.fromarray(ids).save(output)
precisions = {}
for kind in ("segm", "bbox"):
    evaluation = COCOeval(coco, coco.loadRes(list(map(dict, coco.anns.values()))), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precisions[kind] = float(evaluation.stats[0])
output.with_suffix(".json").write_text(json.dumps(precisions) + "\n")
