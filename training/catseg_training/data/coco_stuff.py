"""The COCO-Stuff 164k download (Caesar et al., CVPR 2018): its folders and its class ids.

    ROOT/images/train2017/*.jpg            ROOT/images/val2017/*.jpg           of train2017.zip and val2017.zip
    ROOT/stuffthingmaps/train2017/*.png    ROOT/stuffthingmaps/val2017/*.png   of stuffthingmaps_trainval2017.zip

`images/` may be missing (train2017/ and val2017/ then lie in ROOT), and `stuffthingmaps/` may be called
`stuffthingmaps_trainval2017/` or `annotations/`. A label has its image's name and raw ids: 0 to 181, of which 11
never occur, and 255 where nothing is labelled.
"""

from pathlib import Path

import numpy as np

from catseg_hf.errors import UserError

from .paired_folders import Pair, matched_pairs


NUM_CLASSES = 171
UNLABELLED = 255
# Raw ids that no class has: categories that were planned for COCO and then left out.
MISSING_RAW_IDS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
# Pairs in the whole download.
NUM_PAIRS = {"train": 118_287, "validation": 5_000}

IMAGE_FOLDERS = ("images", "")
LABEL_FOLDERS = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
SPLIT_FOLDERS = {"train": "train2017", "validation": "val2017", "val": "val2017"}


def _raw_to_contiguous() -> np.ndarray:
    table = np.full(256, UNLABELLED, dtype=np.uint8)
    table[np.setdiff1d(np.arange(182), MISSING_RAW_IDS)] = np.arange(NUM_CLASSES)
    return table


# (256,) uint8: from a raw id to the position in the vocabulary, `UNLABELLED` for all that is no class.
RAW_TO_CONTIGUOUS = _raw_to_contiguous()


def is_coco_stuff_folder(root: Path) -> bool:
    """Whether a folder has labels where the download has them."""
    return any((root / labels / split).is_dir() for labels in LABEL_FOLDERS for split in SPLIT_FOLDERS.values())


def coco_stuff_folders(root: Path, split: str) -> tuple[Path, Path]:
    """
    Where a split's images and labels lie.

    Args:
        root (`Path`): The folder with `images/` and `stuffthingmaps/`.
        split (`str`): "train", or "validation" ("val" for short).

    Raises:
        UserError: If there is no such split, or one of its folders is missing.
    """
    if split not in SPLIT_FOLDERS:
        raise UserError(f"COCO-Stuff ({root}) has no split {split!r}: choose one of {', '.join(SPLIT_FOLDERS)}.")
    folders = []
    for kind, names in (("images", IMAGE_FOLDERS), ("labels", LABEL_FOLDERS)):
        places = [root / name / SPLIT_FOLDERS[split] for name in names]
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise UserError(
                f"The {kind} of split {split!r} are missing: none of {', '.join(map(str, places))} is a folder. Unzip "
                "the download there."
            )
        folders.append(found)
    return folders[0], folders[1]


def coco_stuff_pairs(root: Path, split: str) -> list[Pair]:
    """
    Images and their labels, sorted by name.

    Args:
        root (`Path`): The folder with `images/` and `stuffthingmaps/`.
        split (`str`): "train", or "validation" ("val" for short).

    Raises:
        UserError: If there is no such split, nothing in it, or images have no label.
    """
    return matched_pairs(*coco_stuff_folders(root, split))
