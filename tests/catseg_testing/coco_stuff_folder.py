"""A small synthetic COCO-Stuff folder in the layout of the download."""

from pathlib import Path

import numpy as np
from PIL import Image

from catseg_training.data.coco_stuff import RAW_TO_CONTIGUOUS, UNLABELLED


def write_coco_stuff_folder(
    root: Path, num_train: int = 4, num_val: int = 2, size: tuple[int, int] = (60, 80), seed: int = 0
) -> Path:
    """
    Writes images and labels with raw ids, blocks of 255 among them.

    Args:
        root (`Path`): The folder to write, `images/` and `stuffthingmaps/` in it.
        num_train (`int`), num_val (`int`): Number of pairs.
        size (`tuple[int, int]`): Height and width of the first image; every other one is upright.
        seed (`int`): Of the contents.

    Returns:
        `Path`: `root`.
    """
    generator = np.random.default_rng(seed)
    raw_ids = np.append(np.flatnonzero(RAW_TO_CONTIGUOUS != UNLABELLED), UNLABELLED)
    for split, count in (("train2017", num_train), ("val2017", num_val)):
        images, labels = root / "images" / split, root / "stuffthingmaps" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            height, width = size if index % 2 == 0 else size[::-1]
            blocks = generator.choice(raw_ids, (-(-height // 10), -(-width // 10))).astype(np.uint8)
            # Unlabelled pixels and the largest raw id in every label, as in nearly every real one.
            blocks[0, :2] = UNLABELLED, 181
            label = np.repeat(np.repeat(blocks, 10, axis=0), 10, axis=1)[:height, :width]
            # One colour for each class, so that there is something to learn.
            colors = np.stack([label, 3 * label, 7 * label], axis=-1)
            name = f"{generator.integers(10**6):012d}"
            Image.fromarray(colors).save(images / f"{name}.jpg", quality=95)
            Image.fromarray(label).save(labels / f"{name}.png")
    return root
