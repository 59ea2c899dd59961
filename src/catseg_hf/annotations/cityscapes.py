"""Cityscapes (Cordts et al., CVPR 2016): label maps of its ids or of its train ids."""

from functools import partial
from pathlib import Path

import numpy as np

from ..errors import UserError
from .dataset import MISSING_IMAGE, WITHOUT_LABELS, AnnotatedImage, Canvas, Dataset, Report
from .label_images import read_ids
from .sources import ImageFiles, split_of


IMAGE_FOLDER, LABEL_FOLDERS = "leftImg8bit", ("gtFine", "gtCoarse")
# From the ids that tell most to those that tell least.
KINDS = ("labelIds", "labelTrainIds", "instanceIds")
# By their ids; those of no train id count for no class in the benchmark.
NAMES = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road"),
    *("sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole"),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
    *("truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
LICENSE_PLATE = "license plate"
TRAIN_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
_VOID = NAMES[0]
# Instances are numbered as 1000 times their id and more.
_INSTANCES = 1000


def recognises(source: Path) -> bool:
    return (source / IMAGE_FOLDER).is_dir() and any((source / name).is_dir() for name in LABEL_FOLDERS)


def read(source: Path, images: Path | None) -> Dataset:
    """The 19 classes of the benchmark; the others are of no class unless `--classes` names them."""
    if not recognises(source):
        raise UserError(f"{source} has no {IMAGE_FOLDER}/ with {' or '.join(LABEL_FOLDERS)}/, as Cityscapes has it.")
    report, annotated = Report(), []
    image_files = ImageFiles([images or source / IMAGE_FOLDER])
    label_files: dict[str, dict[str, Path]] = {}
    for folder in LABEL_FOLDERS:
        for path in sorted((source / folder).rglob(f"*_{folder}_*Ids.png")):
            stem, _, kind = path.stem.partition(f"_{folder}_")
            if kind in KINDS and (folder == LABEL_FOLDERS[0] or stem not in label_files):
                label_files.setdefault(stem, {})[kind] = path
    for stem, kinds in label_files.items():
        kind = next(kind for kind in KINDS if kind in kinds)
        path = kinds[kind]
        try:
            file = image_files.find(f"{stem}_{IMAGE_FOLDER}.png")
        except UserError as error:
            report.problem(MISSING_IMAGE, f"{path}: {error}")
            continue
        split = split_of(path.parent.parent.name)
        annotated.append(AnnotatedImage(file, file.name, partial(_draw, path, kind), split, path))
    for file in image_files.stems():
        stem = file.removesuffix(f"_{IMAGE_FOLDER}")
        if stem not in label_files:
            report.problem(WITHOUT_LABELS, f"{file}: there is no {stem}_gtFine_labelIds.png")
    optional = [name for name in (*NAMES, LICENSE_PLATE) if name not in TRAIN_CLASSES and name != _VOID]
    return Dataset(list(TRAIN_CLASSES), annotated, report, ignored=frozenset({_VOID}), optional=optional)


def _draw(path: Path, kind: str, canvas: Canvas):
    ids = read_ids(path, canvas.size).astype(np.int64)
    if kind == "labelTrainIds":
        canvas.fill(ids, {**dict(enumerate(TRAIN_CLASSES)), 255: _VOID}, lambda number: f"train id {number}")
        return
    if kind == "instanceIds":
        ids = np.where(ids < _INSTANCES, ids, ids // _INSTANCES)
    # 255, 65535 and -1 are how 8 and 16 bits hold the license plate's.
    license_plate = dict.fromkeys((-1, 255, 65535), LICENSE_PLATE)
    canvas.fill(ids, {**dict(enumerate(NAMES)), **license_plate}, lambda number: f"id {number}")
