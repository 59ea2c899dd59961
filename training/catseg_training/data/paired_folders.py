"""Pictures in one folder and their label maps, under the same names, in another."""

import logging
import os
from pathlib import Path

from catseg_hf.errors import UserError


logger = logging.getLogger(__name__)

Pair = tuple[Path, Path]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".bmp", ".png", ".tif", ".tiff")
# Some tools write a second label beside the first, which is none of any picture.
DERIVED_LABEL_ENDING = "_labelTrainIds"
LABEL_FOLDERS = ("labels", "annotations")
SHORT_NAMES = {"validation": "val", "val": "validation"}


def is_paired_folder(root: Path) -> bool:
    """Whether a folder holds `images/` and `labels/` (or `annotations/`)."""
    return (root / "images").is_dir() and any((root / name).is_dir() for name in LABEL_FOLDERS)


def folder_pairs(root: Path, split: str) -> list[Pair]:
    """
    Pictures of `root/images/SPLIT` and their labels of `root/labels/SPLIT` (or `root/annotations/SPLIT`), sorted by
    name. "validation" and "val" stand for each other.

    Raises:
        UserError: If there is no such split, nothing in it, or pictures have no label.
    """
    labels = next(root / name for name in LABEL_FOLDERS if (root / name).is_dir())
    return matched_pairs(_split_folder(root / "images", split), _split_folder(labels, split))


def _split_folder(parent: Path, split: str) -> Path:
    for name in (split, SHORT_NAMES.get(split)):
        if name and (parent / name).is_dir():
            return parent / name
    names = sorted(path.name for path in parent.iterdir() if path.is_dir())
    raise UserError(
        f"{parent} has no folder for the split {split!r}: "
        + (f"it has {', '.join(names)}." if names else f"move its files into {parent / split}.")
    )


def matched_pairs(image_folder: Path, label_folder: Path) -> list[Pair]:
    """
    Pictures and labels of the same name (in the same subfolder, if there are any), sorted by name. Labels without a
    picture are left out with a warning.

    Raises:
        UserError: If there is no picture, or pictures have no label.
    """
    images, labels = files_by_name(image_folder, IMAGE_SUFFIXES), label_files(label_folder)
    if not images:
        raise UserError(f"There are no pictures in {image_folder}: accepted are {', '.join(IMAGE_SUFFIXES)}.")
    without_label = sorted(images.keys() - labels.keys())
    if without_label:
        raise UserError(
            f"{len(without_label):,} of {len(images):,} pictures in {image_folder} have no label of the same name in "
            f"{label_folder}: {first_names(without_label)}. Add the labels or take these pictures out."
        )
    without_image = sorted(labels.keys() - images.keys())
    if without_image:
        logger.warning(
            f"{len(without_image):,} of {len(labels):,} labels in {label_folder} have no picture in {image_folder} "
            f"and are not used: {first_names(without_image)}."
        )
    return [(images[name], labels[name]) for name in sorted(images)]


def label_files(folder: Path) -> dict[str, Path]:
    """Label maps of a folder by name."""
    files = files_by_name(folder, LABEL_SUFFIXES)
    return {name: path for name, path in files.items() if not name.endswith(DERIVED_LABEL_ENDING)}


def files_by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """
    Files of a folder and its subfolders by their name in it without the suffix. Hidden ones are left out.

    Raises:
        UserError: If two files differ in nothing but the suffix.
    """
    files: dict[str, Path] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for file in names:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() not in suffixes or file.startswith("."):
                continue
            path = Path(parent, file)
            name = stem if parent == str(folder) else str(path.relative_to(folder).with_suffix(""))
            if name in files:
                raise UserError(f"{files[name]} and {path} have the same name: keep one of them.")
            files[name] = path
    return files


def first_names(names: list[str], count: int = 5) -> str:
    """The first few of sorted names, for messages."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
