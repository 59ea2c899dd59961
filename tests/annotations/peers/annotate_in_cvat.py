"""cvat-sdk's own driver annotates a stand-in task with our function: python annotate_in_cvat.py OUTPUT.json.

The task is one on a server that is not there: its labels, its frame and where its annotations go are stand-ins, the
driver with its checks and its decoder of masks are cvat-sdk's.
"""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from cvat_sdk import models
from cvat_sdk.auto_annotation import annotate_task, driver
from cvat_sdk.masks import decode_mask
from PIL import Image

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.integrations.cvat import create


LABELS = ["snow", "balloon", "water", "broccoli"]
SCENE = Path(__file__).parents[3] / "demo" / "scene.png"


def annotate(function, **options) -> list:
    """The shapes that the driver sends."""
    image = Image.open(SCENE)
    labels = [
        models.Label(name=name, id=70 + index, type="any", color="#ffffff", attributes=[], sublabels=[])
        for index, name in enumerate(reversed(LABELS))
    ]
    sample = SimpleNamespace(frame_index=5, frame_name="scene.png", media=SimpleNamespace(load_image=lambda: image))
    dataset = SimpleNamespace(labels=labels, samples=[sample])
    client = mock.Mock(logger=logging.getLogger("task"))
    with mock.patch.object(driver, "TaskDataset", lambda *arguments, **kwargs: dataset):
        annotate_task(client, 1, function, clear_existing=True, **options)
    (call,) = client.tasks.api.update_annotations.call_args_list
    return call.kwargs["labeled_data_request"].shapes


if __name__ == "__main__":
    function = create(EMBEDDED_MODEL, ", ".join(LABELS), device="cpu")
    size = np.array(Image.open(SCENE)).shape[:2]
    found = {}
    for threshold in (None, 0.9):
        result = function.segmenter(str(SCENE), LABELS, threshold=threshold, return_segmentation_map=True)
        expected = result["segmentation"].numpy()
        ids = np.full(size, -1)
        shapes = annotate(function, conf_threshold=threshold)
        for shape in shapes:
            assert shape.source == "auto" and shape.frame == 5 and shape.z_order == 0
            assert shape.score >= (threshold or 0)
            mask = decode_mask(shape.points, image_width=size[1], image_height=size[0])
            ids[mask] = LABELS.index(LABELS[::-1][shape.label_id - 70])
        differing = int((ids != expected).sum())
        found[f"conf_threshold {threshold}"] = {"shapes": len(shapes), "pixels that differ": differing}
    polygons = annotate(function, conv_mask_to_poly=True)
    assert {str(shape.type) for shape in polygons} == {"polygon"}
    found["conv_mask_to_poly"] = {"shapes": len(polygons)}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n")
    print(found)
