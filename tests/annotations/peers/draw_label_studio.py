"""Label maps of Label Studio's JSON: brushes by its SDK's decoder, polygons and upright rectangles by its SDK's COCO
export with pycocotools: python draw_label_studio.py JSON CONFIG OUTPUT."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from label_maps import write, write_classes
from label_studio_sdk.converter import Converter
from label_studio_sdk.converter.brush import decode_rle
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO


def corners(left: float, top: float, width: float, height: float) -> list[float]:
    right, bottom = left + width, top + height
    return [left, top, right, top, right, bottom, left, bottom]


source, config, output = map(Path, sys.argv[1:])
tasks = json.loads(source.read_text())
converter = Converter(config.read_text(), str(source.parent), download_resources=False)
names = []
for task in tasks:
    with tempfile.TemporaryDirectory() as folder:
        single = Path(folder, "task.json")
        single.write_text(json.dumps([task]))
        converter.convert_to_coco(str(single), folder, is_dir=False)
        coco = COCO(str(Path(folder, "result.json")))
        shapes = coco.loadAnns(sorted(coco.getAnnIds()))
        polygons = iter([shape["segmentation"] for shape in shapes if shape["segmentation"]])
        boxes = iter([shape["bbox"] for shape in shapes if not shape["segmentation"]])
        results = task["annotations"][0]["result"]
        height, width = results[0]["original_height"], results[0]["original_width"]
        labels = np.full((height, width), -1)
        for result in results:
            name = result["value"][result["type"]][0]
            if name not in names:
                names.append(name)
            if result["type"] == "brushlabels":
                mask = decode_rle(result["value"]["rle"]).reshape(height, width, 4)[..., 3] > 0
            else:
                parts = next(polygons) if result["type"] == "polygonlabels" else [corners(*next(boxes))]
                encoded = coco_mask.frPyObjects(parts, height, width)
                mask = coco_mask.decode(coco_mask.merge(encoded)).astype(bool)
            labels[mask] = names.index(name)
        write(output, "default", Path(task["data"]["image"]).name, labels)
write_classes(output, dict(enumerate(names)))
