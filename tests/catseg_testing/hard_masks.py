"""A label map on which converters lose pixels: holes, lines one pixel wide, several parts, corners that touch."""

import numpy as np
import torch
from PIL import Image


LABELS = ["grass", "water", "snow & ice", "never there"]
SIZE = (45, 61)
SCORES = {0: 0.75, 1: 0.5, 2: 0.875}


def hard_label_map() -> np.ndarray:
    """Of shape (45, 61), classes 0 to 2, -1 for none."""
    ids = np.full(SIZE, -1)
    ids[2:20, 3:25] = 0
    ids[6:12, 8:14] = 1  # fills a hole, and has one
    ids[8:10, 10:12] = -1
    ids[14, 5:20] = -1  # a hole one pixel wide
    ids[25, 3:50] = 1  # lines
    ids[22:44, 55] = 2
    ids[30, 30] = ids[31, 31] = ids[32, 30] = 0  # parts that touch at corners, around no hole
    ids[35:38, 35:38] = 2
    ids[36, 36] = -1  # a hole of one pixel
    ids[40, 10] = 2  # one pixel
    ids[0, 0] = ids[44, 60] = 1  # in the corners of the image
    ids[38:42, 20:28] = np.indices((4, 8)).sum(axis=0) % 2 - 1  # a chessboard
    return ids


def hard_result() -> dict:
    """As the pipeline returns it with `return_segmentation_map`."""
    ids = hard_label_map()
    segments = [
        {"label": LABELS[index], "score": score, "mask": Image.fromarray((ids == index).astype(np.uint8) * 255)}
        for index, score in SCORES.items()
    ]
    return {"segments": segments, "segmentation": torch.from_numpy(ids)}
