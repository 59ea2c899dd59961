"""supervision takes our detections: python detect_in_supervision.py OUTPUT.json."""

import json
import sys
from pathlib import Path

import numpy as np
import supervision

from catseg_hf.annotations import to_supervision
from catseg_testing.hard_masks import LABELS, SCORES, hard_label_map, hard_result


found, ids = {}, hard_label_map()
for instances in (False, True):
    detections = to_supervision(hard_result(), LABELS, instances=instances)
    assert isinstance(detections, supervision.Detections)
    drawn = np.full(ids.shape, -1)
    for mask, index, score in zip(detections.mask, detections.class_id, detections.confidence, strict=True):
        drawn[mask] = index
        assert score == SCORES[index]
    boxes = supervision.mask_to_xyxy(detections.mask) + [0, 0, 1, 1]  # its own end at the last pixel
    found[f"instances {instances}"] = {
        "detections": len(detections),
        "pixels that differ": int((drawn != ids).sum()),
        "boxes that differ": int((boxes != detections.xyxy).any(axis=1).sum()),
    }
    assert list(detections["class_name"]) == [LABELS[index] for index in detections.class_id]
assert len(detections[detections.confidence > 0.6]) < len(detections)
Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n")
print(found)
