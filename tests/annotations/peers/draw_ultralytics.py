"""Label maps of YOLO segmentation by Ultralytics' reader and rasteriser: python draw_ultralytics.py SOURCE OUTPUT."""

import sys
from pathlib import Path

import numpy as np
from label_maps import write, write_classes
from ultralytics.data.utils import check_det_dataset, img2label_paths, polygons2masks_overlap, verify_image_label
from ultralytics.utils.patches import imread


source, output = map(Path, sys.argv[1:])
data = check_det_dataset(str(source / "data.yaml"), autodownload=False)
for split in ("train", "val", "test"):
    folder = data.get(split)
    for image in sorted(Path(folder).glob("*")) if folder else []:
        label = img2label_paths([str(image)])[0]
        checked = verify_image_label((str(image), label, "", False, len(data["names"]), 0, 0, False))
        boxes, (height, width), segments = checked[1:4]
        assert imread(str(image)).shape[:2] == (height, width)
        labels = np.full((height, width), -1)
        if segments:
            scaled = [segment * np.array([width, height], np.float32) for segment in segments]
            masks, order = polygons2masks_overlap((height, width), scaled)
            classes = boxes[:, 0].astype(int)[order]
            labels = np.where(masks > 0, classes[np.maximum(masks.astype(int) - 1, 0)], -1)
        write(output, split, image.name, labels)
write_classes(output, dict(data["names"]))
