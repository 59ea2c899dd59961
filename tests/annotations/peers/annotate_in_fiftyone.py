"""FiftyOne applies our model to a dataset in its database: python annotate_in_fiftyone.py OUTPUT.json."""

import json
import sys
from pathlib import Path

import fiftyone
import numpy as np

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.integrations.fiftyone import CATSegFiftyOneModel
from catseg_hf.loading import load_segmenter


LABELS = ["snow", "balloon", "water", "broccoli"]
SCENE = Path(__file__).parents[3] / "demo" / "scene.png"


segmenter = load_segmenter(EMBEDDED_MODEL, "cpu")
dataset = fiftyone.Dataset(overwrite=True, name="catseg-hf")
dataset.add_sample(fiftyone.Sample(filepath=str(SCENE)))
found = {}
for threshold in (None, 0.9):
    result = segmenter(str(SCENE), LABELS, threshold=threshold, return_segmentation_map=True)
    expected = result["segmentation"].numpy()
    model = CATSegFiftyOneModel(segmenter, LABELS)
    dataset.apply_model(model, label_field="segmentation", confidence_thresh=threshold)
    dataset.default_mask_targets = model.mask_targets
    stored = dataset.first()["segmentation"].mask
    parts = CATSegFiftyOneModel(segmenter, LABELS, instances=True, min_area=1)
    dataset.apply_model(parts, label_field="parts", confidence_thresh=threshold, batch_size=2)
    drawn = np.full(expected.shape, -1)
    detections = dataset.first()["parts"].detections
    height, width = expected.shape
    for detection in detections:
        left, top, box_width, box_height = detection.bounding_box
        x, y = round(left * width), round(top * height)
        assert detection.mask.shape == (round(box_height * height), round(box_width * width))
        window = drawn[y : y + detection.mask.shape[0], x : x + detection.mask.shape[1]]
        window[detection.mask > 0] = LABELS.index(detection.label)
    found[f"confidence_thresh {threshold}"] = {
        "pixels that differ": int((stored.astype(int) - 1 != expected).sum()),
        "detections": len(detections),
        "pixels of detections that differ": int((drawn != expected).sum()),
    }
fiftyone.delete_dataset("catseg-hf")
Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n")
print(found)
